"""How much of the service one caller may hold: slow requests of a user, and a user's searches.

tests/live/test_places.py has requests that wait: waves of them, and those without identity.
"""

import time
from concurrent.futures import ThreadPoolExecutor, as_completed

import pytest
from flask import Flask
from sqlalchemy import URL, event

from tests.conftest import url_of
from tests.support import Caller, Make, statements_of
from todo.db import db
from todo.errors import TooManyAtOnce, Unavailable
from todo.web import accounts
from todo.web.accounts import Places, Searches
from todo.web.places import turn_to_search

pytestmark = pytest.mark.sql

#: Two of eight threads are the share of one caller.
THREADS, SHARE = 8, 2
#: What Searches asks of the pool: how many connections are free, and how long a request waits for one.
NONE_FREE = (lambda: 0, 5.0)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Holder:
    """A caller of Places, whose requests take as long as is said."""

    def __init__(self, taken: Places, clock: Clock, name: str = "alice") -> None:
        self.places, self.clock, self.name = taken, clock, name

    def spend(self, seconds: float, at_once: int = 1) -> None:
        """So many requests at the same time, each of that duration."""
        running = [self.places.take(self.name) for _ in range(at_once)]
        for place in running:
            self.places.start(place)
        self.clock.now += seconds
        for place in running:
            self.places.leave(place)

    def is_refused(self, at_once: int = 1) -> int:
        """Whether so many requests at once are too many: the seconds to wait."""
        running = []
        try:
            for _ in range(at_once):
                running.append(self.places.take(self.name))  # noqa: PERF401 (those before a refusal are to be left)
        except TooManyAtOnce as refusal:
            return int(refusal.headers["Retry-After"])
        finally:
            for place in running:
                self.places.leave(place, is_excused=True)
        return 0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def alice(clock: Clock) -> Holder:
    return Holder(Places(THREADS, clock), clock)


def test_quick_requests_are_never_refused_however_many_come(alice: Holder) -> None:
    for _ in range(100):
        alice.spend(accounts.SLOW - 0.01, at_once=THREADS)
        assert not alice.is_refused(at_once=30)


def test_a_share_of_slow_requests_is_let_run_and_no_more(alice: Holder, clock: Clock) -> None:
    running = [alice.places.take("alice") for _ in range(SHARE)]
    for place in running:
        alice.places.start(place)
    clock.now += accounts.SLOW
    assert not alice.is_refused()
    clock.now += 0.01
    assert alice.is_refused()
    assert not Holder(alice.places, clock, "bob").is_refused(at_once=THREADS)
    alice.places.leave(running[0], is_excused=True)
    assert not alice.is_refused()


def test_what_waits_for_a_connection_does_not_count(alice: Holder, clock: Clock) -> None:
    for _ in range(SHARE):
        alice.places.take("alice")
    clock.now += 5
    assert not alice.is_refused()


def test_after_a_wave_of_slow_requests_the_share_holds_for_all_until_it_is_forgiven(
    alice: Holder, clock: Clock
) -> None:
    alice.spend(0.6, at_once=THREADS)
    assert alice.is_refused(at_once=SHARE + 1) == 10, "after (0.6 * 8 - 0.5 * 2) / 0.4 s it may go on"
    assert not alice.is_refused(at_once=SHARE)
    clock.now += (0.6 * THREADS - accounts.SLOW * SHARE) / (accounts.FORGIVEN * THREADS) + 0.01
    assert not alice.is_refused(at_once=30)


def test_quick_requests_add_nothing_to_a_debt_and_it_has_an_end(alice: Holder, clock: Clock) -> None:
    alice.spend(60, at_once=THREADS)
    alice.spend(0.1, at_once=SHARE)
    assert alice.is_refused(at_once=SHARE + 1) == accounts.LONGEST
    clock.now += accounts.LONGEST - 0.2
    assert alice.is_refused(at_once=SHARE + 1) == 1
    clock.now += 0.2
    assert not alice.is_refused(at_once=SHARE + 1)


@pytest.mark.parametrize(("threads", "share"), [(1, 1), (2, 1), (7, 1), (8, 2), (9, 2), (64, 16)])
def test_the_share_is_a_quarter_of_the_threads_and_at_least_one(clock: Clock, threads: int, share: int) -> None:
    alice = Holder(Places(threads, clock), clock)
    alice.spend(5, at_once=threads)
    assert not alice.is_refused(at_once=share)
    assert alice.is_refused(at_once=share + 1)


def test_callers_who_owe_nothing_are_forgotten(clock: Clock) -> None:
    taken = Places(THREADS, clock)
    for number in range(2 * accounts.MANY):
        Holder(taken, clock, f"quick {number}").spend(0.01)
    assert not taken._accounts
    for number in range(2 * accounts.MANY):
        Holder(taken, clock, f"slow {number}").spend(1)
    assert len(taken._accounts) <= accounts.MANY


