"""The state of a row that a change expects. web/ reads it from a request, db/ puts it into the statement."""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Expected:
    """The row must have been changed last at an instant in `wanted` (None: any), and at none in `unwanted`."""

    wanted: Collection[str] | None = None
    unwanted: Collection[str] = ()
