"""MAX_TASKS_PER_USER: exact under races, in the statement that creates, for tasks and for the keys of a day."""

import pytest
from flask import Flask
from sqlalchemy import URL

from tests.conftest import url_of
from tests.support import Caller, Make, sql
from tests.test_idempotency import age, create, keys_of

pytestmark = pytest.mark.sql

LIMIT = 3
TOO_MANY_TASKS = {"error": "A user may have 3 tasks at most: delete some first"}
TOO_MANY_KEYS = {"error": "A user may use 3 idempotency keys a day at most: send the request later, or without one"}


@pytest.fixture
def limited(app: Flask, make: Make) -> Flask:
    """The app on each database, with a limit."""
    return make(url_of(app), max_tasks=LIMIT)


@pytest.fixture
def alice(limited: Flask) -> Caller:
    """A user."""
    return Caller(limited, "alice")


def fill(caller: Caller) -> list[int]:
    """Make as many tasks as allowed; their ids."""
    return [caller.create()["id"] for _ in range(LIMIT)]


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "key"}], ids=["plain", "key"])
def test_a_create_beyond_the_limit_is_409_until_something_is_deleted(
    alice: Caller, url: URL, headers: dict[str, str]
) -> None:
    first, *_ = fill(alice)
    for _ in range(2):
        refused = alice("POST", json={"title": "x"}, headers=headers)
        assert (refused.status_code, refused.get_json()) == (409, TOO_MANY_TASKS)
    assert sql(url, "SELECT count(*) FROM tasks") == [(LIMIT,)]
    assert keys_of(url) == set()
    alice("DELETE", f"/{first}")
    assert alice("POST", json={"title": "x"}, headers=headers).status_code == 201
    assert alice("POST", json={"title": "x"}, headers=headers).status_code == (201 if headers else 409)


def test_the_limit_is_each_users_own(alice: Caller, limited: Flask) -> None:
    fill(alice)
    fill(Caller(limited, "bob"))
    assert alice("POST", json={"title": "x"}).status_code == 409


def test_a_repetition_is_answered_at_the_limit(alice: Caller) -> None:
    first = create(alice)
    for _ in range(LIMIT - 1):
        alice.create()
    assert create(alice).data == first.data
    assert create(alice, body={"title": "Buy bread"}).status_code == 422


def test_keys_are_limited_by_their_day(alice: Caller, url: URL) -> None:
    """Creates and deletions in turn never reach the limit of tasks."""
    for number in range(LIMIT):
        alice("DELETE", f"/{create(alice, f'{number}').get_json()['id']}")
    refused = create(alice, "new")
    assert (refused.status_code, refused.get_json()) == (409, TOO_MANY_KEYS)
    assert alice.titles() == []
    alice("DELETE", f"/{alice.create()['id']}")
    age(url, "0", 24.1)
    assert create(alice, "new").status_code == 201
    assert keys_of(url) == {"1", "2", "new"}


def test_a_user_never_has_more_keys_than_the_limit(alice: Caller, url: URL) -> None:
    for number in range(12):
        response = create(alice, f"{number}")
        if response.status_code == 201:
            alice("DELETE", f"/{response.get_json()['id']}")
        age(url, "%", 5)
        assert len(keys_of(url)) <= LIMIT


def test_the_command_that_seeds_is_not_limited(limited: Flask, alice: Caller) -> None:
    result = limited.test_cli_runner().invoke(args=["seed", "alice", "--count", "5"])
    assert result.exit_code == 0, result.output
    assert len(alice("GET").get_json()) == 5
    assert alice("POST", json={"title": "x"}).status_code == 409


def test_without_the_setting_nothing_is_counted(app: Flask, statements: list[str]) -> None:
    Caller(app, "alice").create()
    statements.clear()
    create(Caller(app, "alice"))
    assert not [statement for statement in statements if "count(" in statement or "advisory" in statement]
