"""PostgreSQL that goes away, ends connections, or takes no writes."""

import time

import pytest

from tests.faults.conftest import Judge, Service
from tests.faults.load import held, load


@pytest.mark.parametrize("seconds", [0.3, pytest.param(3.0, marks=pytest.mark.faults)])
def test_postgresql_stopped_at_once_is_503_until_it_is_back(service: Service, judge: Judge, seconds: float) -> None:
    with load(service.live, service.url) as writers:
        time.sleep(0.8)
        service.postgresql.stop_at_once()
        time.sleep(seconds)
        writers.fault_ended(service.postgresql.start())
        time.sleep(1 if seconds < 1 else 3)
    answers = judge(writers).answers
    # PgBouncer lets all wait through a short absence.
    assert answers.statuses["503"] or answers.slowest > seconds


@pytest.mark.faults
def test_a_restart_while_nobody_asks_fails_no_request(service: Service, judge: Judge) -> None:
    """Every pooled connection is stale then, and is seen to be."""
    with load(service.live, service.url), held(service.url, "LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE"):
        time.sleep(0.7)
    service.postgresql.stop_at_once()
    service.postgresql.start()
    with load(service.live, service.url) as writers:
        time.sleep(1)
    assert judge(writers).answers.failures == []


@pytest.mark.parametrize("rounds", [2, pytest.param(10, marks=pytest.mark.faults)])
def test_backends_that_are_terminated_are_replaced(service: Service, judge: Judge, rounds: int) -> None:
    with load(service.live, service.url) as writers:
        for _ in range(rounds):
            time.sleep(0.3)
            assert service.postgresql.terminate_backends(service.url)
            writers.fault_ended()
        time.sleep(0.7)
    judge(writers)


@pytest.mark.faults
def test_a_read_only_database_is_read_and_written_again(service: Service, judge: Judge) -> None:
    with load(service.live, service.url) as writers:
        time.sleep(0.5)
        service.postgresql.configure(default_transaction_read_only="on")
        time.sleep(2)
        service.postgresql.configure(default_transaction_read_only=None)
        writers.fault_ended()
        time.sleep(2)
    account = judge(writers)
    failed = {failure.method for failure in account.answers.failures}
    assert "POST" in failed
    assert "GET" not in failed


@pytest.mark.faults
@pytest.mark.parametrize("service", ["direct"], indirect=True)
def test_a_session_that_began_read_only_does_not_outlive_that(service: Service, judge: Judge) -> None:
    """So a hosted database spares a full disk: it sets the default for new sessions, and ends those there are.

    PgBouncer keeps such sessions for itself, and needs to be told to RECONNECT.
    """
    database = service.url.database
    with load(service.live, service.url) as writers:
        time.sleep(0.5)
        service.postgresql.sql(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
        service.postgresql.terminate_backends(service.url)
        time.sleep(2)
        service.postgresql.sql(f"ALTER DATABASE {database} RESET default_transaction_read_only")
        writers.fault_ended()
        time.sleep(4)
    assert judge(writers).answers.statuses["503"]
