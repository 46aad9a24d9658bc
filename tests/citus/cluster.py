"""The cluster that TEST_CITUS_URL and TEST_CITUS_WORKERS name: databases on it, and workers that go away.

TEST_CITUS_URL is a superuser's address of the coordinator. TEST_CITUS_WORKERS names each worker as host:port, with
commas between them. All of them run on this machine, so that a test can stop a worker. The coordinator has the setting
of docs/scaling.md.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, make_url
from sqlalchemy.exc import OperationalError

from tests.support import PASSWORD, ROLE, ROOT, close, migrated_app, postgresql_database, run_alone, sql, sql_as_role

#: Whether the suite runs on the cluster.
IS_ON_CITUS = os.environ.get("TEST_ON") == "citus"

#: Seconds within which a worker has stopped, or has recovered and serves.
RECOVERS = 60
EMAIL = "Two users may have one email"
REFUSED = "Citus refuses a statement on several machines that locks rows, instead of hiding foreign rows from it"
SETTING = "The SQL of the test says who acts by a setting, which stays on the coordinator"
#: What cannot pass on Citus, and why.
ELSEWHERE_ALONE = {
    "test_a_first_task_makes_its_user_too": EMAIL,
    "test_an_email_that_is_taken_at_the_same_moment_is_none": EMAIL,
    "test_first_tasks_of_many_users_with_one_email_are_all_kept": EMAIL,
    "test_the_database_itself_holds_the_rules": EMAIL,
    "test_nobody_is_shown_anything": SETTING,
    "test_the_database_itself_keeps_young_rows_and_those_of_others": SETTING,
    "test_without_the_owners_predicate_nobody_gets_the_answer_of_anothers_key": REFUSED,
    "test_without_the_owners_predicate_nobody_prunes_anothers_keys": REFUSED,
}


def coordinator() -> URL:
    """The address of the coordinator."""
    return make_url(os.environ["TEST_CITUS_URL"]).set(drivername="postgresql+psycopg2")


def runs_on_citus(test: pytest.Item) -> bool:
    """Whether the test has an app on the cluster, and can pass there."""
    if not isinstance(test, pytest.Function) or not hasattr(test, "callspec"):
        return False
    return "citus" in map(str, test.callspec.params.values()) and test.originalname not in ELSEWHERE_ALONE


class Worker:
    """A machine that has shards."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.url = coordinator().set(host=host, port=int(port))
        self._find()
        self._owner = self._process.stat().st_uid, self._process.stat().st_gid
        self._command, self._environ = (
            [os.fsdecode(part) for part in (self._process / name).read_bytes().split(b"\0") if part]
            for name in ("cmdline", "environ")
        )

    def _find(self) -> None:
        ((pid,),) = sql(self.url, "SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)")
        self._process = Path(f"/proc/{pid}")

    def within(self, url: URL) -> URL:
        """The part of that database which this worker has."""
        return url.set(host=self.url.host, port=self.url.port)

    def stop_at_once(self) -> None:
        """Stop like a machine that loses power."""
        os.kill(self._pid, signal.SIGQUIT)
        deadline = time.monotonic() + RECOVERS
        while self._process.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def start(self) -> float:
        """Start, and recover; the instant (time.monotonic) at which it serves."""
        environ = dict(part.split("=", 1) for part in self._environ)
        # A shell starts it and ends at once, so that it is no child of this process.
        command = ["sh", "-c", 'exec "$0" "$@" < /dev/null > /dev/null 2>&1 &', *self._command]
        subprocess.run(command, env=environ, cwd="/", start_new_session=True, check=True, **self._as_before())
        deadline = time.monotonic() + RECOVERS
        while True:
            try:
                self._find()
            except OperationalError:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            else:
                return time.monotonic()

    def _as_before(self) -> dict[str, Any]:
        """Return the options that start it as the user of before. Only root can choose one."""
        return {"user": self._owner[0], "group": self._owner[1], "extra_groups": []} if os.geteuid() == 0 else {}

    def silence(self) -> None:
        """Stop answering, without a word."""
        self._signal(signal.SIGSTOP)

    def speak(self) -> None:
        """Answer again."""
        self._signal(signal.SIGCONT)

    @property
    def _pid(self) -> int:
        return int(self._process.name)

    def _signal(self, number: signal.Signals) -> None:
        children = (self._process / f"task/{self._pid}/children").read_text().split()
        for pid in (self._pid, *map(int, children)):
            os.kill(pid, number)


def workers() -> list[Worker]:
    """The workers of the cluster."""
    return [Worker(address) for address in os.environ["TEST_CITUS_WORKERS"].split(",")]


def wait_until_decided(part: URL) -> None:
    """Wait until the coordinator has decided every transaction that a lost worker had prepared."""
    deadline = time.monotonic() + RECOVERS
    while sql(part, "SELECT FROM pg_prepared_xacts WHERE database = current_database()"):
        assert time.monotonic() < deadline, "is citus.recover_2pc_interval short?"
        time.sleep(0.1)


@contextmanager
def database_of_cluster() -> Iterator[URL]:
    """An empty database on each machine of the cluster, dropped afterwards."""
    machines = [worker.url for worker in workers()]
    with postgresql_database(coordinator()) as url:
        main = coordinator()
        try:
            for machine in machines:
                sql(
                    machine,
                    f"DO $$ BEGIN CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}';"
                    " EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$",
                )
                run_alone(machine, f"CREATE DATABASE {url.database} OWNER {ROLE} TEMPLATE template0 ENCODING 'UTF8'")
            for machine in (*machines, main):
                sql(machine.set(database=url.database), "CREATE EXTENSION citus")
            sql(url, "SELECT citus_set_coordinator_host(:host, :port)", host=main.host, port=main.port)
            for machine in machines:
                sql(url, "SELECT citus_add_node(:host, :port)", host=machine.host, port=machine.port)
            yield url
        finally:
            for machine in machines:
                wait_until_decided(machine.set(database=url.database))
                run_alone(machine, f"DROP DATABASE IF EXISTS {url.database} WITH (FORCE)")


@contextmanager
def distributed_database() -> Iterator[URL]:
    """A migrated database that deploy/citus/distribute.sql has distributed."""
    with database_of_cluster() as url:
        close(migrated_app(url))
        run_script(url, "distribute")
        yield url


def run_script(url: URL, name: str) -> None:
    """Run a script of deploy/citus as the owner of the tables, one statement at a time."""
    script = re.sub("^ *--.*\n", "", (ROOT / f"deploy/citus/{name}.sql").read_text(), flags=re.MULTILINE)
    for statement in filter(str.strip, script.split(";\n")):
        sql_as_role(url, statement)
