"""How Alembic runs the migrations: one process at a time, and on PostgreSQL without keeping requests waiting.

Each migration is a transaction of its own there. Why, and how a table is changed under load: docs/migrations.md.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from time import sleep

import psycopg2
from alembic import context
from alembic.util import CommandError
from flask import current_app
from sqlalchemy import Connection, Engine, NullPool, create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from todo.db.failures import DATABASE_ERRORS, describe, is_outage

logger = logging.getLogger("alembic.env")

# Any number will do, as long as every process that migrates takes the same.
LOCK = 7_236_158_401
#: Seconds between two looks whether another process that migrates has ended.
ANOTHER_LOOK = 0.5
#: What holds in each transaction of a migration. What the policies of a table would hide from it is an error, rather
#: than not migrated. And while it waits for a table, whoever comes later waits behind it: less than the second that
#: requests bear (todo/db/connections.py). How long it then takes is its own affair, whatever limits the role has.
LIMITS = {"row_security": "off", "lock_timeout": "500ms", "statement_timeout": "0"}
#: What holds in the transaction that has the lock, and idles for as long as the migrations take.
NO_LIMITS = {"idle_in_transaction_session_timeout": "0"}
#: Seconds until the next attempt, after one that could not have its locks: in these, requests go on.
PAUSES = (1, 1, 2, 3, 5)

#: Of the sessions that hold a lock on a table that is not the system's: the one whose transaction is the oldest, no
#: request's. Of the sessions of other roles PostgreSQL may not tell since when.
HOLDER = """
    SELECT pid, usename, application_name, state, extract(epoch FROM clock_timestamp() - xact_start)::bigint
    FROM pg_stat_activity
    WHERE pid IN (
        SELECT pid FROM pg_locks
        WHERE granted AND relation >= 16384 AND pid <> pg_backend_pid()
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    ) AND (xact_start IS NULL OR xact_start < clock_timestamp() - interval '1 second')
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
#: The function that searches use, as the newest migration of it makes it.
FOLD_CASE = Path(__file__).with_name("fold_case.sql")


def run_migrations() -> None:
    """Run what the command asks for; a failure leaves the database as the last whole migration made it.

    On SQLite, where nobody else writes meanwhile, all of them are one transaction. Raises CommandError, which ends the
    command with one line, where the database is away, a lock cannot be had, or the role lacks a right.
    """
    engine = current_app.extensions["migrate"].db.engine
    is_sqlite = engine.dialect.name == "sqlite"
    must_be_alone = is_changing()
    try:
        with alone(engine) if must_be_alone and not is_sqlite else nullcontext(), engine.connect() as connection:
            if not is_sqlite:
                # The engine is in autocommit.
                connection.execution_options(isolation_level="READ COMMITTED")
                event.listen(connection, "begin", begin_within_limits)
            elif must_be_alone:
                event.listen(connection, "begin", begin_on_sqlite)
            migrate_patiently(connection)
            if not is_sqlite and context.get_context().opts["fn"].__name__ == "upgrade":
                mend_fold_case(connection)
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
    # A destination that cannot be resolved yet, such as +1, is one too.
    with suppress(CommandError):
        try:
            context.get_revision_argument()
        except KeyError:
            return False
    return True


@contextmanager
def alone(engine: Engine) -> Iterator[None]:
    """Wait for other processes that migrate, however long, and keep those that come later waiting.

    In a transaction on a connection of its own: the lock then outlasts those of the migrations, also where one goes
    without (autocommit_block), and unlike the lock of a session it is never left behind in a pooler. Raises
    CommandError where the database is not in UTF-8.
    """
    arguments = current_app.config["SQLALCHEMY_ENGINE_OPTIONS"]["connect_args"]
    # At another level, which the role may have by default, this transaction would keep its first snapshot.
    own = create_engine(engine.url, connect_args=arguments, poolclass=NullPool, isolation_level="READ COMMITTED")
    with own.begin() as connection:
        connection.exec_driver_sql(limits(connection, NO_LIMITS))
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
        if encoding != "UTF8":
            raise CommandError(f"The encoding of the database is {encoding}: create it with ENCODING 'UTF8'")
        # Asked again and again, rather than waited for: a statement that waits has a snapshot, for the end of which
        # CREATE INDEX CONCURRENTLY in the other process would wait, and so both for ever.
        is_waiting = False
        while not connection.exec_driver_sql(f"SELECT pg_try_advisory_xact_lock({LOCK})").scalar_one():
            if not is_waiting:
                logger.info("Another process is migrating this database: waiting for its end")
            is_waiting = True
            sleep(ANOTHER_LOOK)
        yield


def begin_within_limits(connection: Connection) -> None:
    """Set the limits of a transaction that begins on PostgreSQL."""
    connection.exec_driver_sql(limits(connection, LIMITS))


