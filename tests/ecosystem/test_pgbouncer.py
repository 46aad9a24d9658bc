"""The way by PgBouncer that TEST_THROUGH=pgbouncer opens to the whole suite is one."""

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Barrier

import pytest
from sqlalchemy import URL, text

from tests.ecosystem.pgbouncer import DIRECT_ALONE, pgbouncer
from tests.support import PASSWORD, ROLE, ROOT, close, migrated_app, pooled, postgresql_database, sql
from todo.db import db

pytestmark = pytest.mark.ecosystem

POOL, THREADS = 2, 6
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = :name AND application_name = 'todo'"


def test_an_app_has_more_connections_than_its_server_sees(server: URL) -> None:
    with ExitStack() as stack:
        pooler = stack.enter_context(pgbouncer(server, POOL, server.set(username=ROLE, password=PASSWORD)))
        stack.enter_context(pooled(server, pooler))
        url = stack.enter_context(postgresql_database(server))
        assert (url.host, url.port) == (pooler.host, pooler.port)
        app = migrated_app(url, threads=THREADS)
        together = Barrier(THREADS)

        def ask(_: int) -> None:
            with app.app_context(), db.engine.connect() as connection:
                together.wait()
                connection.execute(text("SELECT 1"))
                together.wait()

        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(ask, range(THREADS)))
        ((count,),) = sql(url, SESSIONS, name=url.database)
        assert 1 <= count <= POOL
        close(app)


def test_what_is_left_out_exists() -> None:
    code = "".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))
    assert set(DIRECT_ALONE) <= set(re.findall(r"^def (test_\w+)", code, re.MULTILINE))
