"""Instants as integers: microseconds since 1970, UTC. What the cursor and SQLite keep of a datetime, without loss."""

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_microseconds(instant: datetime) -> int:
    """The whole microseconds from 1970 to the instant, which must be aware."""
    return (instant - _EPOCH) // _MICROSECOND


def from_microseconds(microseconds: int) -> datetime:
    """The instant, aware and in UTC. Raises OverflowError outside the years 1 to 9999."""
    return _EPOCH + microseconds * _MICROSECOND
