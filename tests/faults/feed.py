"""The change feed under a load: writers, pollers that keep a copy by the feed alone, and what the database had.

Triggers of the test's database write each version of each task into a table, the trail, in the transaction that makes
it. The trail gives the state of the tasks at any instant of their owner's clock. A poller's copy is compared with the
state at the instant in its token, whenever the feed says that no more follows. So a gap is found even if a later change
closes it.
"""

import random
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlencode

from sqlalchemy import URL, Boolean, Column, Identity, MetaData, Select, Table, select

from tests.faults.ledger import Task
from tests.faults.load import PAUSE, Answers, Client, Unanswered
from tests.live import Server
from tests.support import PATIENCE, session, sql
from todo.db.types import BigIdentity, UtcInstant
from todo.tasks import models
from todo.web.sync import decode_token

#: The most changes on a page. A user has more tasks, and a bulk call changes more.
PAGE = 7
USERS = ("alice", "bob")
#: Writers of each user.
WRITERS = 8
#: How often a writer does what, in the order of Scribe's actions.
WEIGHTS = (4, 4, 6, 6, 4, 1, 1, 1)
#: A writer creates a task if there are fewer than this, about.
TASKS = 15
#: Seconds between two looks if nothing has changed.
IDLE = 0.002

TASK = models.Task.__table__
FIELDS = [column.name for column in TASK.columns]
#: The trail: a row for each version. at: when it became so, by the clock of the owner.
TRAIL = Table(
    "trail",
    MetaData(),
    Column("number", BigIdentity, Identity(always=True), primary_key=True),
    Column("at", UtcInstant),
    Column("is_gone", Boolean),
    *(Column(column.name, column.type) for column in TASK.columns),
)
#: On a correct service now() is never later than the clock. A planted fault may leave the clock behind.
TRIGGERS = """
CREATE FUNCTION leave_trail() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    task record;
    now timestamptz;
BEGIN
    IF TG_OP = 'DELETE' THEN
        task := OLD;
        now := greatest(now(), (SELECT changed_at FROM users WHERE id = OLD.user_id));
    ELSE
        task := NEW;
        now := NEW.updated_at;
    END IF;
    INSERT INTO trail (at, is_gone, {fields}) SELECT now, TG_OP = 'DELETE', {values};
    RETURN NULL;
END $$;
CREATE TRIGGER leave_trail AFTER INSERT OR UPDATE OR DELETE ON tasks FOR EACH ROW EXECUTE FUNCTION leave_trail();
"""
#: Between the statement and its commit, a few milliseconds at most times, and many now and then.
DELAY = """
CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep(0.03 * random() ^ 4);
    RETURN NULL;
END $$;
CREATE TRIGGER take_time AFTER INSERT OR UPDATE OR DELETE ON tasks FOR EACH STATEMENT EXECUTE FUNCTION take_time();
"""
TRIGGER_OF_SQLITE = """
CREATE TRIGGER leave_trail_{kind} AFTER {kind} ON tasks BEGIN
    INSERT INTO trail (at, is_gone, {fields}) SELECT {at}, '{kind}' = 'DELETE', {values};
END
"""
NOW_OF_SQLITE = {
    "INSERT": "NEW.updated_at",
    "UPDATE": "NEW.updated_at",
    "DELETE": "(SELECT changed_at FROM users WHERE id = OLD.user_id)",
}
RUNNING = "SELECT pid FROM pg_stat_activity WHERE datname = :name AND state <> 'idle' AND pid <> pg_backend_pid()"


class Version(NamedTuple):
    """A task as it became at an instant; None: it was deleted."""

    number: int
    at: str
    task_id: int
    task: Task | None


class Copy(NamedTuple):
    """What a poller had when the feed said that no more follows, and the instant in its token."""

    at: str
    tasks: Mapping[int, Task]


class Difference(NamedTuple):
    """A task that a copy has in another version than the database had. is_behind: the copy's version is older."""

    user_id: str
    at: str
    copied: Task | None
    kept: Task | None
    is_behind: bool


