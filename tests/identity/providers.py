"""Identity providers as somebody else would write them, for IDENTITY_PROVIDER=tests.identity.providers:..."""

import time
from types import SimpleNamespace
from typing import Any

from flask import Request, abort

from todo.errors import InvalidCredentials, Refusal, Unavailable
from todo.identity import Identity

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


def nobody(_request: Request) -> None:
    """No identity, ever."""


def a_string(_request: Request) -> Any:
    return "alice-of-secrets"


def a_truth(_request: Request) -> Any:
    return True


def a_dictionary(_request: Request) -> Any:
    return {"user_id": "alice", "secret": "alice-of-secrets"}


def a_lookalike(_request: Request) -> Any:
    return SimpleNamespace(user_id="alice", email=None, claims={})


def impossible(_request: Request) -> Identity:
    return Identity("..")


def refusing(_request: Request) -> Identity:
    raise InvalidCredentials


def aborting(_request: Request) -> Identity:
    abort(401, "alice-of-secrets")


def broken(_request: Request) -> Identity:
    raise RuntimeError("alice-of-secrets")


def away(_request: Request) -> Identity:
    raise Unavailable


def away_by_url(_request: Request) -> Identity:
    try:
        raise ConnectionError("https://issuer.example/introspect?token=alice-of-secrets")
    except ConnectionError as error:
        raise Unavailable from error


def away_in_its_own_words(_request: Request) -> Identity:
    raise Unavailable("alice-of-secrets")


def quoting(_request: Request) -> Identity:
    raise InvalidCredentials("alice-of-secrets")


def refusing_for_a_reason(_request: Request) -> Identity:
    raise InvalidCredentials(reason=Refusal.EXPIRED)


def refusing_in_its_own_words(_request: Request) -> Any:
    raise InvalidCredentials(reason="alice-of-secrets")  # type: ignore[arg-type]


def slow_nobody(_request: Request) -> None:
    """No identity, after a while."""
    time.sleep(0.6)


def slow_somebody(request: Request) -> Identity | None:
    """Whom the header names, after a while: as when the signing keys are fetched."""
    time.sleep(0.6)
    return by_header(request)
