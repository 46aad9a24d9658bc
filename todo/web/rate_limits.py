"""RATE_LIMIT: how often a user may call, and how often an address may be refused. Knows no route, uses no database.

The headers are those of draft-ietf-httpapi-ratelimit-headers up to -06, which most servers send. Later drafts replaced
them by RateLimit and RateLimit-Policy, and changed their syntax several times (docs/decisions/rate-limits.md).
"""

import logging
from collections.abc import Callable, Sequence
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

#: Seconds that Redis may take to accept a connection, and to answer.
TIMEOUT = 0.25
#: The most counts that this process keeps, about 25 MB.
MOST_KEYS = 100_000
#: Options of redis-py. With driver_info=None it does not send its name and version, which saves two commands.
OPTIONS: dict[str, Any] = {"socket_connect_timeout": TIMEOUT, "socket_timeout": TIMEOUT, "driver_info": None}
#: Seconds without another attempt after Redis was unavailable.
PAUSE = 5.0


class Window(NamedTuple):
    """What a caller has used of a window of time."""

    limit: int
    used: int
    seconds_left: int

    @property
    def remaining(self) -> int:
        """How many more requests the window allows."""
        return max(self.limit - self.used, 0)

    @property
    def is_exceeded(self) -> bool:
        """Whether the last request was one too many."""
        return self.used > self.limit

    def declare(self, response: Response) -> Response:
        """Add the headers to the response, and return it."""
        response.headers["RateLimit-Limit"] = str(self.limit)
        response.headers["RateLimit-Remaining"] = str(self.remaining)
        response.headers["RateLimit-Reset"] = str(self.seconds_left)
        if self.is_exceeded:
            response.headers["Retry-After"] = str(self.seconds_left)
        return response


def init_app(app: Flask, settings: Settings) -> "Counter | None":
    """Limit identified and refused requests; call it after the identity hook. Does nothing if RATE_LIMIT is unset.

    Returns the counter if Redis counts.
    """
    if not settings.rate_limits:
        return None
    counter = Counter(settings.rate_limits, settings.rate_limit_storage)

    def count() -> None:
        window = counter.hit(*_caller())
        after_this_request(window.declare)
        if window.is_exceeded:
            raise TooManyRequests

    def count_identified() -> None:
        # Public routes and preflights have no identity, and are not counted.
        if "identity" in g:
            count()

    def count_refused(refusal: NotAuthenticated | NotOwner) -> Response:
        # This comes first, because it also stores the reason for the log.
        answer = answer_failure(refusal)
        try:
            count()
        except TooManyRequests as excess:
            return answer_failure(excess)
        return answer

    app.before_request(count_identified)
    for kind in (NotAuthenticated, NotOwner):
        app.register_error_handler(kind, count_refused)
    return counter if settings.rate_limit_storage else None


class Counter:
    """Counts the requests of each caller: in Redis if it has a URL, otherwise in this process. Thread-safe.

    While Redis is unavailable, it also counts in this process. Windows are fixed: a window of a minute begins with each
    minute of the clock, not with the first request. Its number is part of the key, so one atomic increment is enough.
    """

    def __init__(self, limits: Sequence[RateLimitItem], url: str | None) -> None:
        self._limits = limits
        self._memory = Memory()
        # This opens no connection. A command that fails is not repeated.
        self._redis = RedisStorage(url, key_prefix="todo", wrap_exceptions=True, **OPTIONS) if url else None
        self._lock = Lock()
        self._is_unavailable = False
        self._next_try_at = 0.0
        self._tell: Callable[[bool], Any] = lambda _: None

    def observe(self, tell: Callable[[bool], Any]) -> None:
        """Call `tell` when this process begins to count for itself (True), and when Redis is back (False)."""
        self._tell = tell

    def hit(self, kind: str, name: str) -> Window:
        """Count a request. Return the shortest exceeded window, or else the one with the fewest requests left."""
        # A name may contain any character. `person` keeps users and addresses of the same name apart.
        digest = blake2b(name.encode(), digest_size=16, person=kind.encode()).hexdigest()
        now = time()
        windows = []
        for limit in self._limits:
            number, seconds = divmod(now, limit.get_expiry())
            used = self._increment(limit.key_for(digest, int(number)), limit.get_expiry())
            windows.append(Window(limit.amount, used, ceil(limit.get_expiry() - seconds)))
            if windows[-1].is_exceeded:
                # A request that this window refuses must not count in the longer ones.
                return windows[-1]
        return min(windows, key=lambda window: (window.remaining, -window.seconds_left))

    def _increment(self, key: str, seconds: int) -> int:
        was_unavailable = self._is_unavailable
        if self._redis and self._may_try():
            try:
                used = self._redis.incr(key, seconds)
            except (StorageError, OSError, ValueError) as error:
                self._note_failure(error)
            else:
                if was_unavailable:
                    self._is_unavailable = False
                    self._tell(False)
                    logger.info("rate limits: Redis is back")
                return used
        return self._memory.incr(key, seconds)

    def _may_try(self) -> bool:
        """Whether to ask Redis. While it is unavailable, one request tries again after each pause."""
        if not self._is_unavailable:
            return True
        with self._lock:
            is_due = monotonic() >= self._next_try_at
            if is_due:
                self._next_try_at = monotonic() + PAUSE
            return is_due

    def _note_failure(self, error: Exception) -> None:
        with self._lock:
            self._next_try_at = monotonic() + PAUSE
            is_first, self._is_unavailable = not self._is_unavailable, True
        if is_first:
            # Not the message: Redis quotes the arguments of an unknown command, such as the password of AUTH.
            kind = type(error.__cause__ or error).__name__
            self._tell(True)
            logger.warning("rate limits: each process counts for itself while Redis is unavailable (%s)", kind)


class Memory:
    """Counts in this process, with the interface of a storage of `limits`. Thread-safe.

    The MemoryStorage of `limits` starts a thread at nearly every request to look through all keys. It also loses an
    increment if two threads begin a window at once.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts: dict[str, tuple[int, float]] = {}

    def incr(self, key: str, seconds: int) -> int:
        """Add one to a count, and return it. A new count is kept for `seconds`."""
        now = monotonic()
        with self._lock:
            if len(self._counts) >= MOST_KEYS:
                self._counts = {key: kept for key, kept in self._counts.items() if kept[1] > now}
                if len(self._counts) > MOST_KEYS / 2:
                    # An attack from many addresses. All counts start again, so that the memory stays bounded.
                    self._counts.clear()
            used, kept_until = self._counts.get(key, (0, now + seconds))
            self._counts[key] = used + 1, kept_until
            return used + 1


def _caller() -> tuple[str, str]:
    """Return the caller that the request counts for: the kind of caller, and the name."""
    return ("user", current_identity().user_id) if "identity" in g else ("address", network())
