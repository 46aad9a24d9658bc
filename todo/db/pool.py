"""The pool of connections: how long a request waits for one (docs/decisions/time-limits.md)."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

from sqlalchemy import PoolProxiedConnection, QueuePool, event
from sqlalchemy.exc import TimeoutError as PoolTimeout

from todo.db import acting_user
from todo.db.machines import Shares

#: Seconds to wait for a connection of the pool. gunicorn has SPARE_THREADS more than there are connections, so that
#: /health/live is answered while all connections wait for the database. Requests that wait here hold those.
TIMEOUT = 0.5
#: Seconds that are no wait: a free connection is found much sooner.
NO_WAIT = 0.001


class Pool(QueuePool):
    """A pool that, once a request has waited for a connection in vain, refuses others at once until one comes back."""

    def __init__(self, creator: Any, **options: Any) -> None:
        """Create the pool. The option pool_timeout would do, but Flask-SQLAlchemy makes an integer of it."""
        super().__init__(creator, **options | {"timeout": TIMEOUT})
        #: Whether the database is Citus. None as long as no connection has asked.
        self.knows_citus: bool | None = None
        self._is_stuck = False
        self._tell: Callable[[float], Any] | None = None
        self.shares = Shares(self.size(), TIMEOUT, self._connect)
        event.listen(self, "checkin", self._note_return)

    def observe(self, tell: Callable[[float], Any]) -> None:
        """Call `tell` with the seconds of each wait for a connection, a free one or a new one. Also if it failed."""
        self._tell = tell

    def is_citus(self) -> bool:
        """Whether the database is Citus: the first connection asks (todo/db/acting_user.py)."""
        if self.knows_citus is None:
            self.connect().close()
        return bool(self.knows_citus)

    def connect(self) -> PoolProxiedConnection:
        """Return a connection. Raises TimeoutError, SQLAlchemy's, if all are in use and none comes back in time."""
        if self._tell is None:
            return self._claim()
        started = perf_counter()
        try:
            return self._claim()
        finally:
            if (seconds := perf_counter() - started) > NO_WAIT:
                self._tell(seconds)

    def _claim(self) -> PoolProxiedConnection:
        user_id = acting_user.current.get() if self.knows_citus else None
        if user_id is None or (share := self.shares.of(user_id)) is None:
            return self._connect()
        share.claim()
        try:
            connection = self._connect()
        except BaseException:
            share.release()
            raise
        connection.info["share"] = share
        return connection

    def _connect(self) -> PoolProxiedConnection:
        if self._is_stuck and self.checkedout() >= self.size():
            raise PoolTimeout("All connections are in use, and another request has waited for one in vain")
        try:
            return super().connect()
        except PoolTimeout:
            self._is_stuck = True
            raise

    def _note_return(self, _connection: object, record: Any) -> None:
        self._is_stuck = False
        if share := record.info.pop("share", None):
            share.release()
