"""Locks that somebody else holds, and statements that never end."""

import os
import signal
import threading
import time
from contextlib import suppress

import pytest

from tests.faults.conftest import Judge, Service
from tests.faults.load import Client, Unanswered, held, load
from tests.support import sql

#: Seconds that a lock may be waited for and a statement may last.
LOCK, STATEMENT = 1.0, 3.0
#: What a machine of two cores that is busy with the load adds to that.
ALLOWANCE = 0.5

pytestmark = pytest.mark.faults


def test_locked_rows_are_503_within_a_second_to_their_owner_alone(service: Service, judge: Judge) -> None:
    with load(service.live, service.url) as writers:
        time.sleep(1)
        owner, *others = writers.writers
        with held(service.url, "SELECT 1 FROM tasks WHERE user_id = :owner FOR UPDATE", owner=owner.user_id):
            time.sleep(5)
        writers.fault_ended()
        time.sleep(1.2)
    judge(writers)
    waits = [failure.seconds for failure in owner.answers.failures]
    assert waits
    assert all(LOCK <= seconds <= LOCK + ALLOWANCE for seconds in waits), waits
    assert [failure for other in others for failure in other.answers.failures] == []


def test_a_locked_table_is_503_within_a_second(service: Service, judge: Judge) -> None:
    with load(service.live, service.url) as writers:
        time.sleep(0.5)
        with held(service.url, "LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE"):
            time.sleep(4)
        writers.fault_ended()
        time.sleep(1)
    account = judge(writers)
    waits = [failure.seconds for failure in account.answers.failures]
    assert len(waits) >= 3 * len(writers.writers)
    assert all(seconds <= LOCK + ALLOWANCE for seconds in waits), waits


@pytest.fixture(scope="module")
def endless(service: Service) -> str:
    """A title: to insert it takes ten minutes."""
    sql(
        service.url,
        "CREATE OR REPLACE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_sleep(600); RETURN NEW; END'",
    )
    sql(
        service.url,
        "CREATE OR REPLACE TRIGGER sleep BEFORE INSERT ON tasks FOR EACH ROW WHEN (NEW.title = 'endless')"
        " EXECUTE FUNCTION sleep()",
    )
    return "endless"


def test_a_statement_that_never_ends_is_stopped_within_three_seconds(
    service: Service, judge: Judge, endless: str
) -> None:
    """Meanwhile its user's other writes wait for the lock on the user's clock, and nobody else's do."""
    with load(service.live, service.url) as writers:
        time.sleep(0.5)
        owner, *others = writers.writers
        client = Client(service.live.port, owner.user_id)
        for _ in range(2):
            with pytest.raises(Unanswered):
                client.call("POST", body={"title": endless})
            assert service.postgresql.queries_with(endless) == []
        client.close()
        writers.fault_ended()
        time.sleep(0.5)
    waits = [failure.seconds for failure in client.answers.failures]
    assert client.answers.statuses == {"503": 2}
    assert all(STATEMENT <= seconds <= STATEMENT + ALLOWANCE for seconds in waits), waits
    judge(writers)
    waits = [failure.seconds for failure in owner.answers.failures]
    assert waits
    assert all(LOCK <= seconds <= LOCK + ALLOWANCE for seconds in waits), waits
    assert [failure for other in others for failure in other.answers.failures] == []


def test_a_statement_whose_worker_was_killed_is_stopped_within_three_seconds(service: Service, endless: str) -> None:
    client = Client(service.live.port, "alice")

    def call() -> None:
        with suppress(Unanswered):
            client.call("POST", body={"title": endless})

    caller = threading.Thread(target=call)
    started = time.monotonic()
    caller.start()
    while not service.postgresql.queries_with(endless):
        assert time.monotonic() - started < STATEMENT
        time.sleep(0.05)
    for worker in service.live.workers():
        os.kill(worker, signal.SIGKILL)
    caller.join()
    assert client.answers.statuses == {"broken": 1}
    assert service.postgresql.queries_with(endless), "it was no orphan"
    while service.postgresql.queries_with(endless):
        assert time.monotonic() - started < STATEMENT + ALLOWANCE
        time.sleep(0.05)
    client.close()
    service.live.wait_until("/health/ready")
