"""docs/upgrade.md, carried out under load: the code of the last two releases serves while the database is migrated."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.faults.conftest import Judge
from tests.faults.load import keep_journal, load
from tests.live import gunicorn
from tests.support import ROOT, empty_database, sql

#: The last commit of each release.
RELEASES = {"1.0.0": "ff6e2f4f92b9f69c8e60e1af8a86abf7f5949aba", "1.1.0": "2dce9beee6985deb8cac5ae138b5d7d24cabd4bb"}
#: The newest migration of each of them.
NEWEST = {"1.0.0": "0004", "1.1.0": "0006"}
#: The migration up to which they serve.
EXPANDED = "0008"


@pytest.fixture
def url(server: URL) -> Iterator[URL]:
    """An empty database."""
    with empty_database("postgresql", server) as url:
        yield url


def code_of(release: str, folder: Path) -> Path:
    """The code of that release, from the history of this one."""
    (folder / release).mkdir()
    archive = subprocess.run(["git", "archive", RELEASES[release]], cwd=ROOT, capture_output=True, check=False)
    assert archive.returncode == 0, f"This test needs the whole history: {archive.stderr.decode()}"
    subprocess.run(["tar", "--extract", "--directory", folder / release], input=archive.stdout, check=True)
    return folder / release


def flask(code: Path, url: URL, *arguments: str) -> str:
    """Run a command of that code on the database."""
    environ = {"PATH": os.environ["PATH"], "DATABASE_URL": url.render_as_string(hide_password=False)}
    command = [sys.executable, "-m", "flask", *arguments]
    result = subprocess.run(command, cwd=code, env=environ, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("release", RELEASES)
def test_older_code_serves_while_the_database_is_migrated_and_beside_the_new_code(
    url: URL, tmp_path: Path, judge: Judge, release: str
) -> None:
    old = code_of(release, tmp_path)
    flask(old, url, "db", "upgrade")
    assert sql(url, "SELECT version_num FROM alembic_version") == [(NEWEST[release],)]
    keep_journal(url)
    with gunicorn(url, tmp_path / "old", cwd=old) as older, ExitStack() as stack:
        writers = stack.enter_context(load(older, url))
        time.sleep(0.5)
        flask(ROOT, url, "db", "upgrade", EXPANDED)
        time.sleep(0.5)
        newer = stack.enter_context(gunicorn(url, tmp_path / "new"))
        others = stack.enter_context(load(newer, url, 4))
        time.sleep(1)
        others.stop()
        assert judge(others).answers.failures == []
        writers.stop()
        assert judge(writers).answers.failures == []


def test_the_code_of_the_release_before_takes_the_database_back(url: URL, tmp_path: Path, judge: Judge) -> None:
    """With the tasks that were created meanwhile."""
    flask(ROOT, url, "db", "upgrade")
    keep_journal(url)
    with gunicorn(url, tmp_path / "new") as newer, load(newer, url, 4) as writers:
        time.sleep(1)
        writers.stop()
        judge(writers)
    flask(ROOT, url, "db", "downgrade", EXPANDED)
    old = code_of("1.1.0", tmp_path)
    with gunicorn(url, tmp_path / "old", cwd=old) as older:
        for writer in writers.writers:
            tasks = older.request("GET", f"/api/{writer.user_id}/tasks?limit=1000", writer.user_id)
            assert tasks == (200, sorted(writer.ledger.tasks.values(), key=lambda task: -task["id"]))
        with load(older, url, 4) as others:
            time.sleep(1)
            others.stop()
            assert judge(others).answers.failures == []
