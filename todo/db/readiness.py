"""Check that the database has what the service needs: every need is tried, in one round trip. Knows no HTTP."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import ColumnElement, Connection, column, func, literal_column, null, select, table, text

from todo.db import db
from todo.db.failures import DATABASE_ERRORS, describe, is_denied, is_outage
from todo.db.needs import ENCODING, FUNCTIONS, RIGHTS, SCHEMA, SETTING, Need, isolation, needs
from todo.errors import DatabaseUnfit

MIGRATIONS = Path(__file__).parents[2] / "migrations"

EMPTY = "has no tables yet"

BYPASSED = (
    "row-level security is bypassed: the database role is a superuser or has BYPASSRLS, or a table has no policy, or "
    "one that shows every row. The queries and the service still keep users apart, the database itself does not"
)

UNWISE = "calls may get a 503, because of these settings of the database: {settings}"

# How to repair it.
UPGRADE = "run flask db upgrade"
RESTORE = "all its migrations have been run, so only a backup can restore it"
REDEPLOY = "its migrations are newer than this code: deploy the code that belongs to them"
#: The command that grants the rights.
GRANT = text(
    "SELECT format('GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %I TO %I', current_schema(), "
    "current_user)"
)

RESET = "remove the setting with ALTER ROLE … RESET or ALTER DATABASE … RESET, or from PGOPTIONS"

#: Settings under which a single call works, but some concurrent calls fail, or all writes.
UNWISE_SETTINGS = """
    nullif(concat_ws(', ',
        CASE WHEN current_setting('transaction_isolation') <> 'read committed' THEN 'default_transaction_isolation' END,
        CASE WHEN current_setting('transaction_read_only') = 'on' THEN 'default_transaction_read_only, or a standby' END
    ), '')
