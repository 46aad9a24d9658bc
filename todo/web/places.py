"""Limits how long one caller may hold threads of this process. Knows no route, and uses no database.

A caller is a user. Each has two accounts, in seconds of threads: one for slow requests, one for searches. Quick
requests cost nothing. A check without identity that may wait counts for the client's address, in an account like the
first. Reasons: docs/decisions/places.md.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Condition
from time import monotonic

from flask import Flask, current_app
from sqlalchemy import Engine, event

from config import Settings
from todo.errors import TooManyAtOnce
from todo.identity import known_identity
from todo.web.addresses import network

#: The share of the threads that a caller with too many slow requests may still hold.
SHARE = 0.25
#: Seconds after which a request is slow. Quick ones take far less, even on a busy machine.
SLOW = 0.5
#: Seconds of each thread that are forgiven per second. A caller's slow requests may hold this share permanently.
FORGIVEN = 0.05
#: Seconds after which a search is slow, its wait for other searches of the caller included.
SLOW_SEARCH = 0.05
#: Seconds of threads that a caller's slow searches may use in a burst, and how much of that is forgiven each second.
SEARCHES, SEARCHES_FORGIVEN = 1.0, 0.1
#: Seconds in which the largest debt is forgiven.
LONGEST = 15.0
TOO_MANY_SEARCHES = "Too many searches at once: wait before the next"
#: When more callers than this are remembered, those who owe nothing are forgotten.
MANY = 1000


@dataclass(slots=True, eq=False)
class Place:
    """A thread that a caller holds. since: when its time began to count; None if it does not count yet."""

    caller: str
    since: float | None = None


@dataclass(slots=True)
class _Account:
    """The places that a caller holds, and what is owed for earlier ones: `owed`, as it was at `owed_at`."""

    held: set[Place] = field(default_factory=set)
    owed: float = 0.0
    owed_at: float = 0.0


class _Accounts:
    """An account for each caller. Thread-safe."""

    def __init__(self, allowance: float, forgiven: float, slow: float, clock: Callable[[], float]) -> None:
        """Set what a caller may owe, how much of it is forgiven each second, and when a place is slow (seconds)."""
        self._allowance, self._forgiven, self._slow = allowance, forgiven, slow
        self._clock = clock
        self._changed = Condition()
        self._accounts: dict[str, _Account] = {}

    def start(self, place: Place) -> None:
        """Count the time of the place from now on."""
        with self._changed:
            place.since = self._clock()

    def leave(self, place: Place, *, is_excused: bool = False) -> None:
        """Give the place back. A slow one costs its time, unless it is excused."""
        with self._changed:
            account, now = self._accounts[place.caller], self._clock()
            account.held.remove(place)
            cost = 0.0 if is_excused else self._cost(place, now)
            most = self._allowance + LONGEST * self._forgiven
            account.owed, account.owed_at = min(self._settled(account, now) + cost, most), now
            if not account.held and not account.owed:
                del self._accounts[place.caller]
            elif len(self._accounts) > MANY:
                accounts = self._accounts.items()
                self._accounts = {name: each for name, each in accounts if each.held or self._settled(each, now)}

    def _left(self, account: _Account) -> float:
        """Return how much the caller may still use. Slow places count while they are held."""
        now = self._clock()
        return self._allowance - self._settled(account, now) - sum(self._cost(place, now) for place in account.held)

    def _refusal(self, left: float, message: str | None = None) -> TooManyAtOnce:
        return TooManyAtOnce(min(LONGEST, -left / self._forgiven), message)

    def _settled(self, account: _Account, now: float) -> float:
        return max(0.0, account.owed - self._forgiven * (now - account.owed_at))

    def _cost(self, place: Place, now: float) -> float:
        seconds = 0.0 if place.since is None else now - place.since
        return seconds if seconds > self._slow else 0.0


class Places(_Accounts):
    """The requests of each caller: any number of quick ones, but slow ones only on a share of the threads."""

    def __init__(self, threads: int, clock: Callable[[], float] = monotonic) -> None:
        self._share = max(1, int(threads * SHARE))
        super().__init__(SLOW * self._share, FORGIVEN * threads, SLOW, clock)

    def take(self, caller: str) -> Place:
        """Let a request run. Raises TooManyAtOnce if the caller owes too much and already holds the share."""
        with self._changed:
            account = self._accounts.get(caller) or _Account()
            if len(account.held) >= self._share and (left := self._left(account)) < 0:
                raise self._refusal(left)
            self._accounts[caller] = account
            account.held.add(place := Place(caller))
            return place


class Searches(_Accounts):
    """The searches of each caller: one at a time, until the account is used up."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(SEARCHES, SEARCHES_FORGIVEN, SLOW_SEARCH, clock)
        self._running: dict[str, Place] = {}

    def take(self, caller: str) -> Place:
        """Wait for the caller's other searches. Raises TooManyAtOnce when the account is used up.

        The wait counts too, but only from the moment when the running search gets its connection.
        """
        with self._changed:
            account = self._accounts.setdefault(caller, _Account())
            running = self._running.get(caller)
            place = Place(caller, since=self._clock() if running and running.since is not None else None)
            account.held.add(place)
            while (left := self._left(account)) > 0 and caller in self._running:
                counting = sum(other.since is not None for other in account.held)
                self._changed.wait(left / counting if counting else None)
            if left <= 0:
                self.leave(place)
                raise self._refusal(left, TOO_MANY_SEARCHES)
            self._running[caller] = place
            return place

    def start(self, place: Place) -> None:
        """Count the time of the place from now on, and of the searches that wait for it."""
        with self._changed:
            for other in self._accounts[place.caller].held:
                other.since = self._clock() if other.since is None else other.since
            self._changed.notify_all()

    def leave(self, place: Place, *, is_excused: bool = False) -> None:
        """Give the place back, and let the next search run."""
        with self._changed:
            if self._running.get(place.caller) is place:
                del self._running[place.caller]
            super().leave(place, is_excused=is_excused)
            self._changed.notify_all()


