"""docs/backup.md: its commands bring everything back, and what it warns of is true."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ProgrammingError

from tests.faults.server import PostgreSql, postgresql
from tests.live import PROGRAMS, gunicorn
from tests.live.pages import blocks, copy_project, perform
from tests.support import ROOT, Caller, Make, close, migrated_app, partition, sql, sqlite_database, wait_until
from tests.test_health import statuses

PAGE = (ROOT / "docs/backup.md").read_text()
STEPS = [step for block in blocks(PAGE) for step in block.steps]
#: The commands of the page, by a part of them.
COMMANDS = {
    name: next(step.command for step in STEPS if part in step.command)
    for name, part in {
        "role": "CREATE ROLE todo_backup",
        "backup": "deploy/backup.sql",
        "restore": "pg_restore",
        "compare": "diff todo.counts",
        "ids": "setval",
        "copy": "VACUUM INTO",
        "put back": "rm -f instance",
    }.items()
}
ARCHIVE, GO_BACK = re.findall("```sh\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def own() -> Iterator[PostgreSql]:
    """A server with the roles and databases that the page names."""
    with postgresql() as own:
        own.sql("CREATE ROLE todo LOGIN PASSWORD 'secret'")
        own.sql_outside_transactions("CREATE DATABASE todo OWNER todo TEMPLATE template0 ENCODING 'UTF8'")
        yield own


@pytest.fixture
def fresh(own: PostgreSql) -> Iterator[PostgreSql]:
    """The same, with two users and their tasks, and without what a test before it has restored."""
    own.sql_outside_transactions("DROP DATABASE IF EXISTS todo_restored")
    own.sql_outside_transactions("DROP DATABASE IF EXISTS todo WITH (FORCE)")
    own.sql_outside_transactions("CREATE DATABASE todo OWNER todo TEMPLATE template0 ENCODING 'UTF8'")
    own.sql("DROP ROLE IF EXISTS todo_backup")
    app = migrated_app(own_url(own))
    for number in range(53):
        Caller(app, "alice" if number else "bob").create(f"Task {number}")
    close(app)
    yield own
    own.sql_outside_transactions("DROP DATABASE IF EXISTS todo_restored WITH (FORCE)")


def own_url(own: PostgreSql, name: str = "todo", role: str = "todo") -> URL:
    """That database, as that role."""
    return own.url.set(database=name, username=role, password="secret")


class Shell:
    """Runs commands of the page in a folder, at that server."""

    def __init__(self, own: PostgreSql, folder: Path) -> None:
        self.folder = folder
        self.environ = {
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "HOME": str(folder),
            "PGHOST": str(own.url.query["host"]),
            "SOURCE": "postgresql://todo_backup@/todo",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def __call__(self, command: str) -> str:
        """What it prints."""
        return perform(self.here(command), self.folder, self.environ)

    def fails(self, command: str) -> tuple[int, str]:
        """Its status, and what it says on stderr."""
        command = self.here(command)
        result = subprocess.run(
            command, shell=True, cwd=self.folder, env=self.environ, capture_output=True, text=True, check=False
        )
        return result.returncode, result.stderr

    @staticmethod
    def here(command: str) -> str:
        """The command, with the server of the tests in place of the page's."""
        return command.replace("@db.example.com/", "@/").replace("deploy/", f"{ROOT}/deploy/")


@pytest.fixture
def shell(fresh: PostgreSql, tmp_path: Path) -> Shell:
    """A shell, with the role for backups."""
    shell = Shell(fresh, tmp_path)
    shell(COMMANDS["role"])
    return shell


@contextmanager
def restored(own: PostgreSql, shell: Shell, options: str, role: str = "postgres") -> Iterator[URL]:
    """What pg_restore makes of todo.dump with those options."""
    own.sql_outside_transactions("CREATE DATABASE todo_restored OWNER todo TEMPLATE template0 ENCODING 'UTF8'")
    shell.fails(f"pg_restore {options} --dbname=postgresql://{role}@/todo_restored todo.dump")
    yield own_url(own, "todo_restored")
    own.sql_outside_transactions("DROP DATABASE todo_restored WITH (FORCE)")


def test_the_commands_of_the_page_do_what_it_shows(fresh: PostgreSql, tmp_path: Path) -> None:
    shell = Shell(fresh, copy_project(tmp_path / "todo"))
    del shell.environ["SOURCE"]
    for command in ("mkdir instance", ".venv/bin/flask db upgrade", ".venv/bin/flask seed alice --count 3"):
        perform(command, shell.folder, shell.environ | {"DATABASE_URL": "sqlite:///todo.db"})
    for step in STEPS:
        printed = perform(step.command.replace("@db.example.com/", "@/"), shell.folder, shell.environ)
        assert printed == step.output, step.command


