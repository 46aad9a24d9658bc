"""What the commands of all features share: one line where the database fails them, transactions, progress.

Must not know any table.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec

import click
from flask import Blueprint
from sqlalchemy import Connection

from todo.db import db
from todo.db.connections import act_for
from todo.db.failures import DATABASE_ERRORS, describe
from todo.db.readiness import check_database
from todo.errors import DatabaseUnfit

#: How many rows a command reads, makes or deletes at a time: no statement takes long, and no memory grows.
BATCH = 5000

Parameters = ParamSpec("Parameters")

blp = Blueprint("database", __name__, cli_group=None)


def on_database(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """The command, ending with one line and status 1 where the database is away, or not what the command needs."""

    @wraps(command)
    def run(*arguments: Parameters.args, **options: Parameters.kwargs) -> None:
        try:
            check_database()
            db.session.remove()
            command(*arguments, **options)
        except DatabaseUnfit as error:
            raise click.ClickException(error.detail) from error
        except DATABASE_ERRORS as error:
            raise click.ClickException(f"The database failed: {describe(error)}") from error
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                # Whoever reads has enough: click ends quietly.
                raise
            raise click.ClickException(f"The output failed: {error.strerror}") from error

    return run


@contextmanager
def acting_for(user_id: str) -> Iterator[None]:
    """Let the statements within see and touch that user's rows: there is no request, hence no hook, to say so."""
    act_for(user_id)
    try:
        yield
    finally:
        act_for(None)


@contextmanager
def transaction() -> Iterator[Connection]:
    """A transaction, each statement of which sees what has been committed by then.

    On SQLite that holds from the first change on, which takes the only writer's place.
    """
    level = "SERIALIZABLE" if db.engine.dialect.name == "sqlite" else "READ COMMITTED"
    with db.engine.execution_options(isolation_level=level).begin() as connection:
        yield connection


@contextmanager
def snapshot() -> Iterator[Connection]:
    """A transaction that changes nothing, and all of which sees what its first statement saw."""
    if db.engine.dialect.name == "sqlite":
        with db.engine.connect() as connection:
            # Before a SELECT the driver begins nothing by itself.
            connection.exec_driver_sql("BEGIN")
            yield connection
    else:
        with db.engine.execution_options(isolation_level="READ COMMITTED").begin() as connection:
            # Of this transaction alone: what SQLAlchemy calls read-only would stay in the session, and by way of a
            # pooler in somebody else's.
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield connection


@contextmanager
def progress(total: int, label: str, *, is_wanted: bool = True) -> Iterator[Callable[[int], None]]:
    """What to tell how many more rows are done: a bar, where stderr is a terminal and there is more than one batch."""
    is_shown = is_wanted and total > BATCH and sys.stderr.isatty()
    with click.progressbar(length=total, label=label, file=sys.stderr, hidden=not is_shown) as bar:
        yield bar.update


@blp.cli.command("ready")
@on_database
def ready() -> None:
    """Say whether the database has what the service needs, as GET /health/ready does"""
    readiness = check_database()
    for warning in readiness.warnings:
        click.echo(f"Warning: {warning}", err=True)
    click.echo(f"The database has what the service needs; row-level security: {readiness.row_level_security}")
