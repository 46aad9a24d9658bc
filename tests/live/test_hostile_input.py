"""Hostile and odd requests on the wire to a running gunicorn: those that the service refuses, and its own.

What gunicorn refuses before the service sees it gets gunicorn's own page of HTML.
"""

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

import pytest
from sqlalchemy import URL, Connection, create_engine, text

from tests.live import Server, gunicorn
from tests.support import PATIENCE, as_superuser, close, migrated_app, postgresql_database, sqlite_database, token
from tests.test_hostile_input import BODIES, BODY, NOT_JSON, QUERIES

AUTHORIZATION = f"Authorization: Bearer {token(exp=int(time.time()) + 7200)}"
TASKS = "/api/alice/tasks"
LENGTH = len(BODY)
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (LENGTH, BODY)
MEBIBYTE = 1024 * 1024

TOO_LARGE = "Request body must be 1 MiB or less"
CHUNKS = "Content-Length is required: a chunked body is not accepted"
NO_ROUTE = "Unknown route"
NO_METHOD = "Method not allowed"


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


class Service(NamedTuple):
    """A gunicorn, and a connection to look behind it."""

    server: Server
    connection: Connection

    def send(self, request: bytes) -> bytes:
        """All that comes back, until the server closes the connection."""
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=PATIENCE) as connection:
            answer = b""
            # Who refuses a body need not read it to its end.
            with suppress(ConnectionError):
                connection.sendall(request)
                connection.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                while part := connection.recv(65536):
                    answer += part
            return answer

    def rows(self, columns: str = "*") -> list[tuple[Any, ...]]:
        """All that is stored; of the users these columns."""
        tables = [
            self.connection.execute(text(f"SELECT {names} FROM {table} ORDER BY id")).all()
            for names, table in ((columns, "users"), ("*", "tasks"))
        ]
        return [tuple(row) for table in tables for row in table]


#: What the service refuses, with the status and the sentence.
BODIES_HERE = {
    **{name: Row(post(body), 400, message) for name, (body, message) in BODIES.items()},
    "UTF-7 as said": Row(post(b"+AHs-}", content_type="Content-Type: application/json; charset=utf-7"), 400, NOT_JSON),
    "5 MB": Row(post(BODY.rjust(5 * MEBIBYTE)), 413, TOO_LARGE),
    "5 MB that ask first": Row(post(BODY.rjust(5 * MEBIBYTE), "Expect: 100-continue"), 413, TOO_LARGE),
    "a promise of 10^30 bytes": Row(framed(f"Content-Length: 1{'0' * 30}"), 413, TOO_LARGE),
    "Host: aaa...": Row(post(BODY, host="Host: " + "a" * 5000), 400, "Invalid Host header"),
}

QUERIES_HERE = {
    f"?{query[:30]}": Row(ask("GET", f"{TASKS}?{query}"), 400, message)
    for message, queries in QUERIES.items()
    for query in queries
}

