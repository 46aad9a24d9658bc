"""All databases give the same status, headers and body for the same request."""

import re

import pytest
from flask import Flask
from sqlalchemy import URL

from tests.conftest import url_of
from tests.support import Caller, Make, sql

BIDI = "\u202eright to left\u200b"
REQUESTS = [
    ("POST", "", {"json": {"title": "Buy milk", "description": "Two litres"}}),
    ("POST", "", {"json": {"title": BIDI}}),
    ("POST", "", {"json": {"title": "🥛" * 255, "description": "🥛" * 5000}}),
    ("POST", "", {"json": {"title": "🥛" * 256}}),
    ("POST", "", {"json": {"title": " "}}),
    ("POST", "", {"json": {"title": "a\0", "description": "\ud800", "x": 1}}),
    ("POST", "", {"data": b"{", "content_type": "application/json"}),
    ("POST", "", {"data": b"{}", "content_type": "text/plain"}),
    ("GET", "", {}),
    ("GET", "?status=incomplete&limit=2", {}),
    ("GET", "?q=%F0%9F%A5%9B&limit=1", {}),
    ("GET", "?q=MILK%00", {}),
    ("GET", "?q=" + "x" * 6000, {}),
    ("GET", "?cursor=x", {}),
    ("GET", "/{id}", {}),
    ("HEAD", "/{id}", {}),
    ("PUT", "/{id}", {"json": {"title": "Buy bread", "description": None}}),
    ("PUT", "/{id}", {"json": {}}),
    ("PATCH", "/{id}/complete", {}),
    ("PATCH", "/{id}/complete", {"json": {"status": "complete"}}),
    ("PATCH", "/{id}/complete", {"json": {"status": "done"}}),
    ("GET", "?status=complete", {}),
    ("DELETE", "/{id}", {}),
    ("DELETE", "/{id}", {}),
    ("GET", "/{id}", {}),
    ("GET", "/9223372036854775807", {}),
    ("GET", "/9223372036854775808", {}),
    ("GET", "/0", {}),
]


def story(app: Flask, user_id: str) -> list[tuple[int, str, str]]:
    """What the requests get, one after the other, with what a database makes up by itself taken out."""
    caller = Caller(app, user_id, "shared@example.com")
    first = caller.create()["id"]
    answers = []
    for method, path, options in REQUESTS:
        response = caller(method, path.format(id=first), **options)
        made_up = (
            r'"id":\d+|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z|cursor=[\w-]+|tasks/\d+|"\d+-(?=\d+")|[0-9a-f]{32,40}'
        )
        made_up += r"|\(.Content-Length., .\d+.\)"
        shown = (response.get_data(as_text=True), str(list(response.headers)))
        answers.append((response.status_code, *(re.sub(made_up, "", text) for text in shown)))
    sql(url_of(app), "DELETE FROM users")
    return answers


@pytest.mark.parametrize("user_id", ["alice", "jörg & söhne", "🥛" * 255])
def test_all_databases_tell_the_same_story(apps: dict[str, Flask], user_id: str) -> None:
    sqlite, postgresql, partitioned = (story(app, user_id) for app in apps.values())
    assert sqlite == postgresql == partitioned
    assert {status for status, _, _ in sqlite} == {200, 201, 204, 400, 404, 415}


def test_both_databases_count_from_one(own: URL, make: Make) -> None:
    people = [("alice", "shared@example.com"), ("bob", "shared@example.com"), ("alice", None)]
    app = make(own)
    assert [Caller(app, *person).create()["id"] for person in people] == [1, 2, 3]
