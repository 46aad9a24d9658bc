"""The figures for Prometheus under gunicorn: they are those of all workers, whatever becomes of one."""

import os
import resource
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from sqlalchemy import URL, create_engine, text

from tests.live import Server, gunicorn
from tests.live.wire import wire_to
from tests.support import Make, close, migrated_app, postgresql_database, wait_until
from tests.test_metrics import KINDS, LIST, ONE, TOKEN, UNSEEN, Figures, figures, now, settled
from todo.web import metrics


def live_figures(live: Server) -> Figures:
    """The figures that a scrape of the live service finds."""
    connection = live.connect()
    connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    assert response.status == 200, body
    return figures(body)


wait_for = partial(wait_until, seconds=30, pause=0.05)


def counters(found: Figures) -> Figures:
    """The figures that must never go back."""
    return {key: value for key, value in found.items() if not isinstance(key, str) or key.endswith("_total")}


@contextmanager
def serving(server: URL, tmp_path: Path) -> Iterator[tuple[Server, URL, Path]]:
    """A gunicorn of two workers with /metrics, its database, and where it keeps the figures."""
    with postgresql_database(server) as url:
        close(migrated_app(url))
        environ = {"METRICS_TOKEN": TOKEN, "GUNICORN_CMD_ARGS": f"--worker-tmp-dir {tmp_path}"}
        with gunicorn(url, tmp_path / "log", **environ) as live:
            (folder,) = tmp_path.glob("todo-metrics-*")
            # One worker may answer before the other has started.
            wait_for(lambda: len(live.workers()) == 2 and live_figures(live)["todo_database_connections_size"] == 16)
            yield live, url, folder
        assert not folder.exists()


@pytest.fixture
def live(server: URL, tmp_path: Path) -> Iterator[tuple[Server, URL, Path]]:
    """A service whose figures can be kept."""
    with serving(server, tmp_path) as live:
        yield live


def test_two_workers_have_one_sum_through_kills_and_hangups(live: tuple[Server, URL, Path]) -> None:
    gunicorn, _, folder = live
    sent: Counter[Any] = Counter()
    seen = set(gunicorn.workers())

    def send_all(numbers: range) -> None:
        def send(number: int) -> list[Any]:
            paths = [("GET", LIST, "/api/alice/tasks"), ("GET", ONE, "/api/alice/tasks/x")]
            paths += [("GET", "unmatched", f"/{number}"), ("BREW", "unmatched", f"/{number}")]
            answered = []
            for method, route, path in paths:
                status, _ = gunicorn.request(method, path)
                answered.append(("other" if method == "BREW" else method, route, str(status)))
            return answered

        with ThreadPoolExecutor(8) as pool:
            for answered in pool.map(send, numbers):
                sent.update(answered)

    def assert_all_counted(before: Figures) -> Figures:
        # From whichever worker it comes.
        for _ in range(5):
            found = live_figures(gunicorn)
            assert {key: value for key, value in found.items() if key in sent} == dict(sent)
            assert (
                sum(value for key, value in found.items() if isinstance(key, tuple) and len(key) == 3) == sent.total()
            )
            assert all(found[key] >= value for key, value in counters(before).items())
        # A new worker asks the database by itself whether it is ready.
        wait_for(lambda: live_figures(gunicorn)["todo_database_connections_in_use"] == 0)
        return found

    send_all(range(20))
    found = assert_all_counted({})
    assert len(sent) == 4

    victim = gunicorn.workers()[0]
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: victim not in gunicorn.workers() and len(gunicorn.workers()) == 2)
    gunicorn.wait_until("/health/live")
    sent["GET", "/health/live", "200"] += 1
    seen |= set(gunicorn.workers())
    found = assert_all_counted(found)
    send_all(range(20, 40))
    found = assert_all_counted(found)

    before = set(gunicorn.workers())
    os.kill(gunicorn.process.pid, signal.SIGHUP)
    wait_for(lambda: not before & set(gunicorn.workers()) and len(gunicorn.workers()) == 2)
    seen |= set(gunicorn.workers())
    found = assert_all_counted(found)
    send_all(range(40, 60))
    assert_all_counted(found)
    wait_for(lambda: live_figures(gunicorn)["todo_database_connections_size"] == 16)
    found = live_figures(gunicorn)
    assert (found["todo_worker_threads"], found["todo_schema_revision"]) == (20, found["todo_schema_revision_wanted"])
    # Five workers have run, at most four at once, so four names are enough. The trial at the start has no file.
    assert len(seen) == found["todo_worker_starts_total"] == 5
    assert {path.stem.rsplit("_", 1)[1] for path in folder.iterdir()} <= {"1", "2", "3", "4"}


