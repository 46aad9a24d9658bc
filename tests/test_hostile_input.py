"""What nobody means well by: the same answer on both databases, never a 5xx of ours, and nothing is written.

Bytes on the wire to a live gunicorn. What gunicorn refuses before the service sees it is written down too, as OWN: its
own page of HTML. The sentences of the service on each call, without a wire, stand in test_http.py and tests/tasks.
"""

import gzip
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from sqlalchemy import URL, Connection, create_engine, text

from tests.live import PATIENCE, Server, gunicorn
from tests.support import as_superuser, close, migrated_app, postgresql_database, sqlite_database, token

AUTHORIZATION = f"Authorization: Bearer {token(exp=int(time.time()) + 7200)}"
TASKS = "/api/alice/tasks"
BODY = b'{"title": "x"}'
LENGTH = len(BODY)
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (LENGTH, BODY)
MEBIBYTE = 1024 * 1024

#: In place of the service's sentence: the refusal is gunicorn's.
OWN = None

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
NO_TASK = "Task not found"
NO_METHOD = "Method not allowed"
FOREIGN = "Forbidden"


class Row(NamedTuple):
    """A request, and what becomes of it: the statuses, one for each answer, and the sentence of the last."""

    request: bytes
    statuses: int | list[int]
    message: str | None = OWN


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

    def rows(self) -> list[tuple[Any, ...]]:
        """All that is stored."""
        tables = [
            self.connection.execute(text(f"SELECT * FROM {name} ORDER BY id")).all() for name in ("users", "tasks")
        ]
        return [tuple(row) for table in tables for row in table]


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
    "UTF-32": Row(post(BODY.decode().encode("utf-32-le")), 400, NOT_JSON),
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
    "low surrogate": Row(post(rb'{"title": "\udd5b"}'), 400, UNSTORABLE),
    "surrogates in the wrong order": Row(post(rb'{"title": "\udd5b\ud83e"}'), 400, UNSTORABLE),
    "surrogate in a key": Row(post(rb'{"title": "x", "\ud800": 1}'), 400, "Unknown field: \ud800"),
    "NUL in a key": Row(post(rb'{"title": "x", "a\u0000": 1}'), 400, "Unknown field: a\0"),
    "line break in a string": Row(post(b'{"title": "a\nb"}'), 400, NOT_JSON),
    "__proto__": Row(post(b'{"title": "x", "__proto__": {}}'), 400, "Unknown field: __proto__"),
    "mass assignment": Row(
        post(b'{"title": "x", "user_id": "bob", "id": 9, "status": "complete"}'), 400, "Status cannot be set on create"
    ),
    "only white space of all kinds": Row(post(rb'{"title": "\u3000\u0085\u001c"}'), 400, "Title cannot be empty"),
    "256 emoji": Row(post(json.dumps({"title": "🥛" * 256}).encode()), 400, "Title must be 255 characters or less"),
    "256 combining": Row(
        post(json.dumps({"title": "\u0301" * 256}).encode()), 400, "Title must be 255 characters or less"
    ),
    "two documents": Row(post(BODY + BODY), 400, NOT_JSON),
    "comment": Row(post(BODY + b"//"), 400, NOT_JSON),
    "array": Row(post(b"[" + BODY + b"]"), 400, NOT_OBJECT),
    "blanks": Row(post(b"   "), 400, NOT_JSON),
    "5 MB": Row(post(BODY.rjust(5 * MEBIBYTE)), 413, TOO_LARGE),
    "5 MB that ask first": Row(post(BODY.rjust(5 * MEBIBYTE), "Expect: 100-continue"), [100, 413], TOO_LARGE),
    "a promise of 10^30 bytes": Row(framed(f"Content-Length: 1{'0' * 30}"), 413, TOO_LARGE),
}

