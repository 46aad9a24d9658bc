"""ETag, If-Match and If-None-Match (RFC 9110 section 13): no client overwrites a state that it has not seen."""

from typing import Any

import pytest
from sqlalchemy import URL

from tests.support import Caller, sql, tag_of
from todo.tasks.schemas import TaskSchema
from todo.web.conditions import representation_of

pytestmark = pytest.mark.sql

CHANGES: list[tuple[str, str, object]] = [
    ("PUT", "", {"title": "Buy oat milk"}),
    ("PATCH", "/complete", None),
    ("PATCH", "/complete", {"status": "complete"}),
    ("DELETE", "", None),
]
MESSAGE = {"error": "Precondition failed: the resource has been changed since, get it again"}


def put(caller: Caller, task_id: object, **headers: str) -> int:
    """The status of a change under these headers."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return caller("PUT", f"/{task_id}", json={"title": "Buy oat milk"}, headers=named).status_code


def test_every_answer_of_one_task_bears_its_tag(alice: Caller) -> None:
    created = alice("POST", json={"title": "Buy milk"})
    path = f"/{created.get_json()['id']}"
    answers = [
        created,
        alice("GET", path),
        alice("PUT", path, json={"title": "Buy milk"}),
        alice("PATCH", f"{path}/complete"),
        alice("PATCH", f"{path}/complete", json={"status": "complete"}),
    ]
    for answer in answers:
        assert answer.headers["ETag"] == tag_of(answer.get_json())
    # A client makes it from a task of the list, too.
    (listed,) = alice("GET").get_json()
    assert alice("HEAD", path).headers["ETag"] == tag_of(listed) == answers[-1].headers["ETag"]
    assert len({answer.headers["ETag"] for answer in answers}) == 4
    assert "ETag" not in alice("DELETE", path).headers


def test_the_last_change_is_later_each_time_and_no_two_are_at_the_same_instant(alice: Caller) -> None:
    """In the order of the changes, also where the clock of the database stands still."""
    tasks = [alice.create() for _ in range(20)]
    tasks += [alice("PATCH", f"/{tasks[0]['id']}/complete").get_json() for _ in range(20)]
    instants = [task["updated_at"] for task in tasks]
    assert instants == sorted(set(instants))
    assert [task["created_at"] for task in tasks[:20]] == instants[:20]
    assert {task["created_at"] for task in tasks[20:]} == {tasks[0]["created_at"]}


def change(caller: Caller, task_id: object, what: tuple[str, str, object], **headers: str) -> tuple[int, Any]:
    """What the caller gets for a change under these headers."""
    method, path, body = what
    response = caller(method, f"/{task_id}{path}", json=body, headers=headers)
    return response.status_code, response.get_json(silent=True)


@pytest.mark.parametrize("what", CHANGES, ids=str)
class TestChange:
    """Each call that changes a task."""

    def test_the_version_that_is_expected_is_changed_and_any_other_is_412(
        self, alice: Caller, what: tuple[str, str, object]
    ) -> None:
        task = alice.create()
        number = task["id"]
        newer = alice("PUT", f"/{number}", json={"description": "Two litres"})
        assert change(alice, number, what, **{"If-Match": tag_of(task)}) == (412, MESSAGE)
        # A change for those who have no version.
        assert change(alice, number, what, **{"If-None-Match": "*"}) == (412, MESSAGE)
        current = alice("GET", f"/{number}")
        assert (current.get_json(), current.headers["ETag"]) == (newer.get_json(), newer.headers["ETag"])
        assert change(alice, number, what, **{"If-Match": newer.headers["ETag"]})[0] in (200, 204)

    def test_without_a_task_it_is_404_whatever_is_expected(
        self, alice: Caller, bob: Caller, what: tuple[str, str, object]
    ) -> None:
        foreign = bob.create()
        for expected in ("*", tag_of(foreign), '"x"'):
            answer = change(alice, foreign["id"], what, **{"If-Match": expected})
            assert answer == (404, {"error": "Task not found"})
        assert bob("GET").get_json() == [foreign]


MATCHES = ["*", "{tag}", '"x", "{id}@2025-01-09T12:34:56.123456Z", {tag}', "{unquoted}"]
OTHERS = ["", ",", '""', '"x", ""', "W/{tag}", '"1{unquoted}"', '"0{unquoted}"', '"{unquoted}-gzip"', '"{unquoted}']
OTHERS += [
    f'"{{id}}@{instant}"'
    for instant in (
        "2025-01-09T12:34:56.123456Z",
        "2025-13-09T12:34:56.123456Z",
        "0000-01-01T00:00:00.000000Z",
        "infinity",
        "now",
        "2025-01-09T12:34:56.123456+00:00",
        "2025-01-09T12:34:56.12345Z",
        "2025-01-09t12:34:56.123456z",
        "",
        "1",
        "\u0661",
        "9999-12-31T23:59:59.999999Z",
        "9999-12-31T24:00:00.000000Z",
        "2025-01-09T12:34:60.000000Z",
        "0001-01-01T00:00:00.000000Z",
    )
]
OTHERS += ['"{id}-1"', '"{id}"', '"@{unquoted}"', '"\u00e9"']


def test_if_match_compares_strongly(alice: Caller) -> None:
    for header, status in [(match, 200) for match in MATCHES] + [(other, 412) for other in OTHERS]:
        task = alice.create()
        tag = tag_of(task)
        sent = header.format(id=task["id"], tag=tag, unquoted=tag.strip('"')).encode().decode("latin-1")
        assert put(alice, task["id"], If_Match=sent) == status, header
        title = "Buy oat milk" if status == 200 else "Buy milk"
        assert alice("GET", f"/{task['id']}").get_json()["title"] == title


IF_NONE_MATCH = [
    ("*", 412),
    ("{tag}", 412),
    ("W/{tag}", 412),
    ('"x", W/{tag}', 412),
    ('"{id}@2025-01-09T12:34:56.123456Z"', 200),
    ("", 200),
]
OTHER = '"{id}@2025-01-09T12:34:56.123456Z"'
BOTH = [("*", "{tag}", 412), ("{tag}", OTHER, 200), ("{tag}", "*", 412), (OTHER, OTHER, 412)]


def test_if_none_match_compares_weakly(alice: Caller) -> None:
    for header, status in IF_NONE_MATCH:
        task = alice.create()
        assert put(alice, task["id"], If_None_Match=header.format(id=task["id"], tag=tag_of(task))) == status, header


def test_both_conditions_must_hold(alice: Caller) -> None:
    for if_match, if_none_match, status in BOTH:
        task = alice.create()
        named = {"id": task["id"], "tag": tag_of(task)}
        headers = {"If_Match": if_match.format(**named), "If_None_Match": if_none_match.format(**named)}
        assert put(alice, task["id"], **headers) == status, headers


def test_the_body_is_looked_at_before_the_condition(alice: Caller) -> None:
    task = alice.create()
    response = alice("PUT", f"/{task['id']}", json={"title": ""}, headers={"If-Match": '"x"'})
    assert response.status_code == 400


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_task_that_the_caller_has_is_304(alice: Caller, method: str) -> None:
    path = f"/{alice.create()['id']}"
    tag = alice("GET", path).headers["ETag"]
    for header in ("{tag}", "W/{tag}", '"x", {tag}', "*"):
        response = alice(method, path, headers={"If-None-Match": header.format(tag=tag)})
        assert (response.status_code, response.data, response.headers["ETag"]) == (304, b"", tag)
        assert not {"Content-Type", "Content-Length"} & set(response.headers.keys())


def test_a_task_that_has_changed_is_200(alice: Caller) -> None:
    path = f"/{alice.create()['id']}"
    tag = alice("GET", path).headers["ETag"]
    changed = alice("PATCH", f"{path}/complete")
    response = alice("GET", path, headers={"If-None-Match": tag})
    assert (response.status_code, response.get_json()) == (200, changed.get_json())


def test_a_tag_that_is_not_the_tasks_is_200(alice: Caller) -> None:
    path = f"/{alice.create()['id']}"
    for header in ("", '"x"', '""', '"', "W/", "\x7f"):
        assert alice("GET", path, headers={"If-None-Match": header}).status_code == 200


def test_a_list_that_the_caller_has_is_304(alice: Caller) -> None:
    alice.create()
    first = alice("GET")
    tag = first.headers["ETag"]
    assert tag.startswith('W/"')
    for method in ("GET", "HEAD"):
        response = alice(method, headers={"If-None-Match": tag})
        assert (response.status_code, response.data, response.headers["ETag"]) == (304, b"", tag)


def test_whatever_changes_what_the_user_owns_changes_the_tag_and_nothing_else_does(alice: Caller, bob: Caller) -> None:
    tags = [alice("GET").headers["ETag"]]

    def changes(method: str, path: str = "", query: str = "", **options: Any) -> bool:
        alice(method, path, query=query, **options)
        tags.append(alice("GET").headers["ETag"])
        assert alice("GET", query="?limit=1").headers["ETag"] == tags[-1]
        assert alice("GET", "/changes").headers["ETag"] == tags[-1]
        return tags[-1] not in tags[:-1]

    assert changes("POST", json={"title": "Buy milk"}, headers={"Idempotency-Key": "x"})
    number = alice("GET").get_json()[0]["id"]
    bulk = {"json": {"status": "incomplete"}}
    for method, path, query, options in (
        ("PUT", f"/{number}", "", {"json": {"title": "Buy oat milk"}}),
        ("PATCH", f"/{number}/complete", "", {}),
        ("PATCH", "", "?status=complete", bulk),
        ("PATCH", f"/{number}/complete", "", {}),
    ):
        assert changes(method, path, query, **options), (method, path)
    bob.create()
    # What is refused, or finds nothing, leaves the clock as it is.
    for method, path, query, options in (
        ("POST", "", "", {"json": {"title": "Buy milk"}, "headers": {"Idempotency-Key": "x"}}),
        ("POST", "", "", {"json": {"title": "Buy bread"}, "headers": {"Idempotency-Key": "x"}}),
        ("POST", "", "", {"json": {"title": ""}}),
        ("PUT", f"/{number}", "", {"json": {"title": "x"}, "headers": {"If-Match": '"x"'}}),
        ("PATCH", f"/{number}/complete", "", {"headers": {"If-None-Match": "*"}}),
        ("DELETE", f"/{number}", "", {"headers": {"If-Match": '"x"'}}),
        ("PUT", "/9223372036854775807", "", {"json": {"title": "x"}}),
        ("DELETE", "/9223372036854775807", "", {}),
        ("PATCH", "", "?status=incomplete", {"json": {"status": "complete"}}),
        ("GET", f"/{number}", "", {}),
    ):
        assert not changes(method, path, query, **options), (method, path)
    assert changes("DELETE", query="?status=complete")
    assert not changes("DELETE", query="?status=complete")
    assert alice("GET", headers={"If-None-Match": ", ".join(tags[:6])}).status_code == 200


def test_a_page_that_the_caller_has_costs_one_statement(alice: Caller, statements: list[str]) -> None:
    """And one that is not, in the same statement."""
    alice.create()
    first = alice("GET")
    for path in ("", "/changes"):
        statements.clear()
        unchanged = alice("GET", path, headers={"If-None-Match": first.headers["ETag"]})
        assert (unchanged.status_code, len(statements)) == (304, 2)
    alice.create()
    statements.clear()
    changed = alice("GET", headers={"If-None-Match": first.headers["ETag"]})
    assert (changed.status_code, len(changed.get_json()), len(statements)) == (200, 2, 2)


def test_any_of_several_tags_makes_a_304(alice: Caller) -> None:
    tags = [alice("GET").headers["ETag"]]
    for _ in range(2):
        alice.create()
        tags.append(alice("GET").headers["ETag"])
    for header in (", ".join(tags), ", ".join(reversed(tags)), "*", tags[-1].removeprefix("W/")):
        assert alice("GET", headers={"If-None-Match": header}).status_code == 304
    for header in (", ".join(tags[:2]), '"x"', tags[-1][:-2] + '0"', 'W/"2025-13-01T00:00:00.000000Z-' + tags[-1][-9:]):
        assert alice("GET", headers={"If-None-Match": header}).status_code == 200


def test_a_tag_of_a_page_is_of_its_representation(alice: Caller) -> None:
    """A deploy that adds a field must not be answered with 304."""
    assert representation_of(["id", "title"]) != representation_of(["id", "title", "due_at"])
    assert alice("GET").headers["ETag"].rpartition("-")[2] == f'{representation_of([*TaskSchema().fields])}"'


def test_a_user_who_is_created_again_has_another_tag(alice: Caller, url: URL) -> None:
    alice.create()
    tag = alice("GET").headers["ETag"]
    sql(url, "DELETE FROM users")
    assert alice("GET", headers={"If-None-Match": tag}).get_json() == []
    alice.create()
    assert len(alice("GET", headers={"If-None-Match": tag}).get_json()) == 1


def test_a_condition_costs_no_statement_more_unless_it_fails(alice: Caller, statements: list[str]) -> None:
    task = alice.create()
    statements.clear()
    assert put(alice, task["id"], If_Match=tag_of(task)) == 200
    changing = len(statements)
    assert statements.count("checkout") == 1
    statements.clear()
    assert put(alice, task["id"], If_Match=tag_of(task)) == 412
    assert (statements.count("checkout"), len(statements)) == (2, changing + 2)
