"""The issuer's key set, fetched over HTTP and kept (RFC 7517). Verifies nothing.

In place of PyJWT's client, which lets known callers wait for a slow fetch, fetches again for each unknown key id while
the issuer is away, and fails everybody when its keys grow old at that moment (docs/decisions/key-set.md).
"""

import json
import logging
from collections import deque
from collections.abc import Callable, Mapping
from errno import errorcode
from http.client import HTTPException
from socket import gaierror
from ssl import SSLError
from threading import Event, Lock, Thread
from time import monotonic
from typing import NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from todo.errors import InvalidCredentials, Refusal, Unavailable
from todo.identity.keys import UnusableKey, VerificationKey, jwk_key

logger = logging.getLogger(__name__)

#: Seconds after which keys are fetched anew, in the background of a request that holds one of them.
LIFETIME = 300.0
#: Seconds that keys are used beyond that while the issuer is away.
GRACE = 3600.0
#: After a fetch for an unknown key id that brought no new key, and after one that failed, the next waits 1 s, then 2,
#: 4, 8, and never longer than this. A fetch that brought a new key may be followed by another at once.
LONGEST_PAUSE = 10.0
#: Fetches within LONGEST_PAUSE at most, also where each brings new keys: an issuer may be broken.
MOST_FETCHES = 10
#: Seconds that one fetch may take.
TIMEOUT = 2.0
SIZE_LIMIT = 1024 * 1024
#: How many keys that are left out are named in the log, and how much of the id of each.
MOST_NAMED, LONGEST_ID = 20, 100


class KeySet:
    """The keys behind a URL. Safe to use from many threads; opens no connection before the first look-up."""

    def __init__(self, url: str, algorithms: tuple[str, ...], clock: Callable[[], float] = monotonic) -> None:
        self._url = url
        self._algorithms = algorithms
        self._clock = clock
        self._lock = Lock()
        self._found: _Found | None = None
        self._fetched_at = 0.0
        self._is_failing = False
        self._fruitless = 0
        self._next_fetch_at = clock()
        self._starts: deque[float] = deque(maxlen=MOST_FETCHES)
        self._fetch = _Fetch(started_at=0.0, is_for_unknown=False)
        self._fetch.done.set()

    def find(self, kid: str | None) -> VerificationKey:
        """The key of that id; without an id, the only key of a set of one.

        A known key is answered at once. For an unknown one the set is fetched first, unless that was done lately.
        Raises InvalidCredentials where the set does not have it, Unavailable where the set cannot be fetched.
        """
        key = self._held(kid)
        if key is not None:
            if self._clock() >= self._fetched_at + LIFETIME:
                self._refresh(is_for_unknown=False)
            return key
        fetch, is_mine = self._refresh(is_for_unknown=True)
        if is_mine or self._current() is None:
            # While keys are held nobody waits for somebody else's fetch: it would slow down known callers.
            fetch.done.wait(TIMEOUT)
        key = self._held(kid)
        if key is not None:
            return key
        if self._is_failing or not fetch.done.is_set():
            raise Unavailable
        raise InvalidCredentials(reason=Refusal.UNKNOWN_KEY)

    def fetch_early(self) -> None:
        """Fetch the set in the background, before a token asks for a key; a failure is in the log, and nowhere else."""
        self._refresh(is_for_unknown=False)

    def ids(self) -> list[str]:
        """The ids of the keys that are held."""
        return [kid for kid in self._current() or {} if isinstance(kid, str)]

    def _held(self, kid: str | None) -> VerificationKey | None:
        keys = self._current() or {}
        if kid is None:
            return next(iter(keys.values())) if len(keys) == 1 else None
        return keys.get(kid)

    def _current(self) -> "Mapping[str | int, VerificationKey] | None":
        """The keys, unless there are none yet or they are too old to be used."""
        found = self._found
        return found.keys if found is not None and self._clock() < self._fetched_at + LIFETIME + GRACE else None

    def _refresh(self, *, is_for_unknown: bool) -> "tuple[_Fetch, bool]":
        """The latest fetch, and whether this call began it."""
        with self._lock:
            now = self._clock()
            # One that has not ended by its time is given up.
            is_under_way = not self._fetch.done.is_set() and now < self._fetch.started_at + TIMEOUT
            are_enough = len(self._starts) == MOST_FETCHES and now < self._starts[0] + LONGEST_PAUSE
            if is_under_way or now < self._next_fetch_at or are_enough:
                return self._fetch, False
            if now >= self._next_fetch_at + LONGEST_PAUSE:
                # Nobody has asked for a while.
                self._fruitless = 0
            fetch = self._fetch = _Fetch(now, is_for_unknown)
            self._starts.append(now)
            # Until it has succeeded.
            self._is_failing = True
            self._fruitless += 1
            self._next_fetch_at = now + self._pause()
        Thread(target=self._run, args=(fetch,), name="jwks", daemon=True).start()
        return fetch, True

    def _pause(self) -> float:
        return min(2.0 ** (self._fruitless - 1), LONGEST_PAUSE)

    def _run(self, fetch: "_Fetch") -> None:
        try:
            found = self._download()
        except (OSError, HTTPException, ValueError, TypeError, KeyError, RecursionError) as error:
            logger.warning("JWT_JWKS_URL: the key set cannot be fetched: %s", _describe(error))
        else:
            self._keep(fetch, found)
        finally:
            fetch.done.set()

    def _keep(self, fetch: "_Fetch", found: "_Found") -> None:
        with self._lock:
            if fetch is not self._fetch:
                return
            before, self._found = self._found, found
            self._fetched_at, self._is_failing = self._clock(), False
            if fetch.is_for_unknown and before is not None and not found.contents - before.contents:
                self._next_fetch_at = self._fetched_at + self._pause()
            else:
                self._fruitless, self._next_fetch_at = 0, self._fetched_at
        if before is None or (found.contents, found.left_out) != (before.contents, before.left_out):
            found.log()

    def _download(self) -> "_Found":
        """The keys. Raises OSError, HTTPException, ValueError, TypeError, KeyError or RecursionError."""
        deadline = self._clock() + TIMEOUT
        body = b""
        # config.py let only http and https through.
        request = Request(self._url, headers={"Accept": "application/json", "User-Agent": "todo"})  # noqa: S310
        with build_opener(_NoRedirect).open(request, timeout=TIMEOUT) as response:
            while chunk := response.read1(SIZE_LIMIT):
                body += chunk
                if len(body) > SIZE_LIMIT or self._clock() > deadline:
                    raise _NotAKeySet("the answer is larger than 1 MiB, or too slow")
        jwks = json.loads(body)["keys"]
        if not isinstance(jwks, list):
            raise _NotAKeySet("its keys are not an array")
        keys: dict[str | int, VerificationKey] = {}
        contents: set[str] = set()
        left_out: list[tuple[str, str]] = []
        for place, jwk in enumerate(jwks):
            kid = jwk.get("kid") if isinstance(jwk, dict) else None
            try:
                key = jwk_key(jwk, self._algorithms)
            except UnusableKey as error:
                name = json.dumps(kid[:LONGEST_ID]) if isinstance(kid, str) else f"number {place + 1}, without an id"
                left_out.append((name, str(error)))
                continue
            # A key without an id counts, for a set of one, but cannot be asked for: its place stands in.
            keys[kid if isinstance(kid, str) else place] = key
            contents.add(json.dumps(jwk, sort_keys=True))
        return _Found(keys, frozenset(contents), tuple(left_out))


