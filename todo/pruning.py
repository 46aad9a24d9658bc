"""`flask prune`: deletes what is kept only for some time, of all users. For operators; no request uses it."""

from typing import Any

import click
from flask import Blueprint
from sqlalchemy import Integer, bindparam, case, delete, func, select, tuple_, update

from todo.db import db
from todo.db.commands import BATCH, on_database, transaction
from todo.db.deletions import KEPT_FOR as DELETIONS_KEPT_FOR
from todo.db.deletions import Deletion
from todo.db.types import UtcInstant, hours_ago
from todo.idempotency.models import IdempotencyKey
from todo.idempotency.queries import IS_OUTLIVED, PRIMARY_KEY
from todo.idempotency.queries import KEPT_FOR as KEYS_KEPT_FOR
from todo.users.models import User

blp = Blueprint("prune", __name__, cli_group=None)

# One pass through all keys, in short transactions, so that no create waits long for a lock.
SOME_KEYS = (
    select(*PRIMARY_KEY)
    .where(tuple_(*PRIMARY_KEY) > tuple_(bindparam("after_user"), bindparam("after_key")), IS_OUTLIVED)
    .order_by(*PRIMARY_KEY)
    .limit(bindparam("batch", type_=Integer))
)
DELETE_KEYS = delete(IdempotencyKey).where(
    tuple_(*PRIMARY_KEY) > tuple_(bindparam("after_user"), bindparam("after_key")),
    tuple_(*PRIMARY_KEY) <= tuple_(bindparam("last_user"), bindparam("last_key")),
    IS_OUTLIVED,
)

IS_FORGETTABLE = Deletion.deleted_at < hours_ago(bindparam("hours", type_=Integer))
NEXT_USER = select(func.min(Deletion.user_id)).where(Deletion.user_id > bindparam("after_user"), IS_FORGETTABLE)
OF_USER = Deletion.user_id == bindparam("of_user")
SOME_OF_USER = select(Deletion.deleted_at).where(OF_USER, IS_FORGETTABLE).order_by(Deletion.deleted_at)
SOME_OF_USER = SOME_OF_USER.limit(bindparam("batch", type_=Integer))
#: Up to which instant the oldest deletions of a user go.
LATEST = select(func.max(SOME_OF_USER.subquery().c.deleted_at, type_=UtcInstant))
UP_TO = bindparam("latest", type_=UtcInstant)
# It takes the lock on the user first, as `flask users delete` does. A sync that does not know these deletions must
# start again.
FORGET = (
    update(User)
    .where(User.id == bindparam("of_user"))
    .values(forgotten_at=case((User.forgotten_at < UP_TO, UP_TO), else_=User.forgotten_at))
)
DELETE_DELETIONS = delete(Deletion).where(OF_USER, Deletion.deleted_at <= UP_TO)


@blp.cli.command("prune")
@click.option(
    "--keys",
    type=click.IntRange(min=KEYS_KEPT_FOR),
    default=KEYS_KEPT_FOR,
    show_default=True,
    metavar="HOURS",
    help="Keep idempotency keys for so many hours",
)
@click.option(
    "--deletions",
    type=click.IntRange(min=DELETIONS_KEPT_FOR),
    default=DELETIONS_KEPT_FOR,
    show_default=True,
    metavar="DAYS",
    help="Keep deletions for so many days: a client that did not sync meanwhile starts again",
)
@on_database
def prune(keys: int, deletions: int) -> None:
    """Delete old idempotency keys, and old lines of the deletions table"""
    pruned_keys, forgotten = prune_keys(keys), forget_deletions(deletions * 24)
    click.echo(f"Deleted {pruned_keys} idempotency keys and {forgotten} deletions")


def prune_keys(hours: int) -> int:
    """Delete the idempotency keys that are older than this many hours, and return how many."""
    pruned = 0
    parameters: dict[str, Any] = {"hours": hours, "batch": BATCH, "after_user": "", "after_key": ""}
    connection = db.session.connection()
    while some := connection.execute(SOME_KEYS, parameters).all():
        user_id, key = some[-1]
        pruned += connection.execute(DELETE_KEYS, parameters | {"last_user": user_id, "last_key": key}).rowcount
        parameters |= {"after_user": user_id, "after_key": key}
    return pruned


def forget_deletions(hours: int) -> int:
    """Delete the deletions that are older than this many hours, and return how many."""
    forgotten = 0
    connection = db.session.connection()
    parameters: dict[str, Any] = {"hours": hours, "after_user": ""}
    while (user_id := connection.scalar(NEXT_USER, parameters)) is not None:
        of_user = {"hours": hours, "batch": BATCH, "of_user": user_id}
        while (latest := connection.scalar(LATEST, of_user)) is not None:
            with transaction() as changing:
                changing.execute(FORGET, {"of_user": user_id, "latest": latest})
                forgotten += changing.execute(DELETE_DELETIONS, {"of_user": user_id, "latest": latest}).rowcount
        parameters["after_user"] = user_id
    return forgotten
