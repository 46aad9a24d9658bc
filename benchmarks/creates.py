"""`python -m benchmarks.creates`: the cost of a create with a key, with old keys to delete, and with a limit.

The variants take turns. It compares the CPU time of this process and of its PostgreSQL session, because the machine may
be busy.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median

from flask import Flask
from sqlalchemy import URL, create_engine

from tests.support import (
    Caller,
    as_superuser,
    close,
    migrated_app,
    postgresql_database,
    postgresql_server,
    settings,
    sql,
)
from todo import create_app
from todo.db import db

ROUNDS, REQUESTS = 10, 100
LIMIT = 1_000_000
USER = "INSERT INTO users (id) VALUES (:user_id)"
TASKS = (
    "INSERT INTO tasks (user_id, title, description)"
    " SELECT :user_id, 'Buy milk', repeat('x', 70) FROM generate_series(1, :number)"
)
OLD_KEYS = (
    "INSERT INTO idempotency_keys (user_id, key, fingerprint, answer, created_at)"
    " SELECT :user_id, gen_random_uuid()::text, repeat('0', 64), repeat('x', 250), now() - interval '30 hours'"
    " FROM generate_series(1, :number)"
)
NUMBERS = count()


class Process:
    """An app with one PostgreSQL session, and the CPU seconds of both."""

    def __init__(self, app: Flask) -> None:
        self.app = app
        with app.app_context(), db.engine.connect() as connection:
            self._session = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()

    def seconds(self) -> tuple[float, float]:
        """Return the CPU seconds of this process, and of the session."""
        user, system = Path(f"/proc/{self._session}/stat").read_text().rpartition(")")[2].split()[11:13]
        return time.process_time(), (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def cost(self, work: Callable[[], None]) -> tuple[float, float]:
        """Do the work, and return its CPU seconds in both."""
        before = self.seconds()
        work()
        after = self.seconds()
        return after[0] - before[0], after[1] - before[1]


def create(caller: Caller, *, key: str = "", is_keyed: bool = False) -> None:
    """Send REQUESTS creates: each with its own key, all with the same key, or without a key."""
    for _ in range(REQUESTS):
        headers = {"Idempotency-Key": key or f"{next(NUMBERS)}"} if is_keyed else {}
        assert caller("POST", json={"title": "Buy milk"}, headers=headers).status_code == 201


def compare(
    title: str, work: dict[str, tuple[Process, Callable[[], None]]], before_round: Callable[[], object] = lambda: None
) -> None:
    """Do the variants in turn, and print their costs. The others are compared with the first."""
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for number in range(ROUNDS):
        before_round()
        for name in list(work)[:: 1 if number % 2 else -1]:
            process, do = work[name]
            costs[name].append(process.cost(do))
    print(f"\n{title}: microseconds of CPU for a create, in Python and PostgreSQL, and the ratio")
    base = sum(sum(pair) for pair in costs[next(iter(work))])
    for name, pairs in costs.items():
        python, postgresql = (median(part) / REQUESTS * 1e6 for part in zip(*pairs, strict=True))
        ratio = sum(sum(pair) for pair in pairs) / base
        server = sum(pair[1] for pair in pairs) / sum(pair[1] for pair in costs[next(iter(work))])
        print(f"{name:28} {python:6.0f} {postgresql:6.0f}   {ratio:5.2f}, of PostgreSQL's alone {server:5.2f}")


def keys(process: Process, url: URL) -> None:
    """Compare creates with and without a key."""
    alice, old = Caller(process.app, "alice"), Caller(process.app, "old")
    for caller in (alice, old):
        caller.create()

    def with_old_keys() -> None:
        create(old, is_keyed=True)

    compare(
        "Keys",
        {
            "without a key": (process, lambda: create(alice)),
            "under a key": (process, lambda: create(alice, is_keyed=True)),
            "under a key, ten old ones": (process, with_old_keys),
            "a repetition": (process, lambda: create(alice, key="the same", is_keyed=True)),
        },
        before_round=lambda: sql(url, OLD_KEYS, user_id="old", number=10 * REQUESTS),
    )


def quotas(free: Process, limited: Process, url: URL) -> None:
    """Compare creates with and without a limit, for different numbers of tasks."""
    for number in (0, 1000, 10_000, 100_000):
        user_id = f"has {number}"
        sql(url, USER, user_id=user_id)
        sql(url, TASKS, user_id=user_id, number=number)
        engine = create_engine(as_superuser(url), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql("VACUUM ANALYZE tasks")
        engine.dispose()
        compare(
            f"{number} tasks",
            {
                "without a limit": (free, partial(create, Caller(free.app, user_id))),
                "with a limit": (limited, partial(create, Caller(limited.app, user_id))),
            },
        )


def main() -> None:
    """Measure both on an empty database."""
    with postgresql_server() as server, postgresql_database(server) as url:
        sql(url, f"ALTER DATABASE {url.database} SET synchronous_commit = off")
        apps = [migrated_app(url, threads=1), create_app(settings(url, threads=1, max_tasks=LIMIT))]
        free, limited = map(Process, apps)
        keys(free, url)
        quotas(free, limited, url)
        for app in apps:
            close(app)


if __name__ == "__main__":
    main()
