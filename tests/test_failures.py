"""What the log is told of a failure of the database: what went wrong, and no value."""

import re
import sqlite3

import pytest
from sqlalchemy import URL, create_engine, text
from sqlalchemy.exc import ArgumentError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tests.support import as_superuser, sqlite_database
from todo.db.failures import DATABASE_ERRORS, describe

RAISE = "DO $$ BEGIN RAISE EXCEPTION 'secret' USING ERRCODE = '{}'; END $$"


def failure(url: URL, statement: str) -> str:
    """What is told of the statement's failure."""
    engine = create_engine(url, hide_parameters=True)
    try:
        with pytest.raises(DATABASE_ERRORS) as caught, engine.connect() as connection:
            connection.execute(text(statement))
        return describe(caught.value)
    finally:
        engine.dispose()


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("SELECT 'secret'::integer", "InvalidTextRepresentation 22P02"),
        ("SELECT 1 'secret'", "SyntaxError 42601"),
        ("SELECT 'secret' FROM secrets", 'UndefinedTable 42P01: relation "secrets" does not exist'),
        (RAISE.format("P0001"), "RaiseException P0001"),
        (RAISE.format("3F000"), "InvalidSchemaName 3F000: secret"),
        (RAISE.format("ZZ001"), "DatabaseError ZZ001"),
        (
            "SET statement_timeout = 10; SELECT pg_sleep(5)",
            "QueryCanceled 57014: canceling statement due to statement timeout",
        ),
    ],
)
def test_postgresqls_sentence_is_told_where_it_quotes_no_value(server: URL, statement: str, told: str) -> None:
    assert failure(server, statement) == told


def test_where_no_connection_is_made_the_drivers_sentence_is_told(server: URL) -> None:
    found = failure(as_superuser(server).set(database="nowhere"), "SELECT 1")
    # Where psycopg2 waits by a callback, libpq leaves out to which server.
    assert re.fullmatch('OperationalError: (connection to server .*)?FATAL: +database "nowhere" does not exist', found)


def test_sqlites_sentence_is_told() -> None:
    with sqlite_database() as url:
        assert failure(url, "SELECT 'secret' FROM nowhere") == "OperationalError: no such table: nowhere"


@pytest.mark.parametrize("kind", [StatementError, ArgumentError])
def test_of_sqlalchemys_own_errors_the_kind_alone_is_told(kind: type[Exception]) -> None:
    error = kind("secret", None, None, ValueError("secret")) if kind is StatementError else kind("secret")
    assert describe(error) == kind.__name__


def test_but_that_the_pool_has_no_connection_is_told() -> None:
    assert describe(PoolTimeout("QueuePool limit of size 1 overflow 0 reached")).startswith("TimeoutError: QueuePool")


def test_an_error_of_the_driver_itself_is_told() -> None:
    assert describe(sqlite3.ProgrammingError("Cannot operate on a closed database.")) == (
        "ProgrammingError: Cannot operate on a closed database."
    )
