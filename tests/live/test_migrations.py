"""Migrations of a table that is in use: what docs/migrations.md says is done to a live service, and nobody notices."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, make_url

from tests.live import Server, gunicorn
from tests.support import ROOT, Caller, as_superuser, close, empty_database, migrated_app, postgresql_database, sql

MIGRATION = re.compile(r"`(migrations/versions/\S+\.py)`[^\n]*\n\n```python\n(.*?)```", re.DOTALL)
EXAMPLES = MIGRATION.findall((ROOT / "docs/migrations.md").read_text())
HEAD = max(path.name[:4] for path in (ROOT / "migrations/versions").glob("*.py"))


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    """A copy of the migrations, to which one can be added."""
    copy = tmp_path / "migrations"
    shutil.copytree(ROOT / "migrations", copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture
def url(server: URL) -> Iterator[URL]:
    """A migrated database."""
    with postgresql_database(server) as url:
        close(migrated_app(url))
        yield url


def add(migrations: Path, upgrade: str) -> None:
    """Add a migration to the copy."""
    text = f'from alembic import op\n\nrevision, down_revision = "9999", "{HEAD}"\n\n\ndef upgrade():\n    {upgrade}\n'
    (migrations / "versions/9999_added.py").write_text(text)


def add_examples(migrations: Path) -> None:
    """Add the migrations that docs/migrations.md shows."""
    for path, text in EXAMPLES:
        (migrations.parent / path).write_text(text)


def upgrade(url: URL, migrations: Path) -> subprocess.Popen[str]:
    """`flask db upgrade`, with the migrations of the copy."""
    return flask_db(url, migrations, "upgrade")


def flask_db(url: URL, migrations: Path, *arguments: str) -> subprocess.Popen[str]:
    """`flask db` with those arguments and the migrations of the copy."""
    environ = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": url.render_as_string(hide_password=False),
        "IDENTITY_PROVIDER": "development",
    }
    name, *rest = arguments
    command = [sys.executable, "-m", "flask", "db", name, "--directory", str(migrations), *rest]
    return subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its status, and what it said."""
    _, said = process.communicate(timeout=60)
    return process.returncode, said