def keep_trail(url: URL) -> None:
    """Have the database keep the trail, and on PostgreSQL also take its time before each commit."""
    with session(url) as connection:
        TRAIL.create(connection)
        if url.get_backend_name() == "sqlite":
            for kind, at in NOW_OF_SQLITE.items():
                row = "OLD" if kind == "DELETE" else "NEW"
                names = {"fields": ", ".join(FIELDS), "values": ", ".join(f"{row}.{name}" for name in FIELDS)}
                connection.exec_driver_sql(TRIGGER_OF_SQLITE.format(kind=kind, at=at, **names))
        else:
            values = ", ".join(f"task.{name}" for name in FIELDS)
            connection.exec_driver_sql(TRIGGERS.format(fields=", ".join(FIELDS), values=values) + DELAY)
        connection.commit()


def read_trail(urls: Sequence[URL]) -> dict[str, list[Version]]:
    """Return the versions of each user's tasks, in the order in which they were made. One of the databases has them."""
    versions = defaultdict(list)
    for url in urls:
        for row in _read(url, select(TRAIL).order_by(TRAIL.c.number)):
            task = {name: row[name] for name in FIELDS}
            version = Version(row["number"], row["at"], row["id"], None if row["is_gone"] else task)
            versions[task["user_id"]].append(version)
    return versions


def read_tasks(url: URL) -> dict[str, dict[int, Task]]:
    """Return the tasks of each user as the table has them."""
    tasks: dict[str, dict[int, Task]] = defaultdict(dict)
    for row in _read(url, select(TASK)):
        tasks[row["user_id"]][row["id"]] = dict(row)
    return tasks


def _read(url: URL, rows: Select[Any]) -> Sequence[Mapping[str, Any]]:
    with session(url) as connection:
        return [dict(row) for row in connection.execute(rows).mappings()]


def compare(user_id: str, copies: Iterable[Copy], versions: Sequence[Version]) -> Iterator[Difference]:
    """Compare each copy with the state at its instant."""
    # Of several versions of a task up to an instant the last one counts: they were made in the order of the numbers.
    following = deque(sorted(versions, key=lambda version: (version.at, version.number)))
    state: dict[int, Version] = {}
    for copy in sorted(copies, key=lambda copy: copy.at):
        while following and following[0].at <= copy.at:
            version = following.popleft()
            if version.task_id not in state or state[version.task_id].number < version.number:
                state[version.task_id] = version
        kept = {version.task_id: version.task for version in state.values() if version.task is not None}
        if kept == copy.tasks:
            continue
        for task_id in sorted(kept.keys() | copy.tasks.keys()):
            ours, theirs = copy.tasks.get(task_id), kept.get(task_id)
            if ours != theirs:
                later = [version.task for version in following if version.task_id == task_id]
                yield Difference(user_id, copy.at, ours, theirs, ours is None or ours not in later)


