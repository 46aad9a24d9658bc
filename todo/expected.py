"""The versions of a row that a change expects. web/ reads them from a request, db/ puts them into the statement."""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Expected:
    """The row must have a version in `wanted` (None: any version), and none in `unwanted`."""

    wanted: Collection[int] | None = None
    unwanted: Collection[int] = ()