def test_the_role_of_the_service_cannot_back_up_and_what_the_hint_offers_loses_everything(shell: Shell) -> None:
    status, said = shell.fails("pg_dump --format=custom --file=todo.dump postgresql://todo@/todo")
    assert status == 1
    assert "query would be affected by row-level security policy" in said
    assert "HINT:  To disable the policy" in said
    shell("pg_dump --format=custom --file=todo.dump --enable-row-security postgresql://todo@/todo")
    assert "alice" not in shell("pg_restore --data-only --table=tasks --file=- todo.dump")


def test_a_backup_that_fails_says_so_and_leaves_the_older_one(shell: Shell) -> None:
    shell(COMMANDS["backup"])
    dump = shell.folder / "todo.dump"
    before = dump.read_bytes()
    for source, said in (
        ("postgresql://todo@/todo", "row-level security"),
        ("postgresql://todo_backup@/nowhere", "pg_dump failed: there is no backup"),
    ):
        command = COMMANDS["backup"].replace('"$SOURCE"', "postgresql://todo_backup@/todo")
        status, found = shell.fails(f"SOURCE={source} {command}")
        assert status != 0
        assert said in found
        assert dump.read_bytes() == before
    # And a role that sees no row counts none.
    status, found = shell.fails("psql -qAt --file=deploy/count-rows.sql postgresql://todo@/todo")
    assert status != 0
    assert "row-level security" in found


@pytest.mark.parametrize("is_partitioned", [False, True])
def test_the_counts_are_those_of_the_dump_while_users_write(
    fresh: PostgreSql, shell: Shell, is_partitioned: bool
) -> None:
    if is_partitioned:
        partition(own_url(fresh))
    is_over, written = threading.Event(), []

    def write() -> None:
        while not is_over.is_set():
            written.append(
                sql(own_url(fresh, role="postgres"), "INSERT INTO tasks (user_id, title) VALUES ('bob', 'x')")
            )

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while len(written) < 50:
            time.sleep(0.01)
        shell(COMMANDS["backup"])
        seen = len(written)
        while len(written) < seen + 50:
            time.sleep(0.01)
    finally:
        is_over.set()
        writer.join()
    counts = dict(line.split("|") for line in (shell.folder / "todo.counts").read_text().splitlines())
    assert 53 + 50 <= int(counts["tasks"]) <= 53 + seen
    assert not [name for name in counts if re.search(r"_p\d", name)]
    fresh.sql_outside_transactions("CREATE DATABASE todo_restored OWNER todo TEMPLATE template0 ENCODING 'UTF8'")
    shell(COMMANDS["restore"])
    assert shell(COMMANDS["compare"]) == ""
    # It finds a row that is missing.
    sql(own_url(fresh, "todo_restored", "postgres"), "DELETE FROM tasks WHERE id = 7")
    assert shell.fails(COMMANDS["compare"])[0] == 1


#: For each way to restore: its options, the role, the status of /health/ready, and its row-level security.
RESTORES: dict[str, tuple[str, str, int, str]] = {
    "by the owner": ("--no-owner", "todo", 200, "enforced"),
    "by a superuser in several processes": ("--exit-on-error --jobs=4", "postgres", 200, "enforced"),
    "by a superuser": ("", "postgres", 200, "enforced"),
    "without rights": ("--no-privileges", "postgres", 200, "enforced"),
    "by a superuser who becomes the owner": ("--no-owner --role=todo", "postgres", 200, "enforced"),
    "without owners": ("--no-owner", "postgres", 503, ""),
    "without policies": ("--no-policies --no-owner", "todo", 200, "bypassed"),
    "no further than the rows": ("--no-owner --section=pre-data --section=data", "todo", 503, ""),
    "only the tables": ("--no-owner --table=users --table=tasks --table=deletions", "todo", 503, ""),
}


@pytest.mark.parametrize("name", RESTORES)
def test_readiness_tells_a_good_restore_from_a_bad_one(fresh: PostgreSql, shell: Shell, make: Make, name: str) -> None:
    options, role, status, security = RESTORES[name]
    shell(COMMANDS["backup"])
    with restored(fresh, shell, options, role) as url:
        app = make(url)
        answer = app.test_client().get("/health/ready")
        assert (answer.status_code, answer.get_json().get("row_level_security", "")) == (status, security)
        if status == 200:
            assert statuses(app) == {200, 201, 204}
            assert len(Caller(app, "alice").titles()) == 53
        else:
            assert 500 in statuses(app)
        close(app)