@dataclass(slots=True)
class _Held:
    """What the request of an identified user holds."""

    hooks: "_Hooks"
    place: Place
    search: Place | None = None


_held: ContextVar[_Held | None] = ContextVar("held", default=None)


def init_app(app: Flask, settings: Settings, engine: Engine, was_lost_since: Callable[[float], bool]) -> None:
    """Limit identified users: call this after the identity hook is registered, and after the rate limits.

    was_lost_since: whether a database connection was lost after an instant (time.monotonic).
    """
    hooks = _Hooks(settings.threads, was_lost_since, is_sqlite=engine.dialect.name == "sqlite")
    app.before_request(hooks.take)
    app.teardown_request(hooks.end)
    event.listen(engine, "checkout", hooks.start)
    app.extensions["places_of_addresses"] = Places(settings.threads)


@contextmanager
def place_of_address() -> Iterator[None]:
    """Hold a place of the client's address for the block: it may wait, and asks for no identity.

    Raises TooManyAtOnce.
    """
    addresses: Places = current_app.extensions["places_of_addresses"]
    addresses.start(place := addresses.take(network()))
    try:
        yield
    finally:
        addresses.leave(place)


@contextmanager
def turn_to_search() -> Iterator[None]:
    """Wait until it is the caller's turn, and hold the turn for the block. Raises TooManyAtOnce."""
    if (held := _held.get()) is None:
        yield
        return
    searches = held.hooks.searches
    held.search = searches.take(held.place.caller)
    try:
        yield
    finally:
        held.hooks.leave(searches, held.search)
        held.search = None


class _Hooks:
    """The steps in the life of a request's place, in order."""

    def __init__(self, threads: int, was_lost_since: Callable[[float], bool], *, is_sqlite: bool) -> None:
        self._users, self.searches = Places(threads), Searches()
        self._was_lost_since = was_lost_since
        self._is_sqlite = is_sqlite

    def take(self) -> None:
        """Hold a place of the identified user. A public endpoint has none."""
        if (identity := known_identity()) is not None:
            _held.set(_Held(self, self._users.take(identity.user_id)))

    def start(self, *_: object) -> None:
        """Count a user's time from the moment when there is a connection: a sleeping database takes seconds to wake.

        On SQLite only searches count, because a write waits for the writes of others.
        """
        if (held := _held.get()) is None:
            return
        if held.search is not None:
            self.searches.start(held.search)
        elif not self._is_sqlite:
            self._users.start(held.place)

    def end(self, _error: BaseException | None) -> None:
        """Give the place back at the end of the request."""
        if (held := _held.get()) is not None:
            _held.set(None)
            self.leave(self._users, held.place)

    def leave(self, accounts: _Accounts, place: Place) -> None:
        """Give the place back. It costs nothing if the database stopped answering: that is not the user's fault."""
        accounts.leave(place, is_excused=place.since is not None and self._was_lost_since(place.since))
