"""Prometheus itself reads the figures, as docs/operations.md configures it."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from sqlalchemy import URL

from tests.ecosystem.programs import program
from tests.live import Server, free_port, gunicorn
from tests.support import ROOT, close, migrated_app, sqlite_database

pytestmark = pytest.mark.ecosystem

PAGE = (ROOT / "docs/operations.md").read_text()
(CONFIGURATION,) = re.findall("```yaml\n(scrape_configs:.*?)```", PAGE, re.DOTALL)
(TOKEN,) = re.findall("METRICS_TOKEN=(\\S+)", PAGE)


@pytest.fixture
def database() -> Iterator[URL]:
    """A migrated database."""
    with sqlite_database() as url:
        close(migrated_app(url))
        yield url


@pytest.fixture
def live(database: URL, tmp_path: Path) -> Iterator[Server]:
    """A gunicorn of two workers that has been asked for some things."""
    with gunicorn(database, tmp_path / "log", METRICS_TOKEN=TOKEN) as live:
        for path in [*["/api/alice/tasks"] * 7, "/api/alice/tasks/x", "/nowhere"]:
            live.request("GET", path)
        live.request("POST", "/api/alice/tasks", json={"title": "x"})
        yield live


def test_promtool_has_nothing_against_them(live: Server) -> None:
    scrape = Request(f"http://127.0.0.1:{live.port}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    with urlopen(scrape, timeout=10) as response:
        exposition = response.read()
    command = [program("promtool"), "check", "metrics"]
    result = subprocess.run(command, input=exposition, capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


@pytest.fixture
def prometheus(live: Server, tmp_path: Path) -> Iterator[str]:
    """The address of a Prometheus that is configured as docs/operations.md says, and looks every second."""
    configuration, port = tmp_path / "prometheus.yml", free_port()
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    scraped = CONFIGURATION.replace("127.0.0.1:8000", f"127.0.0.1:{live.port}")
    scraped = scraped.replace("/etc/prometheus/todo-token", str(tmp_path / "token"))
    configuration.write_text(f"global: {{scrape_interval: 1s, scrape_timeout: 1s}}\n{scraped}")
    command = [program("prometheus"), f"--config.file={configuration}", f"--storage.tsdb.path={tmp_path / 'series'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}"]
    log = tmp_path / "prometheus.log"
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        yield f"http://127.0.0.1:{port}"
        process.terminate()


def ask(prometheus: str, query: str) -> list[Any]:
    """What Prometheus knows."""
    with urlopen(f"{prometheus}/api/v1/query?query={quote(query)}", timeout=5) as response:
        return list(json.load(response)["data"]["result"])


def test_prometheus_knows_what_was_asked(prometheus: str) -> None:
    by_kind = "sum by (method, route, status) (todo_http_requests_total{route!~'/metrics|/health/.*'})"
    deadline = time.monotonic() + 30
    found: list[Any] = []
    while not found:
        assert time.monotonic() < deadline
        time.sleep(0.2)
        try:
            found = ask(prometheus, by_kind)
        except OSError:
            continue
    assert {tuple(sorted(series["metric"].values())): series["value"][1] for series in found} == {
        ("/api/<user_id>/tasks", "200", "GET"): "7",
        ("/api/<user_id>/tasks", "201", "POST"): "1",
        ("/api/<user_id>/tasks/<task_id>", "400", "GET"): "1",
        ("404", "GET", "unmatched"): "1",
    }
    (up,) = ask(prometheus, "up{job='todo'}")
    assert up["value"][1] == "1"
    quantile = "histogram_quantile(0.9, sum by (le) (todo_http_request_duration_seconds_bucket))"
    assert 0 < float(ask(prometheus, quantile)[0]["value"][1]) < 10


def wait_until_up_is(prometheus: str, value: str) -> None:
    """Return once Prometheus has scraped, or has been refused."""
    deadline = time.monotonic() + 30
    while True:
        assert time.monotonic() < deadline
        with suppress(OSError):
            if [series["value"][1] for series in ask(prometheus, "up{job='todo'}")] == [value]:
                return
        time.sleep(0.2)


def test_prometheus_reads_a_new_token_without_a_restart(prometheus: str, tmp_path: Path) -> None:
    wait_until_up_is(prometheus, "1")
    (tmp_path / "token").write_text("not-the-token-of-the-service")
    wait_until_up_is(prometheus, "0")
    (tmp_path / "token").write_text(TOKEN)
    wait_until_up_is(prometheus, "1")