class Poller(Client):
    """A client that keeps a copy of a user's tasks by the feed alone.

    starts_again: whether it forgets all each time that it is up to date. Its first sync then has several pages, between
    which tasks are changed and deleted.
    """

    def __init__(self, port: int, user_id: str, *, starts_again: bool) -> None:
        super().__init__(port, user_id)
        self.copies: list[Copy] = []
        self.unchanged = 0
        self._starts_again = starts_again
        self._start()

    def _start(self) -> None:
        self._tasks: dict[int, Task] = {}
        self._since: str | None = None
        self._tag: str | None = None

    def look(self) -> bool:
        """Fetch a page and apply it. Return whether no more follows. Raises Unanswered."""
        query = {"limit": PAGE} if self._since is None else {"limit": PAGE, "since": self._since}
        known = {} if self._tag is None else {"If-None-Match": self._tag}
        status, answer = self.call("GET", f"/changes?{urlencode(query)}", **known)
        if status == 304 and known:
            self.unchanged += 1
            time.sleep(IDLE)
            return True
        if status != 200:
            self.answers.refused.append(f"GET /changes: {status} {answer}")
            # As a 410 says.
            self._start()
            return False
        for change in answer["changes"]:
            if change["task"] is None:
                self._tasks.pop(change["id"], None)
            else:
                self._tasks[change["id"]] = change["task"]
        self._since = answer["next"]
        if answer["more"]:
            return False
        self._tag = self.received["ETag"]
        self.copies.append(Copy(decode_token(self.user_id, "tasks", answer["next"]).instant, dict(self._tasks)))
        if self._starts_again:
            self._start()
        return True

    def catch_up(self) -> None:
        """Look until no more follows."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if self.look():
                    return
            except Unanswered:
                time.sleep(PAUSE)
            assert time.monotonic() < deadline


class Scribe(Client):
    """One of the writers of a user. It changes any of the user's tasks, and remembers no answer."""

    def __init__(self, port: int, user_id: str, number: int, ids: dict[int, None]) -> None:
        super().__init__(port, user_id)
        #: How often each kind of write succeeded.
        self.written: Counter[str] = Counter()
        self._ids = ids
        self._random = random.Random(number)
        self._titles = (f"{number} {count}" for count in range(10**9))
        self._actions = [
            self.create,
            self.create_once,
            self.update,
            self.toggle,
            self.delete,
            self.complete_all,
            self.reopen_all,
            self.clear,
        ]
        # Each writer begins with another one, so that even a short load has all.
        self._action: Callable[[], None] = self._actions[number]

    def write(self) -> None:
        """One write. Raises Unanswered."""
        if len(self._ids) < TASKS:
            self._random.choice([self.create, self.create_once])()
        else:
            action, self._action = self._action, self._random.choices(self._actions, WEIGHTS)[0]
            action()

    def create(self) -> None:
        """Create a task."""
        self._created("create", *self.call("POST", body={"title": next(self._titles)}))

    def create_once(self) -> None:
        """Create a task under a key, again and again until there is an answer."""
        title = next(self._titles)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                answer = self.call("POST", body={"title": title}, **{"Idempotency-Key": title})
                return self._created("create with a key", *answer)
            except Unanswered:
                if time.monotonic() > deadline:
                    raise
                time.sleep(PAUSE)

    def _created(self, kind: str, status: int, answer: Any) -> None:
        self._wrote(kind, status, answer, 201)
        if status == 201:
            self._ids[answer["id"]] = None

    def update(self) -> None:
        """Give a task another description."""
        self._change("update", 200, "PUT", "", {"description": next(self._titles)})

    def toggle(self) -> None:
        """Turn the status of a task over."""
        self._change("toggle", 200, "PATCH", "/complete")

    def delete(self) -> None:
        """Delete a task."""
        self._change("delete", 204, "DELETE")

    def complete_all(self) -> None:
        """Complete all tasks."""
        self._wrote("bulk", *self.call("PATCH", "?status=incomplete", {"status": "complete"}), 200)

    def reopen_all(self) -> None:
        """Reopen all tasks."""
        self._wrote("bulk", *self.call("PATCH", "?status=complete", {"status": "incomplete"}), 200)

    def clear(self) -> None:
        """Delete all complete tasks."""
        self._wrote("bulk deletion", *self.call("DELETE", "?status=complete"), 200)

    def _change(self, kind: str, expected: int, method: str, path: str = "", body: object = None) -> None:
        task_id = self._random.choice(list(self._ids) or [1])
        status, answer = self.call(method, f"/{task_id}{path}", body)
        if status == 404 or kind == "delete":
            self._ids.pop(task_id, None)
        # Another writer may have deleted it.
        self._wrote(kind, status, answer, expected, 404)

    def _wrote(self, kind: str, status: int, answer: Any, *expected: int) -> None:
        if status not in expected:
            self.answers.refused.append(f"{kind}: {status} {answer}")
        elif status != 404:
            self.written[kind] += 1


@dataclass(frozen=True)
class Account:
    """What became of a load."""

    written: Counter[str]
    #: How often a copy was compared with the state at its instant, and at how many instants.
    compared: int
    instants: int
    #: How often the feed said that nothing has changed.
    unchanged: int
    differences: Sequence[Difference]
    answers: Answers

    def figures(self) -> dict[str, object]:
        """Return the line of the table."""
        statuses = " ".join(f"{status}:{count}" for status, count in sorted(self.answers.statuses.items()))
        return {
            "written": self.written.total(),
            "copies compared": self.compared,
            "instants": self.instants,
            "unchanged": self.unchanged,
            "copies behind": len({each.at for each in self.differences if each.is_behind}),
            "copies otherwise different": len({each.at for each in self.differences if not each.is_behind}),
            "refused": len(self.answers.refused),
            "slowest": f"{self.answers.slowest:.2f} s",
            "answers": statuses,
        }


