"""`make bench-capacity`: what a day of 10,000 users needs, calculated from a measured day of fewer (USERS, 500)."""

import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPResponse
from json import dumps, loads
from pathlib import Path
from typing import Any

from benchmarks.measure import idle_cpu_seconds, memory, parent
from benchmarks.workload import Database, seeded_database
from tests.live import Server, gunicorn
from tests.support import postgresql_server, token

DAILY = 10_000
#: A user's day: visits, and in each of them a poll every 30 s for five minutes beside the other calls.
VISITS, POLLS = 4, 10
#: The part of a day's calls in its busiest hour.
BUSIEST = 0.15
CLIENTS = 8

SEED = """
    INSERT INTO users (id) SELECT 'daily' || n FROM generate_series(1, {users}) AS n;
    INSERT INTO tasks (user_id, title, description)
    SELECT id, 'Task number ' || n, 'Two litres of milk, half a pound of butter and "the usual"'
    FROM users, generate_series(1, 100) AS n WHERE id LIKE 'daily%';
"""
ROWS = "SELECT (SELECT count(*) FROM idempotency_keys), (SELECT count(*) FROM deletions)"
SIZES = "SELECT pg_total_relation_size('tasks') + pg_total_relation_size('idempotency_keys')"


class User:
    """A user, on a connection that is kept."""

    def __init__(self, server: Server, user_id: str, calls: Counter[str]) -> None:
        self._connection = HTTPConnection("127.0.0.1", server.port, timeout=15)
        self._path = f"/api/{user_id}/tasks"
        self._token = token(user_id, exp=int(time.time()) + 3600)
        self._user_id, self._calls = user_id, calls

    def visit(self, number: int) -> None:
        """List, poll, search, create two tasks with keys, change two and delete one."""
        answer, tasks = self.call("list", "GET")
        tag = answer.headers["ETag"]
        for _ in range(POLLS):
            answer, _ = self.call("poll", "GET", **{"If-None-Match": tag})
            assert answer.status == 304
        self.call("search", "GET", "?q=number%209")
        for each in range(2):
            key = {"Idempotency-Key": f"{self._user_id}-{number}-{each}"}
            self.call("create", "POST", body={"title": "Buy milk", "description": "Two litres, whole"}, **key)
        first, second = random.sample(tasks[:50], 2)
        self.call("complete", "PATCH", f"/{first['id']}/complete", {"status": "complete"})
        self.call("update", "PUT", f"/{second['id']}", {"title": "Buy more milk"})
        self.call("delete", "DELETE", f"/{first['id']}")

    def call(
        self, name: str, method: str, path: str = "", body: object = None, **headers: str
    ) -> tuple[HTTPResponse, Any]:
        """Send a request and return the answer with its JSON."""
        headers |= {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        self._connection.request(method, self._path + path, None if body is None else dumps(body), headers)
        answer = self._connection.getresponse()
        content = answer.read()
        assert answer.status < 400, content
        self._calls[name] += 1
        return answer, loads(content) if content else None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def day(server: Server, users: int) -> Counter[str]:
    """Let all users have their day, some at once; how many calls of each kind there were."""
    calls = Counter[str]()

    def visits(number: int) -> None:
        user = User(server, f"daily{number}", calls)
        for visit in range(VISITS):
            user.visit(visit)
        user.close()

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(visits, range(1, users + 1)))
    return calls


def report(database: Database, server: Server, users: int) -> Iterator[tuple[str, str]]:
    """Measure a day, and yield what 10,000 users need."""
    postmaster = parent(database.execute("SELECT pg_backend_pid()")[0][0])
    idle, pids = memory(server.process.pid), (server.process.pid, postmaster)
    before = [idle_cpu_seconds(pid) for pid in pids]
    logged, ((size,),) = server.log.stat().st_size, database.execute(SIZES)
    calls = day(server, users)
    own, postgresql = (idle_cpu_seconds(pid) - start for pid, start in zip(pids, before, strict=True))
    logged, size = server.log.stat().st_size - logged, database.execute(SIZES)[0][0] - size
    ((keys, deletions),) = database.execute(ROWS)
    factor, total = DAILY / users, calls.total()
    hourly = BUSIEST * factor / 3600
    each = ", ".join(f"{name} {count / users:.0f}" for name, count in calls.items())
    yield "calls a day", f"{total * factor:,.0f}; of a user: {each}"
    yield "calls/s on average, in the busiest hour", f"{total * factor / 86400:.0f}, {total * hourly:.0f}"
    yield "CPU of a call: service, PostgreSQL", f"{own / total * 1e6:.0f} µs, {postgresql / total * 1e6:.0f} µs"
    yield "cores in the busiest hour: service, PostgreSQL", f"{own * hourly:.2f}, {postgresql * hourly:.2f}"
    yield "memory of gunicorn, 2 workers", f"{idle:.0f} MiB at the start, {memory(server.process.pid):.0f} MiB after"
    yield "log", f"{logged * factor / 2**20:,.0f} MiB a day, {logged / total:.0f} bytes a call"
    yield "rows a day: keys, notes of deletions", f"{keys * factor:,.0f}, {deletions * factor:,.0f}"
    yield "growth of tasks and keys, before vacuum", f"{size * factor / 2**20:,.0f} MiB a day"


def main() -> None:
    """Measure and print."""
    users = int(os.environ.get("USERS", "500"))
    os.environ.pop("TEST_DATABASE_URL", None)
    with ExitStack() as stack:
        url = stack.enter_context(postgresql_server())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database: Database = stack.enter_context(seeded_database(url))
        database.execute(SEED.format(users=users))
        database.execute("VACUUM ANALYZE")
        server = stack.enter_context(gunicorn(database.url, folder / "log", METRICS_TOKEN="a-token-for-prometheus"))
        print(f"\n| {DAILY:,} daily users | |\n|---|---|")
        for quantity, value in report(database, server, users):
            print(f"| {quantity} | {value} |")


if __name__ == "__main__":
    main()
