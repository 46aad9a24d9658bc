"""Idempotency-Key: a create that is sent twice, or eight times at once, is carried out once."""

import json
from typing import Any
from unittest import mock

import pytest
from flask import Flask
from sqlalchemy import URL
from werkzeug.test import TestResponse

from tests.conftest import on_postgresql
from tests.support import Call, Caller, Make, later, plans_of_statements, run_alone, sql, sql_as_role, statements_of
from todo.idempotency import once

pytestmark = pytest.mark.sql


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


def test_another_body_is_422_and_makes_nothing(alice: Caller) -> None:
    first = create(alice)
    others = [{"title": "Buy bread"}, {"title": "Buy milk"}, MILK | {"title": "buy milk"}, MILK | {"description": ""}]
    for body in others:
        reused = create(alice, body=body)
        message = "Idempotency-Key was used before, for another request"
        assert (reused.status_code, reused.get_json()) == (422, {"error": message})
    assert alice("GET").get_json() == [first.get_json()]
    assert create(alice).data == first.data


def test_the_same_task_in_other_words_is_the_same(alice: Caller) -> None:
    first = create(alice, body={"title": "Buy milk"})
    # Also with fields that are ignored.
    other = '{ "description": null, "title": "Buy \\u006dilk", "id": 7, "user_id": "bob", "updated_at": 1 }'
    headers = {"Idempotency-Key": KEY, "Content-Type": "application/json"}
    assert alice("POST", data=other, headers=headers).data == first.data


def test_a_bad_request_uses_no_key_up(alice: Caller) -> None:
    assert create(alice, body={"title": ""}).status_code == 400
    first = create(alice)
    assert create(alice, body={"title": ""}).status_code == 400
    assert create(alice).data == first.data


def test_any_printable_ascii_is_a_key(alice: Caller) -> None:
    for key in ("x", "x" * 255, "a b", '"8e03978e"', "~!#$%&'*", "' OR 1=1 --", "%s", "%(key)s", ":key"):
        first = create(alice, key)
        assert first.status_code == 201
        assert create(alice, key).data == first.data
        assert create(alice, key + "." if len(key) < 255 else "y").data != first.data


def test_anything_else_is_400_and_makes_nothing(alice: Caller) -> None:
    for key in ("", "x" * 256, "a\tb", "a\x7f", "\u00e9", "a\x00"):
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


def test_the_task_and_its_key_are_made_together_or_not_at_all(alice: Caller, url: URL) -> None:
    """What the database refuses of the key, it refuses of the task."""
    alice.create()
    with mock.patch.object(once, "sha256") as sha256:
        sha256.return_value.hexdigest.return_value = "too short"
        assert create(alice).status_code == 500
    assert sql(url, "SELECT count(*) FROM tasks") == [(1,)]
    assert sql(url, "SELECT count(*) FROM idempotency_keys") == [(0,)]
    assert "Idempotency-Replayed" not in create(alice).headers


@pytest.mark.parametrize("watched", ["postgresql", "partitioned"], indirect=True)
def test_a_create_under_a_key_is_one_statement(alice: Caller, statements: list[str]) -> None:
    for _ in range(2):
        statements.clear()
        create(alice)
        assert [statement.split()[0] for statement in statements] == ["checkout", "WITH"]


def age(url: URL, key: str, hours: float) -> None:
    """Let the key be that much older; `%` is every key."""
    earlier = later(url, "created_at", -hours * 3600)
    sql(url, f"UPDATE idempotency_keys SET created_at = {earlier} WHERE key LIKE :key", key=key)


def prune(app: Flask, *arguments: str) -> Any:
    """`flask prune`."""
    return app.test_cli_runner().invoke(args=["prune", *arguments])


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
        (["--keys", "48"], 2, {"new", "fresh", "old"}),
        ([], 2, {"new", "fresh"}),
        ([], 0, {"new", "fresh"}),
    ):
        result = prune(app, *arguments)
        assert (result.exit_code, result.output) == (0, f"Deleted {forgotten} idempotency keys and 0 deletions\n")
        keys = sql(url, "SELECT user_id, key FROM idempotency_keys")
        assert sorted(keys) == sorted((user_id, key) for user_id in ("alice", "bob") for key in left)
    assert len(alice("GET").get_json()) == len(ages)
    # These statements are for all users: the fixture must not look for an owner.
    statements.clear()


def test_a_key_is_kept_for_a_day_at_least(app: Flask) -> None:
    result = prune(app, "--keys", "23")
    assert result.exit_code == 2
    assert "23 is not in the range x>=24" in result.output


