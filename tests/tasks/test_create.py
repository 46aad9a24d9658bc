"""POST /api/{user_id}/tasks."""

import re

import pytest
from sqlalchemy import URL

from tests.support import IGNORED, OUTPUT_ONLY, Call, Caller, Make, sql
from todo.tasks.schemas import TaskSchema

pytestmark = pytest.mark.sql

INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def test_a_new_task_is_answered_whole(alice: Caller) -> None:
    response = alice("POST", json={"title": "Buy milk", "description": "Two litres"})
    task = response.get_json()
    assert response.status_code == 201
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Location"] == f"/api/alice/tasks/{task['id']}"
    assert list(task) == list(TaskSchema().fields)
    assert task["id"] >= 1
    assert (task["user_id"], task["title"], task["description"]) == ("alice", "Buy milk", "Two litres")
    assert task["status"] == "incomplete"
    assert INSTANT.fullmatch(task["created_at"])
    assert task["updated_at"] == task["created_at"]


def test_the_location_leads_to_the_task(call: Call) -> None:
    caller = call("jörg & söhne?#%41+;=100%")
    path = "/api/j%C3%B6rg%20%26%20s%C3%B6hne%3F%23%2541+%3B=100%25/tasks"
    response = caller.open("POST", path, json={"title": "Buy milk"})
    assert response.status_code == 201
    assert caller.open("GET", response.headers["Location"]).get_json() == response.get_json()


def test_texts_are_stored_as_sent(alice: Caller) -> None:
    for title in ("x", "x" * 255, "🥛" * 255, "  kept as sent\t", "a\u200b\u202e", "'); DROP TABLE tasks"):
        assert alice.create(title)["title"] == title
    for description in (None, "", " ", "x" * 5000, "🥛" * 5000):
        task = alice.create(description=description)
        assert alice("GET", f"/{task['id']}").get_json()["description"] == description


BAD_BODIES: dict[str, list[dict[str, object]]] = {
    "Title is required": [{}, {"title": None}, {"id": 1, "created_at": "2025-01-09T12:34:56.123456Z"}],
    "Title cannot be empty": [{"title": ""}, {"title": " \t\u3000\x1c"}],
    "Title must be a string": [{"title": 5}, {"title": ["x"]}],
    "Title must be 255 characters or less": [{"title": "x" * 256}, {"title": "🥛" * 256}],
    "Title must not contain NUL or lone surrogates": [{"title": "a\0b"}, {"title": "a\ud800"}],
    "Description must be a string or null": [{"title": "x", "description": 5}],
    "Description must be 5000 characters or less": [{"title": "x", "description": "x" * 5001}],
    "Description must not contain NUL or lone surrogates": [{"title": "x", "description": "\0"}],
    "Status cannot be set on create": [{"title": "x", "status": "complete"}, {"title": "x", "status": "x", "id": 1}],
    "Unknown field: a; Unknown field: _schema; Unknown field: b": [{"title": "x", "a": 1, "_schema": 1, "b": 1}],
    "Unknown field: a\ud800\0": [{"title": "x", "a\ud800\0": 1}],
    "Title cannot be empty; Description must be 5000 characters or less; Unknown field: zeta; "
    "Status cannot be set on create; Unknown field: alpha": [
        {"zeta": 1, "status": "complete", "user_id": "bob", "alpha": 1, "description": "x" * 5001, "title": ""}
    ],
}


def test_a_bad_body_is_named_and_nothing_is_written(alice: Caller) -> None:
    for message, bodies in BAD_BODIES.items():
        for body in bodies:
            response = alice("POST", json=body)
            assert (response.status_code, response.get_json()) == (400, {"error": message})
    assert alice("GET").get_json() == []


@pytest.mark.parametrize("value", IGNORED, ids=range(len(IGNORED)))
def test_an_output_only_field_is_ignored_whatever_its_value(alice: Caller, bob: Caller, value: object) -> None:
    for name in OUTPUT_ONLY:
        task = alice.create(**{name: value})
        assert task["user_id"] == "alice"
        assert alice("GET", f"/{task['id']}").get_json() == task
        assert task["created_at"] == task["updated_at"] > "2025-01-10"
    assert bob("GET").get_json() == []


def test_ids_are_never_reused(alice: Caller) -> None:
    first = alice.create()["id"]
    assert alice("DELETE", f"/{first}").status_code == 204
    assert alice.create()["id"] > first


def test_the_row_of_a_user_comes_with_the_first_task_and_keeps_the_first_email(call: Call, url: URL) -> None:
    call("alice").create()
    call("carol", "carol@example.com").create()
    call("carol", "other@example.com").create()
    assert sql(url, "SELECT id, email FROM users ORDER BY id") == [("alice", None), ("carol", "carol@example.com")]


def test_a_refused_first_task_makes_no_user(alice: Caller, url: URL) -> None:
    assert alice("POST", json={"title": ""}).status_code == 400
    assert alice("GET").get_json() == []
    assert sql(url, "SELECT id FROM users") == []


def test_an_email_that_cannot_be_kept_is_none(call: Call, url: URL) -> None:
    bad = ("", "x" * 321, "a\0b", "a\ud800", 5, ["a@example.com"], {}, True)
    for number, email in enumerate(bad):
        call(f"user{number}", email).create()
    assert sql(url, "SELECT count(*), count(email) FROM users") == [(len(bad), 0)]


def test_ids_count_from_one_whatever_users_and_emails_there_are(own: URL, make: Make) -> None:
    people = [("alice", "shared@example.com"), ("bob", "shared@example.com"), ("alice", None)]
    app = make(own)
    assert [Caller(app, *person).create()["id"] for person in people] == [1, 2, 3]
