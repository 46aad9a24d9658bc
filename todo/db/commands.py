"""What the commands of all features share: errors in one line, transactions, progress.

Must not know any table.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec

import click
from flask import Blueprint, current_app
from sqlalchemy import Connection

from todo.db import db
from todo.db.connections import act_for
from todo.db.failures import DATABASE_ERRORS, describe
from todo.db.readiness import check_database
from todo.errors import DatabaseUnfit

#: How many rows a command reads, makes or deletes at a time. It bounds the time of a statement, and the memory.
BATCH = 5000

Parameters = ParamSpec("Parameters")

blp = Blueprint("database", __name__, cli_group=None)


def on_database(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """End the command with one line and status 1 if the database is unavailable, or lacks what the service needs."""

    @wraps(command)
    def run(*arguments: Parameters.args, **options: Parameters.kwargs) -> None:
        tell_default_database()
        try:
            check_database()
            # Its connection goes back to the pool, where the command takes it: one connection is enough.
            db.session.remove()
            command(*arguments, **options)
        except DatabaseUnfit as error:
            raise click.ClickException(error.detail or error.message) from error
        except DATABASE_ERRORS as error:
            raise click.ClickException(f"The database failed: {describe(error)}") from error
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                # The reader has closed the pipe: click ends quietly.
                raise
            raise click.ClickException(f"The output failed: {error.strerror}") from error

    return run


def tell_default_database() -> None:
    """Say on stderr which file is the database if DATABASE_URL is not set: a job may lack its environment."""
    if current_app.config["IS_DATABASE_DEFAULT"]:
        click.echo(f"DATABASE_URL is not set: the database is {db.engine.url.database}", err=True)


@contextmanager
def acting_for(user_id: str) -> Iterator[None]:
    """Let statements see and change that user's rows. In a request the identity hook does this."""
    act_for(user_id)
    try:
        yield
    finally:
        act_for(None)


@contextmanager
def transaction() -> Iterator[Connection]:
    """A transaction in which each statement sees everything that was committed before it.

    On SQLite it begins with the first change, which makes it the only writer.
    """
    level = "SERIALIZABLE" if db.engine.dialect.name == "sqlite" else "READ COMMITTED"
    with db.engine.execution_options(isolation_level=level).begin() as connection:
        yield connection


@contextmanager
def snapshot() -> Iterator[Connection]:
    """A read-only transaction in which every statement sees what the first one saw."""
    if db.engine.dialect.name == "sqlite":
        with db.engine.connect() as connection:
            # The driver begins no transaction by itself before a SELECT.
            connection.exec_driver_sql("BEGIN")
            yield connection
    else:
        with db.engine.execution_options(isolation_level="READ COMMITTED").begin() as connection:
            # For this transaction only. SQLAlchemy's own option would stay in the session, which a pooler gives to
            # other clients.
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield connection


@contextmanager
def progress(total: int, label: str, *, is_wanted: bool = True) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of rows just done. It moves a bar on stderr, if that is a terminal.

    A single batch has no bar.
    """
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
