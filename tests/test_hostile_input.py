"""Hostile and odd bodies, queries and texts: what the service answers, and that none makes it fail.

tests/live has them on the wire before a running gunicorn, beside other requests.
"""

import gzip
import re
from collections.abc import Callable
from urllib.parse import quote

import pytest

from tests.support import Caller

BODY = b'{"title": "x"}'
NOT_JSON = "Request body is not valid JSON"
TOO_DEEP = "Request body is nested too deeply"
TOO_LONG_NUMBER = "Request body has a number that is too long"
NOT_OBJECT = "Request body must be a JSON object"
UNSTORABLE = "Title must not contain NUL or lone surrogates"
NO_STRING = "Title must be a string"
BAD_LIMIT = "Limit must be a whole number from 1 to 1000"
BAD_STATUS = "Invalid status value. Must be 'incomplete' or 'complete'"
BAD_QUERY = "Query string must be UTF-8"
NO_CURSOR = "Invalid cursor"

#: Bodies of a create, and the sentence that refuses each.
BODIES = {
    "byte order mark": (b"\xef\xbb\xbf" + BODY, NOT_JSON),
    "UTF-16": (BODY.decode().encode("utf-16"), NOT_JSON),
    "not UTF-8": (b'{"title": "\xff"}', NOT_JSON),
    "overlong NUL": (b'{"title": "\xc0\x80"}', NOT_JSON),
    "surrogate in UTF-8": (b'{"title": "\xed\xa0\x80"}', NOT_JSON),
    "gzip": (gzip.compress(BODY), NOT_JSON),
    "100,000 arrays": (b'{"title": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", TOO_DEEP),
    "100,000 objects": (b'{"title":' * 100_000 + b"1" + b"}" * 100_000, TOO_DEEP),
    "100,000 arrays left open": (b"[" * 100_000, TOO_DEEP),
    "5,000 digits": (b'{"title": ' + b"1" * 5000 + b"}", TOO_LONG_NUMBER),
    "5,000 digits that are ignored": (b'{"title": "x", "id": ' + b"1" * 5000 + b"}", TOO_LONG_NUMBER),
    "5,000 digits below nought": (b'{"title": -' + b"1" * 5000 + b"}", TOO_LONG_NUMBER),
    "5,000 digits after the point": (b'{"title": 1.' + b"1" * 5000 + b"}", NO_STRING),
    "10^400": (b'{"title": 1e400}', NO_STRING),
    "key twice": (b'{"title": "a", "title": "b"}', "Key given twice: title"),
    "key twice, escaped": (rb'{"title": "a", "t\u0069tle": "b"}', "Key given twice: title"),
    "NaN": (b'{"title": NaN}', NOT_JSON),
    "Infinity": (b'{"title": -Infinity}', NOT_JSON),
    "NUL": (b'{"title": "a\0"}', NOT_JSON),
    "NUL, escaped": (rb'{"title": "a\u0000"}', UNSTORABLE),
    "high surrogate": (rb'{"title": "\ud83e"}', UNSTORABLE),
    "surrogate in a key": (rb'{"title": "x", "\ud800": 1}', "Unknown field: \ud800"),
    "NUL in a key": (rb'{"title": "x", "a\u0000": 1}', "Unknown field: a\0"),
    "line break in a string": (b'{"title": "a\nb"}', NOT_JSON),
    "__proto__": (b'{"title": "x", "__proto__": {}}', "Unknown field: __proto__"),
    "mass assignment": (b'{"title": "x", "user_id": "bob", "status": "complete"}', "Status cannot be set on create"),
    "two documents": (BODY + BODY, NOT_JSON),
    "comment": (BODY + b"//", NOT_JSON),
    "array": (b"[" + BODY + b"]", NOT_OBJECT),
    "blanks": (b"   ", NOT_JSON),
}

#: Queries of the list, by the sentence that refuses them.
QUERIES = {
    BAD_LIMIT: [
        *("limit=%D9%A3", "limit=%EF%BC%95", "limit=-1", "limit=0", "limit=1001", "limit=%205", "limit=5%20"),
        *("limit=+5", "limit=05", "limit=5.0", "limit=1e2", "limit=0x5", "limit=1_0", "limit=5%00", "limit="),
        *("limit=" + "9" * 5000, "limit=1;limit=2"),
    ],
    "Query parameter given twice: limit": ["limit=5&limit=5", "limit=5&%6Cimit=6"],
    "Query parameter given twice: status": ["status=complete&status=complete"],
    **{
        f"Unknown query parameter: {name}": [f"{name}={value}"]
        for name, value in (
            *(("limit[]", 5), ("LIMIT", 5), ("_method", "DELETE"), ("user_id", "bob"), ("", "x")),
            ("status[]", "complete"),
        )
    },
    "Unknown query parameter: ?": ["?"],
    "Query parameter q must not contain NUL or lone surrogates": ["q=%00"],
    BAD_QUERY: ["q=%ff", "q=%c0%80", "q=%ed%a0%80", "%ff=x"],
    BAD_STATUS: ["status=COMPLETE", "status=complete%00"],
    NO_CURSOR: [f"cursor={cursor}" for cursor in ("", "garbage", "%C3%A4", "_" * 32, "f" * 32, "A" * 32, "A" * 7000)],
}

#: Strange to read, but text like any other: kept as they are sent.
TITLES = {
    "zero width": "\u200b",
    "byte order mark": "\ufeff",
    "right to left": "\u202egpj.exe",
    "isolates": "\u2067a\u2069",
    "255 emoji": "🥛" * 255,
    "a family of one": "👨\u200d👩\u200d👧\u200d👦",
    "254 combining": "e" + "\u0301" * 254,
    "decomposed": "e\u0301",
    "composed": "\u00e9",
    "control characters": "\x01\x1b[31m\x7f\x85",
    "line breaks": "a\r\nX-Evil: 1\u2028",
    "not a character": "\uffff\U0010ffff",
    "replacement": "\ufffd",
    "markup": "</script><img src=x onerror=alert(1)>",
    "SQL": "'; DROP TABLE tasks; --",
    "format": "%s %(id)s {0} $1 :title",
    "escapes that are none": r"\u0000 %00 \x00",
    "blanks around": "  x\t\n",
}

#: What is no cursor any more, made of one that is.
CURSORS: dict[str, Callable[[str], str]] = {
    "NUL": lambda cursor: f"{cursor}%00",
    "a line break at the end": lambda cursor: f"{cursor}%0a",
    "truncated": lambda cursor: cursor[:-1],
    "truncated by a block": lambda cursor: cursor[:-4],
    "lengthened": lambda cursor: f"{cursor}AAAA",
    "padded": lambda cursor: f"{cursor}====",
    "tampered with in the digest": lambda cursor: cursor[:-1] + ("A" if cursor[-1] != "A" else "B"),
    "of another list": lambda cursor: f"{cursor}&q=kept",
    "of another status": lambda cursor: f"{cursor}&status=incomplete",
}

#: Other ways of saying that a body is JSON: it is read as UTF-8, whatever they say.
JSON_TYPES = ("application/json; charset=utf-7", "application/json;;;", 'APPLICATION/JSON;a="', "application/x+json")


@pytest.mark.parametrize(("body", "message"), BODIES.values(), ids=BODIES)
def test_a_body_is_refused_before_the_database(alice: Caller, statements: list[str], body: bytes, message: str) -> None:
    response = alice("POST", data=body, content_type="application/json")
    assert (response.status_code, response.get_json(), statements) == (400, {"error": message}, [])


@pytest.mark.parametrize(
    ("query", "message"), [(query, message) for message, queries in QUERIES.items() for query in queries]
)
def test_a_query_is_refused_before_the_database(alice: Caller, statements: list[str], query: str, message: str) -> None:
    response = alice("GET", query=f"?{query}")
    assert (response.status_code, response.get_json(), statements) == (400, {"error": message}, [])


@pytest.mark.parametrize("title", TITLES.values(), ids=TITLES)
def test_any_text_is_kept_as_it_is_sent(alice: Caller, title: str) -> None:
    task = alice.create(title, description=title)
    assert (task["title"], task["description"]) == (title, title)
    assert alice("GET", f"/{task['id']}").get_json() == task
    assert alice("GET", query=f"?q={quote(title[:200])}").get_json() == [task]


@pytest.mark.parametrize("content_type", JSON_TYPES)
def test_a_type_that_is_json_is_read_as_utf_8_whatever_else_it_says(alice: Caller, content_type: str) -> None:
    response = alice("POST", data='{"title": "é"}'.encode(), content_type=content_type)
    assert (response.status_code, response.get_json()["title"]) == (201, "é")


def cursor_of(user: Caller) -> str:
    """The cursor to the second page of the user's list of two."""
    for _ in range(2):
        user.create("kept")
    (cursor,) = re.findall(r"cursor=([\w-]+)", user("GET", query="?limit=1").headers["Link"])
    return str(cursor)


def test_a_cursor_is_good_as_it_was_given_to_that_user_or_not_at_all(alice: Caller, bob: Caller) -> None:
    cursor, foreign = cursor_of(alice), cursor_of(bob)
    assert alice("GET", query=f"?cursor={cursor}").status_code == 200
    for bad in (*(spoil(cursor) for spoil in CURSORS.values()), foreign):
        response = alice("GET", query=f"?cursor={bad}")
        assert (response.status_code, response.get_json()) == (400, {"error": NO_CURSOR}), bad


def test_a_cursor_with_a_forged_place_leads_among_ones_own_tasks_alone(alice: Caller, bob: Caller) -> None:
    cursor_of(bob)
    response = alice("GET", query=f"?cursor=AB{cursor_of(alice)[2:]}")
    assert response.status_code == 200
    assert {task["user_id"] for task in response.get_json()} == {"alice"}
