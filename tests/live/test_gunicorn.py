"""What only a live gunicorn shows: framing, keep-alive, workers, restarts."""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL

from tests.live import WAITING, Server, gunicorn
from tests.support import (
    PATIENCE,
    close,
    empty_database,
    migrated_app,
    migrated_database,
    session,
    settings,
    silent_database,
    sql,
    sqlite_database,
    token,
    wait_until,
)
from todo import create_app
from todo.db import db


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, server: URL) -> Iterator[URL]:
    """A migrated database of this module's own."""
    with empty_database(request.param, server) as url:
        close(migrated_app(url))
        yield url


@pytest.fixture(scope="module")
def live(database: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gunicorn of two workers."""
    with gunicorn(database, tmp_path_factory.mktemp("live") / "log") as server:
        yield server


@pytest.fixture(autouse=True)
def _empty(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "database" in request.fixturenames:
        sql(request.getfixturevalue("database"), "DELETE FROM users")


def head(method: str, path: str, *lines: str) -> bytes:
    """The head of a request of alice."""
    fixed = ["Host: localhost", f"Authorization: Bearer {token()}", "Content-Type: application/json"]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *fixed, *lines, "", ""]).encode()


BODY = b'{"title": "x"}'
BYE = "Connection: close"


@pytest.mark.parametrize(("method", "path"), [("POST", ""), ("PUT", "/1"), ("PATCH", "/1/complete")])
def test_a_chunked_body_is_411_and_nothing_is_written(live: Server, method: str, path: str) -> None:
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    answer = live.raw(head(method, f"/api/alice/tasks{path}", "Transfer-Encoding: chunked", BYE) + chunked)
    assert answer.startswith(b"HTTP/1.1 411 ")
    assert answer.endswith(b'{"error":"Content-Length is required: a chunked body is not accepted"}\n')
    assert live.request("GET", "/api/alice/tasks") == (200, [])


def test_a_body_over_one_mebibyte_is_413(live: Server) -> None:
    largest = BODY.ljust(1024 * 1024)
    accepted = live.raw(head("POST", "/api/alice/tasks", f"Content-Length: {len(largest)}", BYE) + largest)
    assert accepted.startswith(b"HTTP/1.1 201 ")
    refused = live.raw(head("POST", "/api/alice/tasks", f"Content-Length: {len(largest) + 1}", BYE) + largest + b" ")
    assert refused.startswith(b"HTTP/1.1 413 ")
    assert refused.endswith(b'{"error":"Request body must be 1 MiB or less"}\n')
    assert len(live.request("GET", "/api/alice/tasks")[1]) == 1


def line_of(length: int) -> bytes:
    """A request line of so many bytes, its end not counted."""
    start, end = "GET /openapi.json?q=", " HTTP/1.1"
    return f"{start}{'x' * (length - len(start) - len(end))}{end}".encode()


@pytest.mark.parametrize(("length", "status"), [(8190, b"200"), (8191, b"414"), (100_000, b"414")])
def test_a_request_line_over_8190_bytes_is_414(live: Server, length: int, status: bytes) -> None:
    rest = head("GET", "/", BYE).partition(b"\r\n")[2]
    assert live.raw(line_of(length) + b"\r\n" + rest).split(b" ", 2)[1] == status


@pytest.mark.parametrize(("length", "status"), [(8190, b"200"), (8191, b"431"), (100_000, b"431")])
def test_a_header_over_8190_bytes_is_431(live: Server, length: int, status: bytes) -> None:
    line = "X: ".ljust(length - 2, "x")
    assert live.raw(head("GET", "/api/alice/tasks", BYE, line)).split(b" ", 2)[1] == status


@pytest.mark.parametrize(("count", "status"), [(100, b"200"), (101, b"431"), (10_000, b"431")])
def test_more_than_a_hundred_headers_are_431(live: Server, count: int, status: bytes) -> None:
    request = head("GET", "/api/alice/tasks", BYE)
    more = [f"X{number}: x" for number in range(count - request.count(b"\r\n") + 2)]
    assert live.raw(head("GET", "/api/alice/tasks", BYE, *more)).split(b" ", 2)[1] == status


def test_a_body_of_five_mebibytes_is_413_before_it_has_been_sent(live: Server) -> None:
    answer = live.raw(head("POST", "/api/alice/tasks", f"Content-Length: {5 * 1024 * 1024}", BYE) + b" " * 1024)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert live.request("GET", "/api/alice/tasks") == (200, [])


def test_the_rest_of_an_unread_body_is_not_taken_for_a_request(live: Server) -> None:
    smuggled = b"DELETE /api/alice/tasks/1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for method in ("GET", "DELETE"):
        request = head(method, "/api/alice/tasks/999999", f"Content-Length: {len(smuggled)}") + smuggled
        answer = live.raw(request + head("GET", "/api/alice/tasks", BYE))
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"404", b"200"]


def test_a_connection_is_kept_for_many_requests_and_through_errors(live: Server) -> None:
    connection = live.connect()
    for _ in range(5):
        assert live.send(connection, "GET", "/api/alice/tasks") == (200, [])
        assert live.send(connection, "GET", "/api/alice/tasks/x")[0] == 400
        assert live.send(connection, "POST", "/api/alice/tasks", json={"title": ""})[0] == 400
        assert live.send(connection, "GET", "/api/bob/tasks")[0] == 403
        assert live.send(connection, "DELETE", "/api/alice/tasks/999999")[0] == 404
    connection.close()


@pytest.mark.parametrize("name", ["SCRIPT_NAME", "Script-Name", "PATH_INFO"])
def test_no_header_says_where_links_lead(live: Server, name: str) -> None:
    lines = [f"{name}: //evil.example", f"Content-Length: {len(BODY)}", BYE]
    answer = live.raw(head("POST", "/api/alice/tasks", *lines) + BODY)
    assert answer.startswith(b"HTTP/1.1 201 ")
    assert b"Location: /api/alice/tasks/" in answer


def test_two_authorization_headers_are_401(live: Server) -> None:
    answer = live.raw(head("GET", "/api/alice/tasks", f"Authorization: Bearer {token()}", BYE))
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b'WWW-Authenticate: Bearer error="invalid_token"\r\n' in answer


def test_two_workers_lose_no_write_and_make_one_user(live: Server, database: URL) -> None:
    assert len(live.workers()) == 2

    def work(number: int) -> int:
        status, task = live.request("POST", "/api/carol/tasks", "carol", json={"title": str(number)})
        assert status == 201, task
        return live.request("PATCH", f"/api/carol/tasks/{task['id']}/complete", "carol")[0]

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(work, range(50))) == {200}
    status, tasks = live.request("GET", "/api/carol/tasks?status=complete", "carol")
    assert (status, sorted(int(task["title"]) for task in tasks)) == (200, list(range(50)))
    assert sql(database, "SELECT id FROM users") == [("carol",)]


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGHUP, signal.SIGINT]])
def test_it_ends_within_ten_seconds_whatever_clients_do_and_answers_what_is_in_progress(
    server: URL, tmp_path: Path, numbers: list[signal.Signals]
) -> None:
    """Also if it is still waiting for its old workers after a HUP."""
    with migrated_database("postgresql", server) as database, ExitStack() as stack:
        live = stack.enter_context(gunicorn(database, tmp_path / "log", WEB_CONCURRENCY="1"))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        half = head("POST", "/api/alice/tasks", f"Content-Length: {len(BODY)}") + BODY[:5]
        with socket.create_connection(("127.0.0.1", live.port)) as stuck, session(database) as connection:
            stuck.sendall(half)
            if signal.SIGHUP in numbers:
                os.kill(live.process.pid, signal.SIGHUP)
                wait_until(lambda: live.log.read_text().count("Booting worker") == 2)
            connection.exec_driver_sql("LOCK TABLE tasks")
            waiting = pool.submit(live.request, "POST", "/api/alice/tasks", json={"title": "x"})
            while sql(database, WAITING) == []:
                time.sleep(0.01)
            started = time.monotonic()
            os.kill(live.process.pid, numbers[-1])
            time.sleep(0.3)
            connection.rollback()
            assert waiting.result()[0] == 201
            assert live.process.wait(15) == 0
            assert 1 < time.monotonic() - started < 10


def test_what_needs_no_database_is_answered_while_the_database_is_silent(tmp_path: Path) -> None:
    """All connections wait for it, and 32 clients ask for more: lists, searches of one user, searches of several."""
    with silent_database() as (_, url), ExitStack() as stack:
        environ = {"WEB_CONCURRENCY": "1", "WEB_THREADS": "8", "METRICS_TOKEN": "a-token-for-prometheus"}
        scraper = f"Authorization: Bearer {environ['METRICS_TOKEN']}"
        metrics = f"GET /metrics HTTP/1.1\r\nHost: localhost\r\n{scraper}\r\n{BYE}\r\n\r\n".encode()
        servers = [
            (stack.enter_context(gunicorn(url, tmp_path / f"{number}", ready="/health/live", **environ)), query, users)
            for number, (query, users) in enumerate([("", 32), ("?q=x", 1), ("?q=x", 8)])
        ]
        pool = stack.enter_context(ThreadPoolExecutor(32 * len(servers)))
        waiting = {
            live: [
                pool.submit(live.request, "GET", f"/api/user{number % users}/tasks{query}", f"user{number % users}")
                for number in range(32)
            ]
            for live, query, users in servers
        }

        def held(requests: list[Future[Any]]) -> int:
            return sum(not request.done() for request in requests)

        # All others are refused, soon after the first two of each server have waited for a connection.
        wait_until(lambda: all(held(requests) <= 8 for requests in waiting.values()), 8)
        for live, requests in waiting.items():
            started = time.monotonic()
            for _ in range(20):
                assert live.request("GET", "/health/live")[0] == 200
                assert live.raw(metrics).startswith(b"HTTP/1.1 200 ")
            assert time.monotonic() - started < 2
            # One for each connection. Two of them others may have: the worker's own check of its readiness, and the
            # thread that the first request to /metrics starts. That one finds a connection where searches wait for
            # another one, since they have none yet; soon after, one of them is refused.
            assert held(requests) in (6, 7, 8)
        for requests in waiting.values():
            assert {request.result()[0] for request in requests} == {503}


def test_a_killed_worker_is_replaced(live: Server) -> None:
    victim = live.workers()[0]
    os.kill(victim, signal.SIGKILL)
    live.wait_for_new_workers({victim})
    live.wait_until("/health/ready")


def test_a_killed_worker_is_replaced_without_the_folder_for_temporary_files(tmp_path: Path) -> None:
    """Where gunicorn cannot make a file for a new worker it ends."""
    (tmp_path / "tmp").mkdir()
    with sqlite_database() as url:
        close(migrated_app(url))
        with gunicorn(
            url, tmp_path / "log", TMPDIR=str(tmp_path / "tmp"), METRICS_TOKEN="a-token-for-Prometheus"
        ) as live:
            (tmp_path / "tmp").rmdir()
            workers = live.workers()
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            live.wait_for_new_workers(workers)
            live.wait_until("/health/ready")


def connections_of(pid: int) -> int:
    """How many sockets that process has."""
    links = []
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(os.readlink(file))
    return sum(link.startswith("socket:") for link in links)


def burst(live: Server, stack: ExitStack, connections: int) -> None:
    """Open so many connections at once, and keep each after its answer."""
    opened = [stack.enter_context(closing(live.connect())) for _ in range(connections)]
    for connection in opened:
        connection.request("GET", "/health/live")
    for connection in opened:
        assert connection.getresponse().read()


@pytest.mark.parametrize(("after", "replaced"), [(None, 0), (signal.SIGHUP, 2), (signal.SIGKILL, 1)])
def test_the_workers_share_connections_that_are_opened_at_once(
    tmp_path: Path, after: signal.Signals | None, replaced: int
) -> None:
    with sqlite_database() as url:
        close(migrated_app(url))
        with gunicorn(url, tmp_path / "log") as live:
            live.wait_for_workers()
            if after:
                old = live.workers()[:replaced]
                os.kill(live.process.pid if after == signal.SIGHUP else old[0], after)
                live.wait_for_new_workers(old)
                live.wait_for_workers(2 + replaced)
            # A new worker shares connections soon after it has loaded the app.
            time.sleep(1)
            for _ in range(5):
                workers = live.workers()
                idle = {pid: connections_of(pid) for pid in workers}
                with ExitStack() as stack:
                    burst(live, stack, 40)
                    shares = [connections_of(pid) - idle[pid] for pid in workers]
                    assert sum(shares) == 40
                    assert min(shares) >= 10
                wait_until(lambda: [*map(connections_of, workers)] == [*idle.values()])  # noqa: B023 (called here)


def test_a_worker_that_hangs_does_not_stop_the_other_one_from_accepting(tmp_path: Path) -> None:
    with sqlite_database() as url:
        close(migrated_app(url))
        with gunicorn(url, tmp_path / "log") as live, ExitStack() as stack:
            burst(live, stack, 20)
            hanging = live.workers()[0]
            os.kill(hanging, signal.SIGSTOP)
            stack.callback(os.kill, hanging, signal.SIGCONT)
            begun = time.monotonic()
            burst(live, stack, 40)
            # gunicorn replaces the worker that hangs after 30 s.
            assert time.monotonic() - begun < 10


def test_two_instances_stand_side_by_side_and_the_data_outlives_them(
    live: Server, database: URL, tmp_path: Path
) -> None:
    with gunicorn(database, tmp_path / "log") as other:
        status, task = other.request("POST", "/api/alice/tasks", json={"title": "kept"})
        assert status == 201
        assert live.request("GET", "/api/alice/tasks") == (200, [task])
    assert other.process.returncode == 0
    assert live.request("GET", "/api/alice/tasks") == (200, [task])


def test_a_hangup_brings_new_workers_without_a_failed_request(tmp_path: Path) -> None:
    with sqlite_database() as url:
        close(migrated_app(url))
        with gunicorn(url, tmp_path / "log") as live:
            status, task = live.request("POST", "/api/alice/tasks", json={"title": "kept"})
            assert status == 201
            before = set(live.workers())
            os.kill(live.process.pid, signal.SIGHUP)
            deadline = time.monotonic() + PATIENCE
            while before & set(live.workers()):
                assert live.request("GET", "/api/alice/tasks") == (200, [task])
                assert time.monotonic() < deadline


def test_the_pool_is_as_large_as_the_threads(apps: dict[str, Flask], database: URL) -> None:
    app = create_app(settings(database, threads=3))
    with app.app_context():
        assert (db.engine.pool.size(), db.engine.pool._max_overflow) == (3, 0)


def test_one_log_line_is_one_json_object(tmp_path: Path) -> None:
    log = tmp_path / "log"
    url = URL.create("sqlite", database=f"{tmp_path}/todo.db")
    with gunicorn(url, log, ready="/health/live", LOG_FORMAT="json", IDENTITY_PROVIDER="development"):
        pass
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    messages = {(line["level"], line["logger"], line["message"]) for line in lines}
    warning = "IDENTITY_PROVIDER=development: no authentication, the user in the path is trusted"
    assert ("WARNING", "todo.identity.hook", warning) in messages
    assert any(logger == "gunicorn.error" for _, logger, _ in messages)
    # RFC 3339.
    assert all(datetime.fromisoformat(line["time"]).utcoffset() == timedelta() for line in lines)