"""

_version_number: ColumnElement[str] = column("version_num")
#: The revision of the database, or several if the migrations have branches.
REVISIONS = select(func.aggregate_strings(_version_number, ",")).select_from(table("alembic_version")).scalar_subquery()


@dataclass(frozen=True, slots=True)
class Readiness:
    """What is worth knowing about a database that has all that is needed."""

    #: enforced, bypassed or none.
    row_level_security: str
    #: Sentences for the operator.
    warnings: Sequence[str]
    #: The revision of the database, and that of the code. None if it is not known.
    revision: str | None
    revision_wanted: str | None


def check_database() -> Readiness:
    """Try what the service needs of the database.

    Raises DatabaseUnfit if the database lacks something: the detail names every unmet need, and how to repair it.
    Raises one of DATABASE_ERRORS (todo/db/failures.py) if the database does not answer.
    """
    connection = db.session.connection()
    backend = connection.dialect.name
    wanted = needs(backend)
    facts = (isolation(backend), REVISIONS, null() if backend == "sqlite" else literal_column(UNWISE_SETTINGS))
    try:
        *met, is_isolated, revisions, unwise = connection.execute(
            select(*(need.is_met for need in wanted), *facts)
        ).one()
    except DATABASE_ERRORS as error:
        if is_outage(error):
            raise
        met = [False]
    if not all(met):
        # One at a time, to see what is wrong. The revision is not a need.
        is_isolated, revisions, unwise = (attempt(connection, fact)[0] for fact in facts)
        if unmet := list(find_unmet(connection, wanted)):
            raise unfit(connection, unmet, revisions)
    return Readiness(
        row_level_security="none" if backend == "sqlite" else "enforced" if is_isolated else "bypassed",
        warnings=list(warn(backend, revisions, unwise, is_isolated=is_isolated)),
        revision=revisions,
        revision_wanted=revision_wanted(),
    )


def warn(backend: str, revisions: str | None, unwise: str | None, *, is_isolated: bool | None) -> Iterator[str]:
    """Yield the warnings about a database that has all that is needed."""
    if backend == "postgresql" and not is_isolated:
        yield BYPASSED
    if unwise:
        yield UNWISE.format(settings=unwise)
    if (where := compare(revisions)) in ("behind", "ahead"):
        repair = UPGRADE if where == "behind" else "it has all that this code needs"
        yield f"{apart(revisions)}: {repair}"


def apart(revisions: str | None) -> str:
    """Say at which migrations the database and the code are."""
    return f"the database is at migration {revisions}, this code at {revision_wanted()}"


def find_unmet(connection: Connection, wanted: Sequence[Need]) -> Iterator[tuple[str, str]]:
    """Yield, for each subject with an unmet need, what is wrong: a part for anyone, and the detail for the log."""
    failed: set[str] = set()
    # Settings first: under a wrong one the other needs cannot be judged.
    for need in sorted(wanted, key=lambda need: need.otherwise != SETTING):
        if need.subject in failed:
            continue
        if need.otherwise != SETTING and any(subject.startswith("setting ") for subject in failed):
            return
        is_met, error = attempt(connection, need.is_met)
        if not is_met:
            failed.add(need.subject)
            wrong = RIGHTS if error is not None and is_denied(error) else need.otherwise
            yield wrong, f"{need.subject}: {wrong if error is None else describe(error)}"


def attempt(connection: Connection, expression: ColumnElement[Any]) -> tuple[Any, Exception | None]:
    """Return the value of the expression, or the error. Raises one of DATABASE_ERRORS in an outage."""
    try:
        return connection.scalar(select(expression)), None
    except DATABASE_ERRORS as error:
        if is_outage(error):
            raise
        return None, error


def unfit(connection: Connection, unmet: Sequence[tuple[str, str]], revisions: str | None) -> DatabaseUnfit:
    """Make the error: for the caller in general, for the log in detail and with how to repair it."""
    wrong = [kind for kind, _ in unmet]
    if wrong.count(SCHEMA) == len(db.metadata.tables) and revisions is None and ENCODING not in wrong:
        says = f"The database {EMPTY}: {UPGRADE}"
        return DatabaseUnfit(says, detail=says)
    wrong = list(dict.fromkeys(wrong))
    repairs: list[str] = []
    if SETTING in wrong:
        repairs.append(RESET)
    if SCHEMA in wrong:
        repairs.append({"current": RESTORE, "ahead": REDEPLOY}.get(compare(revisions), UPGRADE))
    if FUNCTIONS in wrong and UPGRADE not in repairs:
        repairs.append(UPGRADE)
    if ENCODING in wrong:
        repairs.append("move to a database made with ENCODING 'UTF8'")
    if RIGHTS in wrong:
        repairs.append(f"as the owner of the tables: {connection.scalar(GRANT)}")
    where = [apart(revisions)] if compare(revisions) in ("behind", "ahead") else []
    says = f"The database {' and '.join(wrong)}"
    return DatabaseUnfit(
        f"{says}: {UPGRADE if repairs == [UPGRADE] else 'the log of the service says more'}",
        detail=f"{says}: {'; '.join([*(detail for _, detail in unmet), *where, *repairs])}",
    )


@cache
def known_revisions() -> tuple[frozenset[str], frozenset[str]]:
    """Return all revisions in migrations/, and the newest ones. Both are empty if there is no such folder."""
    try:
        scripts = ScriptDirectory(str(MIGRATIONS))
    except CommandError:
        return frozenset(), frozenset()
    return frozenset(script.revision for script in scripts.walk_revisions()), frozenset(scripts.get_heads())


def compare(revisions: str | None) -> str:
    """Compare the database's revision with this code: behind, current, ahead, or unknown."""
    known, newest = known_revisions()
    found = frozenset(filter(None, (revisions or "").split(",")))
    if not found or not known:
        return "unknown"
    if found == newest:
        return "current"
    return "behind" if found <= known else "ahead"


def revision_wanted() -> str | None:
    """Return the newest revision in migrations/, or several if they have branches; None if there is no such folder."""
    return ",".join(sorted(known_revisions()[1])) or None
