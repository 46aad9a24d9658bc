"""Which versions of a row a change is meant for: web/ reads it from a request, db/ holds a statement to it."""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Expected:
    """One of the versions in `wanted` (None: any version), and none of those in `unwanted`."""

    wanted: Collection[int] | None = None
    unwanted: Collection[int] = ()
