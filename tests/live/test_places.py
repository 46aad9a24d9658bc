"""How much of the service one caller may hold where the database, or a provider, makes everybody wait for seconds."""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from threading import Event

import pytest
from flask import Flask
from sqlalchemy import URL, text
from werkzeug.test import TestResponse

from config import JwtSettings
from tests.identity.issuer import after, body, jwk, key_set, running_issuer
from tests.identity.tokens import key, signed_by
from tests.live.wire import wire_to
from tests.support import PATIENCE, Caller, Make, session, silent_database, statements_of, wait_until
from tests.test_places import NONE_FREE, SHARE, THREADS, Clock, search
from todo.db import connections as database
from todo.errors import Unavailable
from todo.identity.jwks import KeySet
from todo.web import accounts
from todo.web.accounts import Searches


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that are slow sooner, and wait for a lock less long."""
    monkeypatch.setattr(accounts, "SLOW", 0.3)
    monkeypatch.setattr(database, "STATEMENT_LIMITS", database.STATEMENT_LIMITS.replace("'1s'", "'700ms'"))


@contextmanager
def locked_tasks(url: URL) -> Iterator[None]:
    """Lock the tasks of alice for the block. A change of one of them waits for a second."""
    with session(url) as connection:
        connection.execute(text("SELECT 1 FROM tasks WHERE user_id = 'alice' FOR UPDATE"))
        yield


def toggle(caller: Caller) -> TestResponse:
    (task,) = caller("GET").get_json()
    return caller("PATCH", f"/{task['id']}/complete")


def test_quick_searches_are_never_refused(clock: Clock) -> None:
    searches = Searches(*NONE_FREE, clock)
    for _ in range(10_000):
        search(searches, clock, accounts.SLOW_SEARCH - 0.01)


def test_a_search_that_is_excused_costs_nothing(clock: Clock) -> None:
    searches = Searches(*NONE_FREE, clock)
    searches.start(place := searches.take("alice"))
    clock.now += 5
    searches.leave(place, is_excused=True)
    search(searches, clock, 0)


def test_searches_of_a_user_run_one_after_the_other(clock: Clock) -> None:
    searches = Searches(*NONE_FREE, clock)
    running = most = 0

    def run(_number: int) -> None:
        nonlocal running, most
        place = searches.take("alice")
        searches.start(place)
        running += 1
        most = max(most, running)
        time.sleep(0.002)
        running -= 1
        searches.leave(place)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(run, range(30)))
    assert most == 1


@pytest.mark.usefixtures("hasty")
def test_slow_requests_of_one_user_hold_a_share_and_others_go_on(make: Make, postgresql: URL) -> None:
    for user_id in ("alice", "bob"):
        Caller(make(postgresql), user_id).create()
    app = make(postgresql)
    alice, bob = Caller(app, "alice"), Caller(app, "bob")
    with locked_tasks(postgresql), ThreadPoolExecutor(SHARE) as pool:
        waiting = [pool.submit(toggle, alice) for _ in range(SHARE)]
        time.sleep(0.4)
        with statements_of(app) as statements:
            refused = alice("GET")
            assert statements == []
        assert toggle(bob).status_code == 200
        assert [slow.result().status_code for slow in waiting] == [503, 503]
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) in range(1, 4), "a second, and more on a busy machine"
    assert refused.get_json() == {"error": "Too many slow requests at once: wait for those that are running"}
    assert alice("GET").status_code == 200


@pytest.mark.usefixtures("hasty")
def test_a_wave_of_slow_requests_is_let_in_once(make: Make, postgresql: URL) -> None:
    alice = Caller(make(postgresql), "alice")
    alice.create()
    with ThreadPoolExecutor(THREADS) as pool:
        with locked_tasks(postgresql):
            first = Counter(pool.map(lambda _: toggle(alice).status_code, range(THREADS)))
        with locked_tasks(postgresql):
            (task,) = alice("GET").get_json()
            second = Counter(pool.map(lambda _: alice("PATCH", f"/{task['id']}/complete").status_code, range(THREADS)))
    assert first == {503: THREADS}
    assert second == {503: SHARE, 429: THREADS - SHARE}


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[URL]:
    """A database that accepts connections and is silent, for which a request waits less long."""
    monkeypatch.setattr(database, "REQUEST_BUDGET", 0.4)
    with silent_database() as (_, url):
        yield url


@pytest.mark.usefixtures("hasty")
def test_a_database_that_is_silent_makes_nobody_a_debtor(make: Make, silent: URL) -> None:
    alice = Caller(make(silent), "alice")
    with ThreadPoolExecutor(THREADS) as pool:
        assert Counter(pool.map(lambda _: alice("GET").status_code, range(2 * THREADS))) == {503: 2 * THREADS}


@pytest.mark.usefixtures("hasty")
def test_a_database_that_falls_silent_makes_nobody_a_debtor(
    make: Make, postgresql: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of statements. Who owes nothing may send another wave of slow requests."""
    monkeypatch.setattr(database, "REQUEST_BUDGET", 0.6)
    with wire_to(postgresql) as (wire, url), ThreadPoolExecutor(THREADS) as pool:
        alice = Caller(make(url), "alice")
        path = f"/{alice.create()['id']}/complete"
        for is_silent in (True, False):
            with locked_tasks(postgresql):
                waiting = [pool.submit(alice, "PATCH", path) for _ in range(THREADS)]
                time.sleep(0.3)
                if is_silent:
                    wire.forget()
                assert Counter(change.result().status_code for change in waiting) == {503: THREADS}


