"""GET /api/{user_id}/tasks: order, filters, pages."""

import re
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import URL

from tests.support import Call, Caller, sql
from todo.db import search
from todo.db.search import SEARCH_LIMIT

pytestmark = pytest.mark.sql


def follow(caller: Caller, query: str) -> Iterator[list[str]]:
    """The titles of each page, from link to link."""
    path = f"/api/{caller.user_id}/tasks{query}"
    while path:
        response = caller.open("GET", path)
        assert response.status_code == 200
        yield [task["title"] for task in response.get_json()]
        link = re.fullmatch('<(.+)>; rel="next"', response.headers.get("Link", ""))
        path = link[1] if link else ""


def test_no_tasks_are_an_empty_array(alice: Caller) -> None:
    response = alice("GET")
    assert (response.status_code, response.get_json()) == (200, [])
    assert "Link" not in response.headers


def test_the_newest_comes_first(alice: Caller) -> None:
    for title in ("first", "second", "third"):
        alice.create(title)
    assert alice.titles() == ["third", "second", "first"]


def test_among_tasks_of_one_instant_the_highest_id_comes_first(alice: Caller, url: URL) -> None:
    for title in ("first", "second", "third"):
        alice.create(title)
    sql(url, "UPDATE tasks SET created_at = (SELECT min(created_at) FROM tasks)")
    assert alice.titles() == ["third", "second", "first"]
    assert list(follow(alice, "?limit=1")) == [["third"], ["second"], ["first"]]


def test_everybody_sees_their_own_tasks_only(alice: Caller, bob: Caller) -> None:
    alice.create("of alice")
    bob.create("of bob")
    assert (alice.titles(), bob.titles()) == (["of alice"], ["of bob"])


def test_the_status_narrows_the_list(alice: Caller) -> None:
    done = alice.create("done")
    alice.create("open")
    alice("PATCH", f"/{done['id']}/complete")
    assert alice.titles("?status=complete") == ["done"]
    assert alice.titles("?status=incomplete") == ["open"]


#: Part of a title, and what finds it.
WORDS = (
    "ÄRGER=ärger ärger=ÄRG ПРИВЕТ=привет ΟΔΟΣΑ=οδος οδός=ΟΔΌΣ GROẞ=groß straße=STRASSE ǅungla=ǆ \u212aelvin=kelvin"
    " Cafe\u0301=CAFÉ café=cafe\u0301 a\u0323\u0308=Ä\u0323 ΐ=Ϊ\u0301 \u1fb3=\u0391\u0399 İzmir=i\u0307zmir"
    " \u0131s\u0131=ISI ᲛᲗᲐ=მთა ꭰꮴ=ᎠᏤ ẞe\u0301=ßé \u1fb3\u0301=\u1fb4 ﬃ=FFI"
    " 한글=\u1112\u1161\u11ab 100%=% snake_case=_ back\\slash=\\ it's=' a+b=+"
)
FOUND = [("Buy milk", "MILK"), ("Vie\u0323\u0302t Nam", "việt"), *(tuple(pair.split("=")) for pair in WORDS.split())]


def test_q_finds_a_part_in_any_letter_case_and_nothing_is_a_wildcard(alice: Caller) -> None:
    other = alice.create("zzz", description="zzz")["id"]
    for title, q in FOUND:
        wanted = [alice.create("in the description", description=f"… {title} …")["id"], alice.create(title)["id"]]
        found = [task["id"] for task in alice.open("GET", "/api/alice/tasks", query_string={"q": q}).get_json()]
        assert found[:2] == wanted[::-1], title
        assert other not in found, q


def test_q_finds_nothing_else(alice: Caller) -> None:
    alice.create("Milk", description="Cafe\u0301")
    for q in ("M_lk", "M%", "milk.", "cheese", "cafe", "CAFÈ"):
        assert alice.open("GET", "/api/alice/tasks", query_string={"q": q}).get_json() == [], q


def test_q_may_have_two_hundred_characters_whatever_their_bytes(alice: Caller) -> None:
    alice.create("🥛" * 200)
    assert alice.titles("?q=" + "%F0%9F%A5%9B" * 200) == ["🥛" * 200]


