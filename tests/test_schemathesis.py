"""Schemathesis tries a live service by its own OpenAPI document; tests/schemathesis.toml says how."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from tests.live import gunicorn
from tests.support import ROOT, close, migrated_app, postgresql_database, sqlite_database, token

#: In the ordinary run; `make fuzz` tries another seed and more.
SEED = 1
EXAMPLES = 5


def try_by_document(url: URL, folder: Path, *, seed: int, examples: int) -> tuple[dict[str, Any], str]:
    """What Schemathesis reports of a gunicorn on that database, as JSON and as text; its files go into the folder."""
    close(migrated_app(url))
    with gunicorn(url, folder / "log") as server:
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
            "--config-file",
            str(ROOT / "tests/schemathesis.toml"),
            "run",
        ]
        options = ["--seed", str(seed), "--max-examples", str(examples), "--report-json-path", "report.json"]
        environ = os.environ | {"IDENTITIES": str(folder / "identities.json")}
        run = subprocess.run(
            [*command, f"http://127.0.0.1:{server.port}/openapi.json", *options, "--no-color"],
            cwd=folder,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
    report = folder / "report.json"
    assert report.exists(), run.stdout + run.stderr
    return json.loads(report.read_text()), run.stdout


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_the_service_answers_as_its_document_says(server: URL, database: str, tmp_path: Path) -> None:
    with sqlite_database() if database == "sqlite" else postgresql_database(server) as url:
        report, output = try_by_document(url, tmp_path, seed=SEED, examples=EXAMPLES)
    assert (report["exit_code"], report["complete"], report["errors"]) == (0, True, []), output
    assert report["operations"]["tested"] == report["operations"]["total"] == 8
    assert report["test_cases"]["generated"] >= 300
