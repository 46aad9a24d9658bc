"""The commands that delete and export a user with everything that the user owns.

Must not name any owned model: they walk the subclasses of Owned.
"""

import re
import sys
from collections.abc import Mapping
from typing import Any

import click
from flask import Blueprint
from msgspec import json
from sqlalchemy import Connection, delete, func, inspect, select

from todo.db import db
from todo.db.clock import forget
from todo.db.commands import BATCH, acting_for, on_database, progress, snapshot, transaction
from todo.db.ownership import Owned, owned_by
from todo.identity.commands import UserId
from todo.users.models import User

blp = Blueprint("users", __name__, cli_group="users")
blp.cli.help = "Erase or export a user"


@blp.cli.command("delete")
@click.argument("user_id", type=UserId())
@click.option("--yes", is_flag=True, help="Do not ask for confirmation")
@on_database
def delete_user(user_id: str, *, yes: bool) -> None:
    """Erase a user and everything that the user owns"""
    with acting_for(user_id):
        with snapshot() as connection:
            check_user(connection, user_id)
            counts = count_owned(connection, user_id)
        if not yes:
            click.confirm(f"Erase {user_id} with {described(counts)}?", abort=True, err=True)
        deleted = dict.fromkeys(counts, 0)
        with progress(sum(counts.values()), "Erasing") as done:
            # First short transactions, which lock few rows, and not for long. They delete as many rows as there were at
            # the start, or they would never end for a user who creates rows faster.
            for model, count in counts.items():
                latest = BATCH
                while latest >= BATCH and deleted[model] < count:
                    with transaction() as connection:
                        latest = delete_batch(connection, model, user_id)
                    deleted[model] += latest
                    done(latest)
            # Then one transaction deletes the user, and the rows created meanwhile. A later create waits for the lock
            # on the user, finds no user, and creates a new one: nothing is left of the old.
            with transaction() as connection:
                connection.execute(select(User.id).where(User.id == user_id).with_for_update())
                for model in counts:
                    left = connection.execute(owned_by(model, delete(model)), {"user_id": user_id}).rowcount
                    deleted[model] += left
                    done(left)
                connection.execute(delete(User).where(User.id == user_id))
    click.echo(f"Erased {user_id} with {described(deleted)}")


@blp.cli.command("resync")
@on_database
def resync() -> None:
    """Make every client start its sync again: run this after a backup was restored"""
    with db.engine.connect() as connection:
        users = connection.execute(select(User.id)).scalars().all()
    with progress(len(users), "Resetting") as done:
        for user_id in users:
            with transaction() as connection:
                connection.execute(forget(), {"user_id": user_id})
            done(1)
    click.echo(f"{len(users)} users start their sync again")


@blp.cli.command("export")
@click.argument("user_id", type=UserId())
@on_database
def export_user(user_id: str) -> None:
    """Write a user and everything that the user owns to stdout, as JSON lines"""
    # Bytes, because JSON is UTF-8 whatever the terminal's encoding.
    lines = sys.stdout.buffer
    with snapshot() as connection:
        with acting_for(user_id):
            user = check_user(connection, user_id)
            # The acting user stays set for the rest of the transaction. The cursors below are on the server, with
            # PostgreSQL, and cannot set it themselves.
            counts = count_owned(connection, user_id)
        lines.write(line(User, user))
        # No bar between lines that go to the terminal.
        with progress(sum(counts.values()), "Writing", is_wanted=not sys.stdout.isatty()) as done:
            for model in counts:
                columns = owned_by(model, select(*inspect(model).columns))
                rows = connection.execute(columns, {"user_id": user_id}, execution_options={"yield_per": BATCH})
                for rows_read in rows.mappings().partitions():
                    lines.writelines(line(model, row) for row in rows_read)
                    done(len(rows_read))
    lines.flush()


def check_user(connection: Connection, user_id: str) -> Mapping[Any, Any]:
    """Return the user's own row. Raises ClickException if there is none."""
    user = connection.execute(select(*inspect(User).columns).where(User.id == user_id)).mappings().one_or_none()
    if user is None:
        raise click.ClickException(f"There is no user {user_id}")
    return user


def count_owned(connection: Connection, user_id: str) -> dict[type[Owned], int]:
    """Count the user's rows of each model."""
    models = sorted(Owned.__subclasses__(), key=lambda model: str(inspect(model).local_table))
    counts = {model: owned_by(model, select(func.count()).select_from(model)) for model in models}
    return {model: connection.scalar(count, {"user_id": user_id}) or 0 for model, count in counts.items()}


def delete_batch(connection: Connection, model: type[Owned], user_id: str) -> int:
    """Delete about BATCH of the user's rows, and return how many: fewer only if no more are left.

    No deletion is noted: an erasure leaves nothing. So every sync of the user must start again, also if the erasure is
    interrupted.
    """
    connection.execute(forget(), {"user_id": user_id})
    # The last column of the key is almost unique among the rows of a user. Citus refuses several columns.
    *_, key = inspect(model).primary_key
    some = owned_by(model, select(key)).order_by(key).limit(BATCH)
    statement = owned_by(model, delete(model)).where(key.in_(some))
    return connection.execute(statement, {"user_id": user_id}).rowcount


def described(counts: Mapping[type[Owned], int]) -> str:
    """Return the counts in words."""
    return " and ".join(
        f"{count} {inspect(model).local_table.name.replace('_', ' ')}" for model, count in counts.items()
    )


def line(model: type[Any], row: Mapping[Any, Any]) -> bytes:
    """Return the row as a line of JSON: the name of the model, and the columns as the API shows them."""
    kind = re.sub("(?<=[a-z])(?=[A-Z])", "_", model.__name__).lower()
    return json.encode({"kind": kind, **row}) + b"\n"