def test_a_search_that_takes_too_long_is_stopped_and_says_so(
    alice: Caller, url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice.create("oldest")
    insert(url, 500, "x", "a" * 5000)
    assert SEARCH_LIMIT <= 0.5
    assert alice.titles("?q=oldest") == ["oldest"]
    monkeypatch.setattr(search, "SEARCH_LIMIT", 0.002)
    started = time.monotonic()
    response = alice("GET", query="?q=b" + "a" * 199)
    assert time.monotonic() - started < 0.5
    assert response.status_code == 422
    assert response.get_json() == {
        "error": "The search takes too long: narrow it by status, or search for something else"
    }
    # Nothing of the limit is left behind.
    assert len(alice.titles()) > 100


def insert(url: URL, count: int, title: str, description: str | None = None) -> None:
    """So many tasks of alice, who is known already."""
    numbers = f"WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
    tasks = f"{numbers} SELECT 'alice', CAST(:title AS TEXT) || i, CAST(:description AS TEXT) FROM n"
    insert = f"INSERT INTO tasks (user_id, title, description) {tasks}"
    sql(url, insert, title=title, description=description)


@pytest.mark.parametrize("character", ["\x01", "🥛", "x", '"'], ids=ascii)
def test_a_page_has_a_mebibyte_at_most_and_no_task_is_lost(alice: Caller, url: URL, character: str) -> None:
    alice.create("oldest")
    everything = ["oldest"]
    # Of 53 large ones in milk alone, the texts are more than a page; 52 fit.
    for name, count, length in (("small", 260, 0), ("large", 120, 4940), ("small again", 120, 0)):
        insert(url, count, f"{character} {name} ", character * length or None)
        everything += [f"{character} {name} {n}" for n in range(1, count + 1)]
    for query in ("?q=", "?limit=1000&status=incomplete", "?limit=100", "?q=L"):
        path, titles, sizes = f"/api/alice/tasks{query}", [], []
        while path:
            response = alice.open("GET", path)
            sizes.append(len(response.data))
            titles += [task["title"] for task in response.get_json()]
            link = re.fullmatch('<(.+)>; rel="next"', response.headers.get("Link", ""))
            path = link[1] if link else ""
        assert sorted(titles) == sorted(everything)
        assert max(sizes) <= 1024 * 1024
        if query in ("?q=", "?limit=1000&status=incomplete"):
            # What fits is one page; of what does not, a page is filled but for less than the longest task.
            assert len(sizes) == 1 if character == "x" else max(sizes) > 1024 * 1024 - 32 * 1024


def test_pages_follow_each_other_without_gap_or_repetition(alice: Caller) -> None:
    for number in range(5):
        alice.create(str(number))
    assert list(follow(alice, "?limit=2")) == [["4", "3"], ["2", "1"], ["0"]]
    assert list(follow(alice, "?limit=5")) == [["4", "3", "2", "1", "0"]]


def test_a_task_that_comes_between_two_pages_moves_nothing(alice: Caller) -> None:
    for number in range(4):
        alice.create(str(number))
    pages = follow(alice, "?limit=2")
    assert next(pages) == ["3", "2"]
    alice.create("new")
    assert next(pages) == ["1", "0"]


def test_the_link_keeps_the_filters(alice: Caller) -> None:
    for number in range(3):
        task = alice.create(f"söck & {number}")
        alice("PATCH", f"/{task['id']}/complete")
        alice.create(f"shoe {number}")
    pages = follow(alice, "?q=S%C3%96CK+%26&status=complete&limit=1")
    assert list(pages) == [["söck & 2"], ["söck & 1"], ["söck & 0"]]


def test_the_link_of_an_unusual_user_leads_on(call: Call) -> None:
    caller = call('jörg & söhne?#%41+;=100%<>"')
    path = "/api/j%C3%B6rg%20%26%20s%C3%B6hne%3F%23%2541+%3B=100%25%3C%3E%22/tasks"
    for title in ("first", "second"):
        assert caller.open("POST", path, json={"title": title}).status_code == 201
    link = caller.open("GET", f"{path}?limit=1").headers["Link"]
    next_page = caller.open("GET", link.removeprefix("<").removesuffix('>; rel="next"'))
    assert [task["title"] for task in next_page.get_json()] == ["first"]


def test_without_a_limit_a_thousand_tasks_are_answered_and_the_rest_is_linked(alice: Caller, url: URL) -> None:
    alice.create("oldest")
    insert(url, 1000, "x")
    assert [len(page) for page in follow(alice, "")] == [1000, 1]


INVALID_STATUS = "Invalid status value. Must be 'incomplete' or 'complete'"
INVALID_LIMIT = "Limit must be a whole number from 1 to 1000"
#: More are in tests/test_hostile_input.py.
BAD_QUERIES = {
    INVALID_STATUS: ["?status=done", "?status=", "?status=Complete"],
    "Query parameter q must be 200 characters or less": ["?q=" + "x" * 201],
    f"{INVALID_STATUS}; {INVALID_LIMIT}; Unknown query parameter: sort": ["?sort=x&limit=0&status=x"],
}


def test_a_bad_query_is_named(alice: Caller) -> None:
    for message, queries in BAD_QUERIES.items():
        for query in queries:
            response = alice("GET", query=query)
            assert (response.status_code, response.get_json()) == (400, {"error": message})


def test_head_is_get_without_the_body(alice: Caller) -> None:
    alice.create()
    get, head = alice("GET"), alice("HEAD")
    assert (head.status_code, head.data) == (200, b"")
    assert head.headers["Content-Length"] == get.headers["Content-Length"]
