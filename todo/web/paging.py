"""The opaque cursor of a list: the place of its last row, bound to the list that it came from. Knows no database."""

import base64
import hashlib
import json
import struct

from todo.errors import InvalidInput
from todo.instants import from_microseconds, to_microseconds

# Microseconds since 1970, id, and the digest of owner and filters.
_LAYOUT = struct.Struct(">qq8s")
_INVALID = "Invalid cursor"


def encode_cursor(user_id: str, status: str | None, q: str | None, created_at: str, row_id: int) -> str:
    """The cursor after that row in the user's list under these filters: URL-safe base64 (RFC 4648 section 5)."""
    place = _LAYOUT.pack(to_microseconds(created_at), row_id, _digest(user_id, status, q))
    return base64.urlsafe_b64encode(place).decode()


def decode_cursor(user_id: str, status: str | None, q: str | None, cursor: str) -> tuple[str, int]:
    """The (created_at, id) that the cursor stands for.

    Raises InvalidInput for anything that encode_cursor did not make for this user and these filters: with others the
    list would begin somewhere in its middle, and nobody would notice.
    """
    try:
        place = base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True)
        microseconds, row_id, _ = _LAYOUT.unpack(place)
        created_at = from_microseconds(microseconds)
    except (ValueError, OverflowError, struct.error) as error:
        raise InvalidInput(_INVALID) from error
    if cursor != encode_cursor(user_id, status, q, created_at, row_id):
        raise InvalidInput(_INVALID)
    return created_at, row_id


def _digest(user_id: str, status: str | None, q: str | None) -> bytes:
    # Against mistakes, not against forgery: whoever makes up a cursor still sees only what is theirs.
    return hashlib.sha256(json.dumps([user_id, status, q or None]).encode()).digest()[:8]
