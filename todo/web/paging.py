"""Pages of a list: the opaque cursor, the Link header, and the size of a page."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from flask import url_for
from msgspec import Raw, json

from todo.instants import from_microseconds, to_microseconds
from todo.web.opaque import Opaque

#: The most bytes of JSON on a page. A single row may exceed it.
PAGE_BYTES = 1024 * 1024

# created_at in microseconds since 1970, and id. A cursor belongs to a user and to filters.
_CURSOR = Opaque("qq", 8, "Invalid cursor")


def encode_cursor(user_id: str, filters: Sequence[str | int | None], created_at: str, row_id: int) -> str:
    """Return the cursor for what follows the row, in the user's list with these filters."""
    return _CURSOR.encode([user_id, *filters], to_microseconds(created_at), row_id)


def decode_cursor(user_id: str, filters: Sequence[str | int | None], cursor: str) -> tuple[str, int]:
    """Return the (created_at, id) of a cursor.

    Raises InvalidInput unless encode_cursor() made it for this user and these filters. With other filters the list
    would start in the middle, and nobody would notice.
    """
    return _CURSOR.decode([user_id, *filters], cursor, lambda instant, row_id: (from_microseconds(instant), row_id))


def next_link(endpoint: str, user_id: str, query: Mapping[str, Any], cursor: str) -> dict[str, str]:
    """Return the Link header for the next page with the same query (RFC 8288).

    The link has no host, so the Host header cannot change it.
    """
    return {"Link": f'<{url_for(endpoint, **{**query, "user_id": user_id, "cursor": cursor})}>; rel="next"'}


def fit(rows: Sequence[Any], limit: int) -> tuple[int, Raw]:
    """Return how many of the first rows fit on a page, at most `limit` and at least one, and their JSON."""
    rows = rows[:limit]
    encoded = json.encode(rows)
    if len(encoded) >= PAGE_BYTES:
        sizes = accumulate(len(json.encode(row)) + 1 for row in rows)
        # Two more bytes for the brackets. The last row has no comma, but the page ends with a line feed.
        rows = rows[: max(1, sum(size + 2 <= PAGE_BYTES for size in sizes))]
        encoded = json.encode(rows)
    return len(rows), Raw(encoded)
