"""Find the unique constraint that a statement violated. Raise Conflict if the model has a message for it.

The message is in the constraint's `info` (docs/decisions/conflicts.md). Must not know any table.
"""

import re
import sqlite3
from collections.abc import Iterator

from psycopg2.errors import UniqueViolation
from sqlalchemy import Index, PrimaryKeyConstraint, Table, UniqueConstraint, text

from todo.db import db
from todo.db.failures import cause_of
from todo.errors import Conflict

Unique = PrimaryKeyConstraint | UniqueConstraint | Index

#: The key in `info` of a unique constraint or index whose violation is a 409. Its value is the message for the caller.
CONFLICT = "conflict"

#: How Citus names the constraint of a shard: in its message alone, with the number of the shard.
OF_SHARD = re.compile(r'"([^"]+)_\d{6,}"')

# PostgreSQL names the index of the partition. This finds the name of the whole index.
WHOLE_INDEX = text(
    "SELECT relname FROM pg_class WHERE oid = pg_partition_root(to_regclass(format('%I.%I', :schema, :name)))"
)
SQLITE_PREFIX = "UNIQUE constraint failed: "


def refuse_conflict(error: Exception) -> None:
    """Raise Conflict instead of the error, if the model has a message for the violated constraint."""
    unique = violated(error)
    if unique is not None and CONFLICT in unique.info:
        raise Conflict(unique.info[CONFLICT]) from error


def violated(error: Exception) -> Unique | None:
    """The unique constraint or index that the statement violated. None for other errors, or if no model has it."""
    cause = cause_of(error)
    if isinstance(cause, sqlite3.Error):
        message = str(cause)
        # SQLite names an index if it is on expressions, else its columns.
        named = message.removeprefix(SQLITE_PREFIX).removeprefix("index ").strip("'")
        return _named(named) if message.startswith(SQLITE_PREFIX) else None
    if not isinstance(cause, UniqueViolation):
        return None
    schema, name = cause.diag.schema_name, cause.diag.constraint_name
    if name is None:
        of_shard = OF_SHARD.search(str(cause.diag.message_primary))
        return _named(of_shard[1]) if of_shard else None
    found = _named(name)
    if found is None:
        with db.engine.connect() as connection:
            whole = connection.scalar(WHOLE_INDEX, {"schema": schema, "name": name})
        found = _named(whole)
    return found


def _named(name: str | None) -> Unique | None:
    tables = db.metadata.tables.values()
    return next((unique for table in tables for unique in _uniques(table) if name in _names(unique)), None)


def _uniques(table: Table) -> Iterator[Unique]:
    for constraint in table.constraints:
        if isinstance(constraint, PrimaryKeyConstraint | UniqueConstraint):
            yield constraint
    yield from (index for index in table.indexes if index.unique)


def _names(unique: Unique) -> set[str | None]:
    return {str(unique.name), ", ".join(str(column) for column in unique.columns)}
