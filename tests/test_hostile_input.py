"""Hostile and odd requests: what the service answers, that it is never a 5xx, and that nothing is written.

Each is bytes on the wire, which gunicorn's parser turns into what the service sees. tests/live has them again before a
running gunicorn, beside those that are only odd, and those that gunicorn itself refuses.
"""

import gzip
import re
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple
from urllib.parse import quote

import pytest
from flask import Flask
from gunicorn.config import Config
from gunicorn.http import wsgi
from gunicorn.http.parser import RequestParser
from werkzeug.test import run_wsgi_app
from werkzeug.wrappers import Response

from tests.support import Caller, statements_of, token

AUTHORIZATION = f"Authorization: Bearer {token(exp=int(time.time()) + 7200)}"
TASKS = "/api/alice/tasks"
BODY = b'{"title": "x"}'
LENGTH = len(BODY)
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (LENGTH, BODY)
MEBIBYTE = 1024 * 1024

NOT_JSON = "Request body is not valid JSON"
TOO_DEEP = "Request body is nested too deeply"
TOO_LONG_NUMBER = "Request body has a number that is too long"
TOO_LARGE = "Request body must be 1 MiB or less"
NOT_OBJECT = "Request body must be a JSON object"
UNSTORABLE = "Title must not contain NUL or lone surrogates"
NO_STRING = "Title must be a string"
CHUNKS = "Content-Length is required: a chunked body is not accepted"
OTHER_TYPE = "Content-Type must be application/json"
BAD_ID = "Invalid task ID"
BAD_LIMIT = "Limit must be a whole number from 1 to 1000"
BAD_STATUS = "Invalid status value. Must be 'incomplete' or 'complete'"
BAD_QUERY = "Query string must be UTF-8"
NO_ROUTE = "Unknown route"
NO_METHOD = "Method not allowed"
NO_CURSOR = "Invalid cursor"


class Row(NamedTuple):
    """A request, and the status and the sentence of its answer."""

    request: bytes
    status: int
    message: str


def ask(
    method: str, target: str, *lines: str, body: bytes = b"", host: str = "Host: localhost", version: str = "HTTP/1.1"
) -> bytes:
    """A request of alice that says only what it must; the lines come on top. Latin-1 is how bytes are written here."""
    head = [f"{method} {target} {version}", host, AUTHORIZATION, *lines, "Connection: close"]
    return "\r\n".join([*filter(None, head), "", ""]).encode("latin-1") + body


def post(body: bytes, *lines: str, content_type: str = "Content-Type: application/json", **options: str) -> bytes:
    """A new task of alice, as honest as can be about its length."""
    return ask("POST", TASKS, content_type, f"Content-Length: {len(body)}", *lines, body=body, **options)


def framed(*lines: str, body: bytes = BODY, **options: str) -> bytes:
    """A new task of alice whose length the lines tell."""
    return ask("POST", TASKS, "Content-Type: application/json", *lines, body=body, **options)


