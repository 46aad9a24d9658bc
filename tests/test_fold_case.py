"""fold_case() after a restore; what a search finds is in tests/tasks/test_list.py and tests/live/test_fold_case.py."""

import pytest
from sqlalchemy import URL

from tests.support import Caller, Make, migrate, sql

pytestmark = pytest.mark.sql


@pytest.fixture
def restored(postgresql: URL, make: Make) -> URL:
    """A database that was dumped on a server with another collation: pg_restore does not look at what functions do."""
    Caller(make(postgresql), "alice").create("Müsli")
    sql(
        postgresql,
        "SET check_function_bodies = off; CREATE OR REPLACE FUNCTION fold_case(text) RETURNS text LANGUAGE sql"
        """ IMMUTABLE STRICT PARALLEL SAFE AS 'SELECT upper(lower($1 COLLATE "of another server"))'""",
    )
    return postgresql


def test_an_upgrade_mends_the_function_of_a_database_that_was_restored_elsewhere(restored: URL, make: Make) -> None:
    app = make(restored)
    alice = Caller(app, "alice")
    assert alice("GET", query="?q=x").status_code == 500
    migrate(app)
    assert alice.titles("?q=MÜS") == ["Müsli"]


def test_an_upgrade_makes_the_function_that_is_missing(restored: URL, make: Make) -> None:
    sql(restored, "DROP FUNCTION fold_case(text)")
    app = make(restored)
    migrate(app)
    assert Caller(app, "alice").titles("?q=MÜS") == ["Müsli"]


def test_an_upgrade_leaves_a_function_alone_that_works(restored: URL, make: Make) -> None:
    sql(restored, "CREATE OR REPLACE FUNCTION fold_case(text) RETURNS text LANGUAGE sql AS 'SELECT $1'")
    app = make(restored)
    migrate(app)
    assert Caller(app, "alice").titles("?q=MÜS") == []
