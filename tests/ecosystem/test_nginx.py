"""deploy/nginx.conf: the proxy refuses in the words of the service, and changes nothing that the service says."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.ecosystem.proxy import CONFIGURATION, nginx
from tests.live import Server, gunicorn
from tests.support import close, migrated_app, sqlite_database, token, wait_until

pytestmark = pytest.mark.ecosystem

MEBIBYTE = 1024 * 1024
BYE = "Connection: close"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gunicorn."""
    with sqlite_database() as url:
        close(migrated_app(url))
        with gunicorn(url, tmp_path_factory.mktemp("live") / "log") as server:
            yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where nginx keeps its logs."""
    return tmp_path_factory.mktemp("nginx")


@pytest.fixture(scope="module")
def proxy(live: Server, folder: Path) -> Iterator[Server]:
    """Nginx before it."""
    with nginx(live, folder) as server:
        yield server


def ask(server: Server, line: str, *headers: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    """The answer to that request line, those headers and that body, of alice."""
    fixed = ["Host: localhost", f"Authorization: Bearer {token()}", "Content-Type: application/json", BYE]
    answer = server.raw("\r\n".join([line, *fixed, *headers, "", ""]).encode() + body)
    lines, _, content = answer.partition(b"\r\n\r\n")
    status, *fields = lines.decode().split("\r\n")
    return int(status.split()[1]), dict(field.split(": ", 1) for field in fields), content


def test_nginx_takes_the_file_as_it_is() -> None:
    result = subprocess.run(["nginx", "-t", "-c", str(CONFIGURATION)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "warn" not in result.stderr


@pytest.mark.parametrize(
    ("status", "line", "header", "body"),
    [
        (413, "POST /api/alice/tasks HTTP/1.1", f"Content-Length: {MEBIBYTE + 1}", b"{" * 1000),
        (414, f"GET /{'x' * 9000} HTTP/1.1", "X: x", b""),
        (431, "GET /api/alice/tasks HTTP/1.1", f"X: {'x' * 9000}", b""),
        (431, "GET /api/alice/tasks HTTP/1.1", "\r\n".join(f"X{number}: {'x' * 4000}" for number in range(20)), b""),
        (400, "GET /%00 HTTP/1.1", "X: x", b""),
        (400, "GET /.. HTTP/1.1", "X: x", b""),
        (400, "GET / HTTP/1.1", "Host: another", b""),
        (400, "POST / HTTP/1.1", "Content-Length: x", b""),
        (400, "POST / HTTP/1.1", "Transfer-Encoding: gzip", b""),
        (400, "POST /api/alice/tasks HTTP/1.1", "Transfer-Encoding: chunked\r\nContent-Length: 5", b"0\r\n\r\n"),
        (400, "POST /api/alice/tasks HTTP/1.1", "Transfer-Encoding: chunked", b"x\r\n\r\n"),
        (400, "G(T / HTTP/1.1", "X: x", b""),
        (400, "GET / HTTP/7.1", "X: x", b""),
        (400, "nonsense", "X: x", b""),
        (405, "TRACE /api/alice/tasks HTTP/1.1", "X: x", b""),
        (404, "GET /-/503 HTTP/1.1", "X: x", b""),
    ],
    ids=range(16),
)
def test_what_nginx_itself_refuses_is_said_as_the_service_says_it(
    proxy: Server, status: int, line: str, header: str, body: bytes
) -> None:
    found, headers, content = ask(proxy, line, header, body=body)
    assert (found, headers["Content-Type"]) == (status, "application/json"), content
    assert json.loads(content).keys() == {"error"}


def test_a_service_that_is_away_is_503_with_retry_after(tmp_path: Path) -> None:
    with sqlite_database() as url, ExitStack() as stack:
        with gunicorn(url, tmp_path / "gunicorn", ready="/health/live") as live:
            proxy = stack.enter_context(nginx(live, tmp_path))
        for method in ("GET", "POST"):
            status, headers, content = ask(proxy, f"{method} /api/alice/tasks HTTP/1.1", "Content-Length: 0")
            assert (status, headers["Retry-After"]) == (503, "1")
            assert json.loads(content) == {"error": "Service unavailable"}


def test_one_mebibyte_itself_is_passed_on(proxy: Server) -> None:
    body = b'{"title": "x"}'.ljust(MEBIBYTE)
    assert ask(proxy, "POST /api/alice/tasks HTTP/1.1", f"Content-Length: {MEBIBYTE}", body=body)[0] == 201


def chunked(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def test_a_chunked_body_is_passed_on_with_its_length(live: Server, proxy: Server) -> None:
    question = ("POST /api/alice/tasks HTTP/1.1", "Transfer-Encoding: chunked")
    assert ask(live, *question, body=chunked(b'{"title": "x"}'))[0] == 411
    assert ask(proxy, *question, body=chunked(b'{"title": "x"}'))[0] == 201
    assert ask(proxy, *question, body=chunked(b" " * (MEBIBYTE + 1)))[0] == 413


def test_a_chunked_body_that_breaks_off_is_not_passed_on(proxy: Server) -> None:
    before = proxy.request("GET", "/api/alice/tasks")
    head = f"POST /api/alice/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token()}\r\n"
    head += "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    proxy.raw(head.encode() + b'e\r\n{"title": "x"}\r\n', then_close=True)
    assert proxy.request("GET", "/api/alice/tasks") == before


@pytest.mark.parametrize(
    "line",
    [
        "GET /api/alice/tasks HTTP/1.1",
        "GET /api/alice/tasks/1 HTTP/1.1",
        "GET /api/alice/tasks/999999 HTTP/1.1",
        "GET /api/alice/tasks?limit=1 HTTP/1.1",
        f"GET /api/alice/tasks?limit=1&q={'x' * 5000} HTTP/1.1",
        "GET /api/alice//tasks HTTP/1.1",
        "GET /api/bob/tasks HTTP/1.1",
        "GET /api/alice/tasks?limit=0 HTTP/1.1",
        "GET /nowhere HTTP/1.1",
        "BREW /api/alice/tasks HTTP/1.1",
        "OPTIONS /api/alice/tasks HTTP/1.1",
        "GET /openapi.json HTTP/1.1",
        "GET /health/ready HTTP/1.1",
    ],
)
def test_the_answer_of_the_service_comes_through_unchanged(live: Server, proxy: Server, line: str) -> None:
    for _ in range(2):
        live.request("POST", "/api/alice/tasks", json={"title": "x", "description": "x" * 5000})
    own = {"Server", "Date", "Connection"}
    answers = []
    for server in (live, proxy):
        status, headers, content = ask(server, line, "Accept-Encoding: gzip, br", "X-Request-ID: mine")
        answers.append((status, {name: value for name, value in headers.items() if name not in own}, content))
    assert answers[0] == answers[1]


def test_two_authorization_headers_go_no_further(proxy: Server) -> None:
    status, _, content = ask(proxy, "GET /api/alice/tasks HTTP/1.1", f"Authorization: Bearer {token('bob')}")
    assert (status, json.loads(content)) == (400, {"error": "Bad request"})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("X-Forwarded-Proto", ("https", "http")),
        ("X-Forwarded-Protocol", ("ssl", "http")),
        ("X-Forwarded-Ssl", ("on", "off")),
    ],
)
def test_what_a_client_says_of_its_protocol_does_not_reach_gunicorn(
    live: Server, proxy: Server, name: str, values: tuple[str, str]
) -> None:
    """gunicorn, which believes it of a proxy, refuses what contradicts itself."""
    question = ("GET /api/alice/tasks HTTP/1.1", *(f"{name}: {value}" for value in values))
    assert ask(live, *question)[0] == 400
    assert ask(proxy, *question)[0] == 200


def test_the_figures_are_not_for_the_outside(tmp_path: Path) -> None:
    """In whatever spelling; Prometheus gets them from gunicorn."""
    secret = "a-token-for-prometheus"
    with sqlite_database() as url, ExitStack() as stack:
        live = stack.enter_context(gunicorn(url, tmp_path / "log", ready="/health/live", METRICS_TOKEN=secret))
        proxy = stack.enter_context(nginx(live, tmp_path))
        answers = {}
        for server in (live, proxy):
            for path in (
                "/metrics",
                "/metrics/",
                "/metrics?x=1",
                "/%6detrics",
                "//metrics",
                "/x/../metrics",
                "/metrics%2F",
                "http://localhost/metrics",
            ):
                answer = server.raw(
                    f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n{BYE}\r\n\r\n".encode()
                )
                answers[server, path] = answer
        assert b"todo_http_requests_total" in answers[live, "/metrics"]
        assert b"todo_http_requests_total" in answers[live, "/%6detrics"]
        for (server, path), answer in answers.items():
            if server is proxy:
                head, _, content = answer.partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 404 "), path
                assert json.loads(content) == {"error": "Unknown route"}


def test_connections_to_gunicorn_are_kept(live: Server, proxy: Server) -> None:
    ports = set()
    for _ in range(50):
        assert proxy.request("GET", "/health/live")[0] == 200
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        remote = f"0100007F:{live.port:04X}"
        ports |= {line[1] for line in lines if line[2] == remote and line[3] == "01"}
    # Two workers, and whatever else was open.
    assert 1 <= len(ports) < 10


def logged(folder: Path, request_id: str) -> str:
    """The line of nginx's log about that request."""

    def lines() -> list[str]:
        return [line for line in (folder / "access.log").read_text().splitlines() if line.endswith(f" {request_id}")]

    (line,) = wait_until(lines, pause=0.01)
    return str(line)


