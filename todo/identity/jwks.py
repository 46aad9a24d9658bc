"""The issuer's key set (RFC 7517), fetched over HTTP and cached. Verifies nothing.

PyJWT's client is not used: its cooldown counts from successful fetches only, so that an unreachable issuer is asked for
each unknown key id; known keys wait for a slow fetch; and an expired set refuses every token until the issuer answers
(docs/decisions/key-set.md).
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping
from errno import errorcode
from http.client import HTTPException
from socket import gaierror
from ssl import SSLError
from threading import Event, Lock, Thread
from time import monotonic
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from todo.errors import InvalidCredentials, Unavailable
from todo.identity.keys import VerificationKey
from todo.identity.published_keys import NotAKeySet, PublishedKeys, read_key_set
from todo.refusals import Refusal

logger = logging.getLogger(__name__)

#: Seconds after which the set is fetched again, in the background of a request with a known key.
LIFETIME = 300.0
#: Seconds for which known keys stay in use after that, while the issuer is unreachable.
GRACE = 3600.0
#: The longest pause, in seconds. After a fetch that failed, or that was made for an unknown key and brought no new key,
#: the pause is 1 s, then 2, 4, 8 and this. After a fetch that brought a new key there is none. A key is unknown if its
#: id is, or if the key that we have under its id did not sign the token.
LONGEST_PAUSE = 10.0
#: Fetches within LONGEST_PAUSE at most: a broken issuer may send new keys each time.
MOST_FETCHES = 10
#: Seconds that one fetch may take.
TIMEOUT = 2.0
SIZE_LIMIT = 1024 * 1024


class KeySet:
    """The keys at a URL. Thread-safe. Opens no connection before find() or fetch_early()."""

    def __init__(self, url: str, algorithms: tuple[str, ...], clock: Callable[[], float] = monotonic) -> None:
        self._url = url
        self._algorithms = algorithms
        self._clock = clock
        self._lock = Lock()
        self._found: PublishedKeys | None = None
        self._fetched_at = 0.0
        self._is_failing = False
        self._fruitless = 0
        self._next_fetch_at = clock()
        self._starts: deque[float] = deque(maxlen=MOST_FETCHES)
        self._fetch = _Fetch(started_at=0.0, is_for_unknown=False, is_retry=False)
        self._fetch.done.set()
        self._tell: Callable[[bool], Any] = lambda _: None

    def observe(self, tell: Callable[[bool], Any]) -> None:
        """Call `tell` after each fetch, with whether its keys are now in use. It may be called in another thread."""
        self._tell = tell

    def find(self, kid: str | None) -> VerificationKey:
        """The key with that id; without an id, the only key of a set of one.

        Returns a known key at once. For an unknown one the set is fetched first, unless it just was.
        Raises InvalidCredentials if the set does not have the key, and Unavailable if the set cannot be fetched or
        another caller is fetching it.
        """
        key = self._cached(kid)
        if key is not None:
            return key
        fetch, is_mine = self._refresh(is_for_unknown=True)
        if is_mine or (self._current() is None and not fetch.is_retry):
            # Each wait holds a thread, so a caller waits for its own fetch only. While there are no keys, all wait for
            # the first fetch, but for no retry: a silent issuer would hold all threads again and again.
            fetch.done.wait(fetch.started_at + TIMEOUT - self._clock())
        # Before the look-up: a fetch that ends during it may have brought the key.
        is_answered = fetch.done.is_set() and not self._is_failing
        key = self._cached(kid)
        if key is not None:
            return key
        if is_answered:
            raise InvalidCredentials(reason=Refusal.UNKNOWN_KEY)
        raise Unavailable

    def find_newer(self, kid: str | None, key: VerificationKey) -> VerificationKey | None:
        """The key with that id if the issuer has replaced `key`, which did not sign a token; None if it has not.

        The set is fetched first, unless it just was. Raises Unavailable if another caller is fetching it.
        """
        newer = self._newer(kid, key)
        if newer is not None:
            return newer
        fetch, is_mine = self._refresh(is_for_unknown=True)
        if is_mine:
            fetch.done.wait(fetch.started_at + TIMEOUT - self._clock())
        elif self._is_under_way(fetch):
            raise Unavailable
        return self._newer(kid, key)

    def refresh_if_old(self) -> None:
        """Fetch the set in the background if the keys are LIFETIME old. Call it when a key has verified a token.

        Not before: the same call may need a fetch that it can wait for.
        """
        if self._clock() >= self._fetched_at + LIFETIME:
            self._refresh(is_for_unknown=False)

    def fetch_early(self) -> None:
        """Fetch the set in the background, before a token needs a key. A failure is only logged."""
        self._refresh(is_for_unknown=False)

    def ids(self) -> list[str]:
        """The ids of the cached keys."""
        return [kid for kid in self._current() or {} if isinstance(kid, str)]

    def _cached(self, kid: str | None) -> VerificationKey | None:
        keys = self._current() or {}
        if kid is None:
            return next(iter(keys.values())) if len(keys) == 1 else None
        return keys.get(kid)

    def _newer(self, kid: str | None, key: VerificationKey) -> VerificationKey | None:
        """The cached key with that id, unless it is the same key."""
        found = self._cached(kid)
        is_same = found is None or (found.key, found.algorithms) == (key.key, key.algorithms)
        return None if is_same else found

    def _current(self) -> "Mapping[str | int, VerificationKey] | None":
        """The cached keys, or None if there are none yet or they are too old."""
        found = self._found
        return found.keys if found is not None and self._clock() < self._fetched_at + LIFETIME + GRACE else None

    def _refresh(self, *, is_for_unknown: bool) -> "tuple[_Fetch, bool]":
        """Return the latest fetch, and whether this call started it."""
        with self._lock:
            now = self._clock()
            is_at_limit = len(self._starts) == MOST_FETCHES and now < self._starts[0] + LONGEST_PAUSE
            if self._is_under_way(self._fetch) or now < self._next_fetch_at or is_at_limit:
                return self._fetch, False
            if now >= self._next_fetch_at + LONGEST_PAUSE:
                # No look-up was held back for a while: the pauses begin at 1 s again.
                self._fruitless = 0
            fetch = self._fetch = _Fetch(now, is_for_unknown, is_retry=self._fruitless > 0)
            self._starts.append(now)
            # _keep() resets this on success.
            self._is_failing = True
            self._fruitless += 1
            self._next_fetch_at = now + self._pause()
        Thread(target=self._run, args=(fetch,), name="jwks", daemon=True).start()
        return fetch, True

    def _is_under_way(self, fetch: "_Fetch") -> bool:
        """Whether the fetch has not ended. One that exceeds TIMEOUT is given up."""
        return not fetch.done.is_set() and self._clock() < fetch.started_at + TIMEOUT

    def _pause(self) -> float:
        return min(2.0 ** (self._fruitless - 1), LONGEST_PAUSE)

    def _run(self, fetch: "_Fetch") -> None:
        is_kept = False
        try:
            found = self._download()
        except (OSError, HTTPException, ValueError, TypeError, KeyError, RecursionError) as error:
            logger.warning("JWT_JWKS_URL: the key set cannot be fetched: %s", _describe(error))
        else:
            is_kept = self._keep(fetch, found)
        finally:
            fetch.done.set()
            self._tell(is_kept)

    def _keep(self, fetch: "_Fetch", found: PublishedKeys) -> bool:
        """Use these keys from now on. Returns False if the fetch took so long that another one has begun."""
        with self._lock:
            if fetch is not self._fetch:
                return False
            before, self._found = self._found, found
            self._fetched_at, self._is_failing = self._clock(), False
            if fetch.is_for_unknown and before is not None and not found.contents - before.contents:
                self._next_fetch_at = self._fetched_at + self._pause()
            else:
                self._fruitless, self._next_fetch_at = 0, self._fetched_at
        if before is None or (found.contents, found.left_out) != (before.contents, before.left_out):
            found.log()
        return True

    def _download(self) -> PublishedKeys:
        """Fetch the keys. Raises OSError, HTTPException, ValueError, TypeError, KeyError or RecursionError."""
        deadline = self._clock() + TIMEOUT
        body = b""
        # config.py accepts http and https only.
        request = Request(self._url, headers={"Accept": "application/json", "User-Agent": "todo"})  # noqa: S310
        with build_opener(_NoRedirect).open(request, timeout=TIMEOUT) as response:
            while chunk := response.read1(SIZE_LIMIT):
                body += chunk
                if len(body) > SIZE_LIMIT or self._clock() > deadline:
                    raise NotAKeySet("the answer is larger than 1 MiB, or too slow")
        return read_key_set(body, self._algorithms)


class _NoRedirect(HTTPRedirectHandler):
    """Follows no redirect: it could name any host and scheme."""

    def redirect_request(self, *_: object) -> None:
        return None


class _Fetch:
    """A fetch of the set. is_retry: whether it follows one, not long ago, that failed or brought no new key."""

    def __init__(self, started_at: float, is_for_unknown: bool, *, is_retry: bool) -> None:
        self.started_at = started_at
        self.is_for_unknown = is_for_unknown
        self.is_retry = is_retry
        self.done = Event()


def _describe(error: Exception) -> str:
    """Why a fetch failed. Not the exception's message, which may quote the URL or the response."""
    if isinstance(error, HTTPError):
        return f"the answer has the status {error.code}"
    cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
    kind = type(cause).__name__
    if isinstance(cause, NotAKeySet):
        return str(cause)
    if isinstance(cause, gaierror):
        return f"{kind}: the host is not found"
    if isinstance(cause, SSLError):
        # A name of OpenSSL, such as CERTIFICATE_VERIFY_FAILED.
        return f"{kind}: {cause.reason}"
    word = errorcode.get(cause.errno or 0) if isinstance(cause, OSError) else None
    return f"{kind}: {word}" if word else kind
