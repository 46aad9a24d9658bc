"""Tables on several machines: nothing is lost on the way there and back, and a lost worker concerns its users alone."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flask import Flask
from flask_migrate import upgrade
from sqlalchemy import URL

from tests.citus.cluster import Worker, database_of_cluster, distributed_database, run_script, workers
from tests.citus.shards import keep_journal, keep_trail, port_of, refuse_commits
from tests.faults.conftest import RECOVERY
from tests.faults.feed import feed
from tests.faults.ledger import Findings
from tests.faults.load import LIMIT, load
from tests.faults.test_feed import WRITES
from tests.live import MANY_THREADS, gunicorn
from tests.live.test_flask_db import flask_db
from tests.live.test_migrations import EXAMPLES
from tests.live.test_sharding import CALLS, status_of
from tests.support import ROOT, Caller, close, migrated_app, settings, sql
from tests.test_migrations import DDL
from todo import create_app
from todo.db import db

pytestmark = pytest.mark.citus

Record = Callable[[str, object], None]

SECONDS = [20, pytest.param(600, marks=pytest.mark.faults)]
#: How long a worker is away, in seconds. A request waits for a silent one for three.
ABSENCES = {"stopped": 2, "silent": 6}
#: JavaScript rounds greater numbers. A worker that gave an id itself would give a greater one.
LARGEST_ID = 2**53


@contextmanager
def distributed_app() -> Iterator[Flask]:
    """An app on a distributed database."""
    with distributed_database() as url:
        app = create_app(settings(url))
        yield app
        close(app)


def schema(url: URL) -> set[str]:
    """The columns, constraints and indexes of the tables, without the names of NOT NULL constraints."""
    return {" ".join(map(str, row[1:] if "NOT NULL" in row[1] else row)) for row in sql(url, DDL["postgresql"])}


def test_a_database_with_tasks_is_distributed_and_brought_back() -> None:
    with database_of_cluster() as url:
        app = migrated_app(url)
        users = [Caller(app, f"user{number}", f"{number % 4}@example.com") for number in range(8)]
        for user in users:
            user.create(description="Two litres")
            user("DELETE", f"/{user.create()['id']}")
            user("POST", json={"title": "x"}, headers={"Idempotency-Key": "key"})
        before, lists = schema(url), [user("GET").get_json() for user in users]
        close(app)
        for script in ("distribute", "undistribute"):
            run_script(url, script)
            app = migrated_app(url)
            assert flask_db(app, "check").exit_code == 0
            ready = app.test_client().get("/health/ready").get_json()
            assert (ready["status"], ready["row_level_security"]) == ("ok", "enforced")
            users = [Caller(app, user.user_id) for user in users]
            assert [user("GET").get_json() for user in users] == lists
            again = [user("POST", json={"title": "x"}, headers={"Idempotency-Key": "key"}) for user in users]
            assert [each.headers["Idempotency-Replayed"] for each in again] == ["true"] * len(users)
            latest = max(task["id"] for each in lists for task in each)
            assert [user.create()["id"] for user in users] == [latest + n for n in range(1, len(users) + 1)]
            lists = [user("GET").get_json() for user in users]
            assert (schema(url) == before) == (script == "undistribute")
            close(app)


def test_every_call_is_for_one_machine_and_every_id_is_the_coordinators() -> None:
    """While another machine has stopped. One machine commits at once, in one phase."""
    stopped = workers()[0]
    with distributed_database() as url:
        app = create_app(settings(url.update_query_dict({"options": "-c citus.log_remote_commands=on"}), threads=1))
        with app.app_context():
            connection = db.engine.raw_connection()
            notices: list[str] = connection.driver_connection.notices
            connection.close()
        users = [user_id for user_id in map("user{}".format, range(12)) if port_of(url, user_id) != stopped.url.port]
        with lost(stopped, "stopped"):
            for user in (Caller(app, user_id) for user_id in users):
                for method, path, options in CALLS:
                    task = user("PATCH", f"/{user.create()['id']}/complete").get_json()
                    assert task["id"] < LARGEST_ID
                    notices.clear()
                    assert user.send(task, method, path, options).status_code == status_of(method, path)
                    assert [notice for notice in notices if "PREPARE TRANSACTION" in notice] == [], (method, path)
                    assert "issuing COMMIT" in notices[-1]
        close(app)


def test_a_change_that_a_worker_cannot_commit_is_503() -> None:
    """Each worker refuses then. The message of the coordinator has no SQLSTATE of its own."""
    with distributed_app() as app:
        alice = Caller(app, "alice")
        task = alice("PATCH", f"/{alice.create()['id']}/complete").get_json()
        with app.app_context():
            refuse_commits(db.engine.url, workers())
        for method, path, options in CALLS:
            changes = method != "GET" and path != "?status=incomplete"
            assert alice.send(task, method, path, options).status_code == (503 if changes else 200), (method, path)
        assert alice("GET").get_json() == [task]


def test_the_migrations_of_the_page_change_a_distributed_table(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "migrations", tmp_path / "migrations", ignore=shutil.ignore_patterns("__pycache__"))
    with distributed_app() as app:
        users = [Caller(app, f"user{number}") for number in range(12)]
        for user in users:
            user.create("Urgent")
            user.create()
        for path, text in EXAMPLES:
            (tmp_path / path).write_text(text)
        with app.app_context():
            upgrade(directory=str(tmp_path / "migrations"))
            url = app.extensions["sqlalchemy"].engine.url
        counted = sql(url, "SELECT priority, count(*) FROM tasks GROUP BY 1 ORDER BY 1")
        assert counted == [("high", len(users)), ("normal", len(users))]
        assert users[0].create()["title"] == "Buy milk"


@contextmanager
def lost(worker: Worker, how: str) -> Iterator[None]:
    """The worker is away during the block: it has stopped, or does not answer."""
    leave, return_ = {"stopped": (worker.stop_at_once, worker.start), "silent": (worker.silence, worker.speak)}[how]
    leave()
    try:
        yield
    finally:
        return_()


@pytest.mark.parametrize("seconds", SECONDS)
def test_a_client_that_follows_the_changes_misses_none(tmp_path: Path, seconds: int, record_property: Record) -> None:
    """While processes of the service and workers of Citus are killed."""
    machines = workers()
    with distributed_database() as url:
        trails = keep_trail(url, machines)
        with gunicorn(url, tmp_path / "log", WEB_THREADS=MANY_THREADS, LOG_LEVEL="WARNING") as live:
            with feed(live, url, trails) as writers:
                for number in range(4):
                    time.sleep(seconds / 4)
                    with lost(machines[number % 2], "stopped"):
                        os.kill(live.workers()[0], signal.SIGKILL)
                        time.sleep(0.5)
            account = writers.account()
    record_property("figures", account.figures())
    assert account.differences == []
    assert account.answers.refused == []
    assert set(account.written) == WRITES
    assert account.instants > 5 * seconds


@pytest.mark.parametrize("seconds", SECONDS)
@pytest.mark.parametrize("how", ["stopped", "silent"])
def test_a_lost_worker_concerns_its_users_alone(
    tmp_path: Path, how: str, seconds: int, record_property: Record
) -> None:
    machines = workers()
    absences = []
    with distributed_database() as url:
        journals = keep_journal(url, machines)
        with gunicorn(url, tmp_path / "log", LOG_LEVEL="WARNING") as live:
            # More than there are threads on each machine.
            with load(live, url, users=40, journals=journals) as writers:
                for worker in machines:
                    time.sleep(seconds / 2 - ABSENCES[how])
                    begun = time.monotonic()
                    with lost(worker, how):
                        time.sleep(ABSENCES[how])
                        absences.append((worker, begun, time.monotonic()))
                    writers.fault_ended()
                time.sleep(RECOVERY + 1)
            account = writers.account()
        homes = {writer: port_of(url, writer.user_id) for writer in writers.writers}
    record_property("figures", account.figures())
    assert account.findings == Findings()
    assert account.answers.refused == []
    assert account.answers.slowest <= LIMIT
    assert account.recovery <= RECOVERY
    for worker, begun, ended in absences:
        failed = [
            (port, failure.method)
            for writer, port in homes.items()
            for failure in writer.answers.failures
            if failure.ended >= begun and failure.started <= ended
        ]
        assert failed
        assert [each for each in failed if each[0] != worker.url.port] == []
