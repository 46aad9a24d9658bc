"""`make bench-sync`: what polling, the change feed and the clock of a user cost. Prints two tables.

BEFORE=FOLDER compares writes with another version of the service, checked out there. ROUNDS and SECONDS shorten a run.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from json import loads
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import URL

from benchmarks import servers
from benchmarks.load import load
from benchmarks.measure import idle_cpu_seconds, parent
from benchmarks.servers import SERVICE, started
from benchmarks.workload import Database, Request, seeded_database, write_requests
from tests.live import Server, gunicorn
from tests.support import ROOT, postgresql_database, postgresql_server

ROUNDS, SECONDS = 5, 3
SIZES = (100, 1000)
#: Users with a list of each size, and users who write: w… create, complete and delete.
POLLERS, WRITERS = 8, 50
#: Tasks of each writer that are deleted in all rounds, and how long all deletions of a round take at most.
DELETABLE, ONCE_SECONDS = 250, 5
QUANTITIES = ("server CPU, µs", "PostgreSQL's CPU, µs", "bytes", "requests/s")

SEED = """
    INSERT INTO users (id) SELECT 'p{size}-' || n FROM generate_series(0, {pollers} - 1) AS n;
    INSERT INTO tasks (user_id, title, description, created_at, updated_at)
    SELECT users.id, 'Task number ' || n, 'Two litres of milk, half a pound of butter and "the usual"',
           now() - n * interval '1 hour', now() - n * interval '1 hour'
    FROM users, generate_series(1, {size}) AS n WHERE users.id LIKE 'p{size}-%';
"""
SEED_WRITERS = f"""
    INSERT INTO users (id) SELECT 'w' || to_char(n, 'FM000') FROM generate_series(0, {WRITERS - 1}) AS n;
    INSERT INTO tasks (user_id, title) SELECT id, 'Task' FROM users, generate_series(1, {DELETABLE}) WHERE id LIKE 'w%';
