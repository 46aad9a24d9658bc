"""SQL that tells PostgreSQL for which user a statement acts: the policies then show it only the rows of that user.

It goes before the statement, in the same round trip and transaction, and ends with it. Citus hands no SET to the
machine that has the user's rows, so there it is a query that leads to this machine. Must not know any table but users.
"""

from collections.abc import Callable
from typing import Any

from psycopg2 import extensions

IS_CITUS = "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')"
ACTING_USER = "SET LOCAL app.user_id = %(app_user_id)s; "
ACTING_USER_ON_CITUS = (
    "SELECT set_config('app.user_id', %(app_user_id)s, true){limit}"
    " FROM (SELECT count(*) FROM users WHERE id = %(app_user_id)s) AS shard; "
)
#: There a statement also waits for its locks.
LIMIT_ON_CITUS = ", set_config('lock_timeout', '1s', true)"


class Connection(extensions.connection):
    """A connection that knows whether its database is Citus."""

    is_citus = False

    def acting_user(self, *, is_limited: bool) -> str:
        """Return the SQL, with the parameter app_user_id. is_limited: the statement may wait a second for a lock."""
        if not self.is_citus:
            return ACTING_USER
        return ACTING_USER_ON_CITUS.format(limit=LIMIT_ON_CITUS if is_limited else "")


def ask_once() -> Callable[[Connection, object], None]:
    """Return a listener that tells each new connection of a pool whether its database is Citus. The first one asks."""
    answers: list[bool] = []

    def tell(connection: Connection, _record: object) -> None:
        if not answers:
            with connection.cursor() as cursor:
                cursor.execute(IS_CITUS)
                found: Any = cursor.fetchone()
            answers.extend(found)
        connection.is_citus = answers[0]

    return tell
