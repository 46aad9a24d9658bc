"""Accounts of what each caller has used, in seconds of threads. Know no HTTP and no database.

Quick requests cost nothing. Reasons: docs/decisions/places.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Condition
from time import monotonic

from todo.errors import TooManyAtOnce, Unavailable

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
class Account:
    """The places that a caller holds, and what is owed for earlier ones: `owed`, as it was at `owed_at`."""

    held: set[Place] = field(default_factory=set)
    owed: float = 0.0
    owed_at: float = 0.0


class Accounts:
    """An account for each caller. Thread-safe."""

    def __init__(self, allowance: float, forgiven: float, slow: float, clock: Callable[[], float]) -> None:
        """Set what a caller may owe, how much of it is forgiven each second, and when a place is slow (seconds)."""
        self._allowance, self._forgiven, self._slow = allowance, forgiven, slow
        self._clock = clock
        self._changed = Condition()
        self._accounts: dict[str, Account] = {}

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

    def _left(self, account: Account) -> float:
        """Return how much the caller may still use. Slow places count while they are held."""
        now = self._clock()
        return self._allowance - self._settled(account, now) - sum(self._cost(place, now) for place in account.held)

    def _refusal(self, left: float, message: str | None = None) -> TooManyAtOnce:
        return TooManyAtOnce(min(LONGEST, -left / self._forgiven), message)

    def _settled(self, account: Account, now: float) -> float:
        return max(0.0, account.owed - self._forgiven * (now - account.owed_at))

    def _cost(self, place: Place, now: float) -> float:
        seconds = 0.0 if place.since is None else now - place.since
        return seconds if seconds > self._slow else 0.0


class Places(Accounts):
    """The requests of each caller: any number of quick ones, but slow ones only on a share of the threads."""

    def __init__(self, threads: int, clock: Callable[[], float] = monotonic) -> None:
        self._share = max(1, int(threads * SHARE))
        super().__init__(SLOW * self._share, FORGIVEN * threads, SLOW, clock)

    def take(self, caller: str) -> Place:
        """Let a request run. Raises TooManyAtOnce if the caller owes too much and already holds the share."""
        with self._changed:
            account = self._accounts.get(caller) or Account()
            if len(account.held) >= self._share and (left := self._left(account)) < 0:
                raise self._refusal(left)
            self._accounts[caller] = account
            account.held.add(place := Place(caller))
            return place


class Searches(Accounts):
    """The searches of each caller: one at a time, until the account is used up."""

    def __init__(self, free: Callable[[], int], patience: float, clock: Callable[[], float] = monotonic) -> None:
        """free: how many connections nobody uses. patience: how long to wait if there are too few (seconds)."""
        super().__init__(SEARCHES, SEARCHES_FORGIVEN, SLOW_SEARCH, clock)
        self._free, self._patience = free, patience
        self._running: dict[str, Place] = {}
        #: How many searches wait for one that has no connection yet, and whether one of them has waited in vain since
        #: a search got its connection.
        self._unstarted = 0
        self._is_stuck = False

    def take(self, caller: str) -> Place:
        """Wait for the caller's other searches. Raises TooManyAtOnce when the account is used up.

        The wait counts too, but only from the moment when the running search gets its connection. Raises Unavailable
        if it gets none, or if it has none yet and other requests need the thread.
        """
        with self._changed:
            account = self._accounts.setdefault(caller, Account())
            running = self._running.get(caller)
            place = Place(caller, since=self._clock() if running and running.since is not None else None)
            account.held.add(place)
            while (left := self._left(account)) > 0 and (running := self._running.get(caller)):
                if counting := sum(other.since is not None for other in account.held):
                    self._changed.wait(left / counting)
                elif not self._wait_for_start(running):
                    self.leave(place)
                    raise Unavailable(detail="The search before this one waits for a connection, and few are free")
            if left <= 0:
                self.leave(place)
                raise self._refusal(left, TOO_MANY_SEARCHES)
            self._running[caller] = place
            return place

    def start(self, place: Place) -> None:
        """Count the time of the place from now on, and of the searches that wait for it."""
        with self._changed:
            self._is_stuck = False
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

    def _wait_for_start(self, running: Place) -> bool:
        """Wait until the running search gets its connection. Returns False if it ends without, or the thread is needed.

        The wait holds a thread, but no connection: the pool does not know of it. So it counts as one of the pool's, and
        like those it ends if there are too few: after `patience`, or at once if another search has waited in vain.
        """
        self._unstarted += 1
        try:
            if self._is_stuck and self._unstarted > self._free():
                return False
            if self._changed.wait_for(lambda: self._has_started(running), self._patience):
                # If it got none in all its time, this one will not wait as long again.
                return running.since is not None
            if is_needed := self._unstarted > self._free():
                self._is_stuck = True
            return not is_needed
        finally:
            self._unstarted -= 1

    def _has_started(self, running: Place) -> bool:
        return running.since is not None or self._running.get(running.caller) is not running
