"""The caller as a plain value, and the shape of what makes one. Knows no Flask app and no database."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from flask import Request

USER_ID_LIMIT = 255
EMAIL_LIMIT = 320

# Control characters, lone surrogates, what a path cannot carry, and what stands for bytes that are not UTF-8.
_IMPOSSIBLE = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff/\ufffd]")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class InvalidIdentity(Exception):
    """The user id is one that nobody can have."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody who is known to be who they say.

    user_id: 1 to 255 code points, compared exactly; email: the claim, or None where it is not fit to be kept; claims:
    whatever else the provider verified, read-only. Raises InvalidIdentity for a user_id that cannot be one.
    """

    user_id: str
    email: str | None = None
    claims: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not _is_user_id(self.user_id):
            raise InvalidIdentity("the user id cannot be one")
        if not _is_email(self.email):
            object.__setattr__(self, "email", None)
        object.__setattr__(self, "claims", MappingProxyType(dict(self.claims)))


#: Says who sends the request; None is nobody. May raise InvalidCredentials or Unavailable (todo/errors.py).
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