CONTENT_TYPES = {
    said or "none": Row(
        post(BODY, content_type=said and f"Content-Type: {said}"), 415, "Content-Type must be application/json"
    )
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
            *(400, "Invalid task ID"),
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

#: Paths and methods that the service refuses.
TARGETS = {
    target[:40]: Row(ask("GET", target), status, message)
    for status, message, targets in (
        (
            *(403, "Forbidden"),
            [
                *("/api/bob/tasks", "/api/bob/tasks/3", "/api/ALICE/tasks", "/api/alice%20/tasks"),
                *("/api/alice%00/tasks", "/api/alice%0a/tasks", "/api/alice%0d%0aX-Evil:%201/tasks"),
                *("/api/alice%ff/tasks", "/api/alice;x=1/tasks", "/api/%2561lice/tasks", "/api/%EF%BD%81lice/tasks"),
                *("/api/%2e%2e/tasks", f"/api/{'a' * 8000}/tasks", "http://localhost/api/bob/tasks"),
            ],
        ),
        (
            *(404, NO_ROUTE),
            [
                *(f"{TASKS}%00", f"{TASKS}//", f"{TASKS}/../../bob/tasks", f"{TASKS}/1/complete/x"),
                *("/api/alice/../bob/tasks", "/api/../api/alice/tasks", "/api/./alice/tasks", "/api//alice/tasks"),
                *("/api//tasks", "/api/alice//tasks", "/API/alice/tasks", "/api\\alice\\tasks", "/%ff"),
                *("/..%2f..%2fetc/passwd", "//evil.example/api/alice/tasks", "http://evil.example/nowhere"),
            ],
        ),
    )
    for target in targets
}

METHODS = {
    **{
        f"{method} {TASKS}": Row(ask(method, TASKS), 405, NO_METHOD)
        for method in ("TRACE", "CONNECT", "PROPFIND", "COPY", "QUERY", "DELETEX", "PUT")
    },
    "OPTIONS *": Row(ask("OPTIONS", "*"), 404, NO_ROUTE),
    "CONNECT localhost:443": Row(ask("CONNECT", "localhost:443"), 404, NO_ROUTE),
}

METHOD_OVERRIDES = ("X-HTTP-Method-Override: DELETE", "X-HTTP-Method: DELETE", "X-Method-Override: DELETE")
OVERRIDES = {
    f"POST that says {line}": Row(
        ask("POST", f"{TASKS}/1", "Content-Type: application/json", "Content-Length: 14", line, body=BODY),
        *(405, NO_METHOD),
    )
    for line in METHOD_OVERRIDES
}

#: Ids that can be those of tasks, though not of alice.
MISSING = {
    f"id {task_id}": Row(ask("DELETE", f"{TASKS}/{task_id}"), 404, "Task not found") for task_id in (2**63 - 1, 3)
}

REFUSED = BODIES_HERE | QUERIES_HERE | CONTENT_TYPES | FRAMING | IDS | TARGETS | METHODS | OVERRIDES | MISSING

#: Odd, but they mean the list of alice, or her first task, and no header or parameter makes them mean something else.
HARMLESS = {
    "no Host": ask("GET", TASKS, host=""),
    **{
        host: ask("GET", TASKS, host=host)
        for host in ("Host:", "Host: evil.example", "Host: evil host", "Host: [::1", "Host: a@b", "Host: ../..")
    },
    **{
        target[:40]: ask("GET", target)
        for target in (
            *("http://evil.example/api/alice/tasks", "http://alice:secret@evil.example:99999/api/alice/tasks"),
            *("http:///api/alice/tasks", "/api/alic%65/tasks", f"{TASKS}?", f"{TASKS}?&&", f"{TASKS}?q"),
            # WSGI decodes the path before any of us sees it, and Werkzeug takes all slashes at its beginning for one.
            *("/api/alice%2Ftasks", "//api/alice/tasks", f"{TASKS}?%71=kept", f"{TASKS}#x"),
        )
    },
    **{
        f"GET that says {line}"[:50]: ask("GET", f"{TASKS}/1", line)
        for line in (
            *METHOD_OVERRIDES,
            *("X-Forwarded-Host: evil.example", "X-Forwarded-Proto: javascript", "X-Forwarded-Prefix: /evil"),
            *("Forwarded: host=evil.example", "Content_Length: 3", "Transfer-Encoding: chunked"),
            *("Range: bytes=0-1", "Upgrade: h2c"),
        )
    },
    "HTTP/1.0": ask("GET", TASKS, version="HTTP/1.0"),
    "HTTP/1.0 without Host": ask("GET", TASKS, version="HTTP/1.0", host=""),
    "a body that nobody asked for": ask("GET", TASKS, "Content-Length: 14", body=BODY),
}

#: What gunicorn refuses, by the status.
OWN: dict[int, dict[str, bytes]] = {
    400: {
        "a type with NUL": post(BODY, content_type="Content-Type: application/json\0"),
        "two types": post(BODY, content_type="Content-Type: application/json\r\nContent-Type: text/plain"),
        **{
            f"Content-Length: {said}".replace("\r\n", ", "): framed(f"Content-Length: {said}")
            for said in (
                *(f"{LENGTH}\r\nContent-Length: {LENGTH + 1}", f"{LENGTH}\r\nContent-Length: {LENGTH}"),
                *(f"{LENGTH}, {LENGTH}", f"{LENGTH}\r\nTransfer-Encoding: chunked", f"-{LENGTH}", f"+{LENGTH}"),
                *(f"{LENGTH};", f"{LENGTH}.0", "0xe", "1_4", "\u00b9\u00b4", ""),
            )
        },
        **{
            f"Transfer-Encoding: {said}".replace("\r\n", ", "): framed(f"Transfer-Encoding: {said}", body=CHUNKED)
            for said in (
                *("chunked, gzip", "chunked, chunked", "chunked\r\nTransfer-Encoding: identity", "\vchunked"),
                "identity",
            )
        },
        "chunks of HTTP/1.0": framed("Transfer-Encoding: chunked", body=CHUNKED, version="HTTP/1.0"),
        "a request within chunks": framed(
            "Content-Length: 5", "Transfer-Encoding: chunked", body=b"0\r\n\r\n" + ask("DELETE", f"{TASKS}/1")
        ),
        "an id that is not ASCII": ask("DELETE", f"{TASKS}/\u00d9\u00a1"),
        "a query that is not ASCII": ask("GET", f"{TASKS}?q=\u00ff"),
        **{
            target or "no target": ask("GET", target)
            for target in (
                *("/api/al\u00c3\u00adce/tasks", "http://[::1/api/alice/tasks", "localhost:80", "api/alice/tasks"),
                *("*", "", f" {TASKS}", "/api/alice /tasks", f"{TASKS}\0", f"{TASKS}\x7f"),
            )
        },
        **{f"method {method}": ask(method, TASKS) for method in ("get", "Get", "P@TCH", "G\0T", "GE T", "G" * 30, "")},
        **{
            host.replace("\r\n", ", "): post(BODY, host=host)
            for host in (
                *("Host: localhost\r\nHost: evil.example", "Host: localhost\r\n evil.example", "Host: localhost\0"),
                "Host : localhost",
            )
        },
        **{
            line.replace("\r\n", ", "): post(BODY, line)
            for line in (
                *("X-A B: c", "X\u00ff: c", "X", ": c", "X: a\0b", "X: a\rb", "X: a\r\n b"),
                "Authorization : Bearer x",
            )
        },
        **{
            version or "no version": ask("GET", TASKS, version=version)
            for version in ("HTTP/0.9", "HTTP/2.0", "HTTP/9.9", "HTTP/1", "HTTP/1.10", "http/1.1", "")
        },
        "HTTP/0.9 itself": b"GET /api/alice/tasks\r\n\r\n",
        "HTTP/2 itself": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        "lines that end in LF alone": post(BODY).replace(b"\r\n", b"\n"),
    },
    414: {"a long query": ask("GET", f"{TASKS}?q={'a' * 9000}")},
    417: {"another expectation": post(BODY, "Expect: 200-ok")},
    431: {
        "a long header": post(BODY, "X: " + "a" * 9000),
        "101 headers": post(BODY, "\r\n".join(["X: y"] * 101)),
    },
    # A coding that a server does not know: RFC 9112 section 6.1 asks for this status.
    501: {"Transfer-Encoding: xchunked": framed("Transfer-Encoding: xchunked", body=CHUNKED)},
}


@pytest.fixture(scope="module")
def services(server: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Service]]:
    """The service on SQLite and on PostgreSQL; alice has the tasks 1 and 2, bob 3 and 4."""
    with ExitStack() as stack:
        found, logs = [], []
        for url in (stack.enter_context(sqlite_database()), stack.enter_context(postgresql_database(server))):
            close(migrated_app(url))
            logs.append(tmp_path_factory.mktemp("live") / "log")
            live = stack.enter_context(gunicorn(url, logs[-1], WEB_CONCURRENCY="1"))
            engine = create_engine(as_superuser(url), isolation_level="AUTOCOMMIT")
            stack.callback(engine.dispose)
            found.append(Service(live, stack.enter_context(engine.connect())))
            for user in ("alice", "alice", "bob", "bob"):
                assert live.request("POST", f"/api/{user}/tasks", user, json={"title": "kept"})[0] == 201
        yield found
        for log in logs:
            assert not re.search("ERROR|CRITICAL|Traceback", log.read_text()), log.read_text()