def begin_on_sqlite(connection: Connection) -> None:
    """Take the only writer's place; SQLite's driver begins nothing by itself before DDL."""
    patience = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
    connection.exec_driver_sql("PRAGMA busy_timeout = 0")
    try:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        is_alone = True
    except OperationalError:
        is_alone = False
    # The connection may serve requests afterwards.
    connection.exec_driver_sql(f"PRAGMA busy_timeout = {patience}")
    if not is_alone:
        logger.info("Another process is writing to this database: waiting for its end")
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def limits(connection: Connection, named: Mapping[str, str]) -> str:
    """What sets them for a transaction, and that the transaction itself may take as long as it does."""
    # Which PostgreSQL knows from 17 on.
    is_known = (connection.dialect.server_version_info or (0,)) >= (17,)
    whole = {"transaction_timeout": "0"} if is_known else {}
    return "; ".join(f"SET LOCAL {name} = '{value}'" for name, value in {**named, **whole}.items())


def migrate_patiently(connection: Connection) -> None:
    """Migrate, again after each of the PAUSES where a lock cannot be had. Raises CommandError after the last.

    And at once, where so many steps up or down were asked for, which a second attempt would count anew.
    """
    for attempt, pause in enumerate((*PAUSES, None), start=1):
        try:
            migrate(connection)
        except DBAPIError as error:
            if not isinstance(error.orig, psycopg2.errors.LockNotAvailable | psycopg2.errors.DeadlockDetected):
                raise
            connection.rollback()
            if pause is None or is_relative(context.get_context().opts.get("destination_rev")):
                raise CommandError(held_up(connection, attempt)) from error
            logger.info("A table is locked; again in %s s", pause)
            sleep(pause)
        else:
            return


def is_relative(destination: object) -> bool:
    """Whether a destination is counted from where the database stands: +1, or -2."""
    return str(destination).startswith(("+", "-"))


def migrate(connection: Connection) -> None:
    """Run the migrations that are still to be run."""
    app = current_app.extensions["migrate"]
    is_sqlite = connection.dialect.name == "sqlite"
    context.configure(
        connection=connection,
        target_metadata=app.db.metadata,
        transactional_ddl=True,
        transaction_per_migration=not is_sqlite,
        include_name=is_compared,
        **app.configure_args,
    )
    with context.begin_transaction():
        context.run_migrations()


def is_compared(name: str | None, kind: str, _parents: object) -> bool:
    """Whether `check` and `migrate` compare it with the models: no table that is not a model's, such as a partition."""
    return kind != "table" or name in current_app.extensions["migrate"].metadata.tables


def print_script() -> None:
    """Print, for --sql, what the command would do to a PostgreSQL database; opens no connection.

    The script is one transaction, so that what fails leaves the database as it was. Raises CommandError for SQLite:
    Alembic writes spaces for tabs, one of which is in a constraint there (migration 0001).
    """
    app = current_app.extensions["migrate"]
    dialect = app.db.engine.dialect
    if dialect.name == "sqlite":
        raise CommandError("--sql is for PostgreSQL alone: set DATABASE_URL to postgresql://…, which is not opened")
    context.configure(
        dialect_name=dialect.name,
        target_metadata=app.db.metadata,
        transactional_ddl=True,
        literal_binds=True,
        **app.configure_args,
    )
    is_elsewhere, described = "to_regclass('alembic_version') IS NOT NULL", "without migrations"
    if start := context.get_starting_revision_argument():
        is_elsewhere = f"(SELECT max(version_num) FROM alembic_version) IS DISTINCT FROM '{start}'"  # noqa: S608 (a revision)
        described = f"at migration {start}"
    with context.begin_transaction():
        for name, value in LIMITS.items():
            context.execute(f"SET LOCAL {name} = '{value}'")
        context.execute(GUARD.format(lock=LOCK, is_elsewhere=is_elsewhere, start=described))
        context.run_migrations()


def mend_fold_case(connection: Connection) -> None:
    """Make fold_case() again if it is missing, or names a collation that this server does not have: after a restore."""
    # Ends what a look at the revision has begun.
    connection.commit()
    with connection.begin():
        try:
            with connection.begin_nested():
                connection.exec_driver_sql("SELECT fold_case('x')")
        except ProgrammingError as error:
            if not isinstance(error.orig, psycopg2.errors.UndefinedObject | psycopg2.errors.UndefinedFunction):
                raise
            connection.exec_driver_sql(FOLD_CASE.read_text())
            logger.info("Made fold_case() again: it was missing, or of a server with other collations")


def held_up(connection: Connection, attempts: int) -> str:
    """What stands in the way of a migration, in one line, without a word of what that does."""
    stands_at = context.get_context().get_current_revision() or "no migration"
    holder = connection.exec_driver_sql(HOLDER).one_or_none()
    found = "nobody any more"
    if holder is not None:
        pid, role, application, state, seconds = holder
        found = f"process {pid} of PostgreSQL (role {role}, application {application or 'unnamed'}"
        found += ")" if seconds is None else f", {state}, for {seconds} s)"
    return (
        f"A table was locked (attempts: {attempts}); the database stands at {stands_at}, and nothing "
        f"more was changed. Held now by {found}: try again when that has ended"
    )


if context.is_offline_mode():
    print_script()
else:
    run_migrations()
