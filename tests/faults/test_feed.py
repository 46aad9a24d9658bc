"""A client that follows the change feed has what the database has, whatever happens to workers and PostgreSQL."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.ecosystem.pgbouncer import pgbouncer
from tests.faults.conftest import Service
from tests.faults.feed import USERS, Copy, Difference, Version, compare, feed, keep_trail
from tests.faults.planted import CREATE_LATER, FAULTS, HARMLESS
from tests.faults.server import PostgreSql
from tests.live import MANY_THREADS, gunicorn
from tests.support import close, empty_database, migrated_app, partition, sql, sql_as_role, wait_until

SECONDS = [4, pytest.param(60, marks=pytest.mark.faults)]
KINDS = ["sqlite", "postgresql", "partitioned", pytest.param("pgbouncer", marks=pytest.mark.faults)]
#: Seconds within which a planted fault must be found. It mostly takes two, but many times as long on a busy machine.
SOON = 60
#: The kinds of writes.
WRITES = {"create", "create with a key", "update", "toggle", "delete", "bulk", "bulk deletion"}

Record = Callable[[str, object], None]


def test_a_copy_that_is_not_as_the_database_was_is_told() -> None:
    first, second = {"id": 1, "title": "a"}, {"id": 1, "title": "b"}
    trail = [Version(1, "01", 1, first), Version(2, "02", 1, second), Version(3, "03", 1, None)]
    right = [Copy("00", {}), Copy("01", {1: first}), Copy("02", {1: second}), Copy("03", {})]
    assert [*compare("alice", right, trail)] == []
    wrong = [Copy("01", {}), Copy("01", {1: second}), Copy("02", {1: first}), Copy("03", {1: second})]
    assert [*compare("alice", wrong, trail)] == [
        Difference("alice", "01", None, first, is_behind=True),
        Difference("alice", "01", second, first, is_behind=False),
        Difference("alice", "02", first, second, is_behind=True),
        Difference("alice", "03", second, None, is_behind=True),
    ]


def test_of_two_versions_at_one_instant_the_last_one_counts() -> None:
    first, second = {"id": 1, "title": "a"}, {"id": 1, "title": "b"}
    trail = [Version(1, "01", 1, first), Version(2, "01", 1, second)]
    assert [*compare("alice", [Copy("01", {1: second})], trail)] == []
    assert [each.is_behind for each in compare("alice", [Copy("01", {1: first})], trail)] == [True]


@contextmanager
def serving(kind: str, postgresql: PostgreSql, folder: Path, planted: str = "") -> Iterator[Service]:
    """A service on a migrated database of that kind, which keeps a trail."""
    with ExitStack() as stack:
        url = stack.enter_context(empty_database("sqlite" if kind == "sqlite" else "postgresql", postgresql.url))
        close(migrated_app(url))
        if kind == "partitioned":
            partition(url)
        keep_trail(url)
        through = stack.enter_context(pgbouncer(url, pool_size=24)) if kind == "pgbouncer" else url
        app = "wsgi:app"
        if planted:
            app = "tests.faults.planted:app"
            sql_as_role(url, CREATE_LATER)
            for user_id in USERS:
                sql(url, "INSERT INTO users (id) VALUES (:id)", id=user_id)
        live = gunicorn(
            through, folder / "log", app=app, WEB_THREADS=MANY_THREADS, PLANTED=planted, LOG_LEVEL="WARNING"
        )
        yield Service(stack.enter_context(live), url, postgresql)


def trouble(service: Service, seconds: int, is_enough: Callable[[], bool] = lambda: False) -> None:
    """Kill a worker each second, and stop PostgreSQL at the middle of the time; until it is enough."""
    begun = time.monotonic()
    for second in range(1, seconds + 1):
        time.sleep(max(0.0, begun + second - time.monotonic()))
        if is_enough():
            return
        # The one that has lived longest.
        os.kill(service.live.workers()[0], signal.SIGKILL)
        if second == seconds // 2 and service.url.get_backend_name() != "sqlite":
            service.postgresql.stop_at_once()
            time.sleep(0.3)
            service.postgresql.start()


@pytest.mark.parametrize("seconds", SECONDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_follows_the_changes_misses_none(
    own_postgresql: PostgreSql, tmp_path: Path, kind: str, seconds: int, record_property: Record
) -> None:
    with serving(kind, own_postgresql, tmp_path) as service:
        with feed(service.live, service.url) as load:
            trouble(service, seconds)
            wait_until(lambda: load.kinds_written() == WRITES)
        account = load.account()
    record_property("figures", account.figures())
    assert account.differences == []
    assert account.answers.refused == []
    assert account.unchanged
    assert account.answers.statuses["broken"], "no request was under way when a worker was killed"
    assert account.instants > 5 * seconds


#: SQLite has one lock, and no statement writes without it.
PLANTED = [("postgresql", fault) for fault in FAULTS]
PLANTED += [("sqlite", fault) for fault in FAULTS if fault != "now() without the lock"]


@pytest.mark.parametrize(("kind", "planted"), PLANTED)
def test_a_service_that_loses_changes_is_found(
    own_postgresql: PostgreSql, tmp_path: Path, kind: str, planted: str, record_property: Record
) -> None:
    with serving(kind, own_postgresql, tmp_path, planted) as service:
        begun = time.monotonic()
        with feed(service.live, service.url) as load:
            trouble(service, SOON, lambda: any(each.is_behind for each in load.differences()))
            seconds = time.monotonic() - begun
        account = load.account()
    record_property("figures", {"found after": f"{seconds:.1f} s"} | account.figures())
    # The planted code runs, and only loses changes.
    assert not account.answers.statuses["500"]
    assert any(each.is_behind for each in account.differences)
    # Under load, and not only at the end.
    assert seconds < SOON


@pytest.mark.parametrize("planted", HARMLESS)
def test_what_makes_a_fault_visible_is_no_fault(
    own_postgresql: PostgreSql, tmp_path: Path, planted: str, record_property: Record
) -> None:
    with serving("sqlite", own_postgresql, tmp_path, planted) as service:
        with feed(service.live, service.url) as load:
            trouble(service, 4)
        account = load.account()
    record_property("figures", account.figures())
    assert account.differences == []