def test_the_files_are_as_many_as_the_workers_at_a_time_however_often_one_ends(live: tuple[Server, URL, Path]) -> None:
    gunicorn, _, folder = live
    assert gunicorn.request("GET", "/api/alice/tasks")[0] == 200
    ended: set[int] = set()
    while len(ended) < 6:
        victim = gunicorn.workers()[0]
        os.kill(victim, signal.SIGKILL)
        ended.add(victim)
        wait_for(lambda: not ended & set(gunicorn.workers()) and len(gunicorn.workers()) == 2)
    gunicorn.wait_until("/health/live")
    wait_for(lambda: live_figures(gunicorn)["todo_database_connections_size"] == 16)
    assert live_figures(gunicorn)["GET", LIST, "200"] == 1
    expected = {f"{kind}_{number}.db" for kind in KINDS for number in (1, 2)}
    # A worker has no histogram before it has answered a request.
    wait_for(lambda: bool(live_figures(gunicorn)) and {path.name for path in folder.iterdir()} >= expected)
    assert {path.name for path in folder.iterdir()} == expected


def gone(folder: Path, _: Server) -> None:
    """The folder is removed."""
    shutil.rmtree(folder)


def no_room(folder: Path, server: Server) -> None:
    """New files may not become as large as they have to; what is there may."""
    for path in folder.iterdir():
        path.unlink()
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (40_000, 40_000))


@pytest.mark.parametrize("spoil", [gone, no_room])
def test_without_a_place_for_the_figures_every_request_is_answered_and_they_say_so(
    server: URL, tmp_path: Path, spoil: Callable[[Path, Server], None]
) -> None:
    with serving(server, tmp_path) as (gunicorn, _, folder):
        old = set(gunicorn.workers())
        assert live_figures(gunicorn)[UNSEEN] == 0
        spoil(folder, gunicorn)
        assert live_figures(gunicorn)[UNSEEN] >= 1
        os.kill(gunicorn.process.pid, signal.SIGHUP)
        wait_for(lambda: not old & set(gunicorn.workers()) and len(gunicorn.workers()) == 2)
        workers = gunicorn.workers()
        # Each in one line.
        wait_for(lambda: gunicorn.log.read_text().count("This worker counts in memory") == 2)
        for number in range(20):
            assert gunicorn.request("GET", f"/{number}")[0] == 404
            assert gunicorn.request("POST", "/api/alice/tasks", json={"title": "x"})[0] == 201
        assert gunicorn.workers() == workers
        found = live_figures(gunicorn)
        assert found[UNSEEN] >= 1
        assert ("POST", LIST, "201") not in found
        assert gunicorn.log.read_text().count("This worker counts in memory") == 2


def test_the_connections_of_a_killed_worker_are_not_in_use_for_ever(live: tuple[Server, URL, Path]) -> None:
    gunicorn, url, _ = live
    engine, is_over = create_engine(url), Event()

    def wait_for_the_table(name: str) -> None:
        # Each request waits for a second at most.
        while not is_over.is_set():
            with suppress(OSError):
                gunicorn.request("GET", f"/api/{name}/tasks", name)

    with engine.begin() as connection, ThreadPoolExecutor(4) as pool:
        connection.execute(text("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE"))
        # Of four users, since slow requests of one are refused beyond a share.
        waiting = pool.map(wait_for_the_table, "abcd")
        try:
            wait_for(lambda: live_figures(gunicorn)["todo_database_connections_in_use"] == 4)
            killed = gunicorn.workers()
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
        finally:
            is_over.set()
        list(waiting)
    engine.dispose()
    wait_for(lambda: not set(killed) & set(gunicorn.workers()) and len(gunicorn.workers()) == 2)
    gunicorn.wait_until("/health/live")
    wait_for(lambda: live_figures(gunicorn)["todo_database_connections_size"] == 16)
    wait_for(lambda: live_figures(gunicorn)["todo_database_connections_in_use"] == 0)


def test_two_services_on_one_machine_count_for_themselves(live: tuple[Server, URL, Path], tmp_path: Path) -> None:
    first, url, folder = live
    other_log = tmp_path / "other"
    # As where one is started from within the other.
    environ = {
        "METRICS_TOKEN": TOKEN,
        "GUNICORN_CMD_ARGS": f"--worker-tmp-dir {tmp_path}",
        "PROMETHEUS_MULTIPROC_DIR": str(folder),
        "TODO_METRICS_PROCESS": "1",
    }
    with gunicorn(url, other_log, **environ) as second:
        assert second.request("GET", "/api/alice/tasks") == (200, [])
        assert live_figures(second)["GET", LIST, "200"] == 1
        assert ("GET", LIST, "200") not in live_figures(first)
    assert folder.exists()


def test_a_silent_database_delays_no_scrape(postgresql: URL, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with wire_to(postgresql) as (wire, url):
        app = settled(make(url, metrics_token=TOKEN))
        monkeypatch.setattr(metrics, "ASK_AGAIN", 0.0)
        wire.forget()
        started = time.monotonic()
        assert now(app)["todo_schema_revision"] > 0
        assert time.monotonic() - started < 2
