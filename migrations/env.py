"""How Alembic runs the migrations: one process at a time, and on PostgreSQL without blocking requests.

There each migration is a transaction of its own. Reasons, and how to change a table under load: docs/migrations.md.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from time import sleep
from typing import Any

import psycopg2
from alembic import context
from alembic.util import CommandError
from flask import current_app
from sqlalchemy import Connection, Engine, NullPool, create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from todo.db.commands import tell_default_database
from todo.db.failures import DATABASE_ERRORS, describe, is_outage

logger = logging.getLogger("alembic.env")

# Any number, as long as every process that migrates takes the same.
LOCK = 7_236_158_401
#: Seconds between two attempts to take the lock.
LOCK_INTERVAL = 0.5
#: Settings of each transaction of a migration. Rows that a policy hides are an error, or they would stay unmigrated.
#: Requests that come later queue behind a migration that waits for a table, and wait for one second at most
#: (todo/db/connections.py): so it waits for less. Its own running time has no limit, whatever the role's is.
LIMITS = {"row_security": "off", "lock_timeout": "500ms", "statement_timeout": "0"}
#: Settings of the transaction that has the lock, and is idle while the migrations run.
NO_LIMITS = {"idle_in_transaction_session_timeout": "0"}
#: Seconds before the next attempt, after one that did not get its locks. Requests run meanwhile.
PAUSES = (1, 1, 2, 3, 5)

#: The session to blame, among those with a lock on a table that is not a system table: the one with the oldest
#: transaction, older than a request's. PostgreSQL may hide the age of other roles' transactions.
HOLDER = """
    SELECT pid, usename, application_name, state, extract(epoch FROM clock_timestamp() - xact_start)::bigint
    FROM pg_stat_activity
    WHERE pid IN (
        SELECT pid FROM pg_locks
        WHERE granted AND relation >= 16384 AND pid <> pg_backend_pid()
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    ) AND (state IS NULL OR xact_start < clock_timestamp() - interval '1 second')
    ORDER BY xact_start NULLS LAST LIMIT 1
"""

#: What the script of --sql checks before it changes anything.
GUARD = """DO $$
BEGIN
    IF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'The encoding of the database is not UTF8';
    ELSIF NOT pg_try_advisory_xact_lock({lock}) THEN
        RAISE EXCEPTION 'Another process is migrating this database';
    ELSIF {is_elsewhere} THEN
        RAISE EXCEPTION 'This script is for a database {start}';
    END IF;
END $$"""
FOLD_CASE = Path(__file__).with_name("fold_case.sql")


def run_migrations() -> None:
    """Run what the command asks for; a failure leaves the database as the last complete migration made it.

    On SQLite, which has one writer, all migrations are one transaction. Raises CommandError, which ends the command
    with one line, if the database is unavailable, a lock is not available, or the role lacks a right.
    """
    engine = current_app.extensions["migrate"].db.engine
    is_sqlite = engine.dialect.name == "sqlite"
    must_be_alone = is_changing()
    try:
        with alone(engine) if must_be_alone and not is_sqlite else nullcontext(), engine.connect() as connection:
            if not is_sqlite:
                # The engine is in autocommit.
                connection.execution_options(isolation_level="READ COMMITTED")
                event.listen(connection, "begin", lambda begun: begun.exec_driver_sql(limits(begun, LIMITS)))
            elif must_be_alone:
                event.listen(connection, "begin", begin_on_sqlite)
            migrate_patiently(connection)
            if not is_sqlite and context.get_context().opts["fn"].__name__ == "upgrade":
                repair_fold_case(connection)
    except DATABASE_ERRORS as error:
        if is_outage(error):
            raise CommandError(f"The database failed: {describe(error)}") from error
        # InvalidSchemaName: none of the schemas in search_path exists.
        if isinstance(error, DBAPIError) and isinstance(
            error.orig, psycopg2.errors.InsufficientPrivilege | psycopg2.errors.InvalidSchemaName
        ):
            raise CommandError(f"The role lacks a right that migrations need: {describe(error)}") from error
        raise


def is_changing() -> bool:
    """Whether the command goes to another revision: upgrade, downgrade, stamp; but not current, check, migrate."""
    # A relative destination such as +1 cannot be resolved yet, and counts.
    with suppress(CommandError):
        try:
            context.get_revision_argument()
        except KeyError:
            return False
    return True


@contextmanager
def alone(engine: Engine) -> Iterator[None]:
    """Wait for other processes that migrate, without a limit, and keep out those that come later.

    The lock belongs to a transaction on a connection of its own. So it outlasts the transactions of the migrations,
    and a migration without one (autocommit_block). A lock of the session could be left behind in a pooler. Raises
    CommandError if the database is not in UTF-8.
    """
    arguments = current_app.config["SQLALCHEMY_ENGINE_OPTIONS"]["connect_args"]
    # The role may have another level by default, at which this transaction would keep its first snapshot.
    own = create_engine(engine.url, connect_args=arguments, poolclass=NullPool, isolation_level="READ COMMITTED")
    with own.begin() as connection:
        connection.exec_driver_sql(limits(connection, NO_LIMITS))
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
        if encoding != "UTF8":
            raise CommandError(f"The encoding of the database is {encoding}: create it with ENCODING 'UTF8'")
        # Polls, because a statement that waits for the lock has a snapshot. CREATE INDEX CONCURRENTLY in the other
        # process would wait for the end of that snapshot: a deadlock.
        take_lock = f"SELECT pg_try_advisory_xact_lock({LOCK})"
        if not connection.exec_driver_sql(take_lock).scalar_one():
            logger.info("Another process is migrating this database: waiting for its end")
            while not connection.exec_driver_sql(take_lock).scalar_one():
                sleep(LOCK_INTERVAL)
        yield


def begin_on_sqlite(connection: Connection) -> None:
    """Become the only writer; SQLite's driver begins no transaction by itself before DDL."""
    patience = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
    connection.exec_driver_sql("PRAGMA busy_timeout = 0")
    is_alone = False
    with suppress(OperationalError):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        is_alone = True
    # The connection may serve requests afterwards.
    connection.exec_driver_sql(f"PRAGMA busy_timeout = {patience}")
    if not is_alone:
        logger.info("Another process is writing to this database: waiting for its end")
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def limits(connection: Connection, settings: Mapping[str, str]) -> str:
    """SQL that makes these settings for a transaction, and lifts the limit on its whole time."""
    # PostgreSQL has that limit from 17 on.
    is_known = (connection.dialect.server_version_info or (0,)) >= (17,)
    whole = {"transaction_timeout": "0"} if is_known else {}
    return "; ".join(f"SET LOCAL {name} = '{value}'" for name, value in {**settings, **whole}.items())