def search(searches: Searches, clock: Clock, seconds: float) -> None:
    """Run a search of alice that takes so long. Raises TooManyAtOnce."""
    place = searches.take("alice")
    searches.start(place)
    clock.now += seconds
    searches.leave(place)


def test_after_long_searches_others_are_refused_until_those_are_forgiven(clock: Clock) -> None:
    searches = Searches(*NONE_FREE, clock)
    search(searches, clock, 0.5)
    search(searches, clock, accounts.SEARCHES)
    most_forgiven = (0.5 + accounts.SEARCHES) * accounts.SEARCHES_FORGIVEN
    clock.now += (0.5 - most_forgiven) / accounts.SEARCHES_FORGIVEN - 0.01
    with pytest.raises(TooManyAtOnce):
        search(searches, clock, 0)
    searches.leave(searches.take("bob"))
    clock.now += most_forgiven / accounts.SEARCHES_FORGIVEN + 0.02
    search(searches, clock, 0)


def test_searches_that_wait_are_refused_as_soon_as_nothing_is_left() -> None:
    searches = Searches(*NONE_FREE)
    running = searches.take("alice")
    with ThreadPoolExecutor(THREADS) as pool:
        waiting = [pool.submit(searches.take, "alice") for _ in range(THREADS)]
        time.sleep(0.3)
        assert not any(search.done() for search in waiting), "waiting for a connection counts"
        searches.start(running)
        started = time.monotonic()
        for search in waiting:
            with pytest.raises(TooManyAtOnce):
                search.result()
    assert accounts.SEARCHES / (THREADS + 1) <= time.monotonic() - started < accounts.SEARCHES / 2
    searches.leave(running)
    assert not any(account.held for account in searches._accounts.values()), "all places are given back"


def test_searches_that_wait_for_one_without_a_connection_hold_only_what_connections_are_free_for() -> None:
    searches = Searches(lambda: 2, 0.1)
    running = searches.take("alice")
    with ThreadPoolExecutor(THREADS) as pool:
        waiting = [pool.submit(searches.take, "alice") for _ in range(THREADS)]
        time.sleep(0.4)
        assert [type(search.exception()) for search in waiting if search.done()] == [Unavailable] * (THREADS - 2)
        with pytest.raises(Unavailable):
            searches.take("alice")
        kept = [search for search in waiting if not search.done()]
        searches.start(running)
        searches.leave(running)
        for search in as_completed(kept):
            searches.leave(search.result())
    assert not any(account.held for account in searches._accounts.values()), "all places are given back"


def test_a_search_that_gets_no_connection_takes_those_that_wait_for_it_along() -> None:
    """Else the next one would wait as long again, and so on."""
    searches = Searches(lambda: THREADS, 5.0)
    running = searches.take("alice")
    with ThreadPoolExecutor(THREADS) as pool:
        waiting = [pool.submit(searches.take, "alice") for _ in range(3)]
        time.sleep(0.1)
        searches.leave(running)
        assert [type(search.exception(1)) for search in waiting] == [Unavailable] * 3
    searches.leave(searches.take("alice"))


def test_searches_at_once_wait_for_a_database_that_wakes(make: Make, database: URL) -> None:
    """Longer than a request waits for a connection in use."""
    alice = Caller(app := make(database), "alice")
    with app.app_context():
        event.listen(db.engine, "do_connect", lambda *_: time.sleep(0.8))
    with ThreadPoolExecutor(3) as pool:
        assert [*pool.map(lambda _: alice("GET", query="?q=milk").status_code, range(3))] == [200] * 3


def test_what_searches_outside_of_a_request_has_no_turn_to_wait_for() -> None:
    with turn_to_search(), turn_to_search():
        pass


def test_who_searches_too_much_is_refused_searches_and_nothing_else(
    app: Flask, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "SEARCHES", 0.0001)
    monkeypatch.setattr(accounts, "SLOW_SEARCH", 0.0)
    monkeypatch.setattr(accounts, "SEARCHES_FORGIVEN", 1e-9)
    app = make(url_of(app))
    alice, bob = Caller(app, "alice"), Caller(app, "bob")
    alice.create()
    assert alice("GET", query="?q=milk").status_code == 200
    with statements_of(app) as statements:
        refused = alice("GET", query="?q=milk")
        assert statements == []
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "15")
    assert refused.get_json() == {"error": "Too many searches at once: wait before the next"}
    assert alice("GET").status_code == bob("GET", query="?q=milk").status_code == 200
