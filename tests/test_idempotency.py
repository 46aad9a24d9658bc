"""Idempotency-Key: a create that is sent twice, or eight times at once, is carried out once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import pytest
from flask import Flask
from sqlalchemy import URL, create_engine
from werkzeug.test import TestResponse

from tests.live import Server, gunicorn
from tests.support import Call, Caller, as_superuser, close, empty_database, migrated_app, sql, sql_as_role
from todo.idempotency import once

KEY = "8e03978e-40d5-43dd-bc93-6894a57f9324"
MILK = {"title": "Buy milk", "description": 'Two litres 🥛 "whole"'}


def create(caller: Caller, key: str = KEY, body: object = MILK) -> TestResponse:
    """A create under that key."""
    return caller("POST", json=body, headers={"Idempotency-Key": key})


def test_a_repetition_gets_the_first_answer_and_makes_nothing(alice: Caller) -> None:
    first, second = create(alice), create(alice)
    assert (first.status_code, second.status_code) == (201, 201)
    assert second.data == first.data
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"
    for name in ("Location", "ETag", "Content-Type"):
        assert second.headers[name] == first.headers[name]
    assert alice("GET").get_json() == [first.get_json()]


def test_the_first_answer_stays_what_it_was(alice: Caller) -> None:
    first = create(alice)
    path = f"/{first.get_json()['id']}"
    alice("PUT", path, json={"title": "Buy bread", "status": "complete"})
    assert create(alice).data == first.data
    alice("DELETE", path)
    repeated = create(alice)
    assert (repeated.status_code, repeated.data) == (201, first.data)
    assert alice("GET").get_json() == []


@pytest.mark.parametrize(
    "body", [{"title": "Buy bread"}, {"title": "Buy milk"}, MILK | {"title": "buy milk"}, MILK | {"description": ""}]
)
def test_another_body_is_422_and_makes_nothing(alice: Caller, body: object) -> None:
    first = create(alice)
    reused = create(alice, body=body)
    message = "Idempotency-Key was used before, for another request"
    assert (reused.status_code, reused.get_json()) == (422, {"error": message})
    assert alice("GET").get_json() == [first.get_json()]
    assert create(alice).data == first.data


def test_the_same_task_in_other_words_is_the_same(alice: Caller) -> None:
    first = create(alice, body={"title": "Buy milk"})
    other = '{ "description": null, "title": "Buy \\u006dilk" }'
    headers = {"Idempotency-Key": KEY, "Content-Type": "application/json"}
    assert alice("POST", data=other, headers=headers).data == first.data


def test_what_is_ignored_makes_no_other_request(alice: Caller) -> None:
    first = create(alice)
    again = create(alice, body=MILK | {"id": 7, "user_id": "bob", "created_at": None, "updated_at": 1})
    assert (again.status_code, again.data) == (201, first.data)


def test_a_bad_request_uses_no_key_up(alice: Caller) -> None:
    assert create(alice, body={"title": ""}).status_code == 400
    first = create(alice)
    assert create(alice, body={"title": ""}).status_code == 400
    assert create(alice).data == first.data


@pytest.mark.parametrize(
    "key", ["x", "x" * 255, "a b", '"8e03978e"', "~!#$%&'*", "' OR 1=1 --", "%s", "%(key)s", ":key"]
)
def test_any_printable_ascii_is_a_key(alice: Caller, key: str) -> None:
    first = create(alice, key)
    assert first.status_code == 201
    assert create(alice, key).data == first.data
    assert create(alice, key + "." if len(key) < 255 else "y").data != first.data


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "a\x7f", "\u00e9", "a\x00"])
def test_anything_else_is_400_and_makes_nothing(alice: Caller, key: str) -> None:
    response = create(alice, key)
    message = "Idempotency-Key must be 1 to 255 printable ASCII characters"
    assert (response.status_code, response.get_json()) == (400, {"error": message})
    assert alice("GET").get_json() == []


def test_a_key_is_its_users_own(alice: Caller, bob: Caller) -> None:
    first, second = create(alice), create(bob, body={"title": "Buy bread"})
    assert second.status_code == 201
    assert "Idempotency-Replayed" not in second.headers
    assert create(bob, body={"title": "Buy bread"}).data == second.data
    assert create(alice).data == first.data


def test_a_key_matters_to_creates_alone(alice: Caller) -> None:
    path = f"/{create(alice).get_json()['id']}/complete"
    for status in ("complete", "incomplete"):
        assert alice("PATCH", path, headers={"Idempotency-Key": KEY}).get_json()["status"] == status


def test_a_first_task_makes_its_user_too(call: Call, url: URL) -> None:
    call("bob", "shared@example.com").create()
    for user_id, email in (("alice", "shared@example.com"), ("carol", "carol@example.com"), ("dave", None)):
        caller = call(user_id, email)
        assert create(caller).data == create(caller).data
    users = sql(url, "SELECT id, email FROM users ORDER BY id")
    assert users == [("alice", None), ("bob", "shared@example.com"), ("carol", "carol@example.com"), ("dave", None)]


def test_keys_go_with_their_user(alice: Caller, url: URL) -> None:
    create(alice)
    sql(url, "DELETE FROM users WHERE id = 'alice'")
    assert sql(url, "SELECT * FROM idempotency_keys") == []
    assert "Idempotency-Replayed" not in create(alice).headers


def test_the_task_and_its_key_are_made_together_or_not_at_all(alice: Caller, url: URL) -> None:
    """What the database refuses of the key, it refuses of the task."""
    alice.create()
    with mock.patch.object(once, "sha256") as sha256:
        sha256.return_value.hexdigest.return_value = "too short"
        assert create(alice).status_code == 500
    assert sql(url, "SELECT count(*) FROM tasks") == [(1,)]
    assert sql(url, "SELECT count(*) FROM idempotency_keys") == [(0,)]
    assert "Idempotency-Replayed" not in create(alice).headers


def test_a_key_that_is_pruned_in_between_is_new_again(alice: Caller, url: URL) -> None:
    first = create(alice)
    find = once.find_key

    def find_late(user_id: str, key: str) -> Any:
        sql(url, "DELETE FROM idempotency_keys")
        return find(user_id, key)

    with mock.patch.object(once, "find_key", find_late):
        second = create(alice)
    assert "Idempotency-Replayed" not in second.headers
    assert second.get_json()["id"] > first.get_json()["id"]


@pytest.mark.parametrize("watched", ["postgresql", "partitioned"], indirect=True)
def test_a_create_under_a_key_is_one_statement(alice: Caller, statements: list[str]) -> None:
    for is_repeated in (False, True):
        statements.clear()
        create(alice)
        executed = [statement.split()[0] for statement in statements]
        assert executed == ["checkout", "WITH"] + ["checkout", "SELECT"] * is_repeated


@pytest.mark.parametrize("watched", ["postgresql", "partitioned"], indirect=True)
@pytest.mark.parametrize("is_kept", [True, False])
def test_a_create_waits_for_another_that_is_under_way(alice: Caller, url: URL, is_kept: bool) -> None:
    alice.create()
    other = create_engine(as_superuser(url))
    with other.connect() as connection, ThreadPoolExecutor(1) as pool:
        connection.exec_driver_sql(
            "INSERT INTO idempotency_keys (user_id, key, fingerprint, answer)"
            f" VALUES ('alice', '{KEY}', repeat('0', 64), '')"
        )
        waiting = pool.submit(create, alice)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.3)
        if is_kept:
            connection.commit()
        else:
            connection.rollback()
        assert waiting.result().status_code == (422 if is_kept else 201)
    other.dispose()
    assert len(alice("GET").get_json()) == (1 if is_kept else 2)


def age(url: URL, key: str, hours: float) -> None:
    """Let the key be that old."""
    if url.get_backend_name() == "sqlite":
        created_at = f"created_at - {int(hours * 3600e6)}"
    else:
        created_at = f"created_at - make_interval(secs => {hours * 3600})"
    sql(url, f"UPDATE idempotency_keys SET created_at = {created_at} WHERE key = :key", key=key)


def prune(app: Flask, *arguments: str) -> Any:
    """`flask idempotency-keys prune`."""
    return app.test_cli_runner().invoke(args=["idempotency-keys", "prune", *arguments])


def test_prune_forgets_old_keys_of_everybody_and_no_others(
    app: Flask, alice: Caller, bob: Caller, url: URL, statements: list[str]
) -> None:
    ages = {"new": 0.0, "fresh": 23.9, "old": 24.1, "older": 50.0}
    for caller in (alice, bob):
        for key in ages:
            create(caller, key)
    for key, hours in ages.items():
        age(url, key, hours)
    for arguments, forgotten, left in (
        (["--older-than", "48"], 2, {"new", "fresh", "old"}),
        ([], 2, {"new", "fresh"}),
        ([], 0, {"new", "fresh"}),
    ):
        result = prune(app, *arguments)
        assert (result.exit_code, result.output) == (0, f"Forgot {forgotten} idempotency keys\n")
        keys = sql(url, "SELECT user_id, key FROM idempotency_keys")
        assert sorted(keys) == sorted((user_id, key) for user_id in ("alice", "bob") for key in left)
    assert len(alice("GET").get_json()) == len(ages)
    # Everybody's, hence of no owner: the fixture is not to look for one.
    statements.clear()


def test_prune_goes_on_in_short_transactions_until_all_are_gone(
    app: Flask, alice: Caller, url: URL, statements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("todo.idempotency.commands.BATCH", 2)
    for number in range(5):
        create(alice, str(number))
        age(url, str(number), 25)
    statements.clear()
    assert prune(app).output == "Forgot 5 idempotency keys\n"
    assert len([statement for statement in statements if statement.strip().startswith("DELETE")]) == 3
    statements.clear()


def test_a_key_is_kept_for_a_day_at_least(app: Flask) -> None:
    result = prune(app, "--older-than", "23")
    assert result.exit_code == 2
    assert "23 is not in the range x>=24" in result.output


@pytest.mark.parametrize("watched", ["postgresql", "partitioned"], indirect=True)
def test_the_database_itself_keeps_young_keys_and_those_of_others(app: Flask, alice: Caller, url: URL) -> None:
    create(alice, "young")
    create(alice, "old")
    age(url, "old", 25)
    engine_sql = "DELETE FROM idempotency_keys RETURNING key"
    acting = "SELECT set_config('app.user_id', :user_id, true); "
    assert sql_as_role(url, acting + engine_sql, user_id="bob") == []
    assert sql_as_role(url, engine_sql) == [("old",)]
    assert sql_as_role(url, acting + engine_sql, user_id="alice") == [("young",)]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def live(request: pytest.FixtureRequest, server: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gunicorn of three workers."""
    with empty_database(request.param, server) as url:
        close(migrated_app(url))
        with gunicorn(url, tmp_path_factory.mktemp("live") / "log", WEB_CONCURRENCY="3") as server_process:
            yield server_process


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