CONTENT_TYPES = {
    said or "none": Row(post(BODY, content_type=said), status, message)
    for said, status, message in [
        ("", 415, OTHER_TYPE),
        ("Content-Type:", 415, OTHER_TYPE),
        ("Content-Type: */*", 415, OTHER_TYPE),
        ("Content-Type: json", 415, OTHER_TYPE),
        ("Content-Type: application/jsonx", 415, OTHER_TYPE),
        ("Content-Type: application/json+xml", 415, OTHER_TYPE),
        ("Content-Type: application/json, text/html", 415, OTHER_TYPE),
        ("Content-Type: multipart/form-data; boundary=x", 415, OTHER_TYPE),
        ("Content-Type: application/json\0", 400, OWN),
        ("Content-Type: application/json\r\nContent-Type: text/plain", 400, OWN),
    ]
}

FRAMING = {
    "shorter than said": Row(framed(f"Content-Length: {LENGTH - 1}"), 400, NOT_JSON),
    "longer than said": Row(
        framed(f"Content-Length: {LENGTH + 1}"), 400, "Request body is shorter than its Content-Length"
    ),
    **{
        f"Content-Length: {said}".replace("\r\n", ", "): Row(framed(f"Content-Length: {said}"), 400, OWN)
        for said in [
            f"{LENGTH}\r\nContent-Length: {LENGTH + 1}",
            f"{LENGTH}\r\nContent-Length: {LENGTH}",
            f"{LENGTH}, {LENGTH}",
            f"{LENGTH}\r\nTransfer-Encoding: chunked",
            f"-{LENGTH}",
            f"+{LENGTH}",
            f"{LENGTH};",
            f"{LENGTH}.0",
            "0xe",
            "1_4",
            "\u00b9\u00b4",
            "",
        ]
    },
    **{
        f"Transfer-Encoding: {said}".replace("\r\n", ", "): Row(
            framed(f"Transfer-Encoding: {said}", body=CHUNKED), status, message
        )
        for said, status, message in [
            ("chunked", 411, CHUNKS),
            ("CHUNKED", 411, CHUNKS),
            ("gzip, chunked", 411, CHUNKS),
            ("chunked, gzip", 400, OWN),
            ("chunked, chunked", 400, OWN),
            ("chunked\r\nTransfer-Encoding: identity", 400, OWN),
            ("\vchunked", 400, OWN),
            ("identity", 400, OWN),
            # A coding that a server does not know: RFC 9112 section 6.1 asks for this status.
            ("xchunked", 501, OWN),
        ]
    },
    "a chunk that is none": Row(framed("Transfer-Encoding: chunked", body=b"zz\r\n" + BODY), 411, CHUNKS),
    "chunks of HTTP/1.0": Row(framed("Transfer-Encoding: chunked", body=CHUNKED, version="HTTP/1.0"), 400, OWN),
    "a request within chunks": Row(
        framed("Content-Length: 5", "Transfer-Encoding: chunked", body=b"0\r\n\r\n" + ask("DELETE", f"{TASKS}/1")), 400
    ),
    "a request behind a body": Row(
        framed("Content-Length: 2", body=b"{}" + ask("DELETE", f"{TASKS}/1")), 400, "Title is required"
    ),
    "a request behind none": Row(
        ask("GET", TASKS).replace(b"Connection: close\r\n", b"") + b"garbage\r\n\r\n", [200, 400]
    ),
    "another expectation": Row(post(BODY, "Expect: 200-ok"), 417),
}

