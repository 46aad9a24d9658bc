"""What the service needs of the database: each need is an SQL expression. Must not know any table: models tell them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Table, exists, false, literal_column, not_, select

from todo.db import db

# What may be said of the database to whoever asks.
SCHEMA = "lacks tables or columns"
RIGHTS = "denies rights that the service needs"
POLICIES = "hides all rows from the service"
FUNCTIONS = "lacks a function, or has one that fails"
ENCODING = "is not encoded in UTF8"
SETTING = "has a setting under which calls fail, or users are not kept apart"

#: The settings of a session that a role, a database or PGOPTIONS may have changed, and what they must be. To set them
#: in each transaction would cost each request. Without row_security every statement fails on a table with policies;
#: with the other role PostgreSQL does not enforce foreign keys; and who acts is said by each request alone.
SETTINGS = {
    "row_security": "current_setting('row_security') = 'on'",
    "session_replication_role": "current_setting('session_replication_role') <> 'replica'",
    "app.user_id": "coalesce(current_setting('app.user_id', true), '') = ''",
}
#: Whether a new row gets a number: from an identity column, or from a sequence that may be used.
NUMBERED = """
    (SELECT attidentity <> '' OR has_sequence_privilege(pg_get_serial_sequence('{table}', '{column}'), 'USAGE')
     FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attname = '{column}')
"""
#: The policies that widen what the current role sees and does, of a table.
POLICIES_OF_ROLE = """
    SELECT FROM pg_policy WHERE polpermissive AND polrelid = {table}::regclass
    AND EXISTS (SELECT FROM unnest(polroles) AS role WHERE role = 0 OR pg_has_role(role, 'USAGE'))
"""
#: With row-level security and no policy, a table looks empty and takes no row.
LET_THROUGH = f"""
    (NOT row_security_active('{{table}}') OR EXISTS ({POLICIES_OF_ROLE.format(table="'{table}'")}))
"""
#: Whether each policy asks who is acting: one that does not opens the table to everybody.
ISOLATED = f"""
    (SELECT bool_and(row_security_active(name) AND NOT EXISTS (
        {POLICIES_OF_ROLE.format(table="name")}
        AND (strpos(pg_get_expr(polqual, polrelid), 'app.user_id') = 0
             OR strpos(pg_get_expr(polwithcheck, polrelid), 'app.user_id') = 0)
     )) FROM unnest(ARRAY[{{owned}}]) AS name)
"""  # noqa: S608 (of constants)


@dataclass(frozen=True, slots=True)
class Need:
    """Something that the service cannot do without. It is met where `is_met` is true: not false, NULL or an error."""

    #: What it is about, for the log. Of one subject the first need that is unmet is enough.
    subject: str
    is_met: ColumnElement[Any]
    #: What is wrong where it is not met.
    otherwise: str


@cache
def needs(backend: str) -> list[Need]:
    """All that is needed of a database of that kind. A further one is a further line here."""
    wanted = [need for model in db.metadata.sorted_tables for need in needs_of_table(model, backend)]
    # By their numbers: in another encoding than UTF8 the driver could not even send the letters.
    char = "char" if backend == "sqlite" else "chr"
    wanted.append(Need("fold_case()", literal_column(f"fold_case({char}(201)) = fold_case({char}(233))"), FUNCTIONS))
    if backend == "postgresql":
        wanted += [Need(f"setting {name}", literal_column(is_fit), SETTING) for name, is_fit in SETTINGS.items()]
        wanted.append(Need("encoding", literal_column("current_setting('server_encoding') = 'UTF8'"), ENCODING))
    return wanted


def needs_of_table(model: Table, backend: str) -> Iterator[Need]:
    """What is needed of a table: its mapped columns, the rights to them, ids, and policies that let rows through."""
    subject = f"table {model.name}"
    # It reads no row, and yet every column has to be there and may be read.
    yield Need(subject, not_(exists(select(*model.columns).where(false()))), SCHEMA)
    if backend == "sqlite":
        return
    # A right to some columns is a right: which of them a statement names is its own affair.
    rights = " AND ".join(
        [
            *(f"has_any_column_privilege('{model.name}', '{right}')" for right in ("INSERT", "UPDATE")),
            f"has_table_privilege('{model.name}', 'DELETE')",
        ]
    )
    yield Need(subject, literal_column(rights), RIGHTS)
    for identity in (each.name for each in model.columns if each.identity is not None):
        yield Need(subject, literal_column(NUMBERED.format(table=model.name, column=identity)), SCHEMA)
    yield Need(subject, literal_column(LET_THROUGH.format(table=model.name)), POLICIES)


@cache
def isolation(backend: str) -> ColumnElement[Any]:
    """SQL: whether the database itself keeps users apart."""
    if backend == "sqlite":
        return false()
    owned = ", ".join(f"'{name}'" for name, model in db.metadata.tables.items() if "user_id" in model.columns)
    return literal_column(ISOLATED.format(owned=owned))