class _Found(NamedTuple):
    """What a fetch found: the usable keys by id, what they were made of, and the name and fault of each other key."""

    keys: Mapping[str | int, VerificationKey]
    contents: frozenset[str]
    left_out: tuple[tuple[str, str], ...]

    def log(self) -> None:
        """Say which keys are left out, and why."""
        for name, fault in self.left_out[:MOST_NAMED]:
            logger.info("JWT_JWKS_URL: the key %s of the set is left out: %s", name, fault)
        if len(self.left_out) > MOST_NAMED:
            logger.info("JWT_JWKS_URL: %d more keys of the set are left out", len(self.left_out) - MOST_NAMED)
        if not self.keys:
            logger.warning("JWT_JWKS_URL: the key set has no usable key: every token is refused")


class _NotAKeySet(ValueError):
    """The answer is not a key set. The message quotes nothing of it."""


class _NoRedirect(HTTPRedirectHandler):
    """A redirect would lead to whichever host and scheme the answer names."""

    def redirect_request(self, *_: object) -> None:
        return None


class _Fetch:
    def __init__(self, started_at: float, is_for_unknown: bool) -> None:
        self.started_at = started_at
        self.is_for_unknown = is_for_unknown
        self.done = Event()


def _describe(error: Exception) -> str:
    """Why a fetch failed. Not in the words of the exception: they may quote the URL, or what the issuer answered."""
    if isinstance(error, HTTPError):
        return f"the answer has the status {error.code}"
    cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
    kind = type(cause).__name__
    if isinstance(cause, _NotAKeySet):
        return str(cause)
    if isinstance(cause, gaierror):
        return f"{kind}: the host is not found"
    if isinstance(cause, SSLError):
        # A word of OpenSSL's own: CERTIFICATE_VERIFY_FAILED, say.
        return f"{kind}: {cause.reason}"
    word = errorcode.get(cause.errno or 0) if isinstance(cause, OSError) else None
    return f"{kind}: {word}" if word else kind
