"""What the service needs of the database, each as an SQL expression. Must not know any table: models have them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Table, exists, false, literal_column, not_, select

from todo.db import db

# What anyone may know about the database.
SCHEMA = "lacks tables or columns"
RIGHTS = "denies rights that the service needs"
POLICIES = "hides all rows from the service"
FUNCTIONS = "lacks a function, or has one that fails"
ENCODING = "is not encoded in UTF8"
SETTING = "has a setting under which calls fail, or users are not kept apart"

#: Settings of the session that a role, a database or PGOPTIONS may change, and what they must be. To set them in each
#: transaction would cost each request. Without row_security every statement on a table with policies fails. As a
#: replica PostgreSQL does not enforce foreign keys. And only a request may say who acts.
SETTINGS = {
    "row_security": "current_setting('row_security') = 'on'",
    "session_replication_role": "current_setting('session_replication_role') <> 'replica'",
    "app.user_id": "coalesce(current_setting('app.user_id', true), '') = ''",
}
#: Whether a new row gets a number: from an identity column, or from a sequence that the role may use.
NUMBERED = """
    (SELECT attidentity <> '' OR has_sequence_privilege(pg_get_serial_sequence('{table}', '{column}'), 'USAGE')
     FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attname = '{column}')
"""
#: Whether the table has its primary key. After a restore that ended early there are rows, but no constraints: each
#: create then fails, and idempotency keys are not unique.
KEYED = "EXISTS (SELECT FROM pg_index WHERE indrelid = '{table}'::regclass AND indisprimary)"
#: The policies of a table that let the current role see or change rows.
POLICIES_OF_ROLE = """
    SELECT FROM pg_policy WHERE polpermissive AND polrelid = {table}::regclass
    AND EXISTS (SELECT FROM unnest(polroles) AS role WHERE role = 0 OR pg_has_role(role, 'USAGE'))
"""
#: With row-level security and no policy, a table looks empty and accepts no row.
LET_THROUGH = f"""
    (NOT row_security_active('{{table}}') OR EXISTS ({POLICIES_OF_ROLE.format(table="'{table}'")}))
"""
#: Whether each policy checks who acts. One that does not opens the table to all users.
ISOLATED = f"""
    (SELECT bool_and(row_security_active(name) AND NOT EXISTS (
        {POLICIES_OF_ROLE.format(table="name")}
        AND (strpos(pg_get_expr(polqual, polrelid), 'app.user_id') = 0
             OR strpos(pg_get_expr(polwithcheck, polrelid), 'app.user_id') = 0)
     )) FROM unnest(ARRAY[{{owned}}]) AS name)
"""  # noqa: S608 (of constants)


@dataclass(frozen=True, slots=True)
class Need:
    """Something that the service cannot work without. It is met if `is_met` is true: not false, NULL or an error."""

    #: What it is about, for the log. Only the first unmet need of a subject is reported.
    subject: str
    is_met: ColumnElement[Any]
    #: What is wrong if it is not met.
    otherwise: str


@cache
def needs(backend: str) -> list[Need]:
    """Return all needs for this kind of database."""
    wanted = [need for model in db.metadata.sorted_tables for need in needs_of_table(model, backend)]
    # Letters by their numbers: in another encoding than UTF8 the driver could not send them.
    char = "char" if backend == "sqlite" else "chr"
    wanted.append(Need("fold_case()", literal_column(f"fold_case({char}(201)) = fold_case({char}(233))"), FUNCTIONS))
    if backend == "postgresql":
        wanted += [Need(f"setting {name}", literal_column(is_fit), SETTING) for name, is_fit in SETTINGS.items()]
        wanted.append(Need("encoding", literal_column("current_setting('server_encoding') = 'UTF8'"), ENCODING))
    return wanted


def needs_of_table(model: Table, backend: str) -> Iterator[Need]:
    """Yield the needs for a table: its columns, the rights on them, its key, ids, and policies that show rows."""
    subject = f"table {model.name}"
    # It reads no row, but fails if a column is missing or may not be read.
    yield Need(subject, not_(exists(select(*model.columns).where(false()))), SCHEMA)
    if backend == "sqlite":
        return
    # A right on some columns is enough: statements may name only these.
    rights = " AND ".join(
        [
            *(f"has_any_column_privilege('{model.name}', '{right}')" for right in ("INSERT", "UPDATE")),
            f"has_table_privilege('{model.name}', 'DELETE')",
        ]
    )
    yield Need(subject, literal_column(rights), RIGHTS)
    yield Need(subject, literal_column(KEYED.format(table=model.name)), SCHEMA)
    for identity in (each.name for each in model.columns if each.identity is not None):
        yield Need(subject, literal_column(NUMBERED.format(table=model.name, column=identity)), SCHEMA)
    yield Need(subject, literal_column(LET_THROUGH.format(table=model.name)), POLICIES)


@cache
def isolation(backend: str) -> ColumnElement[Any]:
    """Return SQL for: whether the database itself isolates users."""
    if backend == "sqlite":
        return false()
    owned = ", ".join(f"'{name}'" for name, model in db.metadata.tables.items() if "user_id" in model.columns)
    return literal_column(ISOLATED.format(owned=owned))
