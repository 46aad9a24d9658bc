"""The limit: a WSGI function with psycopg2 and no framework, one statement for each request under autocommit."""

import os
import re
import threading
from collections.abc import Callable, Iterable
from typing import Any

import jwt
import orjson
import psycopg2

SECRET = os.environ["JWT_SECRET"]

NAMES = ("id", "user_id", "title", "description", "status", "created_at", "updated_at")
# Cheaper, here and in all, than datetimes that Python makes and orjson writes out.
INSTANT = "to_char({0} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') AS {0}"
COLUMNS = ", ".join([*NAMES[:5], *map(INSTANT.format, NAMES[5:])])
LIST = f"SELECT {COLUMNS} FROM tasks WHERE user_id = %s ORDER BY tasks.created_at DESC, id DESC LIMIT 1000"
GET = f"SELECT {COLUMNS} FROM tasks WHERE user_id = %s AND id = %s"
CREATE = f"""
    WITH owner AS (INSERT INTO users (id) VALUES (%(user_id)s) ON CONFLICT DO NOTHING)
    INSERT INTO tasks (user_id, title, description) VALUES (%(user_id)s, %(title)s, %(description)s)
    RETURNING {COLUMNS}
"""
COMPLETE = f"""
    UPDATE tasks SET status = CASE status WHEN 'complete' THEN 'incomplete' ELSE 'complete' END, updated_at = now()
    WHERE user_id = %s AND id = %s RETURNING {COLUMNS}
"""
PATH = re.compile(r"/api/([^/]+)/tasks(?:/([1-9][0-9]{0,18})(/complete)?)?")

REASONS = {
    200: "200 OK",
    201: "201 Created",
    400: "400 Bad Request",
    401: "401 Unauthorized",
    403: "403 Forbidden",
    404: "404 Not Found",
}

local = threading.local()


class Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        self.status, self.message = status, message


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    try:
        status, answer = respond(environ)
    except Refused as refusal:
        status, answer = refusal.status, {"error": refusal.message}
    body = orjson.dumps(answer)
    start_response(REASONS[status], [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def respond(environ: dict[str, Any]) -> tuple[int, object]:
    method = environ["REQUEST_METHOD"]
    # WSGI gives the path's bytes as Latin-1 (PEP 3333).
    match = PATH.fullmatch(environ["PATH_INFO"].encode("latin-1").decode(errors="replace"))
    if match is None:
        raise Refused(404, "Not found")
    user_id, task_id, is_completion = match.groups()
    check_owner(user_id, environ.get("HTTP_AUTHORIZATION", ""))
    if task_id is None and method == "GET":
        return 200, [dict(zip(NAMES, row, strict=True)) for row in execute(LIST, (user_id,))]
    if task_id is None and method == "POST":
        return 201, one(execute(CREATE, new_task(environ) | {"user_id": user_id}))
    if is_completion and method == "PATCH":
        return 200, one(execute(COMPLETE, (user_id, task_id)))
    if task_id and not is_completion and method == "GET":
        return 200, one(execute(GET, (user_id, task_id)))
    raise Refused(404, "Not found")


def check_owner(user_id: str, authorization: str) -> None:
    try:
        claims = jwt.decode(
            authorization.removeprefix("Bearer "), SECRET, algorithms=["HS256"], options={"require": ["exp", "sub"]}
        )
    except jwt.InvalidTokenError as error:
        raise Refused(401, "Unauthorized") from error
    if claims["sub"] != user_id:
        raise Refused(403, "Forbidden")


def new_task(environ: dict[str, Any]) -> dict[str, str | None]:
    try:
        body = orjson.loads(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
    except ValueError as error:
        raise Refused(400, "The body is not JSON") from error
    if not isinstance(body, dict):
        raise Refused(400, "The body must be an object")
    title, description = body.get("title"), body.get("description")
    if not isinstance(title, str) or not 1 <= len(title) <= 255 or title.isspace():
        raise Refused(400, "Title must be 1 to 255 characters, not only white space")
    if description is not None and not (isinstance(description, str) and len(description) <= 5000):
        raise Refused(400, "Description must be at most 5000 characters")
    return {"title": title, "description": description}


def execute(statement: str, parameters: object) -> list[tuple[Any, ...]]:
    """Run it on the connection of this thread, which is never mended: this is the limit, not a service."""
    try:
        connection = local.connection
    except AttributeError:
        connection = local.connection = psycopg2.connect(os.environ["DATABASE_URL"])
        connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchall()


def one(rows: list[tuple[Any, ...]]) -> dict[str, Any]:
    if not rows:
        raise Refused(404, "Task not found")
    return dict(zip(NAMES, rows[0], strict=True))
