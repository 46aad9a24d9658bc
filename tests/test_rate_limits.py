"""Rate limits: who is counted for what, what the answers say, and what happens while Redis is away."""

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from limits import parse_many
from sqlalchemy import URL
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import TestResponse

from tests.live import free_port
from tests.redis_protocol import StandIn
from tests.support import Caller, Make, statements_of, token, wait_until
from todo.web import rate_limits

#: A window that hardly ends in the middle of a test.
WINDOW = "30 day"
PASSWORD = "a-password-of-redis"


@pytest.fixture
def limited(make: Make, database: URL) -> Any:
    """Makes apps with a limit: `limited(3)`, `limited("3 per second", trusted_proxies=1)`."""

    def make_limited(limit: int | str, **changes: Any) -> Flask:
        notation = f"{limit} per {WINDOW}" if isinstance(limit, int) else limit
        return make(database, rate_limits=tuple(parse_many(notation)), **changes)

    return make_limited


@pytest.fixture
def alice_of(limited: Any) -> Callable[..., Caller]:
    """Alice, of an app with a limit: `alice_of(3)`."""
    return lambda *limit, **changes: Caller(limited(*limit, **changes), "alice")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test moves, in the middle of a second; a window of ten has gone on for 4.5."""
    now = [1_000_000_004.5]
    for name in ("time", "monotonic"):
        monkeypatch.setattr(rate_limits, name, lambda: now[0])
    return now


def statuses(caller: Caller, times: int) -> list[int]:
    """The statuses of the answers to as many requests, each from another address."""
    addresses = [{"environ_overrides": {"REMOTE_ADDR": f"192.0.2.{number}"}} for number in range(times)]
    return [caller("GET", **address).status_code for address in addresses]


def refusals(app: Flask, times: int, **options: Any) -> list[int]:
    """The statuses of the answers to as many requests without an identity."""
    return [refused(app, **options).status_code for _ in range(times)]


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    """What speaks like Redis."""
    stand_in = StandIn()
    yield stand_in
    stand_in.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time for the stand-in to answer in, on a machine that is busy with other tests."""
    for option in ("socket_connect_timeout", "socket_timeout"):
        monkeypatch.setitem(rate_limits.OPTIONS, option, 5.0)


def refused(app: Flask, address: str | None = "192.0.2.1", **headers: str) -> TestResponse:
    """The answer to a request without an identity, from that address."""
    environ = {} if address is None else {"REMOTE_ADDR": address}
    client = app.test_client()
    client.environ_base.pop("REMOTE_ADDR")
    return client.get("/api/alice/tasks", environ_overrides=environ, headers=headers)


def declared(response: TestResponse) -> dict[str, str]:
    """What the answer says of limits."""
    return {name: value for name, value in response.headers if name.startswith("RateLimit") or name == "Retry-After"}


def test_without_a_limit_nothing_is_registered_and_nothing_said(make: Make, database: URL) -> None:
    app = make(database, rate_limit_storage="redis://nowhere.invalid", trusted_proxies=1)
    hooks = [*app.before_request_funcs[None], *app.error_handler_spec[None][None].values()]
    assert rate_limits.__name__ not in {hook.__module__ for hook in hooks}
    assert declared(Caller(app, "alice")("GET")) == declared(refused(app)) == {}


def test_429_has_the_shape_of_every_error_and_says_when_requests_pass_again(alice_of: Any, now: list[float]) -> None:
    alice = alice_of("2 per 10 second")
    assert statuses(alice, 2) == [200, 200]
    response = alice("GET")
    assert (response.status_code, response.get_json()) == (429, {"error": "Too many requests"})
    assert response.headers["Content-Type"] == "application/json"
    of_limits = {"RateLimit-Limit": "2", "RateLimit-Remaining": "0", "RateLimit-Reset": "6"}
    assert declared(response) == of_limits | {"Retry-After": "6"}
    now[0] += 5
    assert alice("GET").status_code == 429
    now[0] += 1
    assert alice("GET").status_code == 200