"""

Figures = dict[tuple[str, str], list[tuple[float, ...]]]


@dataclass(frozen=True)
class Kind:
    """A kind of write: its requests, and how many connections send them; each request once, or in a loop."""

    name: str
    requests: list[Request]
    connections: int = 32
    is_once: bool = False


def measured(server: Server, postmaster: int, path: Path, seconds: int, kind: Kind) -> tuple[float, ...]:
    """Load the server, after a second of the same load if requests can be repeated; the QUANTITIES of a request."""
    pids = (server.process.pid, postmaster)
    write_requests(kind.requests, path)
    if not kind.is_once:
        load(server.port, path, 1, connections=kind.connections)
    before = [idle_cpu_seconds(pid) for pid in pids]
    limit, longest = (len(kind.requests), max(seconds, ONCE_SECONDS)) if kind.is_once else (None, seconds)
    result = load(server.port, path, longest, limit=limit, connections=kind.connections)
    asked = limit or result.asked
    own, postgresql = ((idle_cpu_seconds(pid) - start) / asked * 1e6 for pid, start in zip(pids, before, strict=True))
    return own, postgresql, result.bytes, result.requests / result.seconds


def seed_pollers(database: Database) -> None:
    """Create the users of polls(), with a list of each size."""
    for size in SIZES:
        database.execute(SEED.format(size=size, pollers=POLLERS))


def polls(database: Database, port: int, *, is_service: bool) -> Iterator[tuple[str, list[Request]]]:
    """Yield each kind of poll, and its requests."""
    for size in SIZES:
        users = [f"p{size}-{number}" for number in range(POLLERS)]
        full = [Request("GET", f"/api/{user}/tasks", user) for user in users]
        yield f"list of {size}", full
        if not is_service:
            continue
        answers = zip(full, map(ask(port), full), strict=True)
        yield f"list of {size}, unchanged (304)", [replace(each, tag=tag) for each, (tag, _) in answers]
        feed = [Request("GET", f"/api/{user}/tasks/changes", user) for user in users]
        answers = zip(feed, map(ask(port), feed), strict=True)
        feed = [replace(each, path=f"{each.path}?since={loads(body)['next']}") for each, (_, body) in answers]
        yield f"feed of {size}, unchanged", feed
        for user in users:
            task = database.execute(f"SELECT max(id) FROM tasks WHERE user_id = '{user}'")[0][0]
            ask(port)(Request("PATCH", f"/api/{user}/tasks/{task}/complete", user))
        yield f"feed of {size}, one change", feed
    tasks = database.execute("SELECT user_id, max(id) FROM tasks WHERE user_id LIKE 'p%' GROUP BY 1")
    yield "one task", [Request("GET", f"/api/{user}/tasks/{task}", user) for user, task in tasks]


def ask(port: int) -> Callable[[Request], tuple[str, bytes]]:
    """Return a function that sends a request, and returns the entity tag and the body of its answer."""

    def send(request: Request) -> tuple[str, bytes]:
        connection = HTTPConnection("127.0.0.1", port, timeout=15)
        connection.request(request.method, request.path, headers={"Authorization": f"Bearer {request.token}"})
        with closing(connection), connection.getresponse() as response:
            return response.headers["ETag"], response.read()

    return send


def writes(database: Database, rounds: int) -> Iterator[Kind]:
    """Yield each kind of write."""
    users = [f"w{number:03}" for number in range(WRITERS)]
    tasks: dict[str, list[int]] = defaultdict(list)
    for user, task in database.execute("SELECT user_id, id FROM tasks WHERE user_id LIKE 'w%' ORDER BY id"):
        tasks[user].append(task)
    new = {"title": "Buy milk", "description": "Two litres, whole"}
    one = users[0]

    def complete(user: str, task: int) -> Request:
        return Request("PATCH", f"/api/{user}/tasks/{task}/complete", user)

    yield Kind("create", [Request("POST", f"/api/{user}/tasks", user, new) for user in users])
    yield Kind("complete", [complete(user, tasks[user][0]) for user in users])
    yield Kind("create, 8 writers of one user", [Request("POST", f"/api/{one}/tasks", one, new)], connections=8)
    yield Kind("complete, 8 writers of one user", [complete(one, task) for task in tasks[one][:8]], connections=8)
    part = (DELETABLE - 10) // rounds
    turns = [tasks[user][10 : 10 + part] for user in users]
    gone = [
        Request("DELETE", f"/api/{user}/tasks/{task}", user)
        for turn in zip(*turns, strict=True)
        for user, task in zip(users, turn, strict=True)
    ]
    yield Kind("delete", gone, is_once=True)


@contextmanager
def older_database(server: URL, folder: Path) -> Iterator[Database]:
    """Create a database with the migrations of the version in that folder."""
    with postgresql_database(server) as url:
        environ = {"PATH": os.environ["PATH"], "DATABASE_URL": url.render_as_string(hide_password=False)}
        command = [sys.executable, "-m", "flask", "db", "upgrade"]
        subprocess.run(command, cwd=folder, env=environ | {"IDENTITY_PROVIDER": "development"}, check=True)
        database = Database(url)
        try:
            yield database
        finally:
            database.close()


def table(title: str, figures: Figures, base: str) -> None:
    """Print a table: for each kind and server the median of each quantity, and of its ratio to the base per round."""
    print(f"\n| {title} | server | {' | '.join(QUANTITIES)} | server CPU to {base} |")
    print("|---|---|" + "---|" * (len(QUANTITIES) + 1))
    for (kind, server), rounds in figures.items():
        medians = [median(values) for values in zip(*rounds, strict=True)]
        ratios = [own[0] / other[0] for own, other in zip(rounds, figures.get((kind, base), []), strict=False)]
        ratio = f"{median(ratios):.2f}" if ratios else ""
        print(f"| {kind} | {server} | {' | '.join(f'{value:,.0f}' for value in medians)} | {ratio} |")


def main() -> None:
    """Measure and print."""
    rounds, seconds = int(os.environ.get("ROUNDS", ROUNDS)), int(os.environ.get("SECONDS", SECONDS))
    before = Path(os.environ["BEFORE"]).absolute() if "BEFORE" in os.environ else None
    os.environ.pop("TEST_DATABASE_URL", None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    read: Figures = defaultdict(list)
    written: Figures = defaultdict(list)
    with ExitStack() as stack:
        url = stack.enter_context(postgresql_server())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = folder / "requests.tsv"
        database: Any = stack.enter_context(seeded_database(url))
        versions = {"now": (database, ROOT)}
        if before is not None:
            versions["before"] = (stack.enter_context(older_database(url, before)), before)
        seed_pollers(database)
        for each, _ in versions.values():
            each.execute(SEED_WRITERS)
            each.execute("VACUUM ANALYZE")
        postmaster = parent(database.execute("SELECT pg_backend_pid()")[0][0])
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            for name in servers.available():
                with started(name, database.url, folder / f"{name}.log") as server:
                    for title, requests in polls(database, server.port, is_service=name == SERVICE):
                        took = measured(server, postmaster, path, seconds, Kind(title, requests))
                        read[title, name].append(took)
            for name, (each, code) in versions.items():
                with gunicorn(each.url, folder / f"{name}.log", cwd=code, LOG_LEVEL="WARNING") as server:
                    for kind in writes(each, rounds):
                        written[kind.name, name].append(measured(server, postmaster, path, seconds, kind))
    table("poll", read, SERVICE)
    table("write", written, "before")


if __name__ == "__main__":
    main()
