"""Rate limits with a real Redis, real workers and the proxy before them."""

import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import URL

from tests.ecosystem.programs import program
from tests.ecosystem.proxy import nginx
from tests.live import Server, free_port, gunicorn
from tests.support import PATIENCE
from todo.web.rate_limits import PAUSE, TIMEOUT

pytestmark = pytest.mark.ecosystem

PASSWORD = "a-password-of-redis"
LIMIT = 100
#: A window that hardly ends in the middle of a test.
NOTATION = f"{LIMIT} per 30 day"
PATH = "/api/alice/tasks"
AWAY = "each process counts for itself while Redis is unavailable"


class Redis:
    """A Redis of the test's own, which wants a password and keeps nothing on disk."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self.port}/3"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--requirepass", PASSWORD, "--save", ""]
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [program("redis-server"), *options], cwd=self._folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                assert self.ask("PING") == "+PONG"
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise AssertionError((self._folder / "redis.log").read_text())

    def ask(self, *command: str, line: int = 1) -> str:
        """The first line that Redis answers, or another."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
            connection.sendall(f"AUTH {PASSWORD}\r\nSELECT 3\r\n{' '.join(command)}\r\n".encode())
            with connection.makefile("r") as answers:
                assert [answers.readline(), answers.readline()] == ["+OK\n", "+OK\n"]
                return [answers.readline().strip() for _ in range(line)][-1]

    def signal(self, number: int) -> None:
        """Stop it (SIGSTOP), let it go on (SIGCONT), end it (SIGKILL)."""
        assert self._process
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """End it."""
        if self._process:
            self.signal(signal.SIGKILL)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    """A Redis that answers."""
    redis = Redis(tmp_path)
    redis.start()
    yield redis
    redis.close()


@contextmanager
def limited(database: URL, tmp_path: Path, redis: Redis, **environ: str) -> Iterator[Server]:
    """A gunicorn of two workers that counts in that Redis, as talkative as can be."""
    settings = {"RATE_LIMIT": NOTATION, "RATE_LIMIT_STORAGE": redis.url, "LOG_LEVEL": "DEBUG"} | environ
    with gunicorn(database, tmp_path / "log", **settings) as server:
        yield server
    assert PASSWORD not in server.log.read_text()


def statuses(server: Server, requests: int, user_id: str = "alice", path: str = PATH) -> Counter[int]:
    """How often each status came back, to that many requests of 16 threads."""
    with ThreadPoolExecutor(16) as pool:
        return Counter(pool.map(lambda _: server.request("GET", path, user_id)[0], range(requests)))


def lines(server: Server, sentence: str) -> int:
    """How many lines of the log say that."""
    return server.log.read_text().count(sentence)


def headers_of(server: Server, **headers: str) -> tuple[int, dict[str, str]]:
    """The status and the headers of an answer; alice asks, unless the headers say otherwise."""
    connection = server.connect()
    connection.request("GET", PATH, headers=headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status, dict(response.getheaders())


def test_of_all_workers_and_threads_together_exactly_the_limit_passes(
    database: URL, tmp_path: Path, redis: Redis
) -> None:
    with limited(database, tmp_path, redis) as server:
        assert len(server.workers()) == 2
        for user_id in ("alice", "a:b c", "zoë"):
            path = f"/api/{quote(user_id)}/tasks"
            assert statuses(server, 4 * LIMIT, user_id, path) == {200: LIMIT, 429: 3 * LIMIT}
        # Where the machine is so busy that Redis is late, nothing has been shown.
        assert lines(server, AWAY) == 0
    # One key each, and each of them goes by itself.
    assert redis.ask("INFO", "keyspace", line=3).startswith("db3:keys=3,expires=3,")


def test_refused_identities_are_counted_across_workers_too(database: URL, tmp_path: Path, redis: Redis) -> None:
    with limited(database, tmp_path, redis) as server:
        with ThreadPoolExecutor(16) as pool:
            answers = Counter(pool.map(lambda _: headers_of(server)[0], range(2 * LIMIT)))
        assert answers == {401: LIMIT, 429: LIMIT}
        assert server.request("GET", PATH)[0] == 200


def test_killed_redis_takes_no_request_down_and_is_returned_to(database: URL, tmp_path: Path, redis: Redis) -> None:
    with limited(database, tmp_path, redis) as server:
        with ThreadPoolExecutor(16) as pool:
            answers = [pool.submit(server.request, "GET", PATH) for _ in range(LIMIT)]
            while sum(answer.done() for answer in answers) < LIMIT / 4:
                time.sleep(0.001)
            redis.signal(signal.SIGKILL)
            assert {answer.result()[0] for answer in answers} == {200}
        assert statuses(server, 8 * LIMIT)[429] >= 5 * LIMIT
        assert 1 <= lines(server, AWAY) <= 2
        redis.start()
        time.sleep(PAUSE + 0.5)
        wait_for_return(server)
        assert statuses(server, 2 * LIMIT, "bob", "/api/bob/tasks") == {200: LIMIT, 429: LIMIT}


def wait_for_return(server: Server) -> None:
    """Ask until each worker that had missed Redis says that it is back."""
    deadline = time.monotonic() + PATIENCE
    while lines(server, "Redis is back") < lines(server, AWAY):
        assert time.monotonic() < deadline, server.log.read_text()
        server.request("GET", "/api/carol/tasks", "carol")


def test_silent_redis_delays_each_thread_once(database: URL, tmp_path: Path, redis: Redis) -> None:
    def seconds(_: object) -> float:
        start = time.monotonic()
        assert server.request("GET", PATH)[0] == 200
        return time.monotonic() - start

    with limited(database, tmp_path, redis, RATE_LIMIT=f"{100 * LIMIT} per 30 day") as server:
        statuses(server, LIMIT)
        redis.signal(signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(4) as pool:
                taken = sorted(pool.map(seconds, range(2 * LIMIT)))
        finally:
            redis.signal(signal.SIGCONT)
        # In each worker the four that were under way, and a single one after a pause.
        assert len([duration for duration in taken if duration >= TIMEOUT]) <= 2 * (4 + 1)
        assert taken[-1] < TIMEOUT + 1
        assert 1 <= lines(server, AWAY) <= 2
        time.sleep(PAUSE + 0.5)
        wait_for_return(server)


def test_a_wrong_password_is_said_without_it(database: URL, tmp_path: Path, redis: Redis) -> None:
    wrong = redis.url.replace(PASSWORD, f"{PASSWORD}!")
    with limited(database, tmp_path, redis, RATE_LIMIT_STORAGE=wrong) as server:
        assert server.request("GET", PATH)[0] == 200
        assert lines(server, f"{AWAY} (AuthenticationError)") == 1


def test_behind_nginx_the_client_is_counted_and_not_what_it_says(database: URL, tmp_path: Path, redis: Redis) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(limited(database, tmp_path, redis, RATE_LIMIT="2 per 30 day", TRUSTED_PROXIES="1"))
        proxy = stack.enter_context(nginx(server, tmp_path))
        answers = [headers_of(proxy, **{"X-Forwarded-For": f"192.0.2.{number}"}) for number in range(3)]
        assert [status for status, _ in answers] == [401, 401, 429]
        assert [headers["RateLimit-Remaining"] for _, headers in answers] == ["1", "0", "0"]
        assert int(answers[2][1]["Retry-After"]) >= 1
        # Behind the proxy it is 127.0.0.1, and somebody else somebody else.
        assert headers_of(server, **{"X-Forwarded-For": "127.0.0.1"})[0] == 429
        assert headers_of(server, **{"X-Forwarded-For": "192.0.2.1"})[0] == 401
