"""How Alembic runs the migrations: all of them in one transaction, and one process at a time."""

from alembic import context
from flask import current_app

# Any number will do, as long as every process that migrates takes the same.
LOCK = 7_236_158_401


def run_migrations() -> None:
    """Run what the command asks for; a failure leaves the database as it was."""
    migrate = current_app.extensions["migrate"]
    with migrate.db.engine.connect() as connection:
        is_sqlite = connection.dialect.name == "sqlite"
        if not is_sqlite:
            # The engine is in autocommit.
            connection.execution_options(isolation_level="READ COMMITTED")
        context.configure(
            connection=connection,
            target_metadata=migrate.db.metadata,
            transactional_ddl=True,
            **migrate.configure_args,
        )
        with context.begin_transaction():
            # A second process that migrates waits here, instead of making the tables twice.
            if is_sqlite:
                # The driver begins nothing by itself before DDL.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                # What the policies of a table would hide from a migration is an error, rather than not migrated.
                connection.exec_driver_sql("SET LOCAL row_security = off")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
            context.run_migrations()


run_migrations()
