"""Requests that race for the same task, key or place under a limit, on three workers."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import URL

from tests.live import MANY_THREADS, Server, gunicorn
from tests.support import migrated_database, tag_of
from tests.test_idempotency import MILK
from tests.test_quotas import LIMIT


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, server: URL) -> Iterator[URL]:
    """A migrated database of each kind."""
    with migrated_database(request.param, server) as url:
        yield url


@pytest.fixture(scope="module")
def live(url: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gunicorn of three workers."""
    with gunicorn(url, tmp_path_factory.mktemp("live") / "log", WEB_CONCURRENCY="3", WEB_THREADS=MANY_THREADS) as live:
        yield live


@pytest.fixture(scope="module")
def limited(url: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same with a limit."""
    log, limit = tmp_path_factory.mktemp("limited") / "log", f"{LIMIT}"
    with gunicorn(url, log, WEB_CONCURRENCY="3", WEB_THREADS=MANY_THREADS, MAX_TASKS_PER_USER=limit) as limited:
        yield limited


def test_of_eight_who_race_with_the_same_tag_one_wins(live: Server) -> None:
    """Fifty rounds over three workers; what they race for is each kind of change in turn."""
    _, task = live.request("POST", "/api/alice/tasks", json={"title": "0"})
    path = f"/api/alice/tasks/{task['id']}"
    connections = [live.connect() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for version in range(1, 51):
            tag = tag_of(live.request("GET", path)[1])

            def change(writer: int, version: int = version, tag: str = tag) -> tuple[int, Any]:
                if version % 2:
                    body = {"title": f"{version} by {writer}"}
                    return live.send(connections[writer], "PUT", path, json=body, **{"If-Match": tag})
                return live.send(connections[writer], "PATCH", f"{path}/complete", **{"If-Match": tag})

            answers = list(pool.map(change, range(8)))
            assert sorted(status for status, _ in answers) == [200] + [412] * 7
            (winner,) = (answer for status, answer in answers if status == 200)
            assert live.request("GET", path) == (200, winner)

        last = tag_of(live.request("GET", path)[1])

        def delete(writer: int) -> tuple[int, Any]:
            return live.send(connections[writer], "DELETE", path, **{"If-Match": last})

        answers = list(pool.map(delete, range(8)))
    assert sorted(status for status, _ in answers) == [204] + [404] * 7
    for connection in connections:
        connection.close()


def test_of_eight_at_once_on_three_workers_one_makes_the_task(live: Server) -> None:
    """For a user who is new, and for one who is known."""
    with ThreadPoolExecutor(8) as pool:
        for number in range(20):
            key, path = f"key {number}", f"/api/user{number % 10}/tasks"

            def send(_: int, key: str = key, path: str = path, user: str = f"user{number % 10}") -> tuple[int, Any]:
                return live.request("POST", path, user, json=MILK, **{"Idempotency-Key": key})

            answers = list(pool.map(send, range(8)))
            assert [status for status, _ in answers] == [201] * 8
            assert len({task["id"] for _, task in answers}) == 1
            assert all(task == answers[0][1] for _, task in answers)
            status, tasks = live.request("GET", path, f"user{number % 10}")
            assert (status, len(tasks)) == (200, number // 10 + 1)


@pytest.mark.parametrize("is_keyed", [False, True], ids=["plain", "keys"])
def test_of_fifty_at_once_as_many_are_made_as_there_is_room_for(limited: Server, is_keyed: bool) -> None:
    """By a user who is new, and by one who has all but one."""
    with ThreadPoolExecutor(50) as pool:
        for number in range(6):
            user_id = f"user {is_keyed} {number}"
            path, room = f"/api/{user_id.replace(' ', '%20')}/tasks", LIMIT if number % 2 else 1
            for _ in range(LIMIT - room):
                assert limited.request("POST", path, user_id, json={"title": "x"})[0] == 201

            def send(key: int, path: str = path, user_id: str = user_id) -> int:
                headers = {"Idempotency-Key": f"{key}"} if is_keyed else {}
                return limited.request("POST", path, user_id, json={"title": "x"}, **headers)[0]

            assert Counter(pool.map(send, range(50))) == {201: room, 409: 50 - room}
            assert len(limited.request("GET", path, user_id)[1]) == LIMIT
