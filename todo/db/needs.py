"""What the service needs of the database, each as an SQL expression. Must not know any table: models have them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Table, exists, false, literal_column, not_, select

from todo.db import db
from todo.db.types import WRITTEN_ONCE

# What anyone may know about the database.
SCHEMA = "lacks tables or columns"
RIGHTS = "denies rights that the service needs"
POLICIES = "has policies that hide or refuse rows of the user"
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
    (SELECT attidentity <> ''
            OR atthasdef AND has_sequence_privilege(pg_get_serial_sequence('{table}', '{column}'), 'USAGE')
     FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attname = '{column}')
"""
#: Whether the table has its primary key. After a restore that ended early there are rows, but no constraints: each
#: create then fails, and idempotency keys are not unique.
KEYED = "EXISTS (SELECT FROM pg_index WHERE indrelid = '{table}'::regclass AND indisprimary)"
#: Whether the role has this right on all these columns: on each of them, or on the table.
GRANTED = "(SELECT bool_and(has_column_privilege('{table}', name, '{right}')) FROM unnest(ARRAY[{columns}]) AS name)"
#: The policies of a table for the current role.
POLICIES_OF_ROLE = """
    FROM pg_policy WHERE polrelid = {table}::regclass
    AND EXISTS (SELECT FROM unnest(polroles) AS role WHERE role = 0 OR pg_has_role(role, 'USAGE'))
"""
#: The two conditions of a policy: which rows it shows, and which new rows it accepts.
RULES = "concat(pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))"
#: Whether a policy refuses every row.
REFUSES = "coalesce('false' IN (pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid)), false)"
#: Whether a policy lets the user's own rows through. One that asks who acts, and does not compare the owner, is for
#: commands, which act for nobody.
IS_OF_USER = f"""
    polpermissive AND coalesce(polqual, polwithcheck) IS NOT NULL AND NOT {REFUSES}
    AND (strpos(replace({RULES}, 'app.user_id', ''), '{{owner}}') > 0 OR strpos({RULES}, 'app.user_id') = 0)
"""
#: Whether row-level security lets the user's rows through, for all commands (*), or for each of SELECT, INSERT (a),
#: UPDATE (w) and DELETE: a table without a policy for one of these looks empty to it, or accepts no row. One
#: restrictive policy is enough to refuse every row.
LET_THROUGH = f"""
    (NOT row_security_active('{{table}}') OR (
        SELECT string_agg(DISTINCT polcmd::text, '') FILTER (WHERE {IS_OF_USER}) ~ '[*]|adrw'
            AND count(*) FILTER (WHERE NOT polpermissive AND {REFUSES}) = 0
        {POLICIES_OF_ROLE.format(table="'{table}'")}
    ))
"""
#: Whether each policy checks who acts. One that does not opens the table to all users.
ISOLATED = f"""
    (SELECT bool_and(row_security_active(name) AND NOT EXISTS (
        SELECT {POLICIES_OF_ROLE.format(table="name")} AND polpermissive
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
    yield Need(subject, literal_column(" AND ".join(rights_on(model))), RIGHTS)
    yield Need(subject, literal_column(KEYED.format(table=model.name)), SCHEMA)
    for identity in (each.name for each in model.columns if each.identity is not None):
        yield Need(subject, literal_column(NUMBERED.format(table=model.name, column=identity)), SCHEMA)
    owner = "user_id" if "user_id" in model.columns else "id"
    yield Need(subject, literal_column(LET_THROUGH.format(table=model.name, owner=owner)), POLICIES)


def rights_on(model: Table) -> Iterator[str]:
    """Yield SQL for each right on the table that statements need. Rights on the columns that they write are enough."""
    yield f"has_table_privilege('{model.name}', 'DELETE')"
    # Also for FOR UPDATE, in a table whose columns are all written once.
    yield f"has_any_column_privilege('{model.name}', 'UPDATE')"
    inserted = [each for each in model.columns if each.identity is None]
    updated = [each for each in inserted if not each.primary_key and each.info != WRITTEN_ONCE]
    for right, columns in (("INSERT", inserted), ("UPDATE", updated)):
        if columns:
            names = ", ".join(f"'{each.name}'" for each in columns)
            yield GRANTED.format(table=model.name, right=right, columns=names)


@cache
def isolation(backend: str) -> ColumnElement[Any]:
    """Return SQL for: whether the database itself isolates users."""
    if backend == "sqlite":
        return false()
    owned = ", ".join(f"'{name}'" for name, model in db.metadata.tables.items() if "user_id" in model.columns)
    return literal_column(ISOLATED.format(owned=owned))
