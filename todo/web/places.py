"""Limits how long one caller may hold threads of this process. Knows no route, and uses no database.

A caller is a user. Each has two accounts (todo/web/accounts.py): one for slow requests, one for searches. A check
without identity that may wait counts for the client's address, in an account like the first. Reasons:
docs/decisions/places.md.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import cast

from flask import Flask, current_app
from sqlalchemy import Engine, QueuePool, event

from config import Settings
from todo.identity import known_identity
from todo.web.accounts import Accounts, Place, Places, Searches
from todo.web.addresses import network


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
    hooks = _Hooks(settings.threads, engine, was_lost_since)
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
    """Wait until it is the caller's turn, and hold the turn for the block. Raises TooManyAtOnce and Unavailable."""
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


def _pool(engine: Engine) -> QueuePool:
    return cast(QueuePool, engine.pool)


def _free(engine: Engine) -> int:
    """Return how many connections nobody uses. One that is being opened is in use."""
    return _pool(engine).size() - _pool(engine).checkedout()


class _Hooks:
    """The steps in the life of a request's place, in order."""

    def __init__(self, threads: int, engine: Engine, was_lost_since: Callable[[float], bool]) -> None:
        self._users, self.searches = Places(threads), Searches(lambda: _free(engine), _pool(engine).timeout())
        self._was_lost_since = was_lost_since
        self._is_sqlite = engine.dialect.name == "sqlite"

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

    def leave(self, accounts: Accounts, place: Place) -> None:
        """Give the place back. It costs nothing if the database stopped answering: that is not the user's fault."""
        accounts.leave(place, is_excused=place.since is not None and self._was_lost_since(place.since))
