"""The workload: users and tasks in the database, and the requests of each call."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from json import dumps
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy import URL

from tests.support import as_superuser, close, migrated_app, postgresql_database, token

CALLS = ("get", "list", "create", "complete", "mix")
#: 70 % list, 20 % get, 10 % writes.
MIX = ["list"] * 7 + ["get"] * 2 + ["create"] + ["list"] * 7 + ["get"] * 2 + ["complete"]
USERS = 50

#: Users u… read, d… complete their tasks, c… create. Every instant has microseconds.
SEED = f"""
    INSERT INTO users (id)
    SELECT kind || to_char(n, 'FM000') FROM unnest(ARRAY['u', 'd', 'c']) AS kind, generate_series(0, {USERS - 1}) AS n;

    INSERT INTO tasks (user_id, title, description, status, created_at, updated_at)
    SELECT users.id,
           CASE n % 4 WHEN 0 THEN 'Κατάλογος № ' || n || ' – 買い物 ✓' ELSE 'Task number ' || n END,
           CASE n % 3 WHEN 0 THEN NULL ELSE 'Two litres of milk, half a pound of butter and "the usual" for ' || n END,
           CASE n % 2 WHEN 0 THEN 'complete' ELSE 'incomplete' END,
           timestamptz '2025-01-09 12:34:56.123456Z' + n * interval '1 hour 7 microseconds',
           timestamptz '2025-02-09 12:34:56.654321Z' + n * interval '1 hour 7 microseconds'
    FROM users, generate_series(1, CASE left(users.id, 1) WHEN 'u' THEN 100 WHEN 'd' THEN 20 ELSE 0 END) AS n
    ORDER BY users.id, n;
"""


@dataclass(frozen=True)
class Request:
    """One request. Without a user_id it has no token."""

    method: str
    path: str
    user_id: str | None
    json: object = None
    #: For If-None-Match.
    tag: str = ""

    @property
    def token(self) -> str | None:
        """The caller's bearer token."""
        return None if self.user_id is None else _token(self.user_id)

    @property
    def body(self) -> str:
        """The body; empty if there is none."""
        return "" if self.json is None else dumps(self.json)


@cache
def _token(user_id: str) -> str:
    # Valid for longer than any run.
    return token(user_id, exp=int(time.time()) + 24 * 3600)


class Database:
    """The database that all servers use, with users and tasks."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self._connection = psycopg2.connect(
            as_superuser(url).set(drivername="postgresql").render_as_string(hide_password=False)
        )
        self._connection.autocommit = True
        self.execute(SEED)
        # Some drivers return instants in the session's time zone. Autovacuum would disturb one of the servers.
        self.execute(f"ALTER DATABASE {url.database} SET timezone TO 'UTC'")
        self.execute("ALTER TABLE tasks SET (autovacuum_enabled = off)")
        self.tasks: dict[str, list[int]] = defaultdict(list)
        for user_id, task_id in self.execute("SELECT user_id, id FROM tasks ORDER BY id"):
            self.tasks[user_id].append(task_id)
        self.forget_writes()

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Execute the statement, and return its rows."""
        with self._connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def forget_writes(self) -> None:
        """Revert all writes and remove dead rows, so that every run starts alike."""
        self.execute("DELETE FROM users WHERE id = 'new'")
        self.execute("DELETE FROM tasks WHERE user_id LIKE 'c%'")
        self.execute("UPDATE tasks SET status = 'incomplete' WHERE user_id LIKE 'd%'")
        self.execute("VACUUM (FULL, ANALYZE) tasks")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def requests(self, call: str) -> list[Request]:
        """Return the requests of a call, to be sent in a loop. Users take turns."""
        if call == "mix":
            turns = {name: cycle(self.requests(name)) for name in set(MIX)}
            return [next(turns[name]) for _ in range(USERS) for name in MIX]
        users = range(USERS)
        if call == "list":
            return [Request("GET", f"/api/u{n:03}/tasks", f"u{n:03}") for n in users]
        if call == "create":
            new_task = {"title": "Buy milk – 牛乳", "description": "Two litres, whole"}
            return [Request("POST", f"/api/c{n:03}/tasks", f"c{n:03}", new_task) for n in users]
        method, kind, suffix = {"get": ("GET", "u", ""), "complete": ("PATCH", "d", "/complete")}[call]
        return [
            Request(method, f"/api/{user_id}/tasks/{tasks[turn]}{suffix}", user_id)
            for turn in range(20)
            for user_id, tasks in self.tasks.items()
            if user_id.startswith(kind)
        ]

    def write_requests(self, call: str, folder: Path) -> Path:
        """Write the call's requests to a file that load.lua reads, and return its path."""
        return write_requests(self.requests(call), folder / f"{call}.tsv")


def write_requests(requests: Iterable[Request], path: Path) -> Path:
    """Write the requests to a file that load.lua reads, and return its path."""
    parts = ((each.method, each.path, str(each.token), each.tag, each.body) for each in requests)
    path.write_text("".join("\t".join(of_one) + "\n" for of_one in parts))
    return path


@contextmanager
def seeded_database(server: URL) -> Iterator[Database]:
    """Create a database with the service's own migrations, and drop it afterwards."""
    with postgresql_database(server) as url:
        close(migrated_app(url))
        database = Database(url)
        try:
            yield database
        finally:
            database.close()
