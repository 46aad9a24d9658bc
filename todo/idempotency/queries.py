"""The SQL statements that read or delete idempotency keys, each for one owner. Decides nothing."""

from msgspec import Struct
from sqlalchemy import ColumnElement, Delete, Integer, bindparam, delete, literal_column, select

from todo.db.ownership import evaluated_once, has_room, owned_by
from todo.db.statements import columns_of
from todo.db.types import hours_ago
from todo.idempotency.models import IdempotencyKey

#: Hours for which a key is kept at least. On PostgreSQL a policy of the table enforces this too, for sessions that act
#: for no user (migration 0004).
KEPT_FOR = 24
#: How many old keys of its user a create with a key deletes. More than the one key that it adds, so that the table
#: shrinks; and few, so that this costs little.
PRUNED_AT_ONCE = 10


class KeptAnswer(Struct, frozen=True):
    """What a key was used for, and the result."""

    fingerprint: str
    answer: str


#: The key of the request.
IS_THE_KEY = IdempotencyKey.key == bindparam("key")
IS_OUTLIVED = IdempotencyKey.created_at < hours_ago(bindparam("hours", type_=Integer))
IS_TO_GO = IdempotencyKey.created_at < hours_ago(literal_column(str(KEPT_FOR)))

FIND = owned_by(IdempotencyKey, select(*columns_of(IdempotencyKey, KeptAnswer))).where(IS_THE_KEY)
#: Whether the user may use one more key today.
HAS_ROOM = has_room(IdempotencyKey, ~IS_TO_GO)


def prune(*criteria: ColumnElement[bool]) -> Delete:
    """Return the statement that deletes some old keys of the user, if the criteria hold.

    Its transaction must hold the lock on the user, as `flask users delete` does. Otherwise the two could deadlock. It
    skips keys that another request is deleting, so that no create waits for another.
    """
    outlived = (
        owned_by(IdempotencyKey, select(IdempotencyKey.key))
        .where(*criteria, IS_TO_GO, ~IS_THE_KEY)
        # Ordered like an index, or PostgreSQL may read the keys of all users.
        .order_by(IdempotencyKey.created_at)
        .limit(PRUNED_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    return owned_by(IdempotencyKey, delete(IdempotencyKey)).where(IdempotencyKey.key.in_(evaluated_once(outlived)))
