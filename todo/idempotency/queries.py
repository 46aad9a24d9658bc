"""Every SQL statement that reads idempotency keys, each for one owner. Decides nothing."""

from msgspec import Struct
from sqlalchemy import bindparam, select

from todo.idempotency.models import IdempotencyKey
from todo.ownership import owned_by
from todo.statements import Statement, columns_of


class KeptAnswer(Struct, frozen=True):
    """What a key was used for, and what came of it."""

    fingerprint: str
    answer: str


COLUMNS = columns_of(IdempotencyKey, KeptAnswer)
IS_THE_KEY = IdempotencyKey.key == bindparam("key")

FIND = Statement(owned_by(IdempotencyKey, select(*COLUMNS)).where(IS_THE_KEY), KeptAnswer)
#: Within an insert: those keys of the user that would make it a repetition.
SAME_KEY = owned_by(IdempotencyKey, select(IdempotencyKey.key)).where(IS_THE_KEY)


def find_key(user_id: str, key: str) -> KeptAnswer | None:
    """What came of the user's key, or None."""
    return FIND.first(user_id=user_id, key=key)
