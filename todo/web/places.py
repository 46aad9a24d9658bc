"""How many of this process's threads one caller may hold with slow requests. Knows no route, asks no database.

A caller is a user, or the address of somebody who is not identified. Quick requests are never counted, however many
come at once. The reasons and figures are in docs/decisions/places.md.
"""

from collections.abc import Callable, Collection
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Lock
from time import monotonic

from flask import Flask, g, request
from sqlalchemy import Engine, event

from config import Settings
from todo.db.connections import is_limited, was_lost_since
from todo.errors import TooManyAtOnce
from todo.identity import current_identity
from todo.web.addresses import network

#: The part of the threads that slow requests of one caller may hold.
SHARE = 0.25
#: Seconds after which a request counts as slow: while it runs, and afterwards the time that it took is owed. Far more
#: than a quick one takes on a machine that others keep busy.
SLOW = 0.5
#: The same for a search, whose cost its sender chooses; and, from a caller who owes too much already, for the next one.
SLOW_SEARCH, NEXT_SEARCH = 0.25, 0.05
#: What a caller may owe before the share holds for all their requests, in seconds of all threads together.
ALLOWANCE = 0.25
#: More than this nobody owes.
MOST_OWED = 1.0
#: How much of that is forgiven in a second.
FORGIVEN = 0.05
#: How many callers are remembered before those are dropped who owe nothing any more.
MANY = 1000


@dataclass(slots=True, eq=False)
class Place:
    """A request that runs: whose it is, since when its time counts (None while it does not), whether it searches."""

    caller: str
    since: float | None = None
    is_search: bool = False

    def slow_after(self, *, is_in_debt: bool) -> float:
        """How many seconds it may take without being slow."""
        if self.is_search:
            return NEXT_SEARCH if is_in_debt else SLOW_SEARCH
        return SLOW


@dataclass(slots=True)
class _Holder:
    """What one caller holds and owes."""

    running: set[Place] = field(default_factory=set)
    owed: float = 0.0
    owed_at: float = 0.0


class Places:
    """Who holds the threads of this process. Safe to use from many threads."""

    def __init__(self, threads: int, clock: Callable[[], float] = monotonic) -> None:
        self._threads = threads
        self._share = max(1, int(threads * SHARE))
        self._clock = clock
        self._lock = Lock()
        self._holders: dict[str, _Holder] = {}

    def take(self, caller: str) -> Place:
        """Let a request of the caller run. Raises TooManyAtOnce where the caller holds a share already.

        A share of slow requests; or, for a caller whose requests were slow lately, of any requests.
        """
        now = self._clock()
        with self._lock:
            holder = self._holders.get(caller) or _Holder()
            is_in_debt = self._owed(holder, now) > ALLOWANCE
            slow = [place for place in holder.running if _is_slow(place, place.since, now, is_in_debt=False)]
            if len(holder.running if is_in_debt else slow) >= self._share:
                raise TooManyAtOnce
            place = Place(caller)
            holder.running.add(place)
            self._holders[caller] = holder
            return place

    def start(self, place: Place, *, is_search: bool = False) -> None:
        """Count the request's time from now on."""
        place.since, place.is_search = self._clock(), is_search

    def leave(self, place: Place, *, since: float | None) -> None:
        """End the request; the time from `since` on is the caller's, None for none of it."""
        now = self._clock()
        with self._lock:
            holder = self._holders[place.caller]
            holder.running.remove(place)
            owed = self._owed(holder, now)
            if since is not None and _is_slow(place, since, now, is_in_debt=owed > ALLOWANCE):
                holder.owed, holder.owed_at = min(owed + (now - since) / self._threads, MOST_OWED), now
            if not holder.running and not self._owed(holder, now):
                del self._holders[place.caller]
            elif len(self._holders) > MANY:
                self._holders = {
                    caller: holder
                    for caller, holder in self._holders.items()
                    if holder.running or self._owed(holder, now)
                }

    @staticmethod
    def _owed(holder: _Holder, now: float) -> float:
        return max(0.0, holder.owed - FORGIVEN * (now - holder.owed_at))


def _is_slow(place: Place, since: float | None, now: float, *, is_in_debt: bool) -> bool:
    return since is not None and now - since > place.slow_after(is_in_debt=is_in_debt)


@dataclass(frozen=True, slots=True)
class _Held:
    """The place of the request at hand; `since` where its time counts from its beginning."""

    places: Places
    place: Place
    since: float | None = None


_held: ContextVar[_Held | None] = ContextVar("held", default=None)


def init_app(app: Flask, settings: Settings, engine: Engine, *, free: Collection[str]) -> Callable[[], None]:
    """Bound what the requests hold that come before anybody is identified, but for those to the free endpoints.

    Goes before the identity hook. Returns the hook that bounds what identified users hold, to be registered after it.
    """
    hooks = _Hooks(settings.threads, free, are_writes_counted=engine.dialect.name != "sqlite")
    app.before_request(hooks.take_as_stranger)
    app.teardown_request(hooks.end)
    event.listen(engine, "checkout", hooks.start)
    return hooks.take_as_user


class _Hooks:
    """What happens to the place of a request, in order."""

    def __init__(self, threads: int, free: Collection[str], *, are_writes_counted: bool) -> None:
        self._strangers, self._users = Places(threads), Places(threads)
        self._free = free
        self._are_writes_counted = are_writes_counted

    def take_as_stranger(self) -> None:
        """Hold a place until it is known who asks."""
        if request.endpoint is not None and request.endpoint not in self._free and request.method != "OPTIONS":
            _held.set(_Held(self._strangers, self._strangers.take(network()), monotonic()))

    def take_as_user(self) -> None:
        """Hold a place as the user."""
        if (held := _held.get()) is not None and "identity" in g:
            # Users who waited for the signing keys owe nothing for that.
            self._leave(held, since=None)
            _held.set(_Held(self._users, self._users.take(current_identity().user_id)))

    def start(self, *_: object) -> None:
        """Count a user's time, now that there is a connection: a database that sleeps takes seconds to connect to.

        On SQLite the time of searches alone: a write waits there for whoever else writes.
        """
        if (held := _held.get()) is not None and held.places is self._users:
            is_search = is_limited()
            if is_search or self._are_writes_counted:
                self._users.start(held.place, is_search=is_search)

    def end(self, _error: BaseException | None) -> None:
        """Leave the place."""
        if (held := _held.get()) is not None:
            since = held.since or held.place.since
            # A database that fell silent is no fault of the users who wait for it.
            is_excused = held.places is self._users and since is not None and was_lost_since(since)
            self._leave(held, since=None if is_excused else since)

    @staticmethod
    def _leave(held: _Held, *, since: float | None) -> None:
        _held.set(None)
        held.places.leave(held.place, since=since)
