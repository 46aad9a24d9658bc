"""SQL that tells PostgreSQL for which user a statement acts: the policies then show it only the rows of that user.

It goes before the statement, in the same round trip and transaction, and ends with it. Citus does not
pass SET on to the machine that has the user's rows. There a query on the user's row makes the setting, because Citus
sends a query to that machine. Must not know any table but users.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from psycopg2 import extensions
from sqlalchemy import Engine

#: The user of the current request or command.
current: ContextVar[str | None] = ContextVar("acting_user", default=None)

IS_CITUS = "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')"
ACTING_USER = "SET LOCAL app.user_id = %(app_user_id)s; "
ACTING_USER_ON_CITUS = (
    "SELECT set_config('app.user_id', %(app_user_id)s, true){limit}"
    " FROM (SELECT count(*) FROM users WHERE id = %(app_user_id)s) AS shard; "
)
#: There a statement also waits for its locks.
LIMIT_ON_CITUS = ", set_config('lock_timeout', '1s', true)"
#: Some transactions have several messages there (todo/db/statements.py). If the service is lost between two of them,
#: the lock on the user must not stay.
IDLE_LIMIT_ON_CITUS = "SET LOCAL idle_in_transaction_session_timeout = '5s'; "


class Connection(extensions.connection):
    """A connection that knows whether its database is Citus."""

    is_citus = False
    #: On Citus: the user of the current transaction, once PostgreSQL knows. To tell it again would cost a query.
    _acts_for: str | None = None

    def acting_user(self, user_id: str | None, *, is_limited: bool) -> str:
        """Return the SQL before a statement of the user, with the parameter app_user_id; None: a statement of nobody.

        is_limited: the statement may wait a second for a lock.
        """
        if not self.is_citus:
            return "" if user_id is None else ACTING_USER
        if self.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE:
            self._acts_for = None
        if user_id in (None, self._acts_for):
            return ""
        self._acts_for = user_id
        if not is_limited:
            return ACTING_USER_ON_CITUS.format(limit="")
        return IDLE_LIMIT_ON_CITUS + ACTING_USER_ON_CITUS.format(limit=LIMIT_ON_CITUS)


def ask_once(engine: Engine) -> Callable[[Connection, object], None]:
    """Return a listener that tells each new connection whether its database is Citus. The first one of a pool asks."""

    def tell(connection: Connection, _record: object) -> None:
        pool: Any = engine.pool
        if pool.knows_citus is None:
            with connection.cursor() as cursor:
                cursor.execute(IS_CITUS)
                found: Any = cursor.fetchone()
            (pool.knows_citus,) = found
        connection.is_citus = pool.knows_citus

    return tell