@pytest.mark.parametrize("sent", [None, "from-the-front-end", "b" * 128, "b" * 129, "a b", 'a"b', "ü"])
def test_a_request_has_one_id_on_its_way_through_nginx_and_the_service(
    live: Server, proxy: Server, folder: Path, sent: str | None
) -> None:
    given = [] if sent is None else [f"X-Request-ID: {sent}"]
    answer = proxy.raw("\r\n".join(["GET /api/alice/tasks HTTP/1.1", "Host: x", BYE, *given, "", ""]).encode())
    (request_id,) = re.findall(rb"(?mi)^x-request-id: (.*)\r$", answer)
    if sent in ("from-the-front-end", "b" * 128):
        assert request_id.decode() == sent
    else:
        assert re.fullmatch(rb"[0-9a-f]{32}", request_id)
    assert f"[{request_id.decode()}] INFO todo.web.request_log: GET /api/<user_id>/tasks 401" in live.log.read_text()
    assert re.search(
        r'"GET /api/alice/tasks HTTP/1.1" 401 \d+ \S+ 401 [0-9.]+ [0-9.]+ \S+$', logged(folder, request_id.decode())
    )


@pytest.mark.parametrize("path", ["/%00", "/metrics", "/-/503"])
def test_answers_of_nginx_itself_have_the_id_too(proxy: Server, folder: Path, path: str) -> None:
    status, headers, _ = ask(proxy, f"GET {path} HTTP/1.1")
    assert f" {status} " in logged(folder, headers["X-Request-ID"])