@pytest.mark.parametrize(
    ("status", "method", "path", "options"),
    [
        (200, "GET", "/api/alice/tasks", {}),
        (201, "POST", "/api/alice/tasks", {"json": {"title": "x"}}),
        (304, "GET", "/api/alice/tasks", {"headers": {"If-None-Match": "*"}}),
        (400, "GET", "/api/alice/tasks/x", {}),
        (400, "POST", "/api/alice/tasks", {"json": {}}),
        (403, "GET", "/api/bob/tasks", {}),
        (404, "GET", "/api/alice/tasks/999999", {}),
        (415, "POST", "/api/alice/tasks", {"data": "x"}),
    ],
)
def test_every_answer_to_a_user_counts_and_says_so(
    alice_of: Any, status: int, method: str, path: str, options: dict[str, Any]
) -> None:
    alice = alice_of(2)
    for remaining in ("1", "0"):
        response = alice.open(method, path, **options)
        assert (response.status_code, response.headers["RateLimit-Remaining"]) == (status, remaining)
        assert "Retry-After" not in response.headers
    assert alice.open(method, path, **options).status_code == 429


def test_users_are_counted_apart_whatever_their_ids_are_made_of(limited: Any) -> None:
    app = limited(1)
    names = ["alice", "Alice", "alice ", "alice:1", "1", "LIMITER", "ä", "a\u0308", "😀", "192.0.2.1", "*", "{alice}"]
    for status in (200, 429):
        answers = {name: Caller(app, name).open("GET", f"/api/{quote(name)}/tasks").status_code for name in names}
        assert answers == dict.fromkeys(names, status)


@pytest.mark.parametrize("authorization", ["", "Bearer x", f"Bearer {token(key='another key of at least 32 bytes')}"])
def test_an_address_that_is_refused_too_often_gets_429_in_place_of_401(limited: Any, authorization: str) -> None:
    app = limited(2)
    answers = [refused(app, Authorization=authorization) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [401, 401, 429]
    assert [answer.headers["RateLimit-Remaining"] for answer in answers] == ["1", "0", "0"]
    assert "WWW-Authenticate" in answers[1].headers
    assert int(answers[2].headers["Retry-After"]) >= 1
    assert refused(app, "192.0.2.2").status_code == 401


@pytest.mark.parametrize("user_id", ["alice", "192.0.2.1"])
def test_users_are_not_hurt_by_refusals_of_their_address_nor_of_one_like_their_id(limited: Any, user_id: str) -> None:
    app = limited(1)
    assert refusals(app, 2) == [401, 429]
    assert statuses(Caller(app, user_id), 2) == [200, 429]


@pytest.mark.parametrize(
    ("are_one", "pair"),
    [
        *((True, pair) for pair in (("2001:db8::1", "2001:db8::ffff:0:1"), ("::ffff:192.0.2.1", "192.0.2.1"))),
        *((True, pair) for pair in (("fe80::1%eth0", "fe80::2"), ("192.0.2.1:5000", "192.0.2.1:5001"))),
        *((True, pair) for pair in ((None, ""), ("", "unknown"))),
        *((False, pair) for pair in (("2001:db8::1", "2001:db8:0:1::1"), ("::ffff:192.0.2.1", "::ffff:192.0.2.2"))),
        (False, ("::1", "0.0.0.0")),
    ],
)
def test_an_ipv6_address_counts_as_its_64_first_bits(limited: Any, are_one: bool, pair: tuple[str | None, str]) -> None:
    app = limited(1)
    assert [refused(app, address).status_code for address in pair] == [401, 429 if are_one else 401]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(("GET", path, 200) for path in ("/health/live", "/health/ready", "/openapi.json")),
        *(("OPTIONS", "/api/alice/tasks", 200), ("GET", "/nowhere", 404), ("TRACE", "/api/alice/tasks", 405)),
    ],
)
def test_what_asks_nobody_who_they_are_is_neither_limited_nor_counted(
    limited: Any, method: str, path: str, status: int
) -> None:
    app = limited(1, cors_origins=("https://app.example",))
    headers = {"Origin": "https://app.example", "Access-Control-Request-Method": "PUT"}
    for _ in range(3):
        response = app.test_client().open(path, method=method, headers=headers)
        assert (response.status_code, declared(response)) == (status, {})
    assert refused(app, "127.0.0.1").status_code == 401
    assert Caller(app, "alice")("GET").status_code == 200


