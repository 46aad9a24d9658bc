"""The issuer's key set, fetched over HTTP and kept (RFC 7517). Verifies nothing.

In place of PyJWT's client, which fetches again for each unknown key id, lets known callers wait for a slow fetch, and
fails everybody when the issuer is away at the moment its keys grow old (docs/decisions/key-set.md).
"""

import json
import logging
from collections.abc import Callable, Mapping
from http.client import HTTPException
from threading import Event, Lock, Thread
from time import monotonic
from urllib.request import HTTPRedirectHandler, Request, build_opener

from todo.errors import InvalidCredentials, Unavailable
from todo.identity.keys import VerificationKey, jwk_key

logger = logging.getLogger(__name__)

#: Seconds after which keys are fetched anew, in the background of a request that holds one of them.
LIFETIME = 300.0
#: Seconds that keys are used beyond that while the issuer is away.
GRACE = 3600.0
#: Seconds between two fetches, however many unknown key ids are asked for.
COOLDOWN = 30.0
#: Seconds that one fetch may take.
TIMEOUT = 2.0
SIZE_LIMIT = 1024 * 1024


class KeySet:
    """The keys behind a URL. Safe to use from many threads; opens no connection before the first look-up."""

    def __init__(self, url: str, algorithms: tuple[str, ...], clock: Callable[[], float] = monotonic) -> None:
        self._url = url
        self._algorithms = algorithms
        self._clock = clock
        self._lock = Lock()
        self._keys: Mapping[str | int, VerificationKey] | None = None
        self._fetched_at = 0.0
        self._failures = 0
        self._next_fetch_at = clock()
        self._fetch = _Fetch(started_at=0.0)
        self._fetch.done.set()

    def find(self, kid: str | None) -> VerificationKey:
        """The key of that id; without an id, the only key of a set of one.

        A known key is answered at once. For an unknown one the set is fetched first, unless that was done lately.
        Raises InvalidCredentials where the set does not have it, Unavailable where the set cannot be had.
        """
        key = self._held(kid)
        if key is not None:
            if self._clock() >= self._fetched_at + LIFETIME:
                self._refresh()
            return key
        fetch, is_mine = self._refresh()
        if is_mine or self._current() is None:
            # While keys are held nobody waits for somebody else's fetch: it would slow down known callers.
            fetch.done.wait(TIMEOUT)
        key = self._held(kid)
        if key is not None:
            return key
        if self._failures or not fetch.done.is_set():
            raise Unavailable
        raise InvalidCredentials

    def _held(self, kid: str | None) -> VerificationKey | None:
        keys = self._current() or {}
        if kid is None:
            return next(iter(keys.values())) if len(keys) == 1 else None
        return keys.get(kid)

    def _current(self) -> Mapping[str | int, VerificationKey] | None:
        """The keys, unless there are none yet or they are too old to be used."""
        return self._keys if self._clock() < self._fetched_at + LIFETIME + GRACE else None

    def _refresh(self) -> "tuple[_Fetch, bool]":
        """The latest fetch, and whether this call began it."""
        with self._lock:
            now = self._clock()
            # One that has not ended by its time is given up.
            is_under_way = not self._fetch.done.is_set() and now < self._fetch.started_at + TIMEOUT
            if is_under_way or now < self._next_fetch_at:
                return self._fetch, False
            fetch = self._fetch = _Fetch(started_at=now)
            self._failures += 1  # until it has succeeded
            backoff = COOLDOWN if self._current() is not None else min(2.0**self._failures, COOLDOWN)
            self._next_fetch_at = now + backoff
        Thread(target=self._run, args=(fetch,), name="jwks", daemon=True).start()
        return fetch, True

    def _run(self, fetch: "_Fetch") -> None:
        try:
            keys = self._download()
        except (OSError, HTTPException, ValueError, TypeError, KeyError, RecursionError) as error:
            logger.warning("the key set cannot be had: %s: %s", type(error).__name__, error)
        else:
            with self._lock:
                if fetch is self._fetch:
                    self._keys, self._fetched_at, self._failures = keys, self._clock(), 0
                    self._next_fetch_at = self._clock() + COOLDOWN
        finally:
            fetch.done.set()

    def _download(self) -> Mapping[str | int, VerificationKey]:
        """The usable keys by id. Raises OSError, HTTPException, ValueError, TypeError, KeyError or RecursionError."""
        deadline = self._clock() + TIMEOUT
        body = b""
        # config.py let only http and https through.
        request = Request(self._url, headers={"Accept": "application/json", "User-Agent": "todo"})  # noqa: S310
        with build_opener(_NoRedirect).open(request, timeout=TIMEOUT) as response:
            while chunk := response.read1(SIZE_LIMIT):
                body += chunk
                if len(body) > SIZE_LIMIT or self._clock() > deadline:
                    raise ValueError("the answer is too large, or too slow")
        found = json.loads(body)["keys"]
        if not isinstance(found, list):
            raise TypeError("keys is no array")
        keys: dict[str | int, VerificationKey] = {}
        for place, jwk in enumerate(found):
            if (key := jwk_key(jwk, self._algorithms)) is not None:
                # A key without an id counts, for a set of one, but cannot be asked for: its place stands in.
                kid = jwk.get("kid")
                keys[kid if isinstance(kid, str) else place] = key
        return keys


class _NoRedirect(HTTPRedirectHandler):
    """A redirect would lead to whichever host and scheme the answer names."""

    def redirect_request(self, *_: object) -> None:
        return None


class _Fetch:
    def __init__(self, started_at: float) -> None:
        self.started_at = started_at
        self.done = Event()