def test_the_log_tells_a_service_that_is_away_from_one_that_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = CONFIGURATION.read_text()
    (tmp_path / "quick.conf").write_text(text.replace("proxy_read_timeout 15s;", "proxy_read_timeout 300ms;"))
    monkeypatch.setattr("tests.ecosystem.proxy.CONFIGURATION", tmp_path / "quick.conf")
    with sqlite_database() as url, ExitStack() as stack:
        with gunicorn(url, tmp_path / "gunicorn", ready="/health/live") as live:
            proxy = stack.enter_context(nginx(live, tmp_path))
            os.killpg(live.process.pid, signal.SIGSTOP)
            _, headers, _ = ask(proxy, "GET /api/alice/tasks HTTP/1.1")
            os.killpg(live.process.pid, signal.SIGCONT)
            assert re.search(r" 503 \d+ \S+ 504 [0-9.]+ ", logged(tmp_path, headers["X-Request-ID"]))
        _, headers, _ = ask(proxy, "GET /api/alice/tasks HTTP/1.1")
        assert re.search(r" 503 \d+ \S+ 502 - ", logged(tmp_path, headers["X-Request-ID"]))


def test_the_logs_of_nginx_bear_no_query_and_no_header(proxy: Server, folder: Path) -> None:
    canary = "kanarienvogel"
    for line in (
        f"GET /api/alice/tasks?access_token={canary} HTTP/1.1",
        f"GET /api/alice/tasks?{canary} HTTP/9.1",
        f"GET /%00?{canary} HTTP/1.1",
        f"GET /?{canary * 1000} HTTP/1.1",
        f"POST /api/alice/tasks?q={canary} HTTP/1.1",
    ):
        headers = [f"Referer: http://x/?{canary}", f"User-Agent: {canary}", f"X-{canary}: {canary}"]
        ask(proxy, line, *headers, f"Content-Length: {MEBIBYTE * 2}" if line.startswith("POST") else "X: x")
    assert_silent(folder, canary)
    assert re.search(r'"GET /api/alice/tasks HTTP/1\.1" 400 ', (folder / "access.log").read_text())


def test_the_logs_of_nginx_bear_no_query_when_its_disk_or_its_connections_give_out(
    live: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It calls the one critical, and the other an alert."""
    canary = "kanarienvogel"
    few = CONFIGURATION.read_text().replace("worker_processes auto;", "worker_processes 1;")
    few = few.replace("worker_connections 8192;", "worker_connections 16;").replace("keepalive 32;", "")
    (tmp_path / "few.conf").write_text(few)
    monkeypatch.setattr("tests.ecosystem.proxy.CONFIGURATION", tmp_path / "few.conf")
    with nginx(live, tmp_path) as proxy, ExitStack() as stack:
        (tmp_path / "body").rename(tmp_path / "elsewhere")
        headers = [f"Content-Length: {MEBIBYTE // 2}"]
        line = f"POST /api/alice/tasks?q={canary} HTTP/1.1"
        assert ask(proxy, line, *headers, body=b"x" * (MEBIBYTE // 2))[0] == 503
        # Clients begin requests, until one gets the last place, and there is none for its way to gunicorn.
        status = 200
        for _ in range(16):
            if status != 200:
                break
            begun = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port)))
            begun.sendall(b"GET / HTTP/1.1\r\n")
            # One that nginx has not read from yet, it closes for the sake of others.
            time.sleep(0.2)
            status = ask(proxy, f"GET /api/alice/tasks?q={canary} HTTP/1.1")[0]
        assert status == 503
    assert_silent(tmp_path, canary)
    assert " 503 " in (tmp_path / "access.log").read_text()


def assert_silent(folder: Path, canary: str) -> None:
    """The canary is in no log of that folder."""
    logs = {path.name: path.read_text() for path in folder.iterdir() if path.is_file() and "conf" not in path.name}
    assert {"access.log", "error.log", "log"} <= logs.keys()
    assert [text for text in logs.values() if canary in text] == []
