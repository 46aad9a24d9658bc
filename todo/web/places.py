"""How long one caller may hold the threads of this process. Knows no route, asks no database.

A caller is a user, or the address of a client that is not identified. Two accounts, in seconds of threads: of slow
requests, and of searches. Quick requests cost nothing, however many come at once. The reasons and figures are in
docs/decisions/places.md.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Condition
from time import monotonic

from flask import Flask, g, request
from sqlalchemy import Engine, event

from config import Settings
from todo.errors import TooManyAtOnce
from todo.identity import current_identity
from todo.web.addresses import network

#: The part of the threads that a caller with too many slow requests may hold.
SHARE = 0.25
#: Seconds after which a request is slow. Far more than a quick one takes on a machine that others keep busy.
SLOW = 0.5
#: The part of the threads that a caller's slow requests may hold all the time: so much is forgiven each second.
FORGIVEN = 0.05
#: Seconds after which a search is slow, whose cost its sender chooses; its wait for its caller's others is included.
SLOW_SEARCH = 0.05
#: Seconds of threads that a caller's slow searches may hold in a burst, and how much of that comes back each second.
SEARCHES, SEARCHES_FORGIVEN = 1.0, 0.1
#: Nobody owes more than is forgiven in so many seconds.
LONGEST = 15.0
TOO_MANY_SEARCHES = "Too many searches at once: wait before the next"
#: How many callers are remembered before those are dropped who owe nothing any more.
MANY = 1000


@dataclass(slots=True, eq=False)
class Place:
    """A thread that is held: by whom, and since when that counts (None while it does not)."""

    caller: str
    since: float | None = None


@dataclass(slots=True)
class _Account:
    """The places that a caller holds now, and what is still owed for earlier ones."""

    held: set[Place] = field(default_factory=set)
    owed: float = 0.0
    owed_at: float = 0.0


class _Accounts:
    """An account for each caller. Safe to use from many threads."""

    def __init__(self, allowance: float, forgiven: float, slow: float, clock: Callable[[], float]) -> None:
        """Set what a caller may owe, what is forgiven each second, and after how many seconds a place is slow."""
        self._allowance, self._forgiven, self._slow = allowance, forgiven, slow
        self._clock = clock
        self._changed = Condition()
        self._accounts: dict[str, _Account] = {}

    def start(self, place: Place) -> None:
        """Count the place's time from now on."""
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
                self._accounts = {
                    caller: account
                    for caller, account in self._accounts.items()
                    if account.held or self._settled(account, now)
                }

    def _left(self, account: _Account) -> float:
        """How much the caller may still use: what runs is counted already."""
        now = self._clock()
        return self._allowance - self._settled(account, now) - sum(self._cost(place, now) for place in account.held)

    def _settled(self, account: _Account, now: float) -> float:
        return max(0.0, account.owed - self._forgiven * (now - account.owed_at))

    def _cost(self, place: Place, now: float) -> float:
        seconds = 0.0 if place.since is None else now - place.since
        return seconds if seconds > self._slow else 0.0


class Places(_Accounts):
    """The requests of each caller: any number of quick ones, and a share of slow ones."""

    def __init__(self, threads: int, clock: Callable[[], float] = monotonic) -> None:
        self._share = max(1, int(threads * SHARE))
        super().__init__(SLOW * self._share, FORGIVEN * threads, SLOW, clock)

    def take(self, caller: str) -> Place:
        """Let a request run. Raises TooManyAtOnce for a caller who owes too much and holds a share."""
        with self._changed:
            account = self._accounts.get(caller) or _Account()
            if len(account.held) >= self._share and self._left(account) < 0:
                raise TooManyAtOnce
            self._accounts[caller] = account
            account.held.add(place := Place(caller))
            return place