BODIES = {
    "byte order mark": Row(post(b"\xef\xbb\xbf" + BODY), 400, NOT_JSON),
    "UTF-16": Row(post(BODY.decode().encode("utf-16")), 400, NOT_JSON),
    "UTF-7 as said": Row(post(b"+AHs-}", content_type="Content-Type: application/json; charset=utf-7"), 400, NOT_JSON),
    "not UTF-8": Row(post(b'{"title": "\xff"}'), 400, NOT_JSON),
    "overlong NUL": Row(post(b'{"title": "\xc0\x80"}'), 400, NOT_JSON),
    "surrogate in UTF-8": Row(post(b'{"title": "\xed\xa0\x80"}'), 400, NOT_JSON),
    "gzip": Row(post(gzip.compress(BODY), "Content-Encoding: gzip"), 400, NOT_JSON),
    "100,000 arrays": Row(post(b'{"title": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), 400, TOO_DEEP),
    "100,000 objects": Row(post(b'{"title":' * 100_000 + b"1" + b"}" * 100_000), 400, TOO_DEEP),
    "100,000 arrays left open": Row(post(b"[" * 100_000), 400, TOO_DEEP),
    "5,000 digits": Row(post(b'{"title": ' + b"1" * 5000 + b"}"), 400, TOO_LONG_NUMBER),
    "5,000 digits that are ignored": Row(post(b'{"title": "x", "id": ' + b"1" * 5000 + b"}"), 400, TOO_LONG_NUMBER),
    "5,000 digits below nought": Row(post(b'{"title": -' + b"1" * 5000 + b"}"), 400, TOO_LONG_NUMBER),
    "5,000 digits after the point": Row(post(b'{"title": 1.' + b"1" * 5000 + b"}"), 400, NO_STRING),
    "10^400": Row(post(b'{"title": 1e400}'), 400, NO_STRING),
    "key twice": Row(post(b'{"title": "a", "title": "b"}'), 400, "Key given twice: title"),
    "key twice, escaped": Row(post(rb'{"title": "a", "t\u0069tle": "b"}'), 400, "Key given twice: title"),
    "NaN": Row(post(b'{"title": NaN}'), 400, NOT_JSON),
    "Infinity": Row(post(b'{"title": -Infinity}'), 400, NOT_JSON),
    "NUL": Row(post(b'{"title": "a\0"}'), 400, NOT_JSON),
    "NUL, escaped": Row(post(rb'{"title": "a\u0000"}'), 400, UNSTORABLE),
    "high surrogate": Row(post(rb'{"title": "\ud83e"}'), 400, UNSTORABLE),
    "surrogate in a key": Row(post(rb'{"title": "x", "\ud800": 1}'), 400, "Unknown field: \ud800"),
    "NUL in a key": Row(post(rb'{"title": "x", "a\u0000": 1}'), 400, "Unknown field: a\0"),
    "line break in a string": Row(post(b'{"title": "a\nb"}'), 400, NOT_JSON),
    "__proto__": Row(post(b'{"title": "x", "__proto__": {}}'), 400, "Unknown field: __proto__"),
    "mass assignment": Row(
        post(b'{"title": "x", "user_id": "bob", "id": 9, "status": "complete"}'), 400, "Status cannot be set on create"
    ),
    "two documents": Row(post(BODY + BODY), 400, NOT_JSON),
    "comment": Row(post(BODY + b"//"), 400, NOT_JSON),
    "array": Row(post(b"[" + BODY + b"]"), 400, NOT_OBJECT),
    "blanks": Row(post(b"   "), 400, NOT_JSON),
    "5 MB": Row(post(BODY.rjust(5 * MEBIBYTE)), 413, TOO_LARGE),
    "5 MB that ask first": Row(post(BODY.rjust(5 * MEBIBYTE), "Expect: 100-continue"), 413, TOO_LARGE),
    "a promise of 10^30 bytes": Row(framed(f"Content-Length: 1{'0' * 30}"), 413, TOO_LARGE),
}

CONTENT_TYPES = {
    said or "none": Row(post(BODY, content_type=said and f"Content-Type: {said}"), 415, OTHER_TYPE)
    for said in (
        *("", " ", "*/*", "json", "application/jsonx", "application/json+xml", "application/json, text/html"),
        "multipart/form-data; boundary=x",
    )
}

FRAMING = {
    "shorter than said": Row(framed(f"Content-Length: {LENGTH - 1}"), 400, NOT_JSON),
    "longer than said": Row(
        framed(f"Content-Length: {LENGTH + 1}"), 400, "Request body is shorter than its Content-Length"
    ),
    **{
        f"Transfer-Encoding: {said}": Row(framed(f"Transfer-Encoding: {said}", body=CHUNKED), 411, CHUNKS)
        for said in ("chunked", "CHUNKED", "gzip, chunked")
    },
    "a chunk that is none": Row(framed("Transfer-Encoding: chunked", body=b"zz\r\n" + BODY), 411, CHUNKS),
    "a request behind a body": Row(
        framed("Content-Length: 2", body=b"{}" + ask("DELETE", f"{TASKS}/1")), 400, "Title is required"
    ),
}

IDS = {
    f"id {task_id[:30]}": Row(ask("DELETE", f"{TASKS}/{task_id}"), status, message)
    for status, message, task_ids in (
        (
            *(400, BAD_ID),
            [
                *("%D9%A1", "%EF%BC%91", "%C2%B9", "+1", "-1", "%2B1", "0", "01", "1.0", "1e0", "0x1", "1_0", "1,2"),
                *("*", "1%20", "%201", "1%0a", "1%0d%0aX-Evil:%201", "1%00", "%001", "%ff", "1%ff", "%", "1%252F"),
                *("1%5c", "1'--", "1;DROP%20TABLE%20tasks", str(2**63), "9" * 1000, "..", "%2e%2e"),
            ],
        ),
        (404, NO_ROUTE, ["1/..", "1//", "%2f1", "1/../3"]),
        (405, NO_METHOD, ["1%2Fcomplete"]),
        (400, "Unknown query parameter: _method", ["1?_method=GET"]),
    )
    for task_id in task_ids
}

QUERIES = {
    f"?{query[:30]}": Row(ask("GET", f"{TASKS}?{query}"), 400, message)
    for message, queries in {
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
        NO_CURSOR: ["cursor=", "cursor=garbage", "cursor=%C3%A4", *(f"cursor={sign * 32}" for sign in "_A")],
    }.items()
    for query in queries
}
QUERIES["a huge cursor"] = Row(ask("GET", f"{TASKS}?cursor={'A' * 7000}"), 400, NO_CURSOR)

REFUSED = BODIES | CONTENT_TYPES | FRAMING | IDS | QUERIES
REFUSED["Host: aaa..."] = Row(post(BODY, host="Host: " + "a" * 5000), 400, "Invalid Host header")

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


def send(app: Flask, request: bytes) -> Response:
    """The answer of the app, behind gunicorn's parser, to the first of the requests."""
    config = Config()
    config.set("limit_request_line", 8190)
    parsed = next(RequestParser(config, iter([request]), ("127.0.0.1", 1)))
    # It is asked to go on where it expects that.
    connection = SimpleNamespace(send=lambda _: None)
    _, environ = wsgi.create(parsed, connection, ("127.0.0.1", 1), ("127.0.0.1", 80), config)
    return Response(*run_wsgi_app(app, environ, buffered=True))


@pytest.mark.parametrize("row", REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_refused_before_the_database(apps: dict[str, Flask], row: Row) -> None:
    with statements_of(apps["sqlite"]) as statements:
        answer = send(apps["sqlite"], row.request)
    assert statements == []
    assert (answer.status_code, answer.get_json()) == (row.status, {"error": row.message})
    assert answer.content_type == "application/json"
    assert "x-evil" not in str(answer.headers).lower()


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
