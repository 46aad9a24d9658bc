"""The authenticated caller as a plain value, and the type of a provider. Knows neither the app nor the database."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from flask import Request

USER_ID_LIMIT = 255
EMAIL_LIMIT = 320

# Control characters, lone surrogates, the slash (WSGI decodes %2F before routing), and U+FFFD, which stands for bytes
# that are not UTF-8.
_IMPOSSIBLE = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff/\ufffd]")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class InvalidIdentity(Exception):
    """The value is not a valid user id."""


@dataclass(frozen=True, slots=True)
class Identity:
    """An authenticated caller.

    user_id: 1 to 255 code points, compared exactly. email: the claim, or None if it cannot be stored. claims: what else
    the provider verified, read-only. Raises InvalidIdentity if user_id is not valid.
    """

    user_id: str
    email: str | None = None
    claims: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not _is_user_id(self.user_id):
            raise InvalidIdentity("not a valid user id")
        if not _is_email(self.email):
            object.__setattr__(self, "email", None)
        object.__setattr__(self, "claims", MappingProxyType(dict(self.claims)))


#: Returns the sender of the request, or None if there is none. May raise InvalidCredentials or Unavailable
#: (todo/errors.py).
Provider = Callable[[Request], Identity | None]


def _is_user_id(value: object) -> bool:
    return (
        isinstance(value, str)
        and 1 <= len(value) <= USER_ID_LIMIT
        and value not in (".", "..")
        and not _IMPOSSIBLE.search(value)
    )


def _is_email(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= EMAIL_LIMIT and not _UNSTORABLE.search(value)