def test_the_right_to_the_rows_does_not_bring_the_tables_back(fresh: PostgreSql, shell: Shell, make: Make) -> None:
    shell(COMMANDS["backup"])
    with restored(fresh, shell, "--no-owner") as url:
        superuser = own_url(fresh, "todo_restored", "postgres")
        sql(superuser, "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO todo")
        app = make(url)
        assert app.test_client().get("/health/ready").status_code == 200
        assert statuses(app) == {200, 201, 204}
        with pytest.raises(ProgrammingError, match="must be owner of table tasks"):
            sql(url, "ALTER TABLE tasks ADD COLUMN priority TEXT")
        close(app)


def test_the_owner_cannot_restore_in_several_processes(fresh: PostgreSql, shell: Shell) -> None:
    """In one, the foreign keys come before row-level security. In several, hardly ever."""
    shell(COMMANDS["backup"])
    for _ in range(5):
        fresh.sql_outside_transactions("DROP DATABASE IF EXISTS todo_restored")
        fresh.sql_outside_transactions("CREATE DATABASE todo_restored OWNER todo TEMPLATE template0 ENCODING 'UTF8'")
        status, said = shell.fails(COMMANDS["restore"].replace("--single-transaction", "--jobs=4"))
        if status:
            break
    assert status == 1
    assert re.search("row-level security policy.*ADD CONSTRAINT fk_", said, re.DOTALL)


def test_rights_of_a_role_that_owns_nothing_are_lost_without_privileges(
    fresh: PostgreSql, shell: Shell, make: Make
) -> None:
    fresh.sql_outside_transactions("ALTER DATABASE todo OWNER TO postgres")
    for table in ("users", "tasks", "deletions", "idempotency_keys", "alembic_version"):
        sql(own_url(fresh, role="postgres"), f"ALTER TABLE {table} OWNER TO postgres; GRANT ALL ON {table} TO todo")
    shell(COMMANDS["backup"])
    for options, status in (("", 200), ("--no-privileges", 503)):
        with restored(fresh, shell, options) as url:
            assert make(url).test_client().get("/health/ready").status_code == status


def test_rows_alone_cannot_be_restored_into_migrated_tables(fresh: PostgreSql, shell: Shell) -> None:
    shell(COMMANDS["backup"])
    sql(own_url(fresh), "DELETE FROM users")
    status, said = shell.fails("pg_restore --data-only --dbname=postgresql://todo@/todo todo.dump")
    assert status == 1
    assert "row-level security" in said


def test_after_a_restore_nobody_gets_an_old_id_and_every_client_starts_again(
    fresh: PostgreSql, shell: Shell, make: Make
) -> None:
    before = make(own_url(fresh))
    alice = Caller(before, "alice")
    cursor = alice("GET", query="?limit=10").headers["Link"].split(">")[0].removeprefix("<")
    shell(COMMANDS["backup"])
    lost = [alice("POST", json={"title": "x"}, headers={"Idempotency-Key": "k"}).get_json(), alice.create("y")]
    since = alice("GET", "/changes").get_json()["next"]
    assert before.test_cli_runner().invoke(args=["users", "delete", "bob", "--yes"]).exit_code == 0
    with restored(fresh, shell, "--no-owner", "todo") as url:
        shell(f"export DATABASE_URL=postgresql://todo@/{url.database}")
        shell(COMMANDS["ids"])
        after = make(url)
        assert after.test_cli_runner().invoke(args=["users", "resync"]).exit_code == 0
        alice = Caller(after, "alice")
        assert alice("GET", "/changes", query=f"?since={since}").status_code == 410
        assert len(alice("GET", "/changes").get_json()["changes"]) == 52
        retried = alice("POST", json={"title": "x"}, headers={"Idempotency-Key": "k"})
        assert (retried.status_code, "Idempotency-Replayed" in retried.headers) == (201, False)
        assert retried.get_json()["id"] > max(task["id"] for task in lost)
        page = alice.open("GET", re.sub("^http://[^/]+", "", cursor))
        assert len(page.get_json()) == 10
        old = f'"{lost[0]["id"]}@{lost[0]["updated_at"]}"'
        assert (
            alice("PUT", f"/{retried.get_json()['id']}", json={"title": "z"}, headers={"If-Match": old}).status_code
            == 412
        )
        assert Caller(after, "bob").titles() == ["Task 0"]
        close(after)