IDS = {
    f"id {task_id[:30]}": Row(ask("DELETE", f"{TASKS}/{task_id}"), status, message)
    for task_id, status, message in [
        ("%D9%A1", 400, BAD_ID),
        ("%EF%BC%91", 400, BAD_ID),
        ("%C2%B9", 400, BAD_ID),
        ("\u00d9\u00a1", 400, OWN),
        ("+1", 400, BAD_ID),
        ("-1", 400, BAD_ID),
        ("%2B1", 400, BAD_ID),
        ("0", 400, BAD_ID),
        ("01", 400, BAD_ID),
        ("1.0", 400, BAD_ID),
        ("1e0", 400, BAD_ID),
        ("0x1", 400, BAD_ID),
        ("1_0", 400, BAD_ID),
        ("1,2", 400, BAD_ID),
        ("*", 400, BAD_ID),
        ("1%20", 400, BAD_ID),
        ("%201", 400, BAD_ID),
        ("1%0a", 400, BAD_ID),
        ("1%0d%0aX-Evil:%201", 400, BAD_ID),
        ("1%00", 400, BAD_ID),
        ("%001", 400, BAD_ID),
        ("%ff", 400, BAD_ID),
        ("1%ff", 400, BAD_ID),
        ("%", 400, BAD_ID),
        ("1%252F", 400, BAD_ID),
        ("1%5c", 400, BAD_ID),
        ("1'--", 400, BAD_ID),
        ("1;DROP%20TABLE%20tasks", 400, BAD_ID),
        (str(2**63), 400, BAD_ID),
        ("9" * 1000, 400, BAD_ID),
        ("..", 400, BAD_ID),
        ("%2e%2e", 400, BAD_ID),
        (str(2**63 - 1), 404, NO_TASK),
        ("3", 404, NO_TASK),
        ("1/..", 404, NO_ROUTE),
        ("1//", 404, NO_ROUTE),
        ("%2f1", 404, NO_ROUTE),
        ("1/../3", 404, NO_ROUTE),
        ("1%2Fcomplete", 405, NO_METHOD),
        ("1?_method=GET", 400, "Unknown query parameter: _method"),
    ]
}

ODD_LIMITS = ["%D9%A3", "%EF%BC%95", "-1", "0", "1001", "%205", "5%20", "+5", "05", "5.0", "1e2", "0x5", "1_0", "5%00"]

QUERIES = {
    f"?{query[:30]}": Row(ask("GET", f"{TASKS}?{query}"), status, message)
    for query, status, message in [
        *[
            (f"limit={limit}", 400, BAD_LIMIT)
            for limit in [
                "%D9%A3",
                "%EF%BC%95",
                "-1",
                "0",
                "1001",
                "%205",
                "5%20",
                "+5",
                "05",
                "5.0",
                "1e2",
                "0x5",
                "1_0",
                "5%00",
            ]
        ],
        ("limit=", 400, BAD_LIMIT),
        ("limit=" + "9" * 5000, 400, BAD_LIMIT),
        ("limit=1;limit=2", 400, BAD_LIMIT),
        ("limit=5&limit=5", 400, "Query parameter given twice: limit"),
        ("limit=5&%6Cimit=6", 400, "Query parameter given twice: limit"),
        ("limit[]=5", 400, "Unknown query parameter: limit[]"),
        ("LIMIT=5", 400, "Unknown query parameter: LIMIT"),
        ("_method=DELETE", 400, "Unknown query parameter: _method"),
        ("user_id=bob", 400, "Unknown query parameter: user_id"),
        ("=x", 400, "Unknown query parameter: "),
        ("?", 400, "Unknown query parameter: ?"),
        ("q=%00", 400, "Query parameter q must not contain NUL or lone surrogates"),
        ("q=%ff", 400, BAD_QUERY),
        ("q=%c0%80", 400, BAD_QUERY),
        ("q=%ed%a0%80", 400, BAD_QUERY),
        ("%ff=x", 400, BAD_QUERY),
        ("q=\u00ff", 400, OWN),
        ("q=" + "a" * 9000, 414, OWN),
        ("status=COMPLETE", 400, BAD_STATUS),
        ("status=complete%00", 400, BAD_STATUS),
        ("status=complete&status=complete", 400, "Query parameter given twice: status"),
        ("status[]=complete", 400, "Unknown query parameter: status[]"),
    ]
}

