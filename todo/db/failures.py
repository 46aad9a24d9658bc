"""The meaning of the database's errors: an outage, or a fault of the statement. Executes nothing."""

import sqlite3
from typing import cast

import psycopg2
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from todo.db import db
from todo.db.pool import Pool
from todo.errors import InternalError, TodoError, Unavailable

#: SQLSTATEs (PostgreSQL documentation, appendix A): connection, resources, operator and time-outs, system, lock not
#: available, read-only, rolled back in a conflict.
_POSTGRESQL_OUTAGES = ("08", "53", "57", "58", "55P03", "25006", "40")
#: The SQLSTATE of an internal error. With Citus it means that a worker was lost: it passes on the words of libpq.
_INTERNAL = "XX000"
#: SQLSTATEs whose message is logged, because it quotes no value: users wrote those. Data exceptions (22) quote values.
#: So do the errors of triggers (P0, or their own codes) and syntax errors (42601), as the driver writes values into the
#: statement. Other errors quote values in their details, which are never logged.
_POSTGRESQL_LOGGED = ("08", "0A", "23", "25", "26", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58", "XX")
_POSTGRESQL_NOT_LOGGED = "42601"
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

#: The base classes of the two drivers' errors.
DRIVER_ERRORS = (psycopg2.Error, sqlite3.Error)
#: What a statement can raise. SQLAlchemy wraps the driver's errors; a Statement (todo/db/statements.py) does not.
DATABASE_ERRORS = (SQLAlchemyError, *DRIVER_ERRORS)


def as_failure(error: Exception) -> TodoError:
    """Return the failure for the caller: 503 for an outage, else 500. Its detail for the log is from describe()."""
    kind = Unavailable if is_outage(error) else InternalError
    return kind(detail=describe(error))


def is_outage(error: Exception) -> bool:
    """Whether the database is unavailable, full, read-only or too slow. If not, the statement is wrong."""
    if isinstance(error, PoolTimeout):
        return True
    cause = cause_of(error)
    if isinstance(cause, sqlite3.Error):
        return _sqlite_code(cause) & 0xFF in _SQLITE_OUTAGES
    if isinstance(cause, psycopg2.Error):
        if cause.pgcode is None:
            # The server did not answer: the connection failed, or broke.
            return type(cause) in (psycopg2.OperationalError, psycopg2.InterfaceError, psycopg2.DatabaseError)
        return cause.pgcode.startswith(_POSTGRESQL_OUTAGES) or (cause.pgcode == _INTERNAL and _is_citus())
    return False


def is_stopped(error: Exception) -> bool:
    """Whether the statement was stopped because it took too long."""
    cause = cause_of(error)
    if isinstance(cause, sqlite3.Error):
        return _sqlite_code(cause) == sqlite3.SQLITE_INTERRUPT
    return getattr(cause, "pgcode", None) == "57014"


def describe(error: Exception) -> str:
    """Describe the error in one line for the log, without any value that a user or the environment wrote.

    The line has the message of the server or driver, unless that quotes a value. If no connection can be made, the
    driver names host, user and database: config.py ensures that none of these is a part of the password.
    """
    cause = cause_of(error)
    kind = type(cause).__name__
    if isinstance(cause, psycopg2.Error) and cause.pgcode is not None:
        is_logged = cause.pgcode.startswith(_POSTGRESQL_LOGGED) and cause.pgcode != _POSTGRESQL_NOT_LOGGED
        message = f": {cause.diag.message_primary}" if is_logged else ""
        return f"{kind} {cause.pgcode}{message}".partition("\n")[0]
    if isinstance(cause, (*DRIVER_ERRORS, PoolTimeout)):
        return f"{kind}: {cause}".partition("\n")[0]
    # SQLAlchemy's own messages quote parts of statements, and values.
    return kind


def is_denied(error: Exception) -> bool:
    """Whether the role lacks a right."""
    return getattr(cause_of(error), "pgcode", None) == "42501"


def cause_of(error: Exception) -> BaseException:
    """The driver's error, or the error itself if no driver raised it."""
    return (error.orig or error) if isinstance(error, DBAPIError) else error


def _is_citus() -> bool:
    # Not asked of the error: that of a COMMIT has no cursor.
    return bool(cast(Pool, db.engine.pool).knows_citus)


def _sqlite_code(error: sqlite3.Error) -> int:
    # Errors of the driver itself have no code of SQLite.
    return getattr(error, "sqlite_errorcode", 0)