READY, TASKS = "/health/ready", "/api/alice/tasks"


def from_address(app: Flask, path: str, bearer: str = "", address: str = "192.0.2.1") -> int:
    """The status of the answer to a request from that address."""
    headers = {"Authorization": f"Bearer {bearer}"}
    return app.test_client().get(path, environ_overrides={"REMOTE_ADDR": address}, headers=headers).status_code


def at_once(app: Flask, path: str, bearer: str = "") -> Counter[int]:
    """How often each status is the answer to as many requests as there are threads, from one address."""
    with ThreadPoolExecutor(THREADS) as pool:
        return Counter(pool.map(lambda _: from_address(app, path, bearer), range(THREADS)))


@pytest.mark.usefixtures("hasty")
def test_who_asks_a_silent_database_whether_it_is_ready_holds_a_share(make: Make, silent: URL) -> None:
    app = make(silent)
    assert at_once(app, READY) == {503: THREADS}
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: list[Future[int]] = [pool.submit(from_address, app, READY) for _ in range(THREADS)]
        time.sleep(0.1)
        assert from_address(app, READY) == 429
        assert from_address(app, "/health/live") == from_address(app, "/openapi.json") == 200
        assert from_address(app, READY, address="192.0.2.2") == 503
    assert Counter(slow.result() for slow in waiting) == {503: SHARE, 429: THREADS - SHARE}
    # One probe after the other is always answered.
    assert [from_address(app, READY) for _ in range(3)] == [503] * 3


@pytest.mark.usefixtures("hasty")
def test_of_those_who_name_unknown_keys_one_waits_and_a_known_user_at_their_address_is_never_refused(
    make: Make, postgresql: URL
) -> None:
    known, unknown = (signed_by(key(), kid) for kid in ("known", "unknown"))
    go, keys = Event(), key_set(jwk(key(), "known"))
    with running_issuer() as issuer, ThreadPoolExecutor() as pool:
        issuer.answer = keys
        app = make(postgresql, jwt=JwtSettings(jwks_url=issuer.url))
        assert from_address(app, TASKS, known) == 200
        issuer.answer = after(go, keys)
        waiting = pool.submit(from_address, app, TASKS, unknown)
        issuer.wait_for(2)
        # Longer than a slow request may take.
        time.sleep(0.7)
        assert at_once(app, TASKS, unknown) == {503: THREADS}
        assert at_once(app, TASKS, known) == {200: THREADS}
        assert not waiting.done()
        go.set()
        assert waiting.result() == 401
        assert at_once(app, TASKS, known) == {200: THREADS}


def test_nobody_waits_for_a_fetch_of_keys_longer_than_two_seconds(caplog: pytest.LogCaptureFixture) -> None:
    enough = Event()

    def trickle(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
        while not enough.wait(0.1):
            handler.wfile.write(b".")

    with running_issuer() as issuer, ThreadPoolExecutor() as pool:
        issuer.serve(jwk(key(), "a"))
        known = KeySet(issuer.url, ())
        found = known.find("a")
        started_at = time.monotonic()
        issuer.answer = trickle
        trickling = pool.submit(KeySet(issuer.url, ()).find, "a")
        forged = pool.submit(known.find_newer, "a", found)
        issuer.wait_for(3)
        issuer.answer = after(enough, body(""))
        silent = pool.submit(KeySet(issuer.url, ()).find, "a")
        try:
            for waiting in (trickling, silent):
                with pytest.raises(Unavailable):
                    waiting.result(PATIENCE)
            assert forged.result(PATIENCE) is None
            assert 2 <= time.monotonic() - started_at < 4
            wait_until(lambda: "TimeoutError" in caplog.text)
        finally:
            enough.set()


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(("provider", "status"), [("slow_nobody", 401), ("slow_somebody", 200)])
def test_the_time_that_a_provider_takes_counts_for_nobody(
    make: Make, postgresql: URL, provider: str, status: int
) -> None:
    app = make(postgresql, identity_provider=f"tests.identity.providers:{provider}")
    for _ in range(2):
        assert at_once(app, TASKS) == {status: THREADS}


def test_an_address_that_asks_whether_the_service_is_ready_has_a_share_too(
    make: Make, database: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every request is slow, and hardly forgiven.
    monkeypatch.setattr(accounts, "SLOW", 0.0)
    monkeypatch.setattr(accounts, "FORGIVEN", 1e-6)
    client = (app := make(database)).test_client()
    assert client.get("/health/ready").status_code == 200
    for _ in range(SHARE):
        app.extensions["places_of_addresses"].take("127.0.0.1")
    assert [client.get(f"/health/{name}").status_code for name in ("ready", "live")] == [429, 200]