@pytest.mark.parametrize("notation", [f"3 per {WINDOW}; 2 per 29 day", f"2 per {WINDOW}; 3 per 29 day"])
def test_of_several_limits_the_answer_names_the_one_that_is_nearest(alice_of: Any, notation: str) -> None:
    alice = alice_of(notation)
    assert [alice("GET").headers["RateLimit-Limit"] for _ in range(2)] == ["2", "2"]


def test_what_a_short_window_refuses_does_not_use_up_a_long_one(alice_of: Any, now: list[float]) -> None:
    alice = alice_of(f"1 per second; 3 per {WINDOW}")
    # Of two limits that allow as few more, the one that does so for longer is named at last.
    for limit in ("1", "1", "3"):
        response = alice("GET")
        assert (response.headers["RateLimit-Limit"], response.headers["RateLimit-Remaining"]) == (limit, "0")
        assert statuses(alice, 2) == [429, 429]
        now[0] += 1
    assert int(alice("GET").headers["Retry-After"]) > 1


def test_429_opens_no_connection(limited: Any) -> None:
    app = limited(1)
    alice = Caller(app, "alice")
    alice("GET")
    with statements_of(app) as statements:
        assert alice("POST", json={"title": "x"}).status_code == 429
        assert refusals(app, 2) == [401, 429]
    assert statements == []


@pytest.mark.parametrize(
    ("trusted", "forwarded", "counted_as"),
    [
        (0, "192.0.2.9", "127.0.0.1"),
        (1, "192.0.2.9", "192.0.2.9"),
        (1, "198.51.100.1, 192.0.2.9", "192.0.2.9"),
        (2, "192.0.2.9, 198.51.100.1", "192.0.2.9"),
        (2, "192.0.2.9", "127.0.0.1"),
        (1, "", "127.0.0.1"),
    ],
)
def test_as_many_proxies_are_believed_as_there_are(limited: Any, trusted: int, forwarded: str, counted_as: str) -> None:
    app = limited(1, trusted_proxies=trusted)
    assert refused(app, "127.0.0.1", **{"X-Forwarded-For": forwarded}).status_code == 401
    # From that address itself, or through as many proxies.
    hops = ", ".join([counted_as] + ["198.51.100.7"] * (trusted - 1)) if trusted else ""
    assert refused(app, counted_as, **{"X-Forwarded-For": hops}).status_code == 429


def test_of_a_proxy_nothing_but_the_address_is_believed(limited: Any) -> None:
    proxy = limited(9, trusted_proxies=1).wsgi_app
    assert isinstance(proxy, ProxyFix)
    assert [proxy.x_for, proxy.x_proto, proxy.x_host, proxy.x_port, proxy.x_prefix] == [1, 0, 0, 0, 0]


@pytest.mark.usefixtures("now")
def test_memory_forgets_what_is_over_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "MOST_KEYS", 4)
    memory = rate_limits.Memory()
    for key, seconds in (("a", 0), ("b", 0), ("c", 60), ("d", 60)):
        memory.incr(key, seconds)
    assert [memory.incr("c", 60), memory.incr("a", 60)] == [2, 1]
    for number in range(100):
        memory.incr(str(number), 60)
        assert len(memory._counts) <= 4


