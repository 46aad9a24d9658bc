"""Conditional requests (RFC 9110 section 13): the entity tags of answers, and what a request expects of a row.

All tags are made of the clock of the user (docs/decisions/clock.md). Knows no resource.
"""

import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Protocol

from flask import Response, request

from todo.expected import Expected
from todo.instants import to_microseconds
from todo.pages import UserClock
from todo.web.schemas import INSTANT

_TAG = re.compile(r"([1-9][0-9]{0,18})@([^@]+)")
_INSTANT = re.compile(INSTANT, re.ASCII)
#: The clock in the tag of a user who has never created anything.
_NEVER = "never"
#: A part of each digest of a representation. Increment it if answers change in another way than by their fields.
_REPRESENTATION = 1


class Changing(Protocol):
    """A row that has an id, and the instant of its last change."""

    @property
    def id(self) -> int:
        """Its id."""

    @property
    def updated_at(self) -> str:
        """When it was changed last, by the clock of its owner: no two changes have the same instant."""


def entity_tag(row: Changing) -> dict[str, str]:
    """Return the ETag header of a row. The tag is strong, and a client can make it from the row."""
    return {"ETag": f'"{row.id}@{row.updated_at}"'}


def expected_of(row_id: int) -> Expected | None:
    """Return what If-Match and If-None-Match of this request expect of the row; None without either.

    An unparsable If-Match never matches. Neither does one that has no entity tag of this row.
    """
    if_match, if_none_match = (request.environ.get(name) for name in ("HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"))
    if if_match is None and if_none_match is None:
        return None
    # If-Match compares strongly, If-None-Match weakly (RFC 9110 section 8.8.3.2).
    is_any = if_match is None or request.if_match.star_tag
    wanted = None if is_any else _instants(row_id, request.if_match.as_set())
    if request.if_none_match.star_tag:
        return Expected(wanted=())
    return Expected(wanted, _instants(row_id, request.if_none_match.as_set(include_weak=True)))


def representation_of(fields: Sequence[str]) -> str:
    """Return a digest of how rows are shown: a page that gains a field must not be a 304."""
    return sha256(repr([_REPRESENTATION, *fields]).encode()).hexdigest()[:8]


def page_tag(clock: UserClock | None, representation: str) -> dict[str, str]:
    """Return the ETag header of a page. The tag is weak: it changes with every change of what the user owns."""
    return {"ETag": f'W/"{clock.changed_at if clock else _NEVER}-{representation}"'}


def known_clock(representation: str) -> str | None:
    """Return the clock in a page's tag of If-None-Match. None without one of this representation.

    Of several tags it is any; revalidated() compares all of them.
    """
    if "HTTP_IF_NONE_MATCH" not in request.environ:
        return None
    for tag in request.if_none_match.as_set(include_weak=True):
        clock, _, digest = (tag or "").rpartition("-")
        if digest == representation and _is_instant(clock):
            return clock
    return None


def revalidated(response: Response) -> Response:
    """Return the response, or a 304 without a body if If-None-Match names its entity tag.

    The browser may store the response, but must ask the service before it reuses it (RFC 9111 section 5.2.2).
    """
    response.headers["Cache-Control"] = "private, no-cache"
    if "HTTP_IF_NONE_MATCH" in request.environ and request.if_none_match.contains_weak(str(response.get_etag()[0])):
        response.status_code = 304
        response.set_data(b"")
    return response


def _instants(row_id: int, tags: Iterable[str | None]) -> list[str]:
    # Werkzeug returns None for the empty tag, "".
    parts = (found.groups() for found in (_TAG.fullmatch(tag or "") for tag in tags) if found)
    return [instant for number, instant in parts if int(number) == row_id and _is_instant(instant)]


def _is_instant(text: str) -> bool:
    if not _INSTANT.fullmatch(text):
        return False
    try:
        to_microseconds(text)
    except ValueError:
        return False
    return True