def migrate_patiently(connection: Connection) -> None:
    """Migrate; try again after each of the PAUSES if a lock is not available. Raises CommandError after the last.

    A relative destination (+1, -2) is tried only once: a second attempt would count from the new revision.
    """
    for attempt, pause in enumerate((*PAUSES, None), start=1):
        try:
            migrate(connection)
        except DBAPIError as error:
            if not isinstance(error.orig, psycopg2.errors.LockNotAvailable | psycopg2.errors.DeadlockDetected):
                raise
            connection.rollback()
            is_relative = str(context.get_context().opts.get("destination_rev")).startswith(("+", "-"))
            if pause is None or is_relative:
                raise CommandError(describe_holder(connection, attempt)) from error
            logger.info("A table is locked; again in %s s", pause)
            sleep(pause)
        else:
            return


def migrate(connection: Connection) -> None:
    """Run the migrations that are still to be run."""
    is_sqlite = connection.dialect.name == "sqlite"
    # The tables may be distributed. Then the emails of users are not unique (deploy/citus).
    is_citus = getattr(connection.connection.driver_connection, "is_citus", False)
    options = {"include_object": is_not_unique} if is_citus else {}
    configure(connection=connection, transaction_per_migration=not is_sqlite, include_name=is_compared, **options)
    with context.begin_transaction():
        context.run_migrations()


def configure(**options: Any) -> None:
    """Configure Alembic, with the options that runs and scripts share."""
    app = current_app.extensions["migrate"]
    context.configure(target_metadata=app.db.metadata, transactional_ddl=True, **options, **app.configure_args)


def is_compared(name: str | None, kind: str, _parents: object) -> bool:
    """Whether `check` and `migrate` compare it with the models: no table without a model, such as a partition."""
    return kind != "table" or name in current_app.extensions["migrate"].db.metadata.tables


def is_not_unique(_item: object, _name: str | None, kind: str, _is_reflected: bool, _other: object) -> bool:
    """Whether `check` and `migrate` compare it on Citus too: no unique constraint."""
    return kind != "unique_constraint"


def print_script() -> None:
    """Print, for --sql, what the command would do to a PostgreSQL database; open no connection.

    The script is one transaction: a failure leaves the database as it was. Raises CommandError for SQLite, where
    Alembic writes spaces for tabs, and a constraint of migration 0001 has a tab.
    """
    dialect = current_app.extensions["migrate"].db.engine.dialect
    if dialect.name == "sqlite":
        raise CommandError("--sql is only for PostgreSQL: set DATABASE_URL=postgresql:// (it opens no connection)")
    configure(dialect_name=dialect.name, literal_binds=True)
    is_elsewhere, described = "to_regclass('alembic_version') IS NOT NULL", "without migrations"
    if start := context.get_starting_revision_argument():
        is_elsewhere = f"(SELECT max(version_num) FROM alembic_version) IS DISTINCT FROM '{start}'"  # noqa: S608 (a revision)
        described = f"at migration {start}"
    with context.begin_transaction():
        for name, value in LIMITS.items():
            context.execute(f"SET LOCAL {name} = '{value}'")
        context.execute(GUARD.format(lock=LOCK, is_elsewhere=is_elsewhere, start=described))
        context.run_migrations()


def repair_fold_case(connection: Connection) -> None:
    """Make fold_case() again after a restore, if it is missing or names a collation that this server does not have."""
    # Ends the transaction that read the revision.
    connection.commit()
    with connection.begin():
        try:
            with connection.begin_nested():
                connection.exec_driver_sql("SELECT fold_case('x')")
        except ProgrammingError as error:
            if not isinstance(error.orig, psycopg2.errors.UndefinedObject | psycopg2.errors.UndefinedFunction):
                raise
            connection.exec_driver_sql(FOLD_CASE.read_text())
            logger.info("Created fold_case() again: it was missing, or came from a server with other collations")


def describe_holder(connection: Connection, attempts: int) -> str:
    """Describe in one line what blocks the migration, without the SQL that it runs."""
    revision = context.get_context().get_current_revision() or "no migration"
    holder = connection.exec_driver_sql(HOLDER).one_or_none()
    found = "no session"
    if holder is not None:
        pid, role, application, state, seconds = holder
        found = f"process {pid} of PostgreSQL (role {role}, application {application or 'unnamed'}"
        found += ")" if seconds is None else f", {state}, for {seconds} s)"
    return (
        f"A table was locked (attempts: {attempts}); the database is at {revision}, and nothing "
        f"more was changed. Now held by {found}: try again when that has ended"
    )


if context.is_offline_mode():
    print_script()
else:
    tell_default_database()
    run_migrations()
