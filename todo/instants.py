"""Convert instants between text and the integers that SQLite stores. The service does no other arithmetic with them."""

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_microseconds(instant: str) -> int:
    """Return the microseconds from 1970 to the instant. Raises ValueError unless it is a text of RFC 3339."""
    return (datetime.fromisoformat(instant) - _EPOCH) // _MICROSECOND


def from_microseconds(microseconds: int) -> str:
    """Return the instant in UTC, always with six digits and `Z`. Raises OverflowError outside the years 1 to 9999."""
    instant = _EPOCH + microseconds * _MICROSECOND
    return instant.isoformat(timespec="microseconds").replace("+00:00", "Z")
