"""The command that deletes the old keys of all users: for operators, not for requests."""

from typing import Any

import click
from flask import Blueprint
from sqlalchemy import Integer, bindparam, delete, select, tuple_

from todo.db import db
from todo.db.commands import BATCH, on_database
from todo.idempotency.models import IdempotencyKey
from todo.idempotency.queries import IS_OUTLIVED, KEPT_FOR, PRIMARY_KEY

blp = Blueprint("idempotency-keys", __name__, cli_group="idempotency-keys")
blp.cli.help = "Delete old idempotency keys"

# One pass through all keys, in short transactions, so that no create waits long for a lock.
SOME = (
    select(*PRIMARY_KEY)
    .where(tuple_(*PRIMARY_KEY) > tuple_(bindparam("after_user"), bindparam("after_key")), IS_OUTLIVED)
    .order_by(*PRIMARY_KEY)
    .limit(bindparam("batch", type_=Integer))
)
PRUNE = delete(IdempotencyKey).where(
    tuple_(*PRIMARY_KEY) > tuple_(bindparam("after_user"), bindparam("after_key")),
    tuple_(*PRIMARY_KEY) <= tuple_(bindparam("last_user"), bindparam("last_key")),
    IS_OUTLIVED,
)


@blp.cli.command("prune")
@click.option(
    "--older-than", "hours", type=click.IntRange(min=KEPT_FOR), default=KEPT_FOR, show_default=True, metavar="HOURS"
)
@on_database
def prune(hours: int) -> None:
    """Delete idempotency keys that are older than this many hours"""
    pruned = 0
    parameters: dict[str, Any] = {"hours": hours, "batch": BATCH, "after_user": "", "after_key": ""}
    connection = db.session.connection()
    while some := connection.execute(SOME, parameters).all():
        user_id, key = some[-1]
        pruned += connection.execute(PRUNE, parameters | {"last_user": user_id, "last_key": key}).rowcount
        parameters |= {"after_user": user_id, "after_key": key}
    click.echo(f"Deleted {pruned} idempotency keys")
