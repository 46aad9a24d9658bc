"""The checker can fail: it reports what is planted here, and the loss of a server that acknowledges too early."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from tests.faults.conftest import Service
from tests.faults.ledger import Entry, Findings, Ledger, Task
from tests.faults.load import Client, Unanswered, Writer, load

TASK: Task = {"id": 1, "title": "alice 1", "description": None, "status": "incomplete"}
DONE = TASK | {"status": "complete"}
INSERT = Entry(100.0, "INSERT", 1, "alice 1")
UPDATE = Entry(101.0, "UPDATE", 1, "alice 1")
DELETE = Entry(102.0, "DELETE", 1, "alice 1")


@pytest.fixture
def ledger() -> Ledger:
    """That of alice, who made a task and completed it."""
    ledger = Ledger("alice")
    ledger.acknowledge("INSERT", TASK)
    ledger.acknowledge("UPDATE", DONE)
    return ledger


def counts(findings: Findings) -> tuple[int, int, int]:
    """How much was lost, carried out twice, and otherwise wrong."""
    return len(findings.lost), len(findings.twice), len(findings.other)


def test_what_is_as_told_is_no_finding(ledger: Ledger) -> None:
    assert ledger.audit([DONE], [INSERT, UPDATE]) == Findings()


def test_each_lost_write_is_reported(ledger: Ledger) -> None:
    assert counts(ledger.audit([], [])) == (2, 0, 0)
    assert counts(ledger.audit([TASK], [INSERT])) == (1, 0, 0)
    ledger.acknowledge("DELETE", DONE)
    assert counts(ledger.audit([DONE], [INSERT, UPDATE])) == (1, 0, 0)


def test_a_write_that_another_undid_is_reported(ledger: Ledger) -> None:
    assert counts(ledger.audit([TASK], [INSERT, UPDATE])) == (1, 0, 0)
    ledger.acknowledge("DELETE", DONE)
    assert counts(ledger.audit([DONE], [INSERT, UPDATE, DELETE])) == (1, 0, 0)


def test_a_duplicate_is_reported(ledger: Ledger) -> None:
    other = DONE | {"id": 2}
    assert counts(ledger.audit([DONE, other], [INSERT, UPDATE])) == (0, 1, 0)
    assert counts(ledger.audit([DONE, other], [INSERT, UPDATE, INSERT._replace(task_id=2)])) == (0, 1, 0)
    assert counts(ledger.audit([DONE], [INSERT, UPDATE, UPDATE])) == (0, 1, 0)


def test_a_task_that_nobody_wrote_is_reported(ledger: Ledger) -> None:
    stranger = TASK | {"id": 2, "title": "alice 2"}
    entry = INSERT._replace(task_id=2, title="alice 2")
    assert counts(ledger.audit([DONE, stranger], [INSERT, UPDATE, entry])) == (0, 1, 1)


@pytest.mark.parametrize(("row", "entries"), [(DONE, []), (TASK, [UPDATE])])
def test_a_write_in_doubt_may_have_happened_or_not(ledger: Ledger, row: Task, entries: list[Entry]) -> None:
    ledger.doubt("UPDATE", 101.0, DONE, TASK)
    assert ledger.audit([row], [INSERT, UPDATE, *entries]) == Findings()


def test_a_creation_in_doubt_may_have_happened_or_not() -> None:
    ledger = Ledger("alice")
    ledger.doubt("INSERT", 100.0, None, TASK)
    assert ledger.audit([], []) == Findings()
    assert ledger.audit([TASK], [INSERT]) == Findings()


def test_a_write_in_doubt_that_happened_twice_is_reported(ledger: Ledger) -> None:
    ledger.doubt("UPDATE", 101.0, DONE, TASK)
    assert counts(ledger.audit([DONE], [INSERT, UPDATE, UPDATE, UPDATE])) == (0, 1, 0)


def test_a_write_in_doubt_that_did_something_else_is_reported(ledger: Ledger) -> None:
    ledger.doubt("UPDATE", 101.0, DONE, TASK)
    assert counts(ledger.audit([DONE | {"description": "?"}], [INSERT, UPDATE, UPDATE])) == (1, 0, 0)
    assert counts(ledger.audit([], [INSERT, UPDATE, UPDATE])) == (1, 0, 0)


def test_a_write_in_doubt_that_came_long_after_its_answer_is_reported(ledger: Ledger) -> None:
    ledger.doubt("UPDATE", 101.0, DONE, TASK)
    assert counts(ledger.audit([TASK], [INSERT, UPDATE, UPDATE._replace(at=103.9)])) == (0, 0, 0)
    assert counts(ledger.audit([TASK], [INSERT, UPDATE, UPDATE._replace(at=104.1)])) == (0, 0, 1)


@contextmanager
def answering(status: int, body: Any = None, **headers: str) -> Iterator[int]:
    """The port of a server that answers everything like that."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            text = json.dumps(body).encode()
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(text))}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = answer  # noqa: N815 (so http.server wants them named)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_fault_of_the_server_is_reported(status: int) -> None:
    with answering(status, {"error": "?"}) as port:
        client = Client(port, "alice")
        assert client.call("GET")[0] == status
        client.close()
    assert len(client.answers.refused) == 1


def test_a_503_with_retry_after_is_a_failure_and_no_fault() -> None:
    with answering(503, {"error": "?"}, Retry_After="1") as port:
        client = Client(port, "alice")
        with pytest.raises(Unanswered):
            client.call("GET")
        client.close()
    assert (len(client.answers.failures), client.answers.refused) == (1, [])


@pytest.mark.parametrize(("status", "answer"), [(404, {"error": "Task not found"}), (201, TASK | {"title": "?"})])
def test_an_answer_that_is_not_what_was_asked_for_is_reported(status: int, answer: Task) -> None:
    with answering(status, answer) as port:
        writer = Writer(port, "alice", 1)
        writer.create()
        writer.read(TASK)
        writer.close()
    assert len(writer.answers.refused) == 2
    assert writer.ledger.acknowledged.total() == 0


@pytest.mark.parametrize("service", ["direct"], indirect=True)
def test_a_server_that_acknowledges_before_it_has_written_is_seen_to_lose(service: Service) -> None:
    careless = {"synchronous_commit": "off", "wal_writer_delay": "10s", "wal_writer_flush_after": "1GB"}
    service.postgresql.configure(**careless)
    try:
        with load(service.live, service.url) as writers:
            time.sleep(0.8)
            service.postgresql.stop_at_once()
        writers.fault_ended(service.postgresql.start())
        service.live.wait_until("/health/ready")
        assert len(writers.account().findings.lost) > 10
    finally:
        service.postgresql.configure(**dict.fromkeys(careless))