@on_postgresql
@pytest.mark.parametrize(
    ("table", "name", "at", "hours"),
    [("idempotency_keys", "key", "created_at", 24), ("deletions", "row_id", "deleted_at", 720)],
)
def test_the_database_itself_keeps_young_rows_and_those_of_others(
    alice: Caller, url: URL, table: str, name: str, at: str, hours: int
) -> None:
    for key in ("first", "second"):
        alice("DELETE", f"/{create(alice, key).get_json()['id']}")
    old, young = sql(url, f"SELECT {name} FROM {table} ORDER BY {at}")
    for row, age in ((old, hours + 1), (young, hours - 1)):
        sql(url, f"UPDATE {table} SET {at} = {later(url, at, -3600 * age)} WHERE {name} = :name", name=row[0])
    engine_sql = f"DELETE FROM {table} RETURNING {name}"
    acting = "SELECT set_config('app.user_id', :user_id, true); "
    assert sql_as_role(url, acting + engine_sql, user_id="bob") == []
    assert sql_as_role(url, engine_sql) == [old]
    assert sql_as_role(url, acting + engine_sql, user_id="alice") == [young]


def test_an_answer_that_another_version_kept_has_the_fields_of_this_one(alice: Caller, url: URL) -> None:
    """A field that it lacks has its default. One that only a newer version knows is passed over."""
    first = create(alice, body={"title": "Buy milk"})
    ((answer,),) = sql(url, "SELECT answer FROM idempotency_keys")
    kept = {name: value for name, value in json.loads(answer).items() if name not in ("description", "status")}
    sql(url, "UPDATE idempotency_keys SET answer = :answer", answer=json.dumps(kept | {"priority": 1}))
    repeated = create(alice, body={"title": "Buy milk"})
    assert (repeated.data, repeated.headers["ETag"]) == (first.data, first.headers["ETag"])


def keys_of(url: URL, user_id: str = "alice") -> set[str]:
    """The user's keys that are kept."""
    return {key for (key,) in sql(url, "SELECT key FROM idempotency_keys WHERE user_id = :user_id", user_id=user_id)}


def test_a_create_under_a_key_forgets_its_users_ten_oldest_outlived_keys(alice: Caller, bob: Caller, url: URL) -> None:
    for caller in (alice, bob):
        for number in range(13):
            create(caller, f"{number}")
    for number in range(12):
        age(url, f"{number}", 24.1 + number)
    create(alice, "new")
    assert keys_of(url) == {"0", "1", "12", "new"}
    alice.create()
    assert keys_of(url) == {"0", "1", "12", "new"}
    create(alice, "newer")
    assert keys_of(url) == {"12", "new", "newer"}
    assert len(keys_of(url, "bob")) == 13


def test_a_key_that_is_used_after_its_day_but_still_kept_is_a_repetition(alice: Caller, url: URL) -> None:
    first = create(alice)
    age(url, KEY, 48)
    for _ in range(2):
        assert create(alice).data == first.data
    create(alice, "another")
    assert "Idempotency-Replayed" not in create(alice).headers


@pytest.mark.parametrize("watched", ["postgresql"], indirect=True)
def test_old_keys_are_looked_for_among_the_users_own(alice: Caller, bob: Caller, url: URL) -> None:
    """The index leads to them, however many there are; nothing else is read."""
    for caller in (alice, bob):
        caller.create()
    fill = (
        "INSERT INTO idempotency_keys (user_id, key, fingerprint, answer, created_at)"
        " SELECT :user_id, n::text, repeat('0', 64), repeat('x', 250), now() - make_interval(hours => :hours)"
        " FROM generate_series(1, 5000) AS n"
    )
    sql(url, fill, user_id="alice", hours=1)
    sql(url, fill, user_id="bob", hours=30)
    run_alone(url, "VACUUM ANALYZE idempotency_keys")
    with plans_of_statements("ANALYZE, BUFFERS") as plans:
        create(alice, "new")
    (plan,) = [plan for plan in plans if "ix_idempotency_keys_user_id_created_at" in json.dumps(plan)]
    assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] < 100


TAKEN = """
    CREATE FUNCTION taken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        RAISE unique_violation USING CONSTRAINT = 'pk_idempotency_keys', MESSAGE = 'taken, and gone';
    END $$;
    CREATE TRIGGER taken BEFORE INSERT ON idempotency_keys FOR EACH ROW EXECUTE FUNCTION taken()
"""


def test_a_key_that_is_always_taken_and_never_found_is_tried_three_times(
    postgresql: URL, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    alice = Caller(make(postgresql), "alice")
    alice.create()
    sql(postgresql, TAKEN)
    with statements_of(alice.app) as statements:
        assert create(alice).status_code == 500
    assert len([statement for statement in statements if statement.startswith("WITH")]) == 3
    assert "UniqueViolation 23505: taken, and gone" in capsys.readouterr().err
    assert alice.titles() == ["Buy milk"]
