"""Traces, made and exported as docs/opentelemetry.md says: complete, and without the contents of requests."""

import json
import re
import shlex
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from tests.live import Server, gunicorn
from tests.support import ROOT, token

pytestmark = pytest.mark.ecosystem

PAGE = (ROOT / "docs/opentelemetry.md").read_text()
(MODULE,) = re.findall("```python\n(.*?)```", PAGE, re.DOTALL)
INSTALL, START = (shlex.split(block) for block in re.findall("```sh\n(.*?)```", PAGE, re.DOTALL))
PINS = [word for word in INSTALL if "==" in word]
SETTINGS = dict(word.split("=", 1) for word in START if word.startswith("OTEL_"))
#: The page's module, exporting what the packages collect.
UNREDACTED = MODULE.replace("BatchSpanProcessor(RedactingExporter())", "BatchSpanProcessor(Exporter())")

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
EMAIL = "shared@example.com"
#: What callers write, somewhere in a request.
SECRETS = ("secret-title", "secret-text", "secret-word", "secret-path", "secret-key", "secret-agent", EMAIL, "eyJ")
USERS = ("caroline", "dorothea")


@dataclass(frozen=True)
class Span:
    """A span as the console exporter prints it."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str | None
    failed: bool
    attributes: Mapping[str, Any]

    @property
    def request_id(self) -> str | None:
        """The id of the request, if this is the span of one."""
        return self.attributes.get("http.response.header.x-request-id", [None])[0]


def spans_in(output: str) -> list[Span]:
    """The spans among the lines of a log."""
    return [
        Span(
            span["name"],
            span["kind"].removeprefix("SpanKind."),
            span["context"]["trace_id"].removeprefix("0x"),
            span["context"]["span_id"].removeprefix("0x"),
            span["parent_id"] and span["parent_id"].removeprefix("0x"),
            span["status"]["status_code"] == "ERROR",
            span["attributes"],
        )
        for span in map(json.loads, re.findall(r"^\{\n.*?^\}$", output, re.DOTALL | re.MULTILINE))
    ]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the packages of the tests, and those that the page installs."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/*/site-packages")
    (packages / "tests.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", *PINS], check=True)
    return folder / "bin/python"


@contextmanager
def traced(python: Path, url: URL, folder: Path, module: str = MODULE, **environ: str) -> Iterator[Server]:
    """The service as the page starts it, with a worker whose spans are exported once it has ended."""
    assert START[-2:] == [".venv/bin/gunicorn", "traced:app"]
    (folder / "traced.py").write_text(module)
    settings = SETTINGS | {"WEB_CONCURRENCY": "1", "LOG_LEVEL": "WARNING"} | environ
    arguments = ["--pythonpath", str(folder)]
    with gunicorn(url, folder / "log", python=python, app="traced:app", arguments=arguments, **settings) as live:
        yield live


def make_calls(live: Server) -> None:
    """Make calls over one connection, each with an id that says what it is."""
    with closing(live.connect()) as connection:
        make_calls_over(live, connection)


def make_calls_over(live: Server, connection: HTTPConnection) -> None:
    def call(request_id: str, status: int, method: str, path: str, json: object = None, **headers: str) -> None:
        headers |= {"X-Request-ID": request_id, "User-Agent": "secret-agent"}
        user_id = path.split("/")[2]
        answered, _ = live.send(connection, method, path, user_id, json=json, **headers)
        assert answered == status, request_id

    task = {"title": "secret-title", "description": "secret-text"}
    parent = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    for request_id, user_id in zip(("create", "create-with-taken-email"), USERS, strict=True):
        authorization = {"Authorization": f"Bearer {token(user_id, email=EMAIL)}"}
        call(request_id, 201, "POST", f"/api/{user_id}/tasks", task, **authorization)
    call("keyed", 201, "POST", "/api/caroline/tasks", task, **{"Idempotency-Key": "secret-key"})
    call("search", 200, "GET", "/api/caroline/tasks?q=secret-word", **parent)
    call("invalid", 400, "GET", "/api/caroline/tasks?secret-word=1")
    call("refused", 401, "GET", "/api/caroline/tasks", Authorization=f"Bearer {token('caroline', key='other' * 8)}")
    call("foreign", 403, "GET", "/api/caroline/tasks", Authorization=f"Bearer {token('dorothea')}")
    call("missing", 404, "GET", "/api/caroline/tasks/2147483647")
    call("unrouted", 404, "GET", "/api/caroline/secret-path?q=secret-word")
    call("method", 405, "BREW", "/api/caroline/tasks")
    call("alive", 200, "GET", "/health/live")


def test_the_packages_replace_none_of_the_lock(python: Path) -> None:
    (packages,) = python.parent.parent.glob("lib/*/site-packages")
    installed = {path.name.split("-")[0].replace("_", "-").lower() for path in packages.glob("*.dist-info")}
    lock = (ROOT / "requirements.txt").read_text().lower()
    locked = set(re.findall(r"^([a-z0-9-]+)(?:\[\w+\])?==", lock, re.MULTILINE))
    assert "opentelemetry-sdk" in installed
    assert "psycopg2-binary" in locked
    assert not installed & locked


def test_a_request_and_its_statements_are_spans_without_what_the_request_contains(
    python: Path, postgresql: URL, tmp_path: Path
) -> None:
    with traced(python, postgresql, tmp_path, OTEL_TRACES_EXPORTER="console") as live:
        make_calls(live)
    output = (tmp_path / "log").read_text()
    output = re.sub(r"Listening at.*|Booting.*", "", output)
    assert [written for written in (*SECRETS, *USERS, "127.0.0.1") if written in output] == []

    spans = spans_in(output)
    requests = {span.request_id: span for span in spans if span.kind == "SERVER"}
    assert requests["create"].name == "POST /api/<user_id>/tasks"
    assert requests["create"].attributes == {
        "http.request.method": "POST",
        "http.route": "/api/<user_id>/tasks",
        "http.response.status_code": 201,
        "http.response.header.x-request-id": ["create"],
    }
    assert requests["unrouted"].name == "GET"
    assert requests["method"].name == "_OTHER"
    assert "alive" not in requests

    # Each request is a trace of its own, but for that of the caller who has one.
    assert (requests["search"].trace_id, requests["search"].parent_id) == (TRACE, PARENT)
    assert {span.parent_id for name, span in requests.items() if name != "search"} == {None}
    assert len({span.trace_id for span in requests.values()}) == len(requests)

    statements: dict[str | None, list[Span]] = {name: [] for name in requests}
    names = {span.span_id: name for name, span in requests.items()}
    for span in spans:
        if span.kind == "CLIENT":
            # Those of a new connection belong to the request that needed it.
            request = requests[names[str(span.parent_id)]]
            assert span.trace_id == request.trace_id
            assert set(span.attributes) == {"db.system.name", "db.query.text"}
            statements[request.request_id].append(span)
    (search,) = statements["search"]
    assert re.match("SELECT .*tasks.user_id = %\\(user_id\\)s", search.attributes["db.query.text"], re.DOTALL)
    assert "INSERT INTO tasks" in statements["create"][-1].attributes["db.query.text"]
    without = {name for name in requests if not statements[name]}
    assert without == {"invalid", "refused", "foreign", "unrouted", "method"}

    # The email has another owner, and the create succeeds without it.
    taken = [span.failed for span in statements["create-with-taken-email"]]
    assert taken == [True, False]
    assert not requests["create-with-taken-email"].failed


def test_without_the_redaction_they_have_the_search_the_path_and_the_email(
    python: Path, postgresql: URL, tmp_path: Path
) -> None:
    assert UNREDACTED != MODULE
    with traced(python, postgresql, tmp_path, UNREDACTED, OTEL_TRACES_EXPORTER="console") as live:
        make_calls(live)
    output = (tmp_path / "log").read_text()
    assert '"url.query": "q=secret-word"' in output
    assert '"url.path": "/api/caroline/tasks"' in output
    assert '"name": "GET /api/caroline/secret-path"' in output
    assert f"Key (email)=({EMAIL}) already exists" in output


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """The address of a collector of OTLP over HTTP, and what it was sent."""
    sent: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", sent
        server.shutdown()
        thread.join()


def test_a_collector_gets_the_same(python: Path, postgresql: URL, tmp_path: Path) -> None:
    with collector() as (address, sent):
        with traced(python, postgresql, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=address) as live:
            make_calls(live)
        # In protobuf, texts are as they are.
        exported = b"".join(sent)
    for text in ("POST /api/<user_id>/tasks", "create", "INSERT INTO tasks", "service.name"):
        assert text.encode() in exported
    assert [written for written in (*SECRETS, "/caroline") if written.encode() in exported] == []
