"""What a failure of the database means: an outage, or a statement at fault. Executes nothing."""

import sqlite3

import psycopg2
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

#: SQLSTATE (PostgreSQL documentation, appendix A): connection, resources, intervention and time-outs, system, lock
#: not available, read-only, rolled back in a conflict.
_POSTGRESQL_OUTAGES = ("08", "53", "57", "58", "55P03", "25006", "40")
#: Primary result codes (sqlite.org/rescode.html).
_SQLITE_OUTAGES = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)

#: What the two drivers raise, each with subclasses of its own.
DRIVER_ERRORS = (psycopg2.Error, sqlite3.Error)
#: What a statement can raise: SQLAlchemy wraps the driver's errors, a Statement (todo/statements.py) does not.
DATABASE_ERRORS = (SQLAlchemyError, *DRIVER_ERRORS)


def is_outage(error: Exception) -> bool:
    """Whether the database is away, full, read-only or too slow, as opposed to a statement being at fault."""
    if isinstance(error, PoolTimeout):
        return True
    cause = cause_of(error)
    if isinstance(cause, sqlite3.Error):
        return _sqlite_code(cause) & 0xFF in _SQLITE_OUTAGES
    if isinstance(cause, psycopg2.Error):
        if cause.pgcode is None:
            # No answer of the server: the connection failed, or broke.
            return type(cause) in (psycopg2.OperationalError, psycopg2.InterfaceError, psycopg2.DatabaseError)
        return cause.pgcode.startswith(_POSTGRESQL_OUTAGES)
    return False


def describe(error: Exception) -> str:
    """What went wrong in one line, for the log: the server's own sentence, without the values that it quotes."""
    cause = cause_of(error)
    if isinstance(cause, psycopg2.Error) and cause.pgcode is not None:
        # A data exception (class 22) quotes the value in its very sentence, and so may what a trigger raises (P0); the
        # others do in their details.
        sentence = "" if cause.pgcode.startswith(("22", "P0")) else f": {cause.diag.message_primary}"
        return f"{type(cause).__name__} {cause.pgcode}{sentence}"
    return f"{type(cause).__name__}: {cause}".partition("\n")[0]


def is_foreign_key_violation(error: Exception) -> bool:
    """Whether the statement named a row that is not there."""
    cause = cause_of(error)
    if isinstance(cause, sqlite3.Error):
        return _sqlite_code(cause) == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY
    return getattr(cause, "pgcode", None) == "23503"


def cause_of(error: Exception) -> BaseException:
    """The driver's own error, or the error itself where no driver raised it."""
    return (error.orig or error) if isinstance(error, DBAPIError) else error


def _sqlite_code(error: sqlite3.Error) -> int:
    # The driver's own complaints bear no code of SQLite's.
    return getattr(error, "sqlite_errorcode", 0)