TARGETS = {
    (target or "no target")[:40]: Row(ask("GET", target), status, message)
    for target, status, message in [
        ("/api/bob/tasks", 403, FOREIGN),
        ("/api/bob/tasks/3", 403, FOREIGN),
        ("/api/ALICE/tasks", 403, FOREIGN),
        ("/api/alice%20/tasks", 403, FOREIGN),
        ("/api/alice%00/tasks", 403, FOREIGN),
        ("/api/alice%0a/tasks", 403, FOREIGN),
        ("/api/alice%0d%0aX-Evil:%201/tasks", 403, FOREIGN),
        ("/api/alice%ff/tasks", 403, FOREIGN),
        ("/api/alice;x=1/tasks", 403, FOREIGN),
        ("/api/%2561lice/tasks", 403, FOREIGN),
        ("/api/%EF%BD%81lice/tasks", 403, FOREIGN),
        ("/api/%2e%2e/tasks", 403, FOREIGN),
        (f"/api/{'a' * 8000}/tasks", 403, FOREIGN),
        ("http://localhost/api/bob/tasks", 403, FOREIGN),
        (f"{TASKS}%00", 404, NO_ROUTE),
        (f"{TASKS}//", 404, NO_ROUTE),
        (f"{TASKS}/../../bob/tasks", 404, NO_ROUTE),
        (f"{TASKS}/1/complete/x", 404, NO_ROUTE),
        ("/api/alice/../bob/tasks", 404, NO_ROUTE),
        ("/api/../api/alice/tasks", 404, NO_ROUTE),
        ("/api/./alice/tasks", 404, NO_ROUTE),
        ("/api//alice/tasks", 404, NO_ROUTE),
        ("/api//tasks", 404, NO_ROUTE),
        ("/api/alice//tasks", 404, NO_ROUTE),
        ("/API/alice/tasks", 404, NO_ROUTE),
        ("/api\\alice\\tasks", 404, NO_ROUTE),
        ("/%ff", 404, NO_ROUTE),
        ("/..%2f..%2fetc/passwd", 404, NO_ROUTE),
        ("//evil.example/api/alice/tasks", 404, NO_ROUTE),
        ("http://evil.example/nowhere", 404, NO_ROUTE),
        ("/api/al\u00c3\u00adce/tasks", 400, OWN),
        ("http://[::1/api/alice/tasks", 400, OWN),
        ("localhost:80", 400, OWN),
        ("api/alice/tasks", 400, OWN),
        ("*", 400, OWN),
        ("", 400, OWN),
        (f" {TASKS}", 400, OWN),
        ("/api/alice /tasks", 400, OWN),
        (f"{TASKS}\0", 400, OWN),
        (f"{TASKS}\x7f", 400, OWN),
    ]
}

OTHER_METHODS = ["TRACE", "CONNECT", "PROPFIND", "COPY", "QUERY", "DELETEX", "PATCH"]

METHODS = {
    f"{method} {target}": Row(ask(method, target), status, message)
    for method, target, status, message in [
        *[
            (method, TASKS, 405, NO_METHOD)
            for method in ["TRACE", "CONNECT", "PROPFIND", "COPY", "QUERY", "DELETEX", "PATCH"]
        ],
        *[(method, TASKS, 400, OWN) for method in ["get", "Get", "P@TCH", "G\0T", "GE T", "G" * 30, ""]],
        ("OPTIONS", "*", 404, NO_ROUTE),
        ("CONNECT", "localhost:443", 404, NO_ROUTE),
    ]
}

OVERRIDES = {
    f"POST that says {line}": Row(
        ask("POST", f"{TASKS}/1", "Content-Type: application/json", "Content-Length: 14", line, body=BODY),
        405,
        NO_METHOD,
    )
    for line in ["X-HTTP-Method-Override: DELETE", "X-HTTP-Method: DELETE", "X-Method-Override: DELETE"]
}

HOSTS = {
    host[:30].replace("\r\n", ", "): Row(post(BODY, host=host), 400, message)
    for host, message in [
        ("Host: " + "a" * 5000, "Invalid Host header"),
        ("Host: localhost\r\nHost: evil.example", OWN),
        ("Host: localhost\r\n evil.example", OWN),
        ("Host: localhost\0", OWN),
        ("Host : localhost", OWN),
    ]
}

HEADERS = {
    line[:30].replace("\r\n", ", "): Row(post(BODY, line), status, OWN)
    for line, status in [
        ("X-A B: c", 400),
        ("X\u00ff: c", 400),
        ("X", 400),
        (": c", 400),
        ("X: a\0b", 400),
        ("X: a\rb", 400),
        ("X: a\r\n b", 400),
        ("Authorization : Bearer x", 400),
        ("X: " + "a" * 9000, 431),
        ("\r\n".join(["X: y"] * 101), 431),
    ]
}

