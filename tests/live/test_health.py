"""More of /health/ready: set-ups that differ from the migrations' and serve every call, and a restore without owner."""

import re

import pytest
from flask import Flask
from flask_migrate import downgrade
from sqlalchemy import URL

from tests.conftest import DATABASES
from tests.support import ROLE, ROOT, Make, as_superuser, migrate, sql
from tests.test_health import OWN_ROWS, SAYS_MORE, TABLES, granted, policy, ready, replaced, served, spoilt, statuses
from todo.db import readiness
from todo.db.figures import number_of

__all__ = ["served"]

#: The columns that statements update. The last ones are locked alone.
UPDATED = {
    "tasks": "title, description, status, updated_at",
    "users": "changed_at, forgotten_at",
    "idempotency_keys": "key",
}
#: The policy for reads comes in the place of the one for all commands.
FOR_READS, MENDED = replaced("tasks", f"FOR SELECT USING {OWN_ROWS}")
RULES = {"INSERT": f"WITH CHECK {OWN_ROWS}", "UPDATE": f"USING {OWN_ROWS}", "DELETE": f"USING {OWN_ROWS}"}
#: What brings the set-up about, what undoes it, and how users are kept apart.
FIT = {
    **{
        f"some columns of {table} may be changed": (*granted("UPDATE", table, columns), "enforced")
        for table, columns in UPDATED.items()
    },
    "the only policy lets everybody do all": (*replaced("tasks", "USING (true)"), "bypassed"),
    "each command has a policy": (
        "; ".join([FOR_READS, *(f"CREATE POLICY {name} ON tasks FOR {name} {rule}" for name, rule in RULES.items())]),
        "; ".join([*(f"DROP POLICY {name} ON tasks" for name in RULES), MENDED]),
        "enforced",
    ),
    "the policy is written in another way": (
        *replaced("tasks", "USING (NOT (SELECT current_setting('app.user_id', true) IS DISTINCT FROM user_id))"),
        "enforced",
    ),
    "another policy restricts": (*policy("tasks", f"AS RESTRICTIVE USING {OWN_ROWS}"), "enforced"),
    "a policy refuses another role": (*policy("tasks", "AS RESTRICTIVE TO pg_monitor USING (false)"), "enforced"),
}


@pytest.mark.parametrize("served", DATABASES[1:], indirect=True)
def test_another_set_up_is_ready_if_every_call_works(served: Flask) -> None:
    for name, (spoil, mend, security) in FIT.items():
        with spoilt(served, spoil, mend):
            response = served.test_client().get("/health/ready")
            assert (response.status_code, response.get_json().get("row_level_security")) == (200, security), name
            assert statuses(served) == {200, 201, 204}, name


@pytest.mark.parametrize(("revision", "number"), [(None, 0), ("0010", 10), ("9001,0010", 9001), ("a3f", 0)])
def test_the_number_of_a_revision_is_for_the_figures(revision: str | None, number: int) -> None:
    assert number_of(revision) == number


def test_of_a_database_whose_migrations_have_branches_each_revision_is_named(served: Flask) -> None:
    another = ("INSERT INTO alembic_version VALUES ('9999')", "DELETE FROM alembic_version WHERE version_num = '9999'")
    with spoilt(served, *another):
        found = served.test_client().get("/health/ready").get_json()
    assert sorted(found["schema_revision"].split(",")) == [found["schema_revision_wanted"], "9999"]


def test_restored_without_owner_it_names_the_command_that_brings_it_back(
    postgresql: URL, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    superuser = as_superuser(postgresql).username
    for table in (*TABLES, "alembic_version"):
        sql(postgresql, f'ALTER TABLE {table} OWNER TO "{superuser}"; REVOKE ALL ON {table} FROM PUBLIC, {ROLE}')
    app = make(postgresql)
    response = app.test_client().get("/health/ready")
    message = f"The database denies rights that the service needs: {SAYS_MORE}"
    assert (response.status_code, response.get_json()) == (503, {"error": message})
    assert statuses(app) == {500}
    (line,) = re.findall("GET /health/ready: (.*)", capsys.readouterr().err)
    assert all(f"permission denied for table {table}" in line for table in TABLES)
    (command,) = re.findall("as the owner of the tables: (.*)", line)
    sql(postgresql, command)
    response = app.test_client().get("/health/ready")
    assert response.get_json() == ready("enforced")
    assert statuses(app) == {200, 201, 204}


def test_what_is_missing_because_the_migrations_are_behind_takes_an_upgrade(
    postgresql: URL, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    app = make(postgresql)
    with app.app_context():
        downgrade(directory=str(ROOT / "migrations"), revision="0003")
    message = "The database lacks tables or columns: run flask db upgrade"
    assert app.test_client().get("/health/ready").get_json() == {"error": message}
    assert (
        f"the database is at migration 0003, this code at {readiness.revision_wanted()}; run" in capsys.readouterr().err
    )
    migrate(app)
    assert app.test_client().get("/health/ready").status_code == 200