class Searches(_Accounts):
    """The searches of each caller: one at a time, as long as something is left for them."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(SEARCHES, SEARCHES_FORGIVEN, SLOW_SEARCH, clock)
        self._running: dict[str, Place] = {}

    def take(self, caller: str) -> Place:
        """Wait for the caller's other searches. Raises TooManyAtOnce once nothing is left.

        The wait counts too, from the moment on that the search which runs has its connection.
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
                raise TooManyAtOnce(TOO_MANY_SEARCHES)
            self._running[caller] = place
            return place

    def start(self, place: Place) -> None:
        """Count the place's time from now on, and that of the searches which wait for it."""
        with self._changed:
            for other in self._accounts[place.caller].held:
                other.since = self._clock() if other.since is None else other.since
            self._changed.notify_all()

    def leave(self, place: Place, *, is_excused: bool = False) -> None:
        """Let the next one run."""
        with self._changed:
            if self._running.get(place.caller) is place:
                del self._running[place.caller]
            super().leave(place, is_excused=is_excused)
            self._changed.notify_all()


@dataclass(slots=True)
class _Held:
    """What the request at hand holds, and of which accounts."""

    hooks: "_Hooks"
    accounts: Places
    place: Place
    search: Place | None = None


_held: ContextVar[_Held | None] = ContextVar("held", default=None)


def init_app(
    app: Flask, settings: Settings, engine: Engine, was_lost_since: Callable[[float], bool], *, free: Collection[str]
) -> Callable[[], None]:
    """Limit what requests hold before their caller is identified, except for requests to the free endpoints.

    Goes before the identity hook. Returns the hook that limits what identified users hold, to be registered after it.
    was_lost_since: whether a connection to the database was lost after an instant of time.monotonic().
    """
    hooks = _Hooks(settings.threads, free, was_lost_since, are_writes_counted=engine.dialect.name != "sqlite")
    app.before_request(hooks.take_as_stranger)
    app.teardown_request(hooks.end)
    event.listen(engine, "checkout", hooks.start)
    return hooks.take_as_user


@contextmanager
def turn_to_search() -> Iterator[None]:
    """Let the request at hand search within, when it is its caller's turn. Raises TooManyAtOnce."""
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
    """What happens to the place of a request, in order."""

    def __init__(
        self,
        threads: int,
        free: Collection[str],
        was_lost_since: Callable[[float], bool],
        *,
        are_writes_counted: bool,
    ) -> None:
        self._strangers, self._users, self.searches = Places(threads), Places(threads), Searches()
        self._free = free
        self._was_lost_since = was_lost_since
        self._are_writes_counted = are_writes_counted

    def take_as_stranger(self) -> None:
        """Hold a place until it is known who asks."""
        if request.endpoint is not None and request.endpoint not in self._free and request.method != "OPTIONS":
            _held.set(_Held(self, self._strangers, place := self._strangers.take(network())))
            self._strangers.start(place)

    def take_as_user(self) -> None:
        """Hold a place as the user."""
        if (held := _held.get()) is not None and held.accounts is self._strangers and "identity" in g:
            _held.set(None)
            # Users who waited for the signing keys owe nothing for that.
            self._strangers.leave(held.place, is_excused=True)
            _held.set(_Held(self, self._users, self._users.take(current_identity().user_id)))

    def start(self, *_: object) -> None:
        """Count a user's time, now that there is a connection: a database that sleeps takes seconds to connect to.

        On SQLite the time of searches alone: a write waits there for whoever else writes.
        """
        if (held := _held.get()) is None:
            return
        if held.search is not None:
            self.searches.start(held.search)
        elif self._are_writes_counted and held.accounts is self._users:
            self._users.start(held.place)

    def end(self, _error: BaseException | None) -> None:
        """Leave the place."""
        if (held := _held.get()) is not None:
            _held.set(None)
            if held.accounts is self._users:
                self.leave(self._users, held.place)
            else:
                self._strangers.leave(held.place)

    def leave(self, accounts: _Accounts, place: Place) -> None:
        """Give the place back. A database that stopped answering is not the fault of the users who wait for it."""
        accounts.leave(place, is_excused=place.since is not None and self._was_lost_since(place.since))