def test_the_log_of_changes_goes_back_to_a_moment(tmp_path: Path) -> None:
    with postgresql("/tmp") as own, own_folder(own) as folder:
        user = own.system_user

        def run(script: str) -> None:
            script = script.replace("/archive/", f"{folder}/archive/")
            subprocess.run(["bash", "-ec", script], env=environ, user=user, cwd="/", check=True, capture_output=True)

        data = Path(str(own.url.query["host"]))
        restored = folder / "restored"
        environ = {"PATH": f"{PROGRAMS}:{os.environ['PATH']}", "PGHOST": str(data), "PGUSER": "postgres"}
        switch, base = ARCHIVE.splitlines()
        run(switch)
        own.stop_at_once()
        own.start()
        run(base)
        own.sql("CREATE TABLE kept AS SELECT 1 AS one")
        time.sleep(0.5)
        ((moment,),) = own.sql("SELECT now()::text")
        time.sleep(0.5)
        own.sql("DROP TABLE kept")
        own.sql("SELECT pg_switch_wal()")
        is_archived = "SELECT last_archived_time > :moment FROM pg_stat_archiver"
        wait_until(lambda: own.sql(is_archived, moment=moment) == [(True,)], pause=0.1)
        environ["PGDATA"] = str(restored)
        run(re.sub("2025-01-09 12:34:56[+]00", moment, GO_BACK))
        control = f"pg_ctl --silent --wait --log={folder}/log -o '-h \"\" -k {folder}'"
        run(f"{control} start")
        try:
            url = own.url.set(query={"host": str(folder)})
            wait_until(lambda: sql(url, "SELECT pg_is_in_recovery()") == [(False,)], pause=0.1)
            assert sql(url, "SELECT one FROM kept") == [(1,)]
        finally:
            run(f"{control} -m fast stop")


@contextmanager
def own_folder(own: PostgreSql) -> Iterator[Path]:
    """A folder of the server's user, with an archive in it."""
    folder = Path(str(own.url.query["host"])).parent / "kept"
    (folder / "archive").mkdir(parents=True)
    if own.system_user:
        for path in (folder, folder / "archive"):
            shutil.chown(path, own.system_user)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A project folder with a migrated database in instance/."""
    with sqlite_database() as url:
        folder = Path(str(url.database)).parent
        (folder / "instance").mkdir()
        url = url.set(database=f"{folder}/instance/todo.db")
        close(migrated_app(url))
        (folder / ".venv").mkdir()
        (folder / ".venv/bin").symlink_to(Path(sys.executable).parent)
        yield folder


def titles(path: Path) -> set[str]:
    """The titles in a database."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return {title for (title,) in connection.execute("SELECT title FROM tasks")}


def test_a_copy_of_a_running_sqlite_has_all_that_was_answered_but_cp_loses_tasks(folder: Path, tmp_path: Path) -> None:
    database = folder / "instance/todo.db"
    with gunicorn(make_url(f"sqlite:///{database}"), tmp_path / "log", IDENTITY_PROVIDER="jwt") as live:
        answered: list[str] = []
        is_over = threading.Event()

        def write() -> None:
            while not is_over.is_set():
                title = str(len(answered))
                assert live.request("POST", "/api/alice/tasks", json={"title": title})[0] == 201
                answered.append(title)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            while len(answered) < 30:
                time.sleep(0.01)
            before = set(answered)
            shutil.copy(database, folder / "cp")
            perform(COMMANDS["copy"], folder, {"PATH": os.environ["PATH"]})
        finally:
            is_over.set()
            writer.join()
    assert before <= titles(folder / "todo.backup")
    assert not before <= titles(folder / "cp")


def test_a_second_backup_of_sqlite_does_not_replace_the_first(folder: Path) -> None:
    environ = {"PATH": os.environ["PATH"]}
    perform(COMMANDS["copy"], folder, environ)
    with pytest.raises(AssertionError, match="output file already exists"):
        perform(COMMANDS["copy"], folder, environ)
    (folder / "todo.backup").unlink()
    (folder / "instance/todo.db").unlink()
    # Nor is there one of a database that is not there.
    with pytest.raises(AssertionError, match="unable to open database file"):
        perform(COMMANDS["copy"], folder, environ)


def test_a_restored_sqlite_has_the_tasks_of_the_backup_but_not_with_the_old_log_of_changes(folder: Path) -> None:
    database = folder / "instance/todo.db"
    # As of a service that was killed: the last connection to close would remove the second file.
    connection: Any = sqlite3.connect(database, isolation_level=None)
    connection.execute("INSERT INTO users (id) VALUES ('alice')")
    connection.execute("INSERT INTO tasks (user_id, title) VALUES ('alice', 'before')")
    perform(COMMANDS["copy"], folder, {"PATH": os.environ["PATH"]})
    connection.execute("UPDATE tasks SET title = 'after'")
    wrong = folder / "wrong.db"
    shutil.copy(folder / "todo.backup", wrong)
    shutil.copy(folder / "instance/todo.db-wal", folder / "wrong.db-wal")
    # It is damaged, or has what was written later.
    with suppress(sqlite3.DatabaseError):
        assert titles(wrong) == {"after"}
    perform(COMMANDS["put back"], folder, {"PATH": os.environ["PATH"]})
    assert titles(database) == {"before"}
    connection.close()
