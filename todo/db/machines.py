"""On Citus: the share of the pool's connections that the requests for one machine may hold.

If that machine is silent, its requests wait. Without a limit they would soon hold all connections, and the users of
other machines would get none (docs/scaling.md). Must not know any table but users.
"""

from collections.abc import Callable
from functools import lru_cache
from threading import Semaphore
from typing import Any

from psycopg2 import extensions
from sqlalchemy import PoolProxiedConnection
from sqlalchemy.exc import TimeoutError as PoolTimeout

SHARE = 0.75
#: How many users' machines are remembered. A user's machine changes only when an operator moves shards; until a restart
#: the user then counts for the old one.
REMEMBERED = 10_000
#: The coordinator answers this by itself. No row as long as users is not distributed.
MACHINE_OF = """
    SELECT (
        SELECT groupid FROM pg_dist_placement
        WHERE shardid = get_shard_id_for_distribution_column(logicalrelid, CAST(%(user_id)s AS text))
    ) FROM pg_dist_partition WHERE logicalrelid = to_regclass('users')
"""


class Share:
    """The connections that the requests for one machine may hold. It refuses like the pool (todo/db/pool.py)."""

    def __init__(self, most: int, timeout: float) -> None:
        self._free = Semaphore(most)
        self._timeout = timeout
        self._is_stuck = False

    def claim(self) -> None:
        """Count one more connection. Raises TimeoutError, SQLAlchemy's, if none is free in time."""
        if not self._free.acquire(timeout=0 if self._is_stuck else self._timeout):
            self._is_stuck = True
            raise PoolTimeout("The requests for one machine of Citus hold all connections that they may")

    def release(self) -> None:
        """Count one less."""
        self._is_stuck = False
        self._free.release()


class Shares:
    """The share of each machine."""

    def __init__(self, size: int, timeout: float, connect: Callable[[], PoolProxiedConnection]) -> None:
        """Divide a pool of that size. `connect` returns one of its connections, whatever the shares."""
        self._most = max(1, int(size * SHARE))
        self._timeout = timeout
        self._connect = connect
        self._shares: dict[int, Share] = {}
        self.of = lru_cache(REMEMBERED)(self._find)

    def _find(self, user_id: str) -> Share | None:
        """Return the share of the machine that has the user's rows; None if there is no such machine."""
        connection = self._connect()
        try:
            # Not as the user: that would ask the machine itself.
            driver: Any = connection.driver_connection
            with driver.cursor(cursor_factory=extensions.cursor) as cursor:
                cursor.execute(MACHINE_OF, {"user_id": user_id})
                found = cursor.fetchone()
        except BaseException:
            connection.invalidate()
            raise
        connection.close()
        return self._shares.setdefault(found[0], Share(self._most, self._timeout)) if found else None
