"""The commands that erase a user and that write one out, with all that is theirs, whatever the features keep.

Must not name any of it: what derives from Owned is walked through.
"""

import re
import sys
from collections.abc import Mapping
from typing import Any

import click
from flask import Blueprint
from msgspec import json
from sqlalchemy import Connection, delete, func, inspect, select, tuple_

from todo.db.commands import BATCH, acting_for, on_database, progress, snapshot, transaction
from todo.db.ownership import Owned, owned_by
from todo.identity.commands import UserId
from todo.users.models import User

blp = Blueprint("users", __name__, cli_group="users")
blp.cli.help = "Erase a user, or write one out"


@blp.cli.command("delete")
@click.argument("user_id", type=UserId())
@click.option("--yes", is_flag=True, help="Do not ask")
@on_database
def delete_user(user_id: str, *, yes: bool) -> None:
    """Erase a user and all that is theirs"""
    with acting_for(user_id):
        with snapshot() as connection:
            check_user(connection, user_id)
            counts = count_owned(connection, user_id)
        if not yes:
            click.confirm(f"Erase {user_id} with {described(counts)}?", abort=True, err=True)
        deleted = dict.fromkeys(counts, 0)
        with progress(sum(counts.values()), "Erasing") as done:
            # In short transactions first, none of which holds many rows, or the user, for long: as much as there was at
            # the start, or whoever made things faster than that would never be done with.
            for model, count in counts.items():
                latest = BATCH
                while latest == BATCH and deleted[model] < count:
                    with transaction() as connection:
                        latest = delete_batch(connection, model, user_id)
                    deleted[model] += latest
                    done(latest)
            # Then the user, with what has been made meanwhile, in one. Whoever makes something more, waits for the lock
            # on the user, finds nobody after it, and is a new user: nothing is left of the old one.
            with transaction() as connection:
                connection.execute(select(User.id).where(User.id == user_id).with_for_update())
                for model in counts:
                    left = connection.execute(owned_by(model, delete(model)), {"user_id": user_id}).rowcount
                    deleted[model] += left
                    done(left)
                connection.execute(delete(User).where(User.id == user_id))
    click.echo(f"Erased {user_id} with {described(deleted)}")


@blp.cli.command("export")
@click.argument("user_id", type=UserId())
@on_database
def export_user(user_id: str) -> None:
    """Write a user and all that is theirs to stdout, as JSON lines"""
    # In bytes: whatever the terminal's encoding, JSON is UTF-8.
    lines = sys.stdout.buffer
    with snapshot() as connection:
        with acting_for(user_id):
            user = check_user(connection, user_id)
            # Said once, whose rows may be seen holds for the rest of the transaction: the cursors below, which on
            # PostgreSQL live on the server, cannot say it themselves.
            counts = count_owned(connection, user_id)
        lines.write(line(User, user))
        # Where the lines are to be read on the terminal, no bar comes between.
        with progress(sum(counts.values()), "Writing", is_wanted=not sys.stdout.isatty()) as done:
            for model in counts:
                columns = owned_by(model, select(*inspect(model).columns))
                rows = connection.execute(columns, {"user_id": user_id}, execution_options={"yield_per": BATCH})
                for rows_read in rows.mappings().partitions():
                    lines.writelines(line(model, row) for row in rows_read)
                    done(len(rows_read))
    lines.flush()


def check_user(connection: Connection, user_id: str) -> Mapping[Any, Any]:
    """The user's own row. Raises ClickException where there is none."""
    user = connection.execute(select(*inspect(User).columns).where(User.id == user_id)).mappings().one_or_none()
    if user is None:
        raise click.ClickException(f"There is no user {user_id}")
    return user


def count_owned(connection: Connection, user_id: str) -> dict[type[Owned], int]:
    """How many rows of each model the user owns."""
    models = sorted(Owned.__subclasses__(), key=lambda model: str(inspect(model).local_table))
    counts = {model: owned_by(model, select(func.count()).select_from(model)) for model in models}
    return {model: connection.scalar(count, {"user_id": user_id}) or 0 for model, count in counts.items()}


def delete_batch(connection: Connection, model: type[Owned], user_id: str) -> int:
    """Delete some of the user's rows, at most BATCH; how many."""
    key = inspect(model).primary_key
    some = owned_by(model, select(*key)).limit(BATCH)
    statement = owned_by(model, delete(model)).where(tuple_(*key).in_(some))
    return connection.execute(statement, {"user_id": user_id}).rowcount


def described(counts: Mapping[type[Owned], int]) -> str:
    """The counts in words."""
    return " and ".join(
        f"{count} {inspect(model).local_table.name.replace('_', ' ')}" for model, count in counts.items()
    )


def line(model: type[Any], row: Mapping[Any, Any]) -> bytes:
    """The row as a line: the model's name and, by their own, its columns, in the texts that the API answers with."""
    kind = re.sub("(?<=[a-z])(?=[A-Z])", "_", model.__name__).lower()
    return json.encode({"kind": kind, **row}) + b"\n"
