"""Conditional requests (RFC 9110 section 13): the entity tags of answers, and the versions that a request expects.

Knows no resource.
"""

import re
from collections.abc import Iterable
from hashlib import sha1
from typing import Protocol

from flask import Response, request

from todo.expected import Expected

_TAG = re.compile(r"([1-9][0-9]{0,18})-([1-9][0-9]{0,18})")
_LARGEST_VERSION = 2**63 - 1


class Numbered(Protocol):
    """A row that has an id and a version."""

    @property
    def id(self) -> int:
        """Its id."""

    @property
    def version(self) -> int:
        """Its version: 1 plus the number of changes."""


def entity_tag(row: Numbered) -> dict[str, str]:
    """Return the ETag header of a row. The tag is strong, and is made only from the id and the version."""
    return {"ETag": f'"{row.id}-{row.version}"'}


def expected_of(row_id: int) -> Expected | None:
    """Return the versions of the row that If-Match and If-None-Match of this request expect; None without either.

    An unparsable If-Match never matches. Neither does one that has no entity tag of this row.
    """
    if_match, if_none_match = (request.environ.get(name) for name in ("HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"))
    if if_match is None and if_none_match is None:
        return None
    # If-Match compares strongly, If-None-Match weakly (RFC 9110 section 8.8.3.2).
    is_any = if_match is None or request.if_match.star_tag
    wanted = None if is_any else _versions(row_id, request.if_match.as_set())
    if request.if_none_match.star_tag:
        return Expected(wanted=())
    return Expected(wanted, _versions(row_id, request.if_none_match.as_set(include_weak=True)))


def revalidated(response: Response) -> Response:
    """Return the response, or a 304 without a body if If-None-Match names its entity tag.

    A response without an entity tag gets a weak one, made from its body and its `Link`. The browser may store the
    response, but must ask the service before it reuses it (RFC 9111 section 5.2.2).
    """
    response.headers["Cache-Control"] = "private, no-cache"
    if "ETag" not in response.headers:
        digest = sha1(response.get_data() + response.headers.get("Link", "").encode(), usedforsecurity=False)
        response.set_etag(digest.hexdigest(), weak=True)
    if "HTTP_IF_NONE_MATCH" in request.environ and request.if_none_match.contains_weak(str(response.get_etag()[0])):
        response.status_code = 304
        response.set_data(b"")
    return response


def _versions(row_id: int, tags: Iterable[str | None]) -> list[int]:
    # Werkzeug returns None for the empty tag, "".
    parts = filter(None, (_TAG.fullmatch(tag or "") for tag in tags))
    versions = [int(version) for number, version in (part.groups() for part in parts) if int(number) == row_id]
    return [version for version in versions if version <= _LARGEST_VERSION]
