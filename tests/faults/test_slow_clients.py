"""Clients that send or read slowly: without a proxy they hold every thread, behind deploy/nginx.conf nobody notices.

Each kind of slowness is tried on gunicorn alone first, so that the test shows that it can fail.
"""

import http.client
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from threading import Event, Thread

import pytest

from tests.ecosystem.proxy import nginx
from tests.live import Server, gunicorn
from tests.support import Caller, close, migrated_app, sqlite_database, token, wait_until

pytestmark = pytest.mark.faults

CLIENTS = 200
#: Seconds in which nobody is answered where all threads are held.
PATIENCE = 2.0
#: How much slower the hundredth request may be beside slow clients: a factor, and seconds for a busy machine.
FACTOR, ALLOWANCE = 2.0, 0.05


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gunicorn of two workers, and a page of a mebibyte: more than the kernel keeps for a client with little room."""
    with sqlite_database() as url:
        app = migrated_app(url)
        for number in range(250):
            Caller(app, "alice").create(title=str(number), description="x" * 5000)
        Caller(app, "bob").create()
        close(app)
        with gunicorn(url, tmp_path_factory.mktemp("slow") / "log") as server:
            server.wait_for_workers()
            yield server


@pytest.fixture(scope="module")
def proxy(live: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Nginx before it."""
    with nginx(live, tmp_path_factory.mktemp("nginx")) as server:
        yield server


def head(method: str, *lines: str) -> bytes:
    """The head of a request of alice."""
    fixed = ["Host: localhost", f"Authorization: Bearer {token()}", "Content-Type: application/json"]
    return "\r\n".join([f"{method} /api/alice/tasks HTTP/1.1", *fixed, *lines, "", ""]).encode()


#: What each kind of client sends before it becomes slow.
KINDS = {
    "half a head": head("GET")[:-20],
    "half a body": head("POST", "Content-Length: 1000") + b'{"title": "' + b"x" * 489,
    "an answer, read slowly": head("GET"),
}


@contextmanager
def slow_clients(port: int, kind: str) -> Iterator[list[socket.socket]]:
    """So many of them, which go on being slow meanwhile: a byte now and then, or 64 of an answer."""
    enough = Event()
    with ExitStack() as stack:
        clients = []
        for _ in range(CLIENTS):
            client = stack.enter_context(socket.socket())
            # Small packets and little room for them, so that the kernels between do not take the answer whole.
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            client.connect(("127.0.0.1", port))
            client.sendall(KINDS[kind])
            client.setblocking(False)
            clients.append(client)

        def go_on() -> None:
            while not enough.wait(0.5):
                for client in clients:
                    try:
                        if kind == "an answer, read slowly":
                            client.recv(64)
                        else:
                            client.send(b"x")
                    except OSError:
                        # Given up by the other side, or nothing to read yet.
                        pass

        thread = Thread(target=go_on)
        thread.start()
        try:
            yield clients
        finally:
            enough.set()
            thread.join()


def is_held(client: socket.socket) -> bool:
    """Whether the other side has not given the connection up."""
    try:
        return client.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def durations(server: Server, seconds: float) -> list[float]:
    """How long each request of two ordinary callers took."""

    def call(_: int) -> list[float]:
        taken = []
        connection = server.connect()
        ends_at = time.monotonic() + seconds
        while (started_at := time.monotonic()) < ends_at:
            status, tasks = server.send(connection, "GET", "/api/bob/tasks", "bob")
            assert (status, len(tasks)) == (200, 1)
            taken.append(time.monotonic() - started_at)
        connection.close()
        return taken

    with ThreadPoolExecutor(2) as pool:
        return [duration for taken in pool.map(call, range(2)) for duration in taken]


def is_answered(server: Server) -> bool:
    """Whether somebody gets an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    try:
        connection.request("GET", "/health/live")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def wait_until_idle(server: Server) -> None:
    """Wait until the service has nothing left to do that holds ordinary callers up."""
    deadline = time.monotonic() + 60
    while max(durations(server, 0.2)) > 0.1:
        assert time.monotonic() < deadline, "ordinary callers are held up"


def p99(taken: list[float]) -> float:
    return statistics.quantiles(taken, n=100)[98]


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_proxy_slow_clients_hold_every_thread(live: Server, kind: str) -> None:
    assert is_answered(live)
    with slow_clients(live.port, kind):
        # It takes a moment until each thread has one of them.
        wait_until(lambda: not is_answered(live))
        assert not is_answered(live)
    live.wait_until("/health/live")


@pytest.mark.parametrize("kind", KINDS)
def test_behind_nginx_slow_clients_hold_nobody_up(
    proxy: Server, kind: str, record_property: Callable[[str, object], None]
) -> None:
    before = durations(proxy, 4)
    with slow_clients(proxy.port, kind) as clients:
        # Until gunicorn has made two hundred long answers, and nginx has taken them.
        wait_until_idle(proxy)
        held = sum(map(is_held, clients))
        beside = durations(proxy, 4)
    figures = {"slow clients": held, "requests without": len(before), "beside": len(beside)}
    for name, taken in (("without", before), ("beside", beside)):
        figures[f"p50 {name}"] = f"{statistics.median(taken) * 1000:.1f} ms"
        figures[f"p99 {name}"] = f"{p99(taken) * 1000:.1f} ms"
    record_property("figures", figures)
    assert held == CLIENTS
    assert p99(beside) <= FACTOR * p99(before) + ALLOWANCE, figures


def test_nginx_gives_a_client_up_that_shows_no_sign_of_life(proxy: Server) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=15) as client:
        client.sendall(KINDS["half a body"])
        started_at = time.monotonic()
        answer = client.recv(1000)
        assert 9 < time.monotonic() - started_at < 14
        assert answer == b"" or b" 408 " in answer
