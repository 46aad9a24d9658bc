"""`flask prune`: deletes what is kept only for some time, of all users. For operators; no request uses it.

/metrics shows how many rows it would delete.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import click
from flask import Blueprint
from sqlalchemy import ColumnElement, Integer, Select, bindparam, delete, func, literal, select, tuple_, update

from todo.db import db
from todo.db.commands import BATCH, on_database, transaction
from todo.db.deletions import KEPT_FOR as DELETIONS_KEPT_FOR
from todo.db.deletions import Deletion
from todo.db.ownership import Owned, evaluated_once, table_of
from todo.db.statements import database
from todo.db.types import UtcInstant, hours_ago, later_of
from todo.idempotency.models import IdempotencyKey
from todo.idempotency.queries import IS_OUTLIVED
from todo.idempotency.queries import KEPT_FOR as KEYS_KEPT_FOR
from todo.users.models import User

blp = Blueprint("prune", __name__, cli_group=None)

# One pass through all keys, in short transactions, so that no create waits long for a lock. It skips keys that another
# session is deleting, and so waits for none. The driver of SQLite does not count what a statement with WITH deletes, so
# it returns the keys.
KEY = (IdempotencyKey.user_id, IdempotencyKey.key)
SOME_KEYS = (
    select(*KEY)
    .where(tuple_(*KEY) > tuple_(bindparam("after_user"), bindparam("after_key")), IS_OUTLIVED)
    .order_by(*KEY)
    .limit(bindparam("batch", type_=Integer))
    .with_for_update(skip_locked=True)
)
DELETE_KEYS = delete(IdempotencyKey).where(tuple_(*KEY).in_(evaluated_once(SOME_KEYS))).returning(*KEY)

# On Citus user by user, as it locks the rows of one machine only.
NEXT_USERS = (
    select(IdempotencyKey.user_id)
    .where(IdempotencyKey.user_id > bindparam("after_user"), IS_OUTLIVED)
    .distinct()
    .order_by(IdempotencyKey.user_id)
    .limit(bindparam("batch", type_=Integer))
)
SOME_OF_USER = (
    select(IdempotencyKey.key)
    .where(IdempotencyKey.user_id == bindparam("of_user"), IS_OUTLIVED)
    .order_by(IdempotencyKey.created_at)
    .limit(bindparam("batch", type_=Integer))
    .with_for_update(skip_locked=True)
)
DELETE_OF_USER = (
    delete(IdempotencyKey)
    .where(IdempotencyKey.user_id == bindparam("of_user"), IdempotencyKey.key.in_(evaluated_once(SOME_OF_USER)))
    .returning(IdempotencyKey.key)
)

IS_FORGETTABLE = Deletion.deleted_at < hours_ago(bindparam("hours", type_=Integer))
FEED = (Deletion.user_id, Deletion.resource)
NEXT_FEEDS = (
    select(*FEED)
    .where(tuple_(*FEED) > tuple_(bindparam("after_user"), bindparam("after_resource")), IS_FORGETTABLE)
    .distinct()
    .order_by(*FEED)
    .limit(bindparam("batch", type_=Integer))
)
IN_FEED = (Deletion.user_id == bindparam("of_user"), Deletion.resource == bindparam("of_resource"))
OLDEST = select(Deletion.deleted_at).where(*IN_FEED, IS_FORGETTABLE).order_by(Deletion.deleted_at)
#: Up to which instant the oldest deletions of a feed go.
LATEST = select(func.max(OLDEST.limit(bindparam("batch", type_=Integer)).subquery().c.deleted_at, type_=UtcInstant))
UP_TO = bindparam("latest", type_=UtcInstant)
# It takes the lock on the user first, as `flask users delete` does. A sync that does not know these deletions must
# start again.
FORGET = update(User).where(User.id == bindparam("of_user")).values(forgotten_at=later_of(User.forgotten_at, UP_TO))
DELETE_DELETIONS = delete(Deletion).where(*IN_FEED, Deletion.deleted_at <= UP_TO)

#: The most rows of a table that are counted.
MOST_COUNTED = 10_000


def _count(model: type[Owned], is_old: ColumnElement[bool]) -> Select[Any]:
    old = select(literal(1)).select_from(model).where(is_old).limit(MOST_COUNTED)
    return select(func.count().label("prunable")).select_from(old.subquery())


#: For each table: how many rows are old, and for how many hours a row is kept.
COUNTS = {
    table_of(IdempotencyKey).name: (_count(IdempotencyKey, IS_OUTLIVED), KEYS_KEPT_FOR),
    table_of(Deletion).name: (_count(Deletion, IS_FORGETTABLE), DELETIONS_KEPT_FOR * 24),
}


@blp.cli.command("prune")
@click.option(
    "--keys",
    type=click.IntRange(min=KEYS_KEPT_FOR),
    default=KEYS_KEPT_FOR,
    show_default=True,
    metavar="HOURS",
    help="Keep idempotency keys for so many hours. A create with a key deletes those of its user after 24",
)
@click.option(
    "--deletions",
    type=click.IntRange(min=DELETIONS_KEPT_FOR),
    default=DELETIONS_KEPT_FOR,
    show_default=True,
    metavar="DAYS",
    help="Keep deletions for so many days: a client that did not sync meanwhile starts again. A deletion of the same "
    "user forgets them after 30",
)
@on_database
def prune(keys: int, deletions: int) -> None:
    """Delete old idempotency keys, and old lines of the deletions table"""
    pruned_keys, forgotten = prune_keys(keys), forget_deletions(deletions * 24)
    click.echo(f"Deleted {pruned_keys} idempotency keys and {forgotten} deletions")


def prune_keys(hours: int) -> int:
    """Delete the idempotency keys that are older than this many hours, and return how many."""
    if database() == "citus":
        return sum(_prune_user_by_user(hours))
    pruned = 0
    connection = db.session.connection()
    parameters: dict[str, Any] = {"hours": hours, "batch": BATCH, "after_user": "", "after_key": ""}
    while keys := connection.execute(DELETE_KEYS, parameters).all():
        pruned += len(keys)
        parameters |= dict(zip(("after_user", "after_key"), max(map(tuple, keys)), strict=True))
    return pruned


def _prune_user_by_user(hours: int) -> Iterator[int]:
    connection = db.session.connection()
    parameters: dict[str, Any] = {"hours": hours, "batch": BATCH, "after_user": ""}
    while users := connection.scalars(NEXT_USERS, parameters).all():
        for user_id in users:
            deleted = BATCH
            while deleted == BATCH:
                deleted = len(connection.execute(DELETE_OF_USER, {**parameters, "of_user": user_id}).all())
                yield deleted
        parameters["after_user"] = users[-1]


def forget_deletions(hours: int) -> int:
    """Delete the deletions that are older than this many hours, and return how many."""
    forgotten = 0
    connection = db.session.connection()
    parameters: dict[str, Any] = {"hours": hours, "batch": BATCH, "after_user": "", "after_resource": ""}
    while feeds := connection.execute(NEXT_FEEDS, parameters).all():
        for feed in feeds:
            of_feed = {"of_user": feed.user_id, "of_resource": feed.resource}
            while (latest := connection.scalar(LATEST, {**parameters, **of_feed})) is not None:
                with transaction() as changing:
                    changing.execute(FORGET, {"of_user": feed.user_id, "latest": latest})
                    forgotten += changing.execute(DELETE_DELETIONS, {**of_feed, "latest": latest}).rowcount
            parameters |= {"after_user": feed.user_id, "after_resource": feed.resource}
    return forgotten


def count_prunable() -> Mapping[str, int]:
    """Return for each table how many rows `flask prune` would delete, at most MOST_COUNTED.

    No index has the ages of all users' rows, so this may read whole tables. Call it within limited_to().
    """
    connection = db.session.connection()
    return {table: connection.scalar(count, {"hours": hours}) or 0 for table, (count, hours) in COUNTS.items()}
