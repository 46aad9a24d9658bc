"""A disk that is full: that of the tables, and that of the write-ahead log too."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from sqlalchemy import URL
from sqlalchemy.exc import OperationalError

from tests.faults.conftest import Judge
from tests.faults.load import keep_journal, load
from tests.faults.server import PostgreSql, postgresql
from tests.live import gunicorn
from tests.support import PATIENCE, close, migrated_app, postgresql_database, sql, wait_until
from tests.test_metrics import KINDS

pytestmark = pytest.mark.faults

TOKEN = "a-token-for-Prometheus"


class Disk:
    """A file system of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        """Leave no room."""
        with suppress(OSError), (self.folder / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(65536))

    def free(self) -> None:
        """Leave room again."""
        (self.folder / "ballast").unlink()


@contextmanager
def small_disk(megabytes: int) -> Iterator[Disk]:
    """A disk in memory."""
    with tempfile.TemporaryDirectory(prefix="disk") as folder:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "tmpfs", folder]
        result = subprocess.run(mount, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"This test needs the right to mount a small file system: {result.stderr}"
        try:
            yield Disk(Path(folder))
        finally:
            subprocess.run(["umount", folder], check=True)


@contextmanager
def tablespace(server: PostgreSql, disk: Disk) -> Iterator[str]:
    """A tablespace on that disk."""
    folder = disk.folder / "tables"
    folder.mkdir()
    if server.system_user:
        shutil.chown(folder, server.system_user)
    server.sql_outside_transactions(f"CREATE TABLESPACE small LOCATION '{folder}'")
    yield "small"
    server.sql_outside_transactions("DROP TABLESPACE small")


def test_a_disk_full_of_tables_is_503_to_writes_alone_until_there_is_room(
    own_postgresql: PostgreSql, judge: Judge, tmp_path: Path
) -> None:
    with (
        small_disk(8) as disk,
        tablespace(own_postgresql, disk) as space,
        postgresql_database(own_postgresql.url) as url,
    ):
        close(migrated_app(url))
        keep_journal(url)
        sql(url, f"ALTER TABLE tasks SET TABLESPACE {space}")
        sql(url, f"ALTER INDEX pk_tasks SET TABLESPACE {space}")
        with gunicorn(url, tmp_path / "log") as live:
            with load(live, url) as writers:
                time.sleep(0.5)
                disk.fill()
                # PostgreSQL may have made its files larger than they need to be yet.
                wait_until(lambda: any(writer.answers.statuses["503"] for writer in writers.writers))
                time.sleep(2)
                disk.free()
                writers.fault_ended()
                time.sleep(2)
            account = judge(writers)
        assert "GET" not in {failure.method for failure in account.answers.failures}


def test_a_full_disk_that_ends_postgresql_loses_no_write(judge: Judge, tmp_path: Path) -> None:
    """Without room for its log PostgreSQL panics, and cannot start; with room again it recovers."""
    with small_disk(256) as disk, postgresql(os.fspath(disk.folder)) as server, postgresql_database(server.url) as url:
        close(migrated_app(url))
        keep_journal(url)
        with gunicorn(url, tmp_path / "log") as live:
            with load(live, url) as writers:
                time.sleep(0.5)
                disk.fill()
                with suppress(OperationalError):
                    # On to the next file of the log, which does not exist yet.
                    while True:
                        server.sql("SELECT pg_switch_wal()")
                        time.sleep(0.1)
                time.sleep(3)
                with pytest.raises(OperationalError):
                    server.sql("SELECT 1")
                disk.free()
                writers.fault_ended(server.start())
                time.sleep(3)
            assert judge(writers).answers.statuses["503"]


def test_a_disk_full_of_anything_costs_no_request_its_metrics(
    own_postgresql: PostgreSql, judge: Judge, tmp_path: Path
) -> None:
    """Workers that start then keep their figures in memory, and none is ended by what cannot be written."""
    with small_disk(1) as disk, postgresql_database(own_postgresql.url) as url:
        close(migrated_app(url))
        keep_journal(url)
        environ = {"METRICS_TOKEN": TOKEN, "GUNICORN_CMD_ARGS": f"--worker-tmp-dir {disk.folder}"}
        with gunicorn(url, tmp_path / "log", **environ) as live:
            # Each of the two has all its files.
            wait_until(lambda: len([*disk.folder.glob("*/*.db")]) == 2 * len(KINDS))
            disk.fill()
            deadline = time.monotonic() + PATIENCE
            old = set(live.workers())
            with load(live, url) as writers:
                time.sleep(2)
                assert set(live.workers()) == old, live.log.read_text()
                os.kill(live.process.pid, signal.SIGHUP)
                while old & set(live.workers()) or live.log.read_text().count("counts in memory") < 2:
                    assert time.monotonic() < deadline, live.log.read_text()
                    time.sleep(0.1)
                writers.fault_ended()
                time.sleep(2)
            status, _ = live.request("GET", "/health/ready")
            metrics = live.raw(f"GET /metrics HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
            assert not judge(writers).answers.failures
    log = (tmp_path / "log").read_text()
    assert status == 200
    assert b"todo_metrics_unseen_workers 2.0" in metrics
    assert (log.count("This worker counts in memory"), log.count("SIGBUS")) == (2, 0)


def test_a_disk_full_of_sqlite_is_503_to_writes_alone_and_ends_no_worker(tmp_path: Path) -> None:
    """Its shared memory is a mapped file, too, which SQLite writes before it maps it."""
    with small_disk(4) as disk:
        url = URL.create("sqlite", database=f"{disk.folder}/todo.db")
        close(migrated_app(url))
        with gunicorn(url, tmp_path / "log") as live:
            workers = live.workers()
            disk.fill()
            task = {"title": "x", "description": "x" * 5000}
            for _ in range(100):
                assert live.request("POST", "/api/alice/tasks", json=task)[0] == 503
                assert live.request("GET", "/api/alice/tasks") == (200, [])
            assert live.workers() == workers
            disk.free()
            assert live.request("POST", "/api/alice/tasks", json={"title": "x"})[0] == 201


def test_a_disk_full_of_the_log_loses_lines_and_costs_no_request(database: URL) -> None:
    with small_disk(1) as disk, gunicorn(database, disk.folder / "log") as live:
        workers = live.workers()
        disk.fill()
        for _ in range(100):
            assert live.request("POST", "/api/alice/tasks", json={"title": "x"})[0] == 201
        assert live.workers() == workers
