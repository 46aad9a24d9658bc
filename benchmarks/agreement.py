"""Checks before a measurement that all servers behave alike: the same statuses, and the same JSON."""

import re
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection
from json import loads
from typing import Any

from benchmarks.load import send
from benchmarks.workload import Database, Request
from todo.web.schemas import INSTANT


class Disagreement(Exception):
    """A server does not answer as the service does."""


def exchanges(database: Database) -> Iterator[tuple[str, Request]]:
    """Yield the requests that each server must answer, with their names."""
    mine, foreign = database.tasks["u000"][0], database.tasks["u001"][0]
    to_complete = database.tasks["d000"][0]
    new_task = {"title": "Käse № 1 – 牛乳", "description": 'Two litres,\n"whole"'}
    yield "get", Request("GET", f"/api/u000/tasks/{mine}", "u000")
    yield "list of 100", Request("GET", "/api/u000/tasks", "u000")
    yield "list of none", Request("GET", "/api/c000/tasks", "c000")
    yield "create", Request("POST", "/api/c000/tasks", "c000", new_task)
    yield "create without description", Request("POST", "/api/c000/tasks", "c000", {"title": "x" * 255})
    yield "create a user's first", Request("POST", "/api/new/tasks", "new", new_task)
    yield "complete", Request("PATCH", f"/api/d000/tasks/{to_complete}/complete", "d000")
    yield "complete again", Request("PATCH", f"/api/d000/tasks/{to_complete}/complete", "d000")
    yield "get without token", Request("GET", f"/api/u000/tasks/{mine}", None)
    yield "list of a foreign path", Request("GET", "/api/u001/tasks", "u000")
    yield "create on a foreign path", Request("POST", "/api/u001/tasks", "u000", new_task)
    yield "get a foreign task", Request("GET", f"/api/u000/tasks/{foreign}", "u000")
    yield "complete a foreign task", Request("PATCH", f"/api/u000/tasks/{foreign}/complete", "u000")
    yield "create with a blank title", Request("POST", "/api/c000/tasks", "c000", {"title": "   "})
    yield "create without title", Request("POST", "/api/c000/tasks", "c000", {"description": "x"})
    yield "create with a long title", Request("POST", "/api/c000/tasks", "c000", {"title": "x" * 256})
    long = {"title": "x", "description": "x" * 5001}
    yield "create with a long description", Request("POST", "/api/c000/tasks", "c000", long)


def answers(port: int, database: Database) -> dict[str, tuple[int, Any]]:
    """Return a server's answers: the status, and the JSON without what differs from run to run."""
    database.forget_writes()
    connection = HTTPConnection("127.0.0.1", port, timeout=15)
    given = {}
    for name, request in exchanges(database):
        status, body = send(connection, request)
        given[name] = status, masked(request.method, status, _parsed(body))
    connection.close()
    return given


def masked(method: str, status: int, answer: Any) -> Any:
    """Return the answer without the words of a 400. After a write, also without a valid id and valid instants."""
    if not isinstance(answer, dict):
        return answer
    if status == 400 and list(answer) == ["error"] and isinstance(answer["error"], str):
        return {"error": "masked"}
    if method == "GET" or status >= 300:
        return answer
    has_form = {"id": isinstance(answer.get("id"), int)}
    has_form |= {name: bool(re.match(INSTANT, str(answer.get(name)))) for name in ("created_at", "updated_at")}
    return answer | {name: "masked" for name in has_form if has_form[name]}


def compare(name: str, expected: Mapping[str, tuple[int, Any]], given: Mapping[str, tuple[int, Any]]) -> None:
    """Raise Disagreement if an answer differs from the expected one. The message shows both."""
    for exchange in expected:
        if given[exchange] != expected[exchange]:
            (status, answer), (right_status, right_answer) = given[exchange], expected[exchange]
            answer, right_answer = _first_difference(answer, right_answer)
            found = f"  {status} {answer}\nrather than\n  {right_status} {right_answer}"
            raise Disagreement(f"{name} differs on {exchange!r}:\n{found}")


def _parsed(body: bytes) -> Any:
    """Return the loaded JSON. A body that is not JSON is returned as it is, and so differs."""
    try:
        return loads(body)
    except ValueError:
        return body


def _first_difference(one: Any, other: Any) -> tuple[Any, Any]:
    """Return the first tasks that differ, if both are lists: whole lists would fill the screen."""
    if isinstance(one, list) and isinstance(other, list):
        return next((pair for pair in zip(one, other, strict=False) if pair[0] != pair[1]), (one, other))
    return one, other
