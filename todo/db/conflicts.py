"""Unique constraints: which one a statement violated, and the 409 where the model has words for it.

A model declares the words beside the constraint (docs/decisions/conflicts.md). Must not know any table.
"""

import sqlite3
from collections.abc import Iterator

from psycopg2.errors import UniqueViolation
from sqlalchemy import Index, PrimaryKeyConstraint, Table, UniqueConstraint, text

from todo.db import db
from todo.db.failures import cause_of
from todo.errors import Conflict

Unique = PrimaryKeyConstraint | UniqueConstraint | Index

#: What is in `info` of a unique constraint or index whose violation is a 409: the sentence for the caller.
CONFLICT = "conflict"

# A partition's index has a name of its own. This finds the name of the index that it is a part of.
WHOLE_INDEX = text(
    "SELECT relname FROM pg_class WHERE oid = pg_partition_root(to_regclass(format('%I.%I', :schema, :name)))"
)
SQLITE_PREFIX = "UNIQUE constraint failed: "


def refuse_conflict(error: Exception) -> None:
    """Raise Conflict in place of the error, if the model has words for the violated constraint."""
    unique = violated(error)
    if unique is not None and CONFLICT in unique.info:
        raise Conflict(unique.info[CONFLICT]) from error


def violated(error: Exception) -> Unique | None:
    """The unique constraint or index that the statement violated; None for another error, or if no model has it."""
    cause = cause_of(error)
    if isinstance(cause, sqlite3.Error):
        message = str(cause)
        # SQLite names an index on expressions, and the columns of any other.
        name = message.removeprefix(SQLITE_PREFIX).removeprefix("index ").strip("'")
        return _named(name) if message.startswith(SQLITE_PREFIX) else None
    if not isinstance(cause, UniqueViolation):
        return None
    schema, name = cause.diag.schema_name, cause.diag.constraint_name or ""
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
