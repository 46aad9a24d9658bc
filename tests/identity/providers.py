"""Identity providers as somebody else would write them, for IDENTITY_PROVIDER=tests.identity.providers:..."""

import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from flask import Request
from werkzeug.exceptions import Unauthorized

from todo.errors import InvalidCredentials, Unavailable
from todo.identity import Identity
from todo.refusals import Refusal

NOT_CALLABLE = "by_header"


def by_header(request: Request) -> Identity | None:
    """Whom the header names, as a gateway in front of the service would set it."""
    user_id = request.headers.get("X-User")
    return None if user_id is None else Identity(user_id, request.headers.get("X-Email"), {"via": ["gateway"]})


class Gateway:
    """A provider that is a method, to be found by a dotted name."""

    @staticmethod
    def identify(request: Request) -> Identity | None:
        return by_header(request)


def returning(value: Any) -> Callable[[Request], Any]:
    """A provider that returns that."""
    return lambda _request: value


def raising(error: Callable[[], Exception], cause: Exception | None = None) -> Callable[[Request], Any]:
    """A provider that raises such an error."""

    def provider(_request: Request) -> None:
        raise error() from cause

    return provider


nobody = returning(None)
a_string = returning("alice-of-secrets")
a_truth = returning(True)
a_dictionary = returning({"user_id": "alice", "secret": "alice-of-secrets"})
a_lookalike = returning(SimpleNamespace(user_id="alice", email=None, claims={}))
refusing = raising(InvalidCredentials)
refusing_for_a_reason = raising(partial(InvalidCredentials, reason=Refusal.EXPIRED))
refusing_in_its_own_words = raising(partial(InvalidCredentials, reason="alice-of-secrets"))  # type: ignore[arg-type]
quoting = raising(partial(InvalidCredentials, "alice-of-secrets"))
aborting = raising(partial(Unauthorized, "alice-of-secrets"))
broken = raising(partial(RuntimeError, "alice-of-secrets"))
away = raising(Unavailable)
away_in_its_own_words = raising(partial(Unavailable, "alice-of-secrets"))
away_by_url = raising(Unavailable, ConnectionError("https://issuer.example/introspect?token=alice-of-secrets"))


def impossible(_request: Request) -> Identity:
    """A user id that nobody can have."""
    return Identity("..")


def slow_nobody(_request: Request) -> None:
    """No identity, after a while."""
    time.sleep(0.4)


def slow_somebody(_request: Request) -> Identity:
    """Alice, after a while."""
    time.sleep(0.4)
    return Identity("alice")
