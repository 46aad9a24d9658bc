"""Checks for services on the rows that queries return: their owner, and whether there are any.

The queries already filter by owner. This is a second check, and both must agree.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

from todo.db.bulk import Changed
from todo.errors import NotAsExpected, NotFound, OwnershipViolated
from todo.expected import Expected
from todo.pages import Page


class OwnedRow(Protocol):
    """A row of one user."""

    @property
    def id(self) -> int:
        """Which row."""

    @property
    def user_id(self) -> str:
        """Its owner."""


Row = TypeVar("Row", bound=OwnedRow)


def owned(user_id: str, row: Row) -> Row:
    """Return the row. Raises OwnershipViolated unless it belongs to the user."""
    if row.user_id != user_id:
        raise OwnershipViolated(f"{type(row).__name__} {row.id} of {row.user_id!r} came back for {user_id!r}")
    return row


def owned_page(user_id: str, page: Page[Row]) -> Page[Row]:
    """Return the page. Raises OwnershipViolated unless all its rows belong to the user."""
    for row in page.rows:
        # No call for each of up to a thousand rows.
        if row.user_id != user_id:
            owned(user_id, row)
    return page


def owned_rows(user_id: str, result: Changed) -> Changed:
    """Return the result. Raises OwnershipViolated unless all rows that were changed belong to the user."""
    if result.count and not result.first_owner == result.last_owner == user_id:
        raise OwnershipViolated(f"rows of {result.first_owner!r} to {result.last_owner!r} changed for {user_id!r}")
    return result


def found(user_id: str, row: Row | None, missing: type[NotFound]) -> Row:
    """Return the row. Raises `missing` if there is none."""
    if row is None:
        raise missing
    return owned(user_id, row)


def changed(
    user_id: str, row: Row | None, missing: type[NotFound], expected: Expected | None, find: Callable[[], object]
) -> Row:
    """Return the row that a change returned.

    If there is none, it raises `missing`; but NotAsExpected if find() returns the row, as only its state was wrong.
    """
    if row is None and expected is not None and find() is not None:
        raise NotAsExpected
    return found(user_id, row, missing)
