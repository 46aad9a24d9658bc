"""The pool of connections: how long a request waits for one (docs/decisions/time-limits.md)."""

from typing import Any

from sqlalchemy import PoolProxiedConnection, QueuePool, event
from sqlalchemy.exc import TimeoutError as PoolTimeout

#: Seconds to wait for a connection of the pool. gunicorn has SPARE_THREADS more than there are connections, so that
#: /health/live is answered while all connections wait for the database. Requests that wait here hold those.
TIMEOUT = 0.5


class Pool(QueuePool):
    """A pool that, once a request has waited for a connection in vain, refuses others at once until one comes back."""

    def __init__(self, creator: Any, **options: Any) -> None:
        """Create the pool. The option pool_timeout would do, but Flask-SQLAlchemy makes an integer of it."""
        super().__init__(creator, **options | {"timeout": TIMEOUT})
        self._is_stuck = False
        event.listen(self, "checkin", self._note_return)

    def connect(self) -> PoolProxiedConnection:
        """Return a connection. Raises TimeoutError, SQLAlchemy's, if all are in use and none comes back in time."""
        if self._is_stuck and self.checkedout() >= self.size():
            raise PoolTimeout("All connections are in use, and another request has waited for one in vain")
        try:
            return super().connect()
        except PoolTimeout:
            self._is_stuck = True
            raise

    def _note_return(self, *_: object) -> None:
        self._is_stuck = False
