"""A load on a live service: users that write all the time and remember each answer, and the account of what came."""

import http.client
import json
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import URL, NullPool, create_engine, text

from tests.faults.ledger import Entry, Findings, Ledger, Task
from tests.live import Server
from tests.support import as_superuser, sql, token

#: No request may take longer.
LIMIT = 10.0
#: Between a 503 and the next request: far less than its Retry-After says, so that the end of a fault shows exactly.
PAUSE = 0.02
#: Tasks that a user has at a time, about.
TASKS = 20
#: What is so of a new task.
NEW = {"description": None, "status": "incomplete"}

JOURNAL = """
CREATE TABLE journal (at timestamptz, user_id text, kind text, task_id bigint, title text);
CREATE FUNCTION write_down() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    task tasks := coalesce(NEW, OLD);
BEGIN
    INSERT INTO journal VALUES (clock_timestamp(), task.user_id, TG_OP, task.id, task.title);
    RETURN NULL;
END $$;
CREATE TRIGGER write_down AFTER INSERT OR UPDATE OR DELETE ON tasks FOR EACH ROW EXECUTE FUNCTION write_down();
"""


@dataclass(frozen=True)
class Failure:
    """A request that a fault had for its victim: of when (time.monotonic), and whether 503 or broken."""

    started: float
    ended: float
    method: str
    what: str

    @property
    def seconds(self) -> float:
        """How long the client waited."""
        return self.ended - self.started


@dataclass
class Answers:
    """How the requests of one user, or of all, were answered."""

    statuses: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    #: What the contract does not allow: a sentence for each.
    refused: list[str] = field(default_factory=list)
    slowest: float = 0.0
    last_success: float = 0.0


class Unanswered(Exception):
    """The service is away for the moment (503), or broke the connection."""