@pytest.mark.usefixtures("patient")
def test_redis_counts_for_all_processes_and_nobody_is_named_there(limited: Any, stand_in: StandIn) -> None:
    storage = f"redis://127.0.0.1:{stand_in.port}"
    here, there = (limited(3, rate_limit_storage=storage) for _ in range(2))
    answers = [Caller(app, "alice")("GET").status_code for app in (here, there, here, there, here)]
    assert answers == [200, 200, 200, 429, 429]
    refused(here)
    assert len(stand_in.counts) == 2
    assert all(key.startswith("todo:") for key in stand_in.counts)
    assert not re.search("alice|192", str(stand_in.counts))


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """What the rate limits have written to the log, since this was asked last."""

    def written() -> list[str]:
        log = capsys.readouterr().err
        assert PASSWORD not in log
        return re.findall(r"todo.web.rate_limits: (.*)", log)

    return written


def absence(kind: str) -> str:
    """The one line on Redis being away."""
    return f"rate limits: each process counts for itself while Redis is unavailable ({kind})"


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("127.0.0.1:{free}", "ConnectionError"),
        ("nowhere.invalid", r"\w+"),
        (f"{'x' * 64}.example", r"\w+"),
        ("a..b", r"\w+"),
    ],
)
def test_while_redis_is_away_each_process_counts_and_says_so_once(
    alice_of: Any, written: Any, host: str, kind: str
) -> None:
    alice = alice_of(3, rate_limit_storage=f"redis://:{PASSWORD}@{host.format(free=free_port())}")
    assert statuses(alice, 5) == [200, 200, 200, 429, 429]
    (line,) = written()
    assert re.fullmatch(re.escape(absence("KIND")).replace("KIND", kind), line)


@pytest.mark.usefixtures("patient")
def test_what_redis_complains_of_is_not_repeated(alice_of: Any, stand_in: StandIn, written: Any) -> None:
    stand_in.complaint = "ERR unknown command '{0}', with args beginning with: '{1}'"
    alice = alice_of(3, rate_limit_storage=f"redis://:{PASSWORD}@127.0.0.1:{stand_in.port}")
    assert alice("GET").status_code == 200
    assert written() == [absence("ResponseError")]


def test_only_the_first_request_waits_for_a_silent_redis(
    alice_of: Any, stand_in: StandIn, written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than a busy machine lets a request wait.
    monkeypatch.setitem(rate_limits.OPTIONS, "socket_timeout", 1.0)
    stand_in.is_silent = True
    alice = alice_of(99, rate_limit_storage=f"redis://127.0.0.1:{stand_in.port}")
    seconds = []
    for _ in range(5):
        start = time.monotonic()
        assert alice("GET").status_code == 200
        seconds.append(time.monotonic() - start)
    assert seconds[0] >= 1
    assert max(seconds[1:]) < 1
    assert written() == [absence("TimeoutError")]


def test_after_the_pause_one_request_asks_for_all(
    alice_of: Any, stand_in: StandIn, written: Any, now: list[float]
) -> None:
    stand_in.is_silent = True
    alice = alice_of(99, rate_limit_storage=f"redis://127.0.0.1:{stand_in.port}")
    alice("GET")
    wait_until(lambda: stand_in.asked == 1)
    now[0] += rate_limits.PAUSE
    with ThreadPoolExecutor(8) as pool:
        assert {response.status_code for response in pool.map(lambda _: alice("GET"), range(8))} == {200}
    assert len(written()) == 1
    stand_in.close()
    # Both questions, and no more, were waiting for an answer.
    wait_until(lambda: stand_in.asked == 2)
    time.sleep(0.1)
    assert stand_in.asked == 2


@pytest.mark.usefixtures("patient")
def test_redis_is_returned_to(alice_of: Any, written: Any, now: list[float]) -> None:
    port = free_port()
    alice = alice_of(2, rate_limit_storage=f"redis://127.0.0.1:{port}", log_level="INFO")
    assert statuses(alice, 3) == [200, 200, 429]
    stand_in = StandIn(port)
    now[0] += rate_limits.PAUSE
    assert statuses(alice, 3) == [200, 200, 429]
    stand_in.close()
    assert alice("GET").status_code == 429
    assert written() == [absence("ConnectionError"), "rate limits: Redis is back", absence("ConnectionError")]
