"""Many users over few connections: nobody sees what is another's."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.ecosystem.pgbouncer import pgbouncer
from tests.faults.load import Client
from tests.faults.server import PostgreSql
from tests.live import gunicorn
from tests.support import close, migrated_app, postgresql_database

USERS = 20
REQUESTS = 50_000
POOL = 4


class Owner(Client):
    """A user who looks whose each task is."""

    def __init__(self, port: int, user_id: str) -> None:
        super().__init__(port, user_id)
        self.mixed: list[Any] = []
        self._random = random.Random(user_id)
        self._ids: list[int] = []

    def ask(self) -> None:
        """One request: a read, a creation or an update."""
        chance = self._random.random()
        if not self._ids or chance < 0.2:
            status, answer = self.call("POST", body={"title": f"of {self.user_id}"})
            if self._check(201, status, answer):
                self._ids.append(answer["id"])
            return
        path = f"/{self._random.choice(self._ids)}"
        if chance < 0.4:
            self._check(200, *self.call("PUT", path, {"title": f"of {self.user_id}", "description": self.user_id}))
        else:
            self._check(200, *self.call("GET", path if chance < 0.7 else "?limit=5"))

    def ask_all(self) -> None:
        """As many requests as fall to each user."""
        for _ in range(REQUESTS // USERS):
            self.ask()
        self.close()

    def _check(self, expected: int, status: int, answer: Any) -> bool:
        tasks = answer if isinstance(answer, list) else [answer]
        is_right = status == expected and all(is_of(self.user_id, task) for task in tasks)
        if not is_right:
            self.mixed.append((status, answer))
        return is_right


def is_of(user_id: str, task: dict[str, Any]) -> bool:
    """Whether the task is the user's, by what the service says and by what the user wrote."""
    return (task.get("user_id"), task.get("title")) == (user_id, f"of {user_id}")


def test_a_task_of_somebody_else_is_told() -> None:
    assert is_of("alice", {"user_id": "alice", "title": "of alice"})
    assert not is_of("alice", {"user_id": "bob", "title": "of alice"})
    assert not is_of("alice", {"user_id": "alice", "title": "of bob"})
    assert not is_of("alice", {"error": "Task not found"})


@pytest.mark.faults
def test_twenty_users_over_four_connections_are_never_mixed(
    own_postgresql: PostgreSql, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with (
        postgresql_database(own_postgresql.url) as url,
        pgbouncer(url, pool_size=POOL) as pooled,
        ThreadPoolExecutor(USERS) as threads,
    ):
        close(migrated_app(url))
        with gunicorn(pooled, tmp_path / "log") as live:
            owners = [Owner(live.port, f"user-{number}") for number in range(USERS)]
            list(threads.map(Owner.ask_all, owners))
            opened = "SELECT count(*) FROM pg_stat_activity WHERE datname = :name AND application_name = 'todo'"
            ((connections,),) = own_postgresql.sql(opened, name=url.database)
    asked = sum(owner.answers.statuses.total() for owner in owners)
    mixed = [answer for owner in owners for answer in owner.mixed]
    figures = {"requests": asked, "mixed": len(mixed), "connections to PostgreSQL": connections}
    record_property("figures", figures)
    assert mixed == []
    assert asked == REQUESTS
    assert connections == POOL
