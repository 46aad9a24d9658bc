"""How often a user may call, and how often an address may be refused: RATE_LIMIT. Knows no route, asks no database.

The headers are those of draft-ietf-httpapi-ratelimit-headers up to -06, on which servers agree. Later drafts put the
same into RateLimit and RateLimit-Policy, whose syntax has changed between them (docs/decisions/rate-limits.md).
"""

import logging
from collections.abc import Sequence
from hashlib import blake2b
from math import ceil
from threading import Lock
from time import monotonic, time
from typing import Any, NamedTuple

from flask import Flask, after_this_request, g
from limits import RateLimitItem
from limits.errors import StorageError
from limits.storage import RedisStorage

from config import Settings
from todo.errors import NotAuthenticated, NotOwner, TooManyRequests
from todo.identity import current_identity
from todo.web.addresses import network
from todo.web.app import Response, answer_failure

logger = logging.getLogger(__name__)

#: Seconds that Redis may take to connect, and to answer.
TIMEOUT = 0.25
#: How many counts this process keeps, some 25 MB.
MOST_KEYS = 100_000
#: Those of redis-py. Without a driver_info it says nothing of itself, which would be two more questions.
OPTIONS: dict[str, Any] = {"socket_connect_timeout": TIMEOUT, "socket_timeout": TIMEOUT, "driver_info": None}
#: Seconds for which Redis is left alone when it could not be had.
PAUSE = 5.0


class Window(NamedTuple):
    """Where a caller stands within a window of time."""

    limit: int
    used: int
    seconds_left: int

    @property
    def remaining(self) -> int:
        """How many more requests it allows."""
        return max(self.limit - self.used, 0)

    @property
    def is_exceeded(self) -> bool:
        """Whether the last request was one too many."""
        return self.used > self.limit

    def declare(self, response: Response) -> Response:
        """Tell the client."""
        response.headers["RateLimit-Limit"] = str(self.limit)
        response.headers["RateLimit-Remaining"] = str(self.remaining)
        response.headers["RateLimit-Reset"] = str(self.seconds_left)
        if self.is_exceeded:
            response.headers["Retry-After"] = str(self.seconds_left)
        return response


def init_app(app: Flask, settings: Settings) -> None:
    """Limit what the identity hook, which is there already, lets in and refuses; nothing where RATE_LIMIT is unset."""
    if not settings.rate_limits:
        return
    counter = Counter(settings.rate_limits, settings.rate_limit_storage)

    def count() -> None:
        window = counter.hit(*_caller())
        after_this_request(window.declare)
        if window.is_exceeded:
            raise TooManyRequests

    def count_identified() -> None:
        # On a public route, and in a preflight, nobody was asked for.
        if "identity" in g:
            count()

    def count_refused(refusal: NotAuthenticated | NotOwner) -> Response:
        # First, since it also notes the reason for the log, whatever becomes of the count.
        answer = answer_failure(refusal)
        try:
            count()
        except TooManyRequests as excess:
            return answer_failure(excess)
        return answer

    app.before_request(count_identified)
    for kind in (NotAuthenticated, NotOwner):
        app.register_error_handler(kind, count_refused)


class Counter:
    """Counts the requests of each caller: in Redis where it has a URL, else and while that is away in this process.

    A window is a minute, say, of the clock, not a minute from the first request on: its number is a part of the key, so
    that one atomic increment says all that is to be known. Safe to use from many threads.
    """

    def __init__(self, limits: Sequence[RateLimitItem], url: str | None) -> None:
        self._limits = limits
        self._memory = Memory()
        # Opens no connection yet; and tries nothing twice, unless it is told to.
        self._redis = RedisStorage(url, key_prefix="todo", wrap_exceptions=True, **OPTIONS) if url else None
        self._lock = Lock()
        self._is_away = False
        self._next_try_at = 0.0

    def hit(self, kind: str, name: str) -> Window:
        """Count a request: the shortest window that is exceeded, or else the one that allows the fewest more."""
        # A name may hold any character; and what is hashed as a user is no address.
        digest = blake2b(name.encode(), digest_size=16, person=kind.encode()).hexdigest()
        now = time()
        windows = []
        for limit in self._limits:
            number, seconds = divmod(now, limit.get_expiry())
            used = self._increment(limit.key_for(digest, int(number)), limit.get_expiry())
            windows.append(Window(limit.amount, used, ceil(limit.get_expiry() - seconds)))
            if windows[-1].is_exceeded:
                # What is refused in this second must not use up the day.
                return windows[-1]
        return min(windows, key=lambda window: (window.remaining, -window.seconds_left))

    def _increment(self, key: str, seconds: int) -> int:
        is_return = self._is_away
        if self._redis and self._is_to_be_tried():
            try:
                used = self._redis.incr(key, seconds)
            except (StorageError, OSError, ValueError) as error:
                self._note_absence(error)
            else:
                if is_return:
                    self._is_away = False
                    logger.info("rate limits: Redis is back")
                return used
        return self._memory.incr(key, seconds)

    def _is_to_be_tried(self) -> bool:
        """Whether to ask Redis: while it is away, one request at a time, and not before the pause is over."""
        if not self._is_away:
            return True
        with self._lock:
            is_due = monotonic() >= self._next_try_at
            if is_due:
                self._next_try_at = monotonic() + PAUSE
            return is_due

    def _note_absence(self, error: Exception) -> None:
        with self._lock:
            self._next_try_at = monotonic() + PAUSE
            is_news, self._is_away = not self._is_away, True
        if is_news:
            # Not its message: Redis repeats the arguments of what it does not know, the password of an AUTH among them.
            kind = type(error.__cause__ or error).__name__
            logger.warning("rate limits: each process counts for itself while Redis cannot be had (%s)", kind)


class Memory:
    """Counts of this process alone, as the storages of `limits` do it. Safe to use from many threads.

    In place of the library's own, which starts a thread at nearly each request to look through all keys, and forgets
    an increment where two threads begin a window at once.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts: dict[str, tuple[int, float]] = {}

    def incr(self, key: str, seconds: int) -> int:
        """Add one to a count that is kept for that long: the sum."""
        now = monotonic()
        with self._lock:
            if len(self._counts) >= MOST_KEYS:
                self._counts = {key: kept for key, kept in self._counts.items() if kept[1] > now}
                if len(self._counts) > MOST_KEYS / 2:
                    # Somebody is refused from many addresses on purpose: rather all begin anew than the memory ends.
                    self._counts.clear()
            used, kept_until = self._counts.get(key, (0, now + seconds))
            self._counts[key] = used + 1, kept_until
            return used + 1


def _caller() -> tuple[str, str]:
    """What kind of name, and the name, of whom the request is counted for."""
    return ("user", current_identity().user_id) if "identity" in g else ("address", network())
