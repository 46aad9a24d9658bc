"""The log of `flask run`."""

import sys
from pathlib import Path

from tests.live import free_port, running
from tests.support import close, migrated_app, sqlite_database
from tests.test_requests import LIST, said


def test_the_development_server_writes_no_line_of_its_own(tmp_path: Path) -> None:
    log, port = tmp_path / "log", free_port()
    with sqlite_database() as url:
        close(migrated_app(url))
        environ = {"DATABASE_URL": url.render_as_string(), "IDENTITY_PROVIDER": "development"}
        command = [sys.executable, "-m", "flask", "--app", "wsgi", "run", "--port", str(port)]
        with running(command, port, environ, log, ready="/health/live") as live:
            assert live.request("GET", "/api/alice/tasks?q=secret") == (200, [])
    written = log.read_text()
    assert "secret" not in written
    lines = [said(line) for line in written.splitlines() if "tasks" in line]
    assert [(line["route"], line["status"], line["user_id"]) for line in lines] == [(LIST, 200, "alice")]