class Client:
    """A user with a connection that is kept alive."""

    def __init__(self, port: int, user_id: str) -> None:
        self.user_id = user_id
        self.answers = Answers()
        #: The headers of the latest answer.
        self.received = http.client.HTTPMessage()
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT + 5)
        self._headers = {"Authorization": f"Bearer {token(user_id, exp=int(time.time()) + 3600)}"}

    def call(self, method: str, path: str = "", body: object = None, **headers: str) -> tuple[int, Any]:
        """The status and the JSON of the answer; the connection is renewed where it broke. Raises Unanswered."""
        started = time.monotonic()
        kind = f"{method} under a key" if "Idempotency-Key" in headers else method
        try:
            status, retry_after, text = self._send(method, path, body, headers)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            self._fail(started, kind, "broken")
            raise Unanswered from error
        duration = time.monotonic() - started
        self.answers.slowest = max(self.answers.slowest, duration)
        if status == 503 and retry_after:
            self._fail(started, kind, "503")
            raise Unanswered
        self.answers.statuses[str(status)] += 1
        if status >= 500:
            self.answers.refused.append(f"{method} {path}: {status} {text!r}, Retry-After {retry_after}")
        else:
            self.answers.last_success = time.monotonic()
        return status, json.loads(text) if text else None

    def _send(self, method: str, path: str, body: object, headers: dict[str, str]) -> tuple[int, str | None, bytes]:
        text = None if body is None else json.dumps(body)
        content_type = {} if text is None else {"Content-Type": "application/json"}
        self._connection.request(
            method, f"/api/{self.user_id}/tasks{path}", text, self._headers | content_type | headers
        )
        response = self._connection.getresponse()
        self.received = response.headers
        return response.status, response.headers["Retry-After"], response.read()

    def _fail(self, started: float, method: str, what: str) -> None:
        ended = time.monotonic()
        self.answers.slowest = max(self.answers.slowest, ended - started)
        self.answers.statuses[what] += 1
        self.answers.failures.append(Failure(started, ended, method, what))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class Writer(Client):
    """A user who creates, reads, changes and deletes tasks of its own, one request after the other."""

    def __init__(self, port: int, user_id: str, seed: int) -> None:
        super().__init__(port, user_id)
        self.ledger = Ledger(user_id)
        self._random = random.Random(seed)
        self._number = 0
        #: The title of the task that is created under a key, until the service has told that it is.
        self.pending: str | None = None

    def write(self) -> None:
        """One request, put down in the ledger."""
        known = list(self.ledger.tasks.values())
        if self.pending and self._random.random() < 0.5:
            self.create_once()
            return
        if self._random.random() * 2 * TASKS > len(known):
            self._random.choice([self.create, self.create if self.pending else self.create_once])()
            return
        task = self._random.choice(known)
        action = self._random.choice([self.update, self.complete, self.toggle, self.delete, self.delete, self.read])
        action(task)

    def create(self) -> None:
        """A task with a title like no other."""
        new = {"title": f"{self.user_id} {self._next()}"} | NEW
        self._change("INSERT", "POST", "", {"title": new["title"]}, 201, None, new)

    def create_once(self) -> None:
        """A task with a key, sent again and again until the service tells that it is there: no doubt remains."""
        self.pending = title = self.pending or f"{self.user_id} {self._next()}"
        key = {"Idempotency-Key": title}
        status, answer = self.call("POST", body={"title": title}, **key)
        self.pending = None
        if (status, answer.get("title")) != (201, title):
            self.answers.refused.append(f"POST {title!r} under a key: {status} {answer}")
            self.ledger.doubt("INSERT", time.time(), None, {"title": title} | NEW)
        else:
            self.ledger.acknowledge("INSERT", answer)

    def give_up(self) -> None:
        """Ask for nothing more: what was to be repeated is in doubt."""
        if self.pending:
            self.ledger.doubt("INSERT", time.time(), None, {"title": self.pending} | NEW)

    def update(self, task: Task) -> None:
        """Give it another description."""
        after = task | {"description": f"{self._next()}"}
        self._change("UPDATE", "PUT", f"/{task['id']}", {"description": after["description"]}, 200, task, after)

    def complete(self, task: Task) -> None:
        """Set its status."""
        after = task | {"status": "complete"}
        self._change("UPDATE", "PATCH", f"/{task['id']}/complete", {"status": "complete"}, 200, task, after)

    def toggle(self, task: Task) -> None:
        """Turn its status over."""
        after = task | {"status": "incomplete" if task["status"] == "complete" else "complete"}
        self._change("UPDATE", "PATCH", f"/{task['id']}/complete", None, 200, task, after)

    def delete(self, task: Task) -> None:
        """Delete it."""
        self._change("DELETE", "DELETE", f"/{task['id']}", None, 204, task, None)

    def read(self, task: Task) -> None:
        """Read it: what was written last must be there."""
        answer = self.call("GET", f"/{task['id']}")
        if answer != (200, task):
            self.answers.refused.append(f"GET /{task['id']}: {answer} in place of {task}")

    def _change(
        self, kind: str, method: str, path: str, body: object, expected: int, before: Task | None, after: Task | None
    ) -> None:
        try:
            status, answer = self.call(method, path, body)
        except Unanswered:
            self.ledger.doubt(kind, time.time(), before, after)
            raise
        sent = {name: (after or {}).get(name) for name in ("title", "description", "status")}
        told = {name: (answer or {}).get(name) for name in sent}
        if (status, told) != (expected, sent):
            if status < 500:
                self.answers.refused.append(f"{method} {path} {body}: {status} {answer}")
            self.ledger.doubt(kind, time.time(), before, after)
        else:
            self.ledger.acknowledge(kind, answer or before or {})

    def _next(self) -> int:
        self._number += 1
        return self._number


@dataclass(frozen=True)
class Account:
    """What became of a load; figures() is its line of the table."""

    acknowledged: int
    doubtful: int
    findings: Findings
    answers: Answers
    #: Seconds from the end of the fault until the last failure had been answered.
    recovery: float

    def figures(self) -> dict[str, object]:
        """For people."""
        statuses = " ".join(f"{status}:{count}" for status, count in sorted(self.answers.statuses.items()))
        return {
            "acknowledged": self.acknowledged,
            "in doubt": self.doubtful,
            "lost": len(self.findings.lost),
            "twice": len(self.findings.twice),
            "otherwise wrong": len(self.findings.other) + len(self.answers.refused),
            "slowest": f"{self.answers.slowest:.2f} s",
            "recovery": f"{self.recovery:.2f} s",
            "answers": statuses,
        }


