"""Conditional requests (RFC 9110 section 13): entity tags of answers, and which versions a request expects.

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
    """A row that bears an id and a version."""

    @property
    def id(self) -> int:
        """Which row."""

    @property
    def version(self) -> int:
        """Which version of it."""


def entity_tag(row: Numbered) -> dict[str, str]:
    """The header with the row's strong entity tag: of its id and version alone, so that no answer has to be read."""
    return {"ETag": f'"{row.id}-{row.version}"'}


def expected_of(row_id: int) -> Expected | None:
    """What the request at hand expects of that row's version in If-Match and If-None-Match; None where nothing.

    An If-Match that holds no entity tag, or none of that row, expects a version that does not exist: a condition that
    cannot be understood is not one that holds.
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
    """The answer, or 304 without its body where If-None-Match names it.

    An answer without an entity tag gets a weak one, of its body and of the link to the next page. The caller's browser
    may keep it, but must ask each time (RFC 9111 section 5.2.2).
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
    # Werkzeug's value of the empty tag, "", is None.
    parts = filter(None, (_TAG.fullmatch(tag or "") for tag in tags))
    versions = [int(version) for number, version in (part.groups() for part in parts) if int(number) == row_id]
    return [version for version in versions if version <= _LARGEST_VERSION]
