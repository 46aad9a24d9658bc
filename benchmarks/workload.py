"""What is asked of every server: the users and their tasks in the database, and the requests of each call."""

import time
from collections import defaultdict
from collections.abc import Iterator
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

#: u… read, d… complete what they have, c… create. Every instant has microseconds.
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
    """One request; a user of None is nobody, and has no token."""

    method: str
    path: str
    user_id: str | None
    json: object = None

    @property
    def token(self) -> str | None:
        """The caller's bearer token."""
        return None if self.user_id is None else _token(self.user_id)

    @property
    def body(self) -> str:
        """The body; empty where there is none."""
        return "" if self.json is None else dumps(self.json)


@cache
def _token(user_id: str) -> str:
    # Longer than any run.
    return token(user_id, exp=int(time.time()) + 24 * 3600)


class Database:
    """The tables that all servers work on, seeded."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self._connection = psycopg2.connect(
            as_superuser(url).set(drivername="postgresql").render_as_string(hide_password=False)
        )
        self._connection.autocommit = True
        self.execute(SEED)
        # Drivers give instants in the session's zone; autovacuum would come at some server's turn.
        self.execute(f"ALTER DATABASE {url.database} SET timezone TO 'UTC'")
        self.execute("ALTER TABLE tasks SET (autovacuum_enabled = off)")
        self.tasks: dict[str, list[int]] = defaultdict(list)
        for user_id, task_id in self.execute("SELECT user_id, id FROM tasks ORDER BY id"):
            self.tasks[user_id].append(task_id)
        self.forget_writes()

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run it; the rows that it returns."""
        with self._connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def forget_writes(self) -> None:
        """Undo what was written and remove the dead rows, so that no run inherits another's."""
        self.execute("DELETE FROM users WHERE id = 'new'")
        self.execute("DELETE FROM tasks WHERE user_id LIKE 'c%'")
        self.execute("UPDATE tasks SET status = 'incomplete' WHERE user_id LIKE 'd%'")
        self.execute("VACUUM (FULL, ANALYZE) tasks")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def requests(self, call: str) -> list[Request]:
        """The requests of a call, each by the next user, to be sent over and over."""
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
        """The file of the call's requests that load.lua reads."""
        path = folder / f"{call}.tsv"
        lines = (
            f"{request.method}\t{request.path}\t{request.token}\t{request.body}\n" for request in self.requests(call)
        )
        path.write_text("".join(lines))
        return path


@contextmanager
def seeded_database(server: URL) -> Iterator[Database]:
    """A database of the service's own tables, made by its own migration, gone afterwards."""
    with postgresql_database(server) as url:
        close(migrated_app(url))
        database = Database(url)
        try:
            yield database
        finally:
            database.close()