class Load:
    """Users who create, list, change and delete tasks, and remember how each request was answered."""

    def __init__(self, server: Server) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()
        self.slowest = 0.0
        self._server = server
        self._is_over = threading.Event()

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """While the block is carried out."""
        threads = [threading.Thread(target=self._work, args=(f"user{number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            for thread in threads:
                thread.join()

    def _work(self, user_id: str) -> None:
        path = f"/api/{user_id}/tasks"
        connection = self._server.connect()

        def send(method: str, path: str, body: object = None) -> int:
            started = time.monotonic()
            status, task = self._server.send(connection, method, path, user_id, json=body)
            self.slowest = max(self.slowest, time.monotonic() - started)
            self.answers[method, status] += 1
            return task["id"] if method == "POST" and status == 201 else 0

        while not self._is_over.is_set():
            new = send("POST", path, {"title": "Made meanwhile"})
            send("GET", f"{path}?limit=10")
            send("PUT", f"{path}/{new}", {"title": "Changed meanwhile"})
            # One of those that were there before.
            send("PATCH", f"{path}/{int(user_id[-1]) + 1}/complete")
            send("DELETE", f"{path}/{new}")
        connection.close()

    def check(self) -> None:
        """Fail for any request that was not answered as it should."""
        good = {("POST", 201), ("GET", 200), ("PUT", 200), ("PATCH", 200), ("DELETE", 204)}
        assert set(self.answers) == good, self.answers
        assert min(self.answers.values()) > 20


def fill(url: URL, tasks: int) -> None:
    """Tasks of 200 users, the first ones of user0, user1, and so on."""
    sql(url, "INSERT INTO users (id) SELECT 'user' || n FROM generate_series(0, 199) AS n")
    sql(
        url,
        "INSERT INTO tasks (user_id, title)"
        " SELECT 'user' || n % 200, CASE n % 4 WHEN 0 THEN 'Urgent: ' ELSE '' END || n"
        f" FROM generate_series(0, {tasks - 1}) AS n",
    )


def test_the_page_shows_a_whole_chain_of_migrations() -> None:
    assert len(EXAMPLES) == 5
    assert (ROOT / "docs/migrations.md").read_text().count("```python") == 5
    assert EXAMPLES[0][1].count(f'down_revision = "{HEAD}"') == 1


def test_what_the_page_shows_fails_no_request_of_a_live_service(url: URL, migrations: Path, tmp_path: Path) -> None:
    fill(url, 200_000)
    add_examples(migrations)
    with gunicorn(url, tmp_path / "log") as server:
        load = Load(server)
        with load.going_on():
            time.sleep(1)
            started = time.monotonic()
            status, said = ended(upgrade(url, migrations))
            took = time.monotonic() - started
            time.sleep(0.5)
    print(f"{took:.1f} s; slowest request {load.slowest:.2f} s; {sum(load.answers.values())} requests")
    assert status == 0, said
    load.check()
    counts = dict(sql(url, "SELECT priority, count(*) FROM tasks WHERE title !~ 'meanwhile' GROUP BY priority"))
    assert counts == {"high": 50_000, "normal": 150_000}
    column = "SELECT is_nullable, column_default FROM information_schema.columns WHERE column_name = 'priority'"
    assert sql(url, column) == [("NO", "'normal'::text")]
    rules = "SELECT conname, convalidated FROM pg_constraint WHERE conname LIKE 'ck_tasks_priority%'"
    assert sql(url, rules) == [("ck_tasks_priority_known", True)]
    assert sql(url, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_tasks_user_id_priority'::regclass") == [
        (True,)
    ]


def test_what_the_page_shows_can_be_done_on_sqlite(server: URL, migrations: Path) -> None:
    with empty_database("sqlite", server) as url:
        app = migrated_app(url)
        alice = Caller(app, "alice")
        alice.create("Urgent: milk")
        alice.create("Bread")
        add_examples(migrations)
        status, said = ended(upgrade(url, migrations))
        assert status == 0, said
        alice.create("Made after")
        tasks = sql(url, "SELECT title, priority FROM tasks ORDER BY id")
        assert tasks == [("Urgent: milk", "high"), ("Bread", "normal"), ("Made after", "normal")]
        assert len(sql(url, "SELECT 1 FROM sqlite_master WHERE name = 'ix_tasks_user_id_priority'")) == 1
        close(app)


@contextmanager
def long_transaction(url: URL) -> Iterator[int]:
    """A session that has read the tasks and not ended its transaction; its process."""
    engine = create_engine(url, connect_args={"application_name": "report"})
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM tasks")
        yield connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    engine.dispose()


ADD_COLUMN = 'op.execute("ALTER TABLE tasks ADD COLUMN colour TEXT")'
STANDS_AT = "SELECT version_num FROM alembic_version"
COLUMNS = "SELECT 1 FROM information_schema.columns WHERE table_name = 'tasks' AND column_name = 'colour'"


@pytest.mark.parametrize("is_own", [True, False])
def test_a_migration_that_cannot_have_its_lock_gives_up_while_requests_go_on(
    url: URL, migrations: Path, tmp_path: Path, is_own: bool
) -> None:
    """And says who is in the way: of another role's session not everything, since PostgreSQL does not tell."""
    other = url if is_own else as_superuser(url)
    fill(url, 400)
    add(migrations, ADD_COLUMN)
    environment = migrations / "env.py"
    shortened = environment.read_text().replace("PAUSES = (1, 1, 2, 3, 5)", "PAUSES = (0.5, 0.5)")
    assert shortened != environment.read_text()
    environment.write_text(shortened)
    with gunicorn(url, tmp_path / "log") as server:
        load = Load(server)
        with load.going_on(), long_transaction(other) as pid:
            started = time.monotonic()
            status, said = ended(upgrade(url, migrations))
            assert time.monotonic() - started < 30
    assert status == 1
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert f"is at {HEAD}, and nothing more was changed" in last
    told = ", idle in transaction, for " if is_own else "): try again"
    assert f"process {pid} of PostgreSQL (role {other.username}, application report{told}" in last
    load.check()
    assert sql(url, COLUMNS) == []
    status, said = ended(upgrade(url, migrations))
    assert status == 0, said
    assert sql(url, COLUMNS) == [(1,)]


def test_a_migration_has_its_lock_once_the_one_in_the_way_ends(url: URL, migrations: Path) -> None:
    add(migrations, ADD_COLUMN)
    with long_transaction(url):
        process = upgrade(url, migrations)
        assert process.stderr
        while "A table is locked; again in 1 s" not in (said := process.stderr.readline()):
            assert said
    status, said = ended(process)
    assert status == 0, said
    assert sql(url, COLUMNS) == [(1,)]


def test_so_many_steps_are_not_counted_anew_after_a_lock_that_could_not_be_had(url: URL, migrations: Path) -> None:
    """All but the last touch no task, and are done; a second attempt would have counted from there."""
    assert ended(flask_db(url, migrations, "downgrade", "0006"))[0] == 0
    with long_transaction(url):
        status, said = ended(flask_db(url, migrations, "downgrade", "--", "-4"))
    assert (status, sql(url, STANDS_AT)) == (1, [("0003",)])
    assert "(attempts: 1); the database is at 0003" in said.splitlines()[-1]


def test_a_second_process_does_not_keep_an_index_from_being_made(url: URL, migrations: Path) -> None:
    """Which waits for every statement that goes on, that of a process that waits for this one among them."""
    index = 'op.create_index("ix_tasks_status", "tasks", ["status"], postgresql_concurrently=True)'
    add(migrations, f"__import__('time').sleep(3)\n    with op.get_context().autocommit_block():\n        {index}")
    processes = [upgrade(url, migrations) for _ in range(2)]
    assert [ended(process)[0] for process in processes] == [0, 0]
    assert len(sql(url, "SELECT 1 FROM pg_indexes WHERE indexname = 'ix_tasks_status'")) == 1


def test_a_migration_takes_as_long_as_it_takes_whatever_limits_the_role_has(url: URL, migrations: Path) -> None:
    for limit in ("statement_timeout", "transaction_timeout", "idle_in_transaction_session_timeout"):
        sql(url, f"ALTER DATABASE {url.database} SET {limit} = '1s'")
    add(migrations, 'op.execute("SELECT pg_sleep(1.5)")')
    status, said = ended(upgrade(url, migrations))
    assert status == 0, said


SEE = (
    "SELECT current_setting('lock_timeout') AS lock_timeout, current_setting('row_security') AS row_security,"
    " (SELECT count(*) FROM pg_locks JOIN pg_database ON oid = database"
    " WHERE datname = current_database() AND locktype = 'advisory' AND granted) AS locks"
)


def test_nobody_else_migrates_while_a_migration_is_out_of_its_transaction(url: URL, migrations: Path) -> None:
    """Its limits hold before and after; within, an index waits as long as it must."""
    add(
        migrations,
        f"""op.execute("CREATE TABLE seen AS {SEE}")
    with op.get_context().autocommit_block():
        op.create_index("ix_seen", "seen", ["locks"], postgresql_concurrently=True)
        op.execute("INSERT INTO seen {SEE}")
    op.execute("INSERT INTO seen {SEE}")""",
    )
    status, said = ended(upgrade(url, migrations))
    assert status == 0, said
    assert sql(url, "SELECT * FROM seen") == [("500ms", "off", 1), ("0", "on", 1), ("500ms", "off", 1)]


def test_a_migration_that_fails_leaves_the_ones_before_it(url: URL, migrations: Path) -> None:
    add_examples(migrations)
    last = migrations / "versions/9004_validate_priority.py"
    last.write_text(last.read_text().replace("VALIDATE CONSTRAINT ck_tasks_priority_there", "NONSENSE"))
    status, _ = ended(upgrade(url, migrations))
    assert status == 1
    assert sql(url, STANDS_AT) == [("9003",)]
    rules = "SELECT convalidated FROM pg_constraint WHERE conname = 'ck_tasks_priority_known'"
    assert sql(url, rules) == [(False,)]


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("postgresql+psycopg2://nobody@127.0.0.1:1/nothing", "The database failed: OperationalError"),
        ("sqlite:////nowhere/at/all.db", "The database failed: OperationalError: unable to open database file"),
    ],
)
def test_a_database_that_is_away_is_one_line(address: str, why: str) -> None:
    status, said = ended(upgrade(make_url(address), ROOT / "migrations"))
    assert status == 1
    assert why in said.splitlines()[-1]
    assert "Traceback" not in said