class Load:
    """Writers, each in a thread."""

    def __init__(self, server: Server, url: URL, users: int, journals: Sequence[URL]) -> None:
        name = uuid.uuid4().hex[:8]
        self.url = url
        self._journals = journals
        self.writers = [Writer(server.port, f"{name}-{number}", number) for number in range(users)]
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(writer,)) for writer in self.writers]
        self.ended_at = 0.0
        self._crashed: list[BaseException] = []

    def _work(self, writer: Writer) -> None:
        try:
            while not self._stop.is_set():
                try:
                    writer.write()
                except Unanswered:
                    time.sleep(PAUSE)
        except BaseException as error:  # noqa: BLE001 (whatever it is, the test is to hear of it)
            self._crashed.append(error)
        finally:
            writer.give_up()
            writer.close()

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def fault_ended(self, at: float | None = None) -> None:
        """From here on, or from that instant (time.monotonic), nothing stands in the way of the service."""
        self.ended_at = time.monotonic() if at is None else at

    def stop(self) -> None:
        """End, once each request under way has its answer. Raises what a thread raised."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self._crashed:
            raise self._crashed[0]

    def answers(self) -> Answers:
        """Those of all writers together."""
        each = [writer.answers for writer in self.writers]
        return Answers(
            sum((answers.statuses for answers in each), Counter()),
            [failure for answers in each for failure in answers.failures],
            [sentence for answers in each for sentence in answers.refused],
            max(answers.slowest for answers in each),
            # Of the user that was served last of all.
            min(answers.last_success for answers in each),
        )

    def account(self) -> Account:
        """Compare what the service told with what the database has, once the load has stopped."""
        journal = [entry for url in self._journals for entry in read_journal(url)]
        findings = Findings()
        for writer in self.writers:
            rows = read_tasks(self._server, writer.user_id)
            found = writer.ledger.audit(rows, [entry for user_id, entry in journal if user_id == writer.user_id])
            findings.lost += found.lost
            findings.twice += found.twice
            findings.other += found.other
        answers = self.answers()
        ledgers = [writer.ledger for writer in self.writers]
        late = [failure.ended - self.ended_at for failure in answers.failures if failure.ended > self.ended_at]
        return Account(
            sum(sum(ledger.acknowledged.values()) for ledger in ledgers),
            sum(len(ledger.doubts) for ledger in ledgers),
            findings,
            answers,
            max(late, default=0.0),
        )


def keep_journal(url: URL) -> None:
    """Have the database write down each change of a task, in the transaction that makes it."""
    sql(url, JOURNAL)


def read_journal(url: URL) -> list[tuple[str, Entry]]:
    """Whose task was changed, and how."""
    rows = sql(url, "SELECT user_id, extract(epoch FROM at)::float, kind, task_id, title FROM journal ORDER BY at")
    return [(user_id, Entry(*entry)) for user_id, *entry in rows]


def read_tasks(server: Server, user_id: str) -> list[Task]:
    """All tasks of the user, read through the service."""
    status, tasks = server.request("GET", f"/api/{user_id}/tasks?limit=1000", user_id)
    assert status == 200, tasks
    assert len(tasks) < 1000, "the user has more than a page of tasks"
    return list(tasks)


@contextmanager
def load(server: Server, url: URL, users: int = 8, journals: Sequence[URL] = ()) -> Iterator[Load]:
    """A load as long as the block. journals: the databases that keep the journal, if the url's does not."""
    load = Load(server, url, users, journals or [url])
    load.start()
    try:
        yield load
    finally:
        load.stop()


@contextmanager
def held(url: URL, statement: str, **parameters: object) -> Iterator[None]:
    """Somebody else's transaction, with what the statement locks."""
    engine = create_engine(as_superuser(url), poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text(statement), parameters)
        yield
