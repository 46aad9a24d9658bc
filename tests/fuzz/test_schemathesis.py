"""Schemathesis tries a live service by its own OpenAPI document; schemathesis.toml says how."""

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import URL

from tests.live import gunicorn
from tests.support import ROOT, close, empty_database, migrated_app, token

#: In the ordinary run; `make fuzz` tries another seed and more.
SEED = 1
EXAMPLES = 5

#: What each operation must have answered at least once, or nothing has been tried.
REACHED = {
    "GET /health/live": {200},
    "GET /health/ready": {200},
    "GET /api/{user_id}/tasks": {200, 400, 401, 403},
    "POST /api/{user_id}/tasks": {201, 400, 401, 403, 415},
    "PATCH /api/{user_id}/tasks": {200, 400, 401, 403, 415},
    "DELETE /api/{user_id}/tasks": {200, 400, 401, 403},
    "GET /api/{user_id}/tasks/changes": {200, 400, 401, 403},
    "GET /api/{user_id}/tasks/{task_id}": {200, 400, 401, 403, 404},
    "PUT /api/{user_id}/tasks/{task_id}": {200, 400, 401, 403, 404, 412, 415},
    "DELETE /api/{user_id}/tasks/{task_id}": {204, 400, 401, 403, 404, 412},
    "PATCH /api/{user_id}/tasks/{task_id}/complete": {200, 400, 401, 403, 404, 412, 415},
}


class Trial(NamedTuple):
    """How Schemathesis has tried the service: its report in JSON and for readers, and the statuses by operation."""

    report: dict[str, Any]
    output: str
    reached: dict[str, set[int]]


def try_by_document(url: URL, folder: Path, *, seed: int, examples: int) -> Trial:
    """Try a gunicorn on that database; all files go into the folder."""
    close(migrated_app(url))
    with gunicorn(url, folder / "log", WEB_CONCURRENCY="1") as server:
        long_lived = {name: token(name, exp=int(time.time()) + 7200) for name in ("alice", "bob")}
        identities = [
            {"name": name, "fixedHeaders": [{"name": "Authorization", "value": f"Bearer {value}"}]}
            for name, value in long_lived.items()
        ]
        (folder / "identities.json").write_text(json.dumps({"auth": identities}))
        command = [
            sys.executable,
            "-m",
            "schemathesis.cli",
            f"--config-file={ROOT / 'tests/fuzz/schemathesis.toml'}",
            "run",
        ]
        options = [f"--seed={seed}", f"--max-examples={examples}", "--no-color"]
        reports = ["--report-json-path=report.json", "--report-ndjson-path=events"]
        run = subprocess.run(
            [*command, f"http://127.0.0.1:{server.port}/openapi.json", *options, *reports],
            cwd=folder,
            env=os.environ | {"IDENTITIES": str(folder / "identities.json")},
            capture_output=True,
            text=True,
            check=False,
        )
    assert (folder / "report.json").exists(), run.stdout + run.stderr
    reached: dict[str, set[int]] = defaultdict(set)
    for line in (folder / "events").read_text().splitlines():
        recorder = json.loads(line).get("ScenarioFinished", {}).get("recorder", {})
        for case_id, interaction in recorder.get("interactions", {}).items():
            case = recorder["cases"][case_id]["value"]
            reached[f"{case['method']} {case['path']}"].add(interaction["response"]["status_code"])
    return Trial(json.loads((folder / "report.json").read_text()), run.stdout, reached)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_the_service_answers_as_its_document_says(server: URL, database: str, tmp_path: Path) -> None:
    with empty_database(database, server) as url:
        report, output, reached = try_by_document(url, tmp_path, seed=SEED, examples=EXAMPLES)
    assert (report["exit_code"], report["complete"], report["errors"]) == (0, True, []), output
    assert report["operations"]["tested"] == len(REACHED)
    for operation, statuses in REACHED.items():
        assert statuses <= reached[operation], operation
