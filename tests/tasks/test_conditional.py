"""ETag, If-Match and If-None-Match (RFC 9110 section 13): nobody overwrites what they have not seen."""

from typing import Any

import pytest

from tests.support import Caller

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
    tags = [
        created.headers["ETag"],
        alice("GET", path).headers["ETag"],
        alice("HEAD", path).headers["ETag"],
        alice("PUT", path, json={"title": "Buy milk"}).headers["ETag"],
        alice("PATCH", f"{path}/complete").headers["ETag"],
        alice("PATCH", f"{path}/complete", json={"status": "complete"}).headers["ETag"],
        alice("GET", path).headers["ETag"],
    ]
    number = path[1:]
    assert tags == [f'"{number}-{version}"' for version in (1, 1, 1, 2, 3, 4, 4)]
    assert "ETag" not in alice("DELETE", path).headers


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
        number = alice.create()["id"]
        newer = alice("PUT", f"/{number}", json={"description": "Two litres"})
        assert change(alice, number, what, **{"If-Match": f'"{number}-1"'}) == (412, MESSAGE)
        # A change for those who have no version.
        assert change(alice, number, what, **{"If-None-Match": "*"}) == (412, MESSAGE)
        current = alice("GET", f"/{number}")
        assert (current.get_json(), current.headers["ETag"]) == (newer.get_json(), newer.headers["ETag"])
        assert change(alice, number, what, **{"If-Match": f'"{number}-2"'})[0] in (200, 204)

    def test_without_a_task_it_is_404_whatever_is_expected(
        self, alice: Caller, bob: Caller, what: tuple[str, str, object]
    ) -> None:
        foreign = bob.create()
        for expected in ("*", f'"{foreign["id"]}-1"', '"x"'):
            answer = change(alice, foreign["id"], what, **{"If-Match": expected})
            assert answer == (404, {"error": "Task not found"})
        assert bob("GET").get_json() == [foreign]


MATCHES = ["*", '"{id}-1"', '"x", "{id}-9", "{id}-1"', "{id}-1"]
OTHERS = ["", ",", '""', '"x", ""', '"{id}-2"', 'W/"{id}-1"', '"1{id}-1"', '"{id}-01"', '"{id}-1-gzip"', '"{id}-1']
OTHERS += ['"{id}-9223372036854775808"', '"{id}-99999999999999999999999"', '"{id}-\u0661"', '"\u00e9"']


def test_if_match_compares_strongly(alice: Caller) -> None:
    for header, status in [(match, 200) for match in MATCHES] + [(other, 412) for other in OTHERS]:
        task = alice.create()
        sent = header.format(id=task["id"]).encode().decode("latin-1")
        assert put(alice, task["id"], If_Match=sent) == status, header
        title = "Buy oat milk" if status == 200 else "Buy milk"
        assert alice("GET", f"/{task['id']}").get_json()["title"] == title


IF_NONE_MATCH = [
    ("*", 412),
    ('"{id}-1"', 412),
    ('W/"{id}-1"', 412),
    ('"x", W/"{id}-1"', 412),
    ('"{id}-2"', 200),
    ("", 200),
]
BOTH = [("*", '"{id}-1"', 412), ('"{id}-1"', '"{id}-2"', 200), ('"{id}-1"', "*", 412), ('"{id}-2"', '"{id}-2"', 412)]


def test_if_none_match_compares_weakly(alice: Caller) -> None:
    for header, status in IF_NONE_MATCH:
        task = alice.create()
        assert put(alice, task["id"], If_None_Match=header.format(id=task["id"])) == status, header


def test_both_conditions_must_hold(alice: Caller) -> None:
    for if_match, if_none_match, status in BOTH:
        number = alice.create()["id"]
        headers = {"If_Match": if_match.format(id=number), "If_None_Match": if_none_match.format(id=number)}
        assert put(alice, number, **headers) == status, headers


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


def test_whatever_changes_the_list_changes_its_tag(alice: Caller) -> None:
    tags = [alice("GET").headers["ETag"]]
    task = alice.create()
    tags.append(alice("GET").headers["ETag"])
    alice("PATCH", f"/{task['id']}/complete")
    tags.append(alice("GET").headers["ETag"])
    tags.append(alice("GET", query="?limit=1").headers["ETag"])
    assert tags[2] == tags[3]
    alice.create()
    newest = alice("GET", query="?limit=1").headers["ETag"]
    alice("DELETE", f"/{task['id']}")
    # The same task alone, but that no page follows any more.
    tags += [newest, alice("GET", query="?limit=1").headers["ETag"]]
    assert len(set(tags)) == 5
    assert alice("GET", headers={"If-None-Match": ", ".join(tags[:4])}).status_code == 200


def test_a_condition_costs_no_statement_more_unless_it_fails(alice: Caller, statements: list[str]) -> None:
    number = alice.create()["id"]
    statements.clear()
    assert put(alice, number, If_Match=f'"{number}-1"') == 200
    assert [statement.split()[0] for statement in statements] == ["checkout", "UPDATE"]
    statements.clear()
    assert put(alice, number, If_Match=f'"{number}-1"') == 412
    assert [statement.split()[0] for statement in statements] == ["checkout", "UPDATE", "checkout", "SELECT"]