VERSIONS = {
    **{
        version or "no version": Row(ask("GET", TASKS, version=version), 400)
        for version in ["HTTP/0.9", "HTTP/2.0", "HTTP/9.9", "HTTP/1", "HTTP/1.10", "http/1.1", ""]
    },
    "HTTP/0.9 itself": Row(b"GET /api/alice/tasks\r\n\r\n", 400),
    "HTTP/2 itself": Row(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "TLS": Row(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "lines that end in LF alone": Row(post(BODY).replace(b"\r\n", b"\n"), 400),
}

REFUSED = BODIES | CONTENT_TYPES | FRAMING | IDS | QUERIES | TARGETS | METHODS | OVERRIDES | HOSTS | HEADERS | VERSIONS

#: Odd, but they mean the list of alice, or her first task, and no header or parameter makes them mean something else.
HARMLESS = {
    "no Host": ask("GET", TASKS, host=""),
    **{
        host: ask("GET", TASKS, host=host)
        for host in ["Host:", "Host: evil.example", "Host: evil host", "Host: [::1", "Host: a@b", "Host: ../.."]
    },
    **{
        target[:40]: ask("GET", target)
        for target in [
            "http://evil.example/api/alice/tasks",
            "http://alice:secret@evil.example:99999/api/alice/tasks",
            "http:///api/alice/tasks",
            "/api/alic%65/tasks",
            # WSGI decodes the path before any of us sees it, and Werkzeug takes all slashes at its beginning for one.
            "/api/alice%2Ftasks",
            "//api/alice/tasks",
            f"{TASKS}?",
            f"{TASKS}?&&",
            f"{TASKS}?q",
            f"{TASKS}?%71=kept",
            f"{TASKS}#x",
        ]
    },
    **{
        f"GET that says {line}"[:50]: ask("GET", f"{TASKS}/1", line)
        for line in [
            "X-HTTP-Method-Override: DELETE",
            "X-HTTP-Method: DELETE",
            "X-Method-Override: DELETE",
            "X-Forwarded-Host: evil.example",
            "X-Forwarded-Proto: javascript",
            "X-Forwarded-Prefix: /evil",
            "Forwarded: host=evil.example",
            "Content_Length: 3",
            "Transfer-Encoding: chunked",
            "Range: bytes=0-1",
            "Upgrade: h2c",
        ]
    },
    "HTTP/1.0": ask("GET", TASKS, version="HTTP/1.0"),
    "HTTP/1.0 without Host": ask("GET", TASKS, version="HTTP/1.0", host=""),
    "a body that nobody asked for": ask("GET", TASKS, "Content-Length: 14", body=BODY),
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


def statuses_of(answer: bytes) -> list[int]:
    """The status of each answer on the connection."""
    return [int(status) for status in re.findall(rb"^HTTP/1\.[01] (\d{3}) ", answer, re.MULTILINE)]


@pytest.mark.parametrize("row", REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_refused_alike_and_writes_nothing(services: list[Service], row: Row) -> None:
    for service in services:
        before = service.rows()
        answer = service.send(row.request)
        head, _, body = answer.rpartition(b"\r\n\r\n")
        assert statuses_of(answer) == (row.statuses if isinstance(row.statuses, list) else [row.statuses]), answer
        assert b"x-evil" not in head.lower()
        if row.message is OWN:
            assert b"Content-Type: text/html" in head
        else:
            assert b"Content-Type: application/json\r\n" in head
            assert json.loads(body) == {"error": row.message}
        assert service.rows() == before


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


@pytest.mark.parametrize("title", TITLES.values(), ids=TITLES)
def test_any_text_is_kept_as_it_is_sent(services: list[Service], title: str) -> None:
    for service in services:
        status, task = service.server.request("POST", TASKS, json={"title": title, "description": title})
        assert (status, task["title"], task["description"]) == (201, title, title)
        path = f"{TASKS}/{task['id']}"
        assert service.server.request("GET", path) == (200, task)
        assert service.server.request("GET", f"{TASKS}?q={quote(title[:200])}") == (200, [task])
        assert service.server.request("DELETE", path) == (204, None)


CURSORS: dict[str, Callable[[str], str]] = {
    "empty": lambda cursor: "",
    "garbage": lambda cursor: "garbage",
    "not ASCII": lambda cursor: "%C3%A4",
    "NUL": lambda cursor: f"{cursor}%00",
    "a line break at the end": lambda cursor: f"{cursor}%0a",
    "truncated": lambda cursor: cursor[:-1],
    "truncated by a block": lambda cursor: cursor[:-4],
    "lengthened": lambda cursor: f"{cursor}AAAA",
    "padded": lambda cursor: f"{cursor}====",
    "tampered with in the digest": lambda cursor: cursor[:-1] + ("A" if cursor[-1] != "A" else "B"),
    "all ones": lambda cursor: "_" * 32,
    "all noughts": lambda cursor: "A" * 32,
    "huge": lambda cursor: "A" * 7000,
    "of another list": lambda cursor: f"{cursor}&q=kept",
    "of another status": lambda cursor: f"{cursor}&status=incomplete",
}


@pytest.mark.parametrize("spoil", CURSORS.values(), ids=CURSORS)
def test_a_cursor_is_good_as_it_was_given_or_not_at_all(services: list[Service], spoil: Callable[[str], str]) -> None:
    for service in services:
        cursor = cursor_of(service, "alice")
        good, bad = (service.send(ask("GET", f"{TASKS}?cursor={value}")) for value in (cursor, spoil(cursor)))
        assert (statuses_of(good), statuses_of(bad)) == ([200], [400])
        assert bad.endswith(b'\r\n\r\n{"error":"Invalid cursor"}\n')


def test_a_cursor_with_a_forged_place_leads_among_ones_own_tasks_alone(services: list[Service]) -> None:
    for service in services:
        answer = service.send(ask("GET", f"{TASKS}?cursor=AB{cursor_of(service, 'alice')[2:]}"))
        assert statuses_of(answer) == [200]
        assert {task["user_id"] for task in json.loads(answer.rpartition(b"\r\n\r\n")[2])} == {"alice"}


def test_a_cursor_of_another_user_is_none(services: list[Service]) -> None:
    for service in services:
        answer = service.send(ask("GET", f"{TASKS}?cursor={cursor_of(service, 'bob')}"))
        assert statuses_of(answer) == [400]
        assert answer.endswith(b'\r\n\r\n{"error":"Invalid cursor"}\n')


def cursor_of(service: Service, user_id: str) -> str:
    """What leads to the second page of the user's list."""
    authorization = f"Authorization: Bearer {token(user_id)}"
    answer = service.send(
        ask("GET", f"/api/{user_id}/tasks?limit=1").replace(AUTHORIZATION.encode(), authorization.encode())
    )
    (cursor,) = re.findall(rb"cursor=([\w-]+)", answer)
    return str(cursor, "ascii")


def test_requests_in_one_breath_are_answered_one_by_one(services: list[Service]) -> None:
    for service in services:
        before = service.rows()
        first, second, third = ask("GET", TASKS), post(BODY), ask("DELETE", f"{TASKS}/999999")
        answer = service.send(b"".join(part.replace(b"Connection: close\r\n", b"") for part in (first, second)) + third)
        assert statuses_of(answer) == [200, 201, 404]
        (location,) = re.findall(rb"Location: (\S+)", answer)
        assert service.server.request("DELETE", location.decode())[0] == 204
        assert service.rows() == before


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=utf-7", "application/json;;;", 'APPLICATION/JSON;a="', "application/x+json"],
)
def test_a_type_that_is_json_is_read_as_utf_8_whatever_else_it_says(services: list[Service], content_type: str) -> None:
    for service in services:
        answer = service.send(post('{"title": "é"}'.encode(), content_type=f"Content-Type: {content_type}"))
        assert statuses_of(answer) == [201]
        task = json.loads(answer.rpartition(b"\r\n\r\n")[2])
        assert task["title"] == "é"
        assert service.server.request("DELETE", f"{TASKS}/{task['id']}")[0] == 204
