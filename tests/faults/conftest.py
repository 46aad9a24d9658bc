"""The servers of the suite, its bars, and the table of its figures."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest
from sqlalchemy import URL

from tests.ecosystem.pgbouncer import pgbouncer
from tests.faults.ledger import Findings
from tests.faults.load import LIMIT, Account, Load, keep_journal
from tests.faults.server import PostgreSql, postgresql
from tests.live import Server, gunicorn
from tests.support import close, migrated_app, postgresql_database

#: Seconds after the end of a fault within which the last request may fail.
RECOVERY = 2.0

Judge = Callable[..., Account]


class Service(NamedTuple):
    """A gunicorn of two workers, its database, and the PostgreSQL that has it."""

    live: Server
    url: URL
    postgresql: PostgreSql


@pytest.fixture(scope="session")
def own_postgresql() -> Iterator[PostgreSql]:
    """A server to be treated badly."""
    with postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def database(own_postgresql: PostgreSql) -> Iterator[URL]:
    """A migrated database that keeps a journal."""
    with postgresql_database(own_postgresql.url) as url:
        close(migrated_app(url))
        keep_journal(url)
        yield url


@pytest.fixture(scope="session", params=["direct", pytest.param("pgbouncer", marks=pytest.mark.faults)])
def service(
    request: pytest.FixtureRequest,
    own_postgresql: PostgreSql,
    database: URL,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """A service that outlives all faults without a restart: before PostgreSQL, and before PgBouncer."""
    with ExitStack() as stack:
        url = database
        if request.param == "pgbouncer":
            url = stack.enter_context(pgbouncer(database, pool_size=16))
        live = stack.enter_context(gunicorn(url, tmp_path_factory.mktemp("faults") / "log"))
        yield Service(live, database, own_postgresql)


@pytest.fixture
def judge(record_property: Callable[[str, object], None]) -> Judge:
    """Holds a load that has stopped against the bars, and puts its figures into the table."""

    def judge(load: Load, *, may_break: bool = False) -> Account:
        account = load.account()
        record_property("figures", account.figures())
        assert account.findings == Findings()
        assert account.answers.refused == []
        assert account.answers.slowest <= LIMIT
        assert account.recovery <= RECOVERY
        assert account.answers.last_success > load.ended_at, "somebody was not served again"
        assert may_break or not account.answers.statuses["broken"]
        return account

    return judge


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures: a line for each load."""
    for report in [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]:
        for name, figures in report.user_properties:
            if name == "figures":
                line = ", ".join(f"{title} {figure}" for title, figure in figures.items())
                terminalreporter.write_line(f"{report.nodeid.partition('::')[2]}\n    {line}")