def statuses_of(answer: bytes) -> list[int]:
    """The status of each answer on the connection."""
    return [int(status) for status in re.findall(rb"^HTTP/1\.[01] (\d{3}) ", answer, re.MULTILINE)]


@pytest.mark.parametrize("row", REFUSED.values(), ids=REFUSED)
def test_what_the_service_refuses_writes_nothing(services: list[Service], row: Row) -> None:
    service = services[0]
    before = service.rows()
    answer = service.send(row.request)
    head, _, body = answer.rpartition(b"\r\n\r\n")
    expected = [100, row.status] if b"100-continue" in row.request else [row.status]
    assert statuses_of(answer) == expected, answer
    assert b"x-evil" not in head.lower()
    assert b"Content-Type: application/json\r\n" in head
    assert json.loads(body) == {"error": row.message}
    assert service.rows() == before


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        pytest.param(status, request_, id=name)
        for status, requests in OWN.items()
        for name, request_ in requests.items()
    ],
)
def test_what_gunicorn_refuses_writes_nothing(services: list[Service], status: int, request_: bytes) -> None:
    before = services[0].rows()
    answer = services[0].send(request_)
    assert statuses_of(answer) == [status], answer
    assert b"x-evil" not in answer.lower()
    assert b"Content-Type: text/html" in answer
    assert services[0].rows() == before


def test_what_is_no_request_behind_one_is_refused(services: list[Service]) -> None:
    first = ask("GET", TASKS).replace(b"Connection: close\r\n", b"")
    assert statuses_of(services[0].send(first + b"garbage\r\n\r\n")) == [200, 400]


@pytest.mark.parametrize("request_", HARMLESS.values(), ids=HARMLESS)
def test_what_is_only_odd_is_answered_alike_and_writes_nothing(services: list[Service], request_: bytes) -> None:
    for service in services:
        before = service.rows()
        answer = service.send(request_)
        head, _, body = answer.rpartition(b"\r\n\r\n")
        found = json.loads(body)
        assert statuses_of(answer) == [200], answer
        assert b"evil" not in head.lower()
        assert [task["id"] for task in found] == [2, 1] if isinstance(found, list) else found["id"] == 1
        assert service.rows() == before


def test_requests_in_one_breath_are_answered_one_by_one(services: list[Service]) -> None:
    for service in services:
        before = service.rows("id, email")
        first, second, third = ask("GET", TASKS), post(BODY), ask("DELETE", f"{TASKS}/999999")
        answer = service.send(b"".join(part.replace(b"Connection: close\r\n", b"") for part in (first, second)) + third)
        assert statuses_of(answer) == [200, 201, 404]
        (location,) = re.findall(rb"Location: (\S+)", answer)
        assert service.server.request("DELETE", location.decode())[0] == 204
        assert service.rows("id, email") == before