class Feed:
    """USERS, each with WRITERS, and with a poller of each kind. trails: the databases that keep the trail."""

    def __init__(self, server: Server, url: URL, trails: Sequence[URL]) -> None:
        self.url = url
        self._trails = trails
        self._server = server
        self._writers, self._pollers = list[Scribe](), list[Poller]()
        for user_id in USERS:
            ids = dict[int, None]()
            self._writers += [Scribe(server.port, user_id, number, ids) for number in range(WRITERS)]
            self._pollers += [Poller(server.port, user_id, starts_again=again) for again in (False, True)]
        self._stop_writing, self._stop_looking = threading.Event(), threading.Event()
        self._writing = [self._thread(self._stop_writing, writer.write) for writer in self._writers]
        self._looking = [self._thread(self._stop_looking, poller.look) for poller in self._pollers]
        self._crashed: list[BaseException] = []

    def _thread(self, stop: threading.Event, step: Callable[[], object]) -> threading.Thread:
        def work() -> None:
            try:
                while not stop.is_set():
                    try:
                        step()
                    except Unanswered:
                        time.sleep(PAUSE)
            except BaseException as error:  # noqa: BLE001 (whatever it is, the test must report it)
                self._crashed.append(error)

        return threading.Thread(target=work)

    def start(self) -> None:
        """Begin."""
        for thread in self._looking + self._writing:
            thread.start()

    def stop(self) -> None:
        """End: first the writers, then the pollers, which look once more when nothing is written any more."""
        self._join(self._stop_writing, self._writing)
        self._join(self._stop_looking, self._looking)
        if self._crashed:
            raise self._crashed[0]
        self._server.wait_until("/health/ready")
        self._settle()
        for poller in self._pollers:
            poller.catch_up()
        for client in [*self._writers, *self._pollers]:
            client.close()

    @staticmethod
    def _join(stop: threading.Event, threads: Iterable[threading.Thread]) -> None:
        stop.set()
        for thread in threads:
            thread.join()

    def _settle(self) -> None:
        """Wait for statements whose worker was killed."""
        deadline = time.monotonic() + PATIENCE
        while self.url.get_backend_name() != "sqlite" and sql(self.url, RUNNING, name=self.url.database):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def differences(self) -> list[Difference]:
        """Compare all copies so far with the trail."""
        # First the copies: what they have must be in the trail.
        copies = [(poller.user_id, poller.copies[:]) for poller in self._pollers]
        trail = read_trail(self._trails)
        return [found for user_id, each in copies for found in compare(user_id, each, trail[user_id])]

    def kinds_written(self) -> set[str]:
        """The kinds of writes that there have been so far."""
        # list(), because writers go on.
        return {kind for writer in self._writers for kind in list(writer.written)}

    def account(self) -> Account:
        """Compare everything, once the load has stopped: the last copies with the table too."""
        tasks, trail = read_tasks(self.url), read_trail(self._trails)
        for user_id in USERS:
            # The trail itself is right.
            now = [*compare(user_id, [Copy("9999", tasks[user_id])], trail[user_id])]
            assert now == []
        differences = self.differences()
        for poller in self._pollers:
            at, last = poller.copies[-1]
            kept = tasks[poller.user_id]
            differences += [
                Difference(poller.user_id, at, last.get(task_id), kept.get(task_id), True)
                for task_id in sorted(last.keys() | kept.keys())
                if last.get(task_id) != kept.get(task_id)
            ]
        clients: list[Client] = [*self._writers, *self._pollers]
        answers = Answers(
            sum((client.answers.statuses for client in clients), Counter()),
            refused=[sentence for client in clients for sentence in client.answers.refused],
            slowest=max(client.answers.slowest for client in clients),
        )
        return Account(
            sum((writer.written for writer in self._writers), Counter()),
            sum(len(poller.copies) for poller in self._pollers),
            len({(poller.user_id, copy.at) for poller in self._pollers for copy in poller.copies}),
            sum(poller.unchanged for poller in self._pollers),
            differences,
            answers,
        )


@contextmanager
def feed(server: Server, url: URL, trails: Sequence[URL] = ()) -> Iterator[Feed]:
    """Keep the load up as long as the block. trails: the databases that keep the trail, if the url's does not."""
    feed = Feed(server, url, trails or [url])
    feed.start()
    try:
        yield feed
    finally:
        feed.stop()
