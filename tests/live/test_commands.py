"""The commands as processes: at a terminal, into a full disk, beside a live service."""

import json
import os
import pty
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL

from tests.live import gunicorn
from tests.support import ROOT, SECRET, Caller, Make
from tests.test_commands import owned, run
from todo.tasks.commands import make_tasks

#: Of the user's clock, whenever that was, and of the user's row.
INSTANTS = {"changed_at": None, "forgotten_at": None, "incarnation": None}


def test_every_task_that_was_made_is_erased_or_a_new_users(
    app: Flask, alice: Caller, url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user goes on making tasks while they are erased over and over."""
    monkeypatch.setattr("todo.users.commands.BATCH", 2)
    is_over = threading.Event()

    def make_tasks_until_it_is_over(name: str) -> int:
        number = 0
        while not is_over.is_set():
            headers = {"Idempotency-Key": f"{name}{number}"} if name == "a" else {}
            response = alice("POST", json={"title": f"{number}"}, headers=headers)
            # On SQLite the writers take turns, in no order; one that waits for too long gets a 503.
            assert response.status_code in (201, 503)
            number += response.status_code == 201
            # Leaves SQLite's only place to others too, or the command would be told that it is taken.
            time.sleep(0.005)
        return number

    erased: list[int] = []
    deadline = time.monotonic() + 60
    with ThreadPoolExecutor(2) as pool:
        making = [pool.submit(make_tasks_until_it_is_over, name) for name in "ab"]
        try:
            while len(erased) < 8 and time.monotonic() < deadline:
                result = run(app, "users", "delete", "alice", "--yes")
                if result.exit_code == 0:
                    erased.extend(map(int, re.findall(r"(\d+) tasks", result.stdout)))
                else:
                    assert "There is no user alice" in result.stderr, result
        finally:
            is_over.set()
        made = sum(future.result() for future in making)
    assert len(erased) == 8
    assert sum(erased) + owned(url)["tasks"]["alice"] == made


def test_a_live_service_accepts_a_token_of_the_command(sqlite: URL, tmp_path: Path) -> None:
    jwt = {"IDENTITY_PROVIDER": "jwt", "JWT_SECRET": SECRET}
    with started(sqlite, "token", "josé 🥛", environ=jwt, stdout=subprocess.PIPE) as process:
        minted, _ = process.communicate()
    with gunicorn(sqlite, tmp_path / "log") as live:
        bearer = {"Authorization": f"Bearer {minted.decode().strip()}"}
        path = "/api/jos%C3%A9%20%F0%9F%A5%9B/tasks"
        assert live.request("POST", path, json={"title": "x"}, **bearer)[0] == 201


def test_a_reader_that_has_enough_ends_the_export_quietly(sqlite: URL, make: Make) -> None:
    run(make(sqlite), "seed", "alice", "--count", "5000")
    with started(sqlite, "users", "export", "alice", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert (
            json.loads(process.stdout.readline()) | INSTANTS
            == {"kind": "user", "id": "alice", "email": None} | INSTANTS
        )
        process.stdout.close()
        assert process.stderr
        assert process.stderr.read() == b""


def test_a_full_disk_is_said_in_one_line(alice: Caller, url: URL) -> None:
    alice.create()
    with (
        Path("/dev/full").open("wb") as full,
        started(url, "users", "export", "alice", stdout=full, stderr=subprocess.PIPE) as process,
    ):
        assert process.stderr
        # At its end Python tries once more, and complains of that too.
        assert process.stderr.readline() == b"Error: The output failed: No space left on device\n"
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode != 0


def started(
    url: URL, *arguments: str, environ: dict[str, str] | None = None, **options: Any
) -> subprocess.Popen[bytes]:
    """`flask` with those arguments, as a process."""
    settings = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": url.render_as_string(hide_password=False),
        "IDENTITY_PROVIDER": "development",
    }
    whole = settings | (environ or {})
    return subprocess.Popen([sys.executable, "-m", "flask", *arguments], cwd=ROOT, env=whole, **options)


def on_a_terminal(url: URL, *arguments: str, is_read: bool = False) -> str:
    """What a terminal shows of stderr, and where it is read there of stdout."""
    terminal, side = pty.openpty()
    stdout = side if is_read else subprocess.DEVNULL
    process = started(url, *arguments, stdout=stdout, stderr=side)
    os.close(side)
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 65536)
        except OSError:
            break
    os.close(terminal)
    assert process.wait() == 0, shown
    return shown.decode()


def test_progress_is_shown_if_a_command_takes_long_at_a_terminal(sqlite: URL) -> None:
    assert re.search(r"Making tasks .*100%", on_a_terminal(sqlite, "seed", "alice", "--count", "5001"))
    # It would stand between lines that are read on the terminal.
    assert "Writing" not in on_a_terminal(sqlite, "users", "export", "alice", is_read=True)
    assert re.search(r"Erasing .*100%", on_a_terminal(sqlite, "users", "delete", "alice", "--yes"))
    assert on_a_terminal(sqlite, "seed", "alice", "--count", "50") == ""


def test_a_user_is_given_the_same_tasks_each_time() -> None:
    def texts(user_id: str) -> list[tuple[str, str, str]]:
        return [(task["title"], task["description"], task["status"]) for task in make_tasks(user_id, 30, 10**16)]

    assert texts("alice") == texts("alice")
    assert texts("alice") != texts("bob")


def test_a_token_holds_no_longer_than_asked_for(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    # An hour if it is not said. The leeway is half a minute.
    for late, minutes, status in ((35, [], 401), (20, [], 200), (0, ["59"], 401), (0, ["61"], 200)):
        monkeypatch.setattr("todo.identity.commands.time", lambda ago=3600 + late: datetime.now(UTC).timestamp() - ago)
        token = run(app, "token", "alice", *(["--minutes", *minutes] if minutes else [])).stdout.strip()
        response = app.test_client().get("/api/alice/tasks", headers={"Authorization": f"Bearer {token}"})
        assert response.status_code == status
