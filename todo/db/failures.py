"""What a failure of the database means: an outage, or a statement at fault. Executes nothing."""

import sqlite3

import psycopg2
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from todo.errors import InternalError, TodoError, Unavailable

#: SQLSTATE (PostgreSQL documentation, appendix A): connection, resources, intervention and time-outs, system, lock
#: not available, read-only, rolled back in a conflict.
_POSTGRESQL_OUTAGES = ("08", "53", "57", "58", "55P03", "25006", "40")
#: SQLSTATEs whose sentence is told in the log: it quotes no value, which would be what a user wrote. A data exception
#: does (22), so does what a trigger raises (P0, or a code of its own), and so does a syntax error (42601), since the
#: driver writes values into the statement. Others quote values in their details, which are never told.
_POSTGRESQL_TOLD = ("08", "0A", "23", "25", "26", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58", "XX")
_POSTGRESQL_UNTOLD = "42601"
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
#: What a statement can raise: SQLAlchemy wraps the driver's errors, a Statement (todo/db/statements.py) does not.
DATABASE_ERRORS = (SQLAlchemyError, *DRIVER_ERRORS)


def as_failure(error: Exception) -> TodoError:
    """Return what the caller is told: 503 for an outage, else 500. The log gets what describe() says."""
    kind = Unavailable if is_outage(error) else InternalError
    return kind(detail=describe(error))


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


def is_stopped(error: Exception) -> bool:
    """Whether the statement took too long, and the database or the service stopped it."""
    cause = cause_of(error)
    if isinstance(cause, sqlite3.Error):
        return _sqlite_code(cause) == sqlite3.SQLITE_INTERRUPT
    return getattr(cause, "pgcode", None) == "57014"


def describe(error: Exception) -> str:
    """What went wrong in one line, for the log, without a value that a user or the environment wrote.

    That is the server's or the driver's own sentence, where it quotes none: where no connection can be made, the driver
    names the host, the user and the database. config.py sees to it that none of these is a part of the password.
    """
    cause = cause_of(error)
    kind = type(cause).__name__
    if isinstance(cause, psycopg2.Error) and cause.pgcode is not None:
        is_told = cause.pgcode.startswith(_POSTGRESQL_TOLD) and cause.pgcode != _POSTGRESQL_UNTOLD
        return f"{kind} {cause.pgcode}{f': {cause.diag.message_primary}' if is_told else ''}"
    if isinstance(cause, (*DRIVER_ERRORS, PoolTimeout)):
        return f"{kind}: {cause}".partition("\n")[0]
    # SQLAlchemy's own: they quote what the statement, or a value, made them stumble over.
    return kind


def is_foreign_key_violation(error: Exception) -> bool:
    """Whether the statement named a row that is not there."""
    cause = cause_of(error)
    if isinstance(cause, sqlite3.Error):
        return _sqlite_code(cause) == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY
    return getattr(cause, "pgcode", None) == "23503"


def is_denied(error: Exception) -> bool:
    """Whether the database refused a right."""
    return getattr(cause_of(error), "pgcode", None) == "42501"


def cause_of(error: Exception) -> BaseException:
    """The driver's own error, or the error itself where no driver raised it."""
    return (error.orig or error) if isinstance(error, DBAPIError) else error


def _sqlite_code(error: sqlite3.Error) -> int:
    # The driver's own complaints bear no code of SQLite's.
    return getattr(error, "sqlite_errorcode", 0)
