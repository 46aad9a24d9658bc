"""The change feed (docs/sync.md): its opaque tokens, and what follows from one. Knows no resource."""

from dataclasses import dataclass
from typing import Any

from marshmallow import Schema, fields

from todo.errors import SyncTokenGone
from todo.instants import from_microseconds, to_microseconds
from todo.pages import Page, PageWanted
from todo.web.opaque import Opaque
from todo.web.paging import PAGE_BYTES, fit
from todo.web.schemas import LARGEST_ID, Output, RowSchema

# Version of the layout, instant and id of the place, the instant up to which deletions are known, the incarnation of
# the user. Instants are in microseconds since 1970. A token belongs to a user and to a resource.
_TOKEN = Opaque("BqqqI", 7, "Invalid sync token")
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Since:
    """The state that a client has.

    The client has all changes up to the place (instant, row_id) in the order of the owner's clock, and all deletions up
    to known_at. known_at is later than the place while a client pages through its first sync: what was deleted before
    that began, the client has never seen. incarnation: of the user whose rows the client has.
    """

    instant: str
    row_id: int
    known_at: str
    incarnation: int


#: The state of a client that has nothing.
NOTHING = Since("0001-01-01T00:00:00.000000Z", 0, "0001-01-01T00:00:00.000000Z", 0)


def encode_token(user_id: str, resource: str, since: Since) -> str:
    """Return the token for the state."""
    instant, known_at = to_microseconds(since.instant), to_microseconds(since.known_at)
    return _TOKEN.encode([user_id, resource], _VERSION, instant, since.row_id, known_at, since.incarnation)


def decode_token(user_id: str, resource: str, token: str) -> Since:
    """Return the state of a token. Raises InvalidInput unless encode_token() made it for this user and resource."""
    return _TOKEN.decode([user_id, resource], token, _since)


def wanted_since(since: Since, limit: int, known: str | None) -> PageWanted:
    """Return the page of changes after a state."""
    if since == NOTHING:
        return PageWanted(limit, PAGE_BYTES, known)
    place = (since.instant, since.row_id)
    return PageWanted(limit, PAGE_BYTES, known, place, max(place, (since.known_at, LARGEST_ID)))


def answer_since(since: Since, page: Page[Any], limit: int, noun: str) -> tuple[dict[str, Any], Since]:
    """Return the answer for a page of changes, without its token, and the state of a client that has applied it.

    Raises SyncTokenGone if a deletion after the state may have been forgotten, if the state is ahead of the database (a
    backup was restored), or if the user was erased.
    """
    clock, is_first = page.clock, since == NOTHING
    if clock is None:
        if not is_first:
            raise SyncTokenGone
        return {"changes": [], "more": False}, NOTHING
    # Each page has brought the deletions before its place. At the place itself there may be more, of a bulk call.
    is_known = clock.forgotten_at <= since.known_at or clock.forgotten_at < since.instant
    is_ahead = max(since.known_at, since.instant) > clock.changed_at
    if not is_first and (since.incarnation != clock.incarnation or not is_known or is_ahead):
        raise SyncTokenGone
    # A row beyond the clock was written by hand, without the clock. It comes when the clock has passed it.
    rows = [row for row in page.rows if row.updated_at <= clock.changed_at]
    changes = [{"id": row.id, noun: None if row.created_at is None else row} for row in rows]
    count, shown = fit(changes, limit)
    has_more = count < len(changes)
    if has_more:
        known_at = clock.changed_at if is_first else since.known_at
        then = Since(rows[count - 1].updated_at, rows[count - 1].id, known_at, clock.incarnation)
    else:
        then = Since(clock.changed_at, LARGEST_ID, clock.changed_at, clock.incarnation)
    return {"changes": shown, "more": has_more}, then


def feed_schema(noun: str, row: type[RowSchema]) -> Schema:
    """Return the schema of the answer."""
    change = Output.from_dict(
        {
            "id": fields.Integer(required=True, metadata={"format": "int64", "minimum": 1, "maximum": LARGEST_ID}),
            noun: fields.Nested(row, required=True, allow_none=True, metadata={"description": "null: it was deleted."}),
        },
        name=f"{noun.capitalize()}Change",
    )
    return FeedSchema.from_dict(
        {
            "changes": fields.List(fields.Nested(change), required=True),
            "next": fields.String(required=True, metadata={"description": "For `since` of the next call."}),
            "more": fields.Boolean(required=True, metadata={"description": "Whether to call again at once."}),
        },
        name=f"{noun.capitalize()}Feed",
    )()


class FeedSchema(Output):
    """A schema for an answer that needs no conversion: see RowSchema."""

    def dump(self, obj: Any, *, many: bool | None = None) -> Any:
        """Return the answer unchanged."""
        return obj


def _since(version: int, instant: int, row_id: int, known_at: int, incarnation: int) -> Since:
    if version != _VERSION:
        raise ValueError("a token of another version")
    return Since(from_microseconds(instant), row_id, from_microseconds(known_at), incarnation)
