"""docs/secrets.md: secrets are changed while users call, and PostgreSQL's log has no title."""

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
from sqlalchemy import URL

from tests.faults.server import PostgreSql, postgresql
from tests.live import PROGRAMS, gunicorn
from tests.support import (
    ROOT,
    SECRET,
    Caller,
    Make,
    close,
    migrated_app,
    session,
    sql,
    sqlite_database,
    token,
    wait_until,
)

PAGE = (ROOT / "docs/secrets.md").read_text()
(CHANGE,) = re.findall("```sh\n(.*?)```", PAGE, re.DOTALL)
(QUIET,) = re.findall("```sql\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def own() -> Iterator[PostgreSql]:
    """A server of these tests' own, with the role and the database that deploy/create-role.sql makes."""
    with postgresql() as own:
        environ = {"PGHOST": str(own.url.query["host"]), "DATABASE_PASSWORD": "old"}
        psql = [PROGRAMS / "psql", "--quiet", "--set=ON_ERROR_STOP=1", "--username=postgres", "--dbname=postgres"]
        subprocess.run([*psql, f"--file={ROOT}/deploy/create-role.sql"], env=environ, check=True)
        close(migrated_app(todo_at(own)))
        yield own


def todo_at(own: PostgreSql) -> URL:
    """The database, as the service's role."""
    return own.url.set(username="todo", database="todo", password=None)


@pytest.fixture
def asked(own: PostgreSql) -> Iterator[PostgreSql]:
    """The same server, which asks the role for its password."""
    ((rules,),) = own.sql("SHOW hba_file")
    before = Path(rules).read_text()
    Path(rules).write_text(f"local todo todo scram-sha-256\n{before}")
    own.sql("ALTER ROLE todo PASSWORD 'old'")
    own.sql("SELECT pg_reload_conf()")
    yield own
    Path(rules).write_text(before)
    own.sql("SELECT pg_reload_conf()")


@pytest.mark.parametrize("is_in_file", [True, False], ids=["in the file", "in DATABASE_URL"])
def test_a_new_password_of_the_database_needs_no_restart(asked: PostgreSql, tmp_path: Path, is_in_file: bool) -> None:
    passfile = tmp_path / "pgpass"
    passfile.write_text("*:*:*:todo:old\n")
    passfile.chmod(0o600)
    url = todo_at(asked)
    url = url.update_query_dict({"passfile": str(passfile)}) if is_in_file else url.set(password="old")
    answers: list[int] = []
    is_over = Event()
    with gunicorn(url, tmp_path / "log") as live, ThreadPoolExecutor(4) as pool:

        def call(name: str) -> None:
            connection = live.connect()
            while not is_over.is_set():
                answers.append(live.send(connection, "GET", f"/api/{name}/tasks", name)[0])
            connection.close()

        callers = pool.map(call, "abcd")
        wait_until(lambda: len(answers) > 100, 30, 0.01)
        assert set(answers) == {200}
        change = CHANGE.replace("/etc/todo/", f"{tmp_path}/").replace("@db.example.com/", "@/")
        environ = {"PATH": f"{PROGRAMS}:/usr/bin:/bin", "PGHOST": str(asked.url.query["host"]), "NEW_PASSWORD": "new"}
        subprocess.run(["bash", "-ec", change], env=environ, check=True, stdout=subprocess.DEVNULL)
        assert passfile.stat().st_mode & 0o777 == 0o600
        until_then = len(answers)
        assert asked.terminate_backends(todo_at(asked)) > 0
        wait_until(lambda: len(answers) > until_then + 1000, 30, 0.01)
        is_over.set()
        list(callers)
    counts = Counter(answers[until_then:])
    print(dict(counts))
    assert counts.keys() <= {200, 503}
    # What was under way when its connection was closed.
    assert counts[503] <= 4 if is_in_file else counts[503] > 900


def test_a_new_secret_of_tokens_signs_nobody_out(tmp_path: Path) -> None:
    new = SECRET[::-1]
    with sqlite_database() as url:
        close(migrated_app(url))
        for number, (settings, accepted) in enumerate(
            [
                ({}, {SECRET}),
                ({"JWT_SECRET": new, "JWT_SECRET_PREVIOUS": SECRET}, {SECRET, new}),
                ({"JWT_SECRET": new}, {new}),
            ]
        ):
            with gunicorn(url, tmp_path / f"log{number}", **settings) as live:
                for secret in (SECRET, new):
                    bearer = {"Authorization": f"Bearer {token(key=secret)}"}
                    status, _ = live.request("GET", "/api/alice/tasks", **bearer)
                    assert status == (200 if secret in accepted else 401)


@pytest.mark.parametrize("is_quiet", [True, False], ids=["of create-role.sql", "without its settings"])
def test_the_log_of_postgresql_has_no_title_and_no_email(own: PostgreSql, make: Make, is_quiet: bool) -> None:
    for statement in QUIET.splitlines():
        own.sql(statement if is_quiet else re.sub(r"SET (\w+) = \w+", r"RESET \1", statement))
    try:
        canary = f"kanarienvogel-{is_quiet}"
        app = make(todo_at(own))
        alice = Caller(app, "alice")
        alice.create("x")
        with session(own.url.set(database="todo")) as other:
            other.exec_driver_sql("SELECT FROM users WHERE id = 'alice' FOR UPDATE")
            assert alice("POST", json={"title": canary}).status_code == 503
            assert alice("PATCH", query="?status=incomplete", json={"status": "complete"}).status_code == 503
        mail = f"{canary}@example.com"
        assert Caller(app, f"one {is_quiet}", mail)("POST", json={"title": "x"}).status_code == 201
        assert Caller(app, f"two {is_quiet}", mail)("POST", json={"title": "x"}).status_code == 201
        key = {"Idempotency-Key": canary}
        for status in (201, 201):
            assert alice("POST", json={"title": "x"}, headers=key).status_code == status
    finally:
        for statement in QUIET.splitlines():
            own.sql(statement)
    log = own.log.read_text()
    assert "canceling statement due to lock timeout" in log
    assert 'duplicate key value violates unique constraint "uq_users_email"' in log
    assert (canary in log) == (not is_quiet)


def test_the_page_sets_what_the_role_is_created_with() -> None:
    created = (ROOT / "deploy/create-role.sql").read_text()
    assert re.findall("ALTER ROLE .*", created) == QUIET.splitlines()


def test_another_role_may_be_allowed_to_quieten_it(own: PostgreSql) -> None:
    own.sql("CREATE ROLE deputy LOGIN CREATEROLE; GRANT todo TO deputy WITH ADMIN OPTION")
    deputy = own.url.set(username="deputy")
    (grant,) = re.findall("`(GRANT SET ON PARAMETER .*) TO …`", PAGE)
    with pytest.raises(Exception, match="permission denied to set parameter"):
        sql(deputy, QUIET)
    own.sql(f"{grant} TO deputy")
    sql(deputy, QUIET)
