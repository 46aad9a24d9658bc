"""Connections to PostgreSQL that are cut, and that go silent."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import URL

from tests.faults.conftest import Judge
from tests.faults.load import load
from tests.faults.network import cut, heal, swallow
from tests.live import Server, gunicorn
from tests.live.wire import Wire, wire_to
from todo.db.connections import REQUEST_BUDGET

pytestmark = pytest.mark.faults


class WiredService(NamedTuple):
    """A gunicorn, its database, and what is between."""

    live: Server
    url: URL
    wire: Wire


@contextmanager
def wired_service(database: URL, log: Path, delay: float = 0.0, **environ: str) -> Iterator[WiredService]:
    """A service whose connections go by way of a proxy."""
    with wire_to(database, delay) as (wire, url), gunicorn(url, log, **environ) as live:
        yield WiredService(live, database, wire)


@pytest.fixture(scope="module")
def wired(database: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WiredService]:
    """A service of two workers."""
    with wired_service(database, tmp_path_factory.mktemp("faults") / "log") as wired:
        yield wired


@pytest.fixture
def single(database: URL, tmp_path: Path) -> Iterator[WiredService]:
    """A service of one worker, far enough from its database that each of many users needs a connection."""
    with wired_service(database, tmp_path / "log", 0.05, WEB_CONCURRENCY="1", WEB_THREADS="16") as wired:
        yield wired


def test_connections_that_are_cut_are_replaced_and_no_write_is_repeated(wired: WiredService, judge: Judge) -> None:
    with load(wired.live, wired.url) as writers:
        for _ in range(10):
            time.sleep(0.3)
            cut(wired.wire)
            writers.fault_ended()
        time.sleep(0.7)
    assert judge(writers).answers.statuses["503"]


def test_connections_gone_silent_are_503_within_the_budget_and_replaced(single: WiredService, judge: Judge) -> None:
    # Many connections, of which few are needed until long after the silence.
    with load(single.live, single.url, users=16):
        time.sleep(2)
    assert single.wire.connections > 8
    with load(single.live, single.url, users=4) as writers:
        time.sleep(0.5)
        single.wire.forget()
        writers.fault_ended(time.monotonic() + REQUEST_BUDGET)
        time.sleep(REQUEST_BUDGET + 2)
    account = judge(writers)
    assert account.answers.statuses["503"] == len(writers.writers)
    with load(single.live, single.url, users=16) as burst:
        time.sleep(2)
    assert judge(burst).answers.failures == []


def test_what_the_network_loses_is_given_up_and_not_delivered_after_its_answer(
    wired: WiredService, judge: Judge
) -> None:
    with load(wired.live, wired.url, users=4) as writers:
        time.sleep(0.5)
        swallow(wired.wire)
        writers.fault_ended(time.monotonic() + REQUEST_BUDGET)
        time.sleep(REQUEST_BUDGET + 1)
        heal(wired.wire)
        # A kernel that had not given up would try again about now.
        time.sleep(5)
    assert judge(writers).answers.statuses["503"] == len(writers.writers)
