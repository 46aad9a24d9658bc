"""What web/ and db/ say to each other about a page: which rows are wanted, and which came."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Row = TypeVar("Row")

#: A place among rows in the order of an instant and the id.
Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class PageWanted:
    """A page of a list, or of a change feed.

    limit: the most rows. There comes one row more, to show that more follow.
    size: the page also ends with the row at which the texts reach this many bytes.
    known: the user's clock in the answer that the caller has. If it is the current one, no row is read.
    after: the place after which the page starts; None: at the beginning.
    deletions_after: the same for deletions; None: without deletions. A list has none.
    """

    limit: int
    size: int
    known: str | None = None
    after: Place | None = None
    deletions_after: Place | None = None


@dataclass(frozen=True, slots=True)
class UserClock:
    """The clock of a user at the moment when rows were read.

    changed_at: the instant of the latest change. forgotten_at: the instant up to which deletions may have been
    forgotten. incarnation: another number after the user was erased and created again.
    """

    changed_at: str
    forgotten_at: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """The rows of a page. clock: None for a user who has never created anything."""

    rows: Sequence[Row]
    clock: UserClock | None
