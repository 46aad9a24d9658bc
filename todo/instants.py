"""Instants, which the service hands on and never computes with: as text, and as the integers that SQLite keeps."""

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_microseconds(instant: str) -> int:
    """The whole microseconds from 1970 to the instant, a text of RFC 3339. Raises ValueError for another."""
    return (datetime.fromisoformat(instant) - _EPOCH) // _MICROSECOND


def from_microseconds(microseconds: int) -> str:
    """The instant in UTC, always with six digits and `Z`. Raises OverflowError outside the years 1 to 9999."""
    instant = _EPOCH + microseconds * _MICROSECOND
    return instant.isoformat(timespec="microseconds").replace("+00:00", "Z")
