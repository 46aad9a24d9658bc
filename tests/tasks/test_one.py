"""GET, PUT and DELETE /api/{user_id}/tasks/{id}, and PATCH …/complete."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import URL

from tests.support import IGNORED, OUTPUT_ONLY, Caller, sql

pytestmark = pytest.mark.sql

INVALID_STATUS = "Invalid status value. Must be 'incomplete' or 'complete'"
NOTHING_TO_DO = "At least one field (title, description or status) must be provided"
ALL_CALLS = [("GET", ""), ("PUT", ""), ("DELETE", ""), ("PATCH", "/complete")]


def test_a_task_is_answered_as_it_was_made(alice: Caller) -> None:
    task = alice.create(description="Two litres")
    response = alice("GET", f"/{task['id']}")
    assert (response.status_code, response.get_json()) == (200, task)


def test_an_update_changes_what_it_names_and_keeps_the_rest(alice: Caller) -> None:
    for changes in (
        {"title": "Buy bread"},
        {"description": "One loaf"},
        {"description": None},
        {"description": ""},
        {"status": "complete"},
        {"status": "incomplete"},
        {"title": "Buy bread", "description": None, "status": "complete"},
    ):
        task = alice.create(description="Two litres")
        response = alice("PUT", f"/{task['id']}", json=changes)
        changed = response.get_json()
        assert response.status_code == 200
        assert changed == task | changes | {"updated_at": changed["updated_at"]}
        assert changed["updated_at"] > task["updated_at"]
        assert alice("GET", f"/{task['id']}").get_json() == changed


BAD_UPDATES: dict[str, list[dict[str, object]]] = {
    NOTHING_TO_DO: [{}, {"id": 1}, dict.fromkeys(OUTPUT_ONLY)],
    "Title cannot be empty": [{"title": None}, {"title": ""}, {"title": "\u2003"}, {"id": 1, "title": ""}],
    "Title must be 255 characters or less": [{"title": "x" * 256}],
    "Title must be a string": [{"title": True}],
    "Description must be 5000 characters or less": [{"description": "x" * 5001}],
    INVALID_STATUS: [{"status": status} for status in ("done", None, True, "complete\0")],
    f"{NOTHING_TO_DO}; Unknown field: x": [{"id": 1, "x": 1}],
    f"{NOTHING_TO_DO}; Unknown field: _schema": [{"_schema": 1}],
    f"Title must be a string; {INVALID_STATUS}; Unknown field: x": [{"status": 1, "x": 1, "title": 1}],
}


def test_a_bad_update_is_named_and_nothing_is_written(alice: Caller) -> None:
    task = alice.create()
    for message, bodies in BAD_UPDATES.items():
        for body in bodies:
            response = alice("PUT", f"/{task['id']}", json=body)
            assert (response.status_code, response.get_json()) == (400, {"error": message})
    assert alice("GET", f"/{task['id']}").get_json() == task


@pytest.mark.parametrize("value", IGNORED, ids=range(len(IGNORED)))
def test_an_output_only_field_is_ignored_whatever_its_value(alice: Caller, bob: Caller, value: object) -> None:
    other, task = alice.create("Other"), alice.create()
    for name in OUTPUT_ONLY:
        changed = alice("PUT", f"/{task['id']}", json={name: value, "title": "Buy bread"}).get_json()
        assert changed == task | {"title": "Buy bread", "updated_at": changed["updated_at"]}
        assert changed["updated_at"] > task["updated_at"]
        task = changed
    assert alice("GET").get_json() == [task, other]
    assert bob("GET").get_json() == []


def test_a_bare_patch_turns_the_status_over(alice: Caller) -> None:
    task = alice.create()
    first = alice("PATCH", f"/{task['id']}/complete")
    assert (first.status_code, first.get_json()["status"]) == (200, "complete")
    second = alice("PATCH", f"/{task['id']}/complete", content_type="text/plain")
    assert (second.status_code, second.get_json()["status"]) == (200, "incomplete")
    assert task["updated_at"] < first.get_json()["updated_at"] < second.get_json()["updated_at"]
    assert second.get_json()["created_at"] == task["created_at"]


def test_a_patch_with_a_status_sets_it_however_often(alice: Caller) -> None:
    task = alice.create()
    for status in ("complete", "complete", "incomplete", "incomplete"):
        response = alice("PATCH", f"/{task['id']}/complete", json={"status": status})
        assert (response.status_code, response.get_json()["status"]) == (200, status)


BAD_PATCHES: list[tuple[bytes, str]] = [
    (b"{}", INVALID_STATUS),
    (b'{"status": null}', INVALID_STATUS),
    (b'{"status": "done"}', INVALID_STATUS),
    (b"null", "Request body must be a JSON object"),
    (b" ", "Request body is not valid JSON"),
    (b'{"status": "complete", "title": "x"}', "Unknown field: title"),
    (b'{"status": "complete", "id": 1}', "Unknown field: id"),
    (b'{"status": "complete", "done": 1}', "Unknown field: done"),
]


def test_a_bad_patch_is_named_and_nothing_is_written(alice: Caller) -> None:
    task = alice.create()
    for body, message in BAD_PATCHES:
        response = alice("PATCH", f"/{task['id']}/complete", data=body, content_type="application/json")
        assert (response.status_code, response.get_json()) == (400, {"error": message})
    assert alice("GET", f"/{task['id']}").get_json() == task


@pytest.mark.parametrize(("method", "suffix"), [("PUT", ""), ("PATCH", "/complete")])
def test_a_change_is_dated_now(alice: Caller, url: URL, method: str, suffix: str) -> None:
    task = alice.create()
    instant = "0" if url.get_backend_name() == "sqlite" else "'1970-01-01Z'"
    sql(url, f"UPDATE tasks SET updated_at = {instant}")
    changed = alice(method, f"/{task['id']}{suffix}", json={"status": "complete"}).get_json()
    age = datetime.now(UTC) - datetime.fromisoformat(changed["updated_at"])
    assert timedelta(seconds=-1) < age < timedelta(seconds=10)
    assert changed["created_at"] == task["created_at"]


def test_a_change_is_later_than_the_last_also_when_the_clock_has_gone_back(alice: Caller, url: URL) -> None:
    task = alice.create()
    instant = "4070908800000000" if url.get_backend_name() == "sqlite" else "'2099-01-01 00:00:00Z'"
    sql(url, f"UPDATE users SET changed_at = {instant}")
    response = alice("PUT", f"/{task['id']}", json={"title": "x"})
    assert response.get_json()["updated_at"] == "2099-01-01T00:00:00.000001Z"
    assert response.get_json()["created_at"] == task["created_at"]
    assert alice.create()["created_at"] == "2099-01-01T00:00:00.000002Z"


def test_a_deleted_task_is_gone(alice: Caller) -> None:
    task = alice.create()
    response = alice("DELETE", f"/{task['id']}", data=b"ignored", content_type="text/plain")
    assert (response.status_code, response.data) == (204, b"")
    assert "Content-Length" not in response.headers
    assert alice("DELETE", f"/{task['id']}").status_code == 404
    assert alice("GET").get_json() == []


BAD_IDS = ["0", "01", "-1", "+1", "1.0", "1e3", "abc", "%D9%A3", "%EF%BC%91", "%201", "1%20", "1%00", "%ff", "%C2%B9"]
BAD_IDS += ["%2B1", "0x1", "1_0", "*", "1%0a", "%", "1%5c", "1'--", "..", "%2e%2e"]


@pytest.mark.parametrize(("method", "suffix"), ALL_CALLS)
def test_an_impossible_id_is_refused(alice: Caller, method: str, suffix: str) -> None:
    for task_id in (*BAD_IDS, str(2**63), "9" * 5000):
        response = alice(method, f"/{task_id}{suffix}", data=b"{broken", content_type="application/json")
        assert (response.status_code, response.get_json()) == (400, {"error": "Invalid task ID"})


@pytest.mark.parametrize(("method", "suffix"), ALL_CALLS)
def test_the_largest_id_is_possible(alice: Caller, method: str, suffix: str) -> None:
    body = {"json": {"title": "x"}} if method == "PUT" else {}
    response = alice(method, f"/{2**63 - 1}{suffix}", **body)
    assert (response.status_code, response.get_json()) == (404, {"error": "Task not found"})


@pytest.mark.parametrize(("method", "suffix"), [*ALL_CALLS, ("POST", None)])
def test_query_parameters_are_refused_where_there_are_none(alice: Caller, method: str, suffix: str | None) -> None:
    path = "" if suffix is None else f"/{alice.create()['id']}{suffix}"
    body = {"json": {"title": "x"}} if method in ("PUT", "POST") else {}
    response = alice(method, path, query="?status=complete", **body)
    assert (response.status_code, response.get_json()) == (400, {"error": "Unknown query parameter: status"})


@pytest.mark.parametrize(("method", "suffix"), ALL_CALLS)
def test_a_foreign_task_and_none_look_alike(alice: Caller, bob: Caller, method: str, suffix: str) -> None:
    task = bob.create()
    options: dict[str, Any] = {"json": {"title": "x"}} if method == "PUT" else {}
    options["headers"] = {"X-Request-ID": "the-same"}
    foreign = alice(method, f"/{task['id']}{suffix}", **options)
    absent = alice(method, f"/{task['id'] + 1000}{suffix}", **options)
    assert foreign.status_code == absent.status_code == 404
    assert foreign.data == absent.data == b'{"error":"Task not found"}\n'
    assert list(foreign.headers) == list(absent.headers)
    assert bob("GET", f"/{task['id']}").get_json() == task
