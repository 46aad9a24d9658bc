"""A violated unique constraint: 409 in the words of the model, else 500; never mistaken for that of a key."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, Index, PrimaryKeyConstraint, UniqueConstraint

from tests.support import ROOT, Caller, close, migrated_app, postgresql_database, sql
from todo.db.conflicts import CONFLICT
from todo.db.ownership import Owned, table_of
from todo.tasks.models import Task

pytestmark = pytest.mark.sql

SENTENCE = "You have a task of that title"
WITH_AND_WITHOUT_KEY = pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "key"}], ids=["plain", "key"])


@pytest.fixture(params=["columns", "expression"])
def unique(request: pytest.FixtureRequest, url: URL) -> Iterator[str]:
    """A unique index on the titles of each user, in the database alone; its name."""
    title = "title" if request.param == "columns" else "lower(title)"
    sql(url, f"CREATE UNIQUE INDEX uq_tasks_user_id_title ON tasks (user_id, {title})")
    yield "uq_tasks_user_id_title"
    sql(url, "DROP INDEX uq_tasks_user_id_title")


@pytest.fixture
def told(unique: str) -> Iterator[None]:
    """The same index in the model, with its sentence."""
    table = table_of(Task)
    index = Index(unique, table.c.user_id, table.c.title, unique=True, info={CONFLICT: SENTENCE})
    yield
    table.indexes.discard(index)


@WITH_AND_WITHOUT_KEY
@pytest.mark.usefixtures("unique")
def test_one_that_no_model_has_is_a_500_of_one_statement(
    alice: Caller, statements: list[str], headers: dict[str, str]
) -> None:
    alice.create()
    statements.clear()
    response = alice("POST", json={"title": "Buy milk"}, headers=headers)
    assert (response.status_code, response.get_json()) == (500, {"error": "Internal server error"})
    assert len([statement for statement in statements if "INTO tasks" in statement]) == 1
    assert alice("POST", json={"title": "Buy bread"}, headers=headers).status_code == 201


@WITH_AND_WITHOUT_KEY
@pytest.mark.usefixtures("told")
def test_one_that_the_model_has_words_for_is_a_409_and_writes_nothing(
    alice: Caller, bob: Caller, url: URL, headers: dict[str, str]
) -> None:
    alice.create()
    conflict = alice("POST", json={"title": "Buy milk"}, headers=headers)
    assert (conflict.status_code, conflict.get_json()) == (409, {"error": SENTENCE})
    assert sql(url, "SELECT count(*) FROM tasks") == [(1,)]
    assert sql(url, "SELECT count(*) FROM idempotency_keys") == [(0,)]
    # The key is not used up, and what another user has matters to nobody.
    assert alice("POST", json={"title": "Buy bread"}, headers=headers).status_code == 201
    assert bob("POST", json={"title": "Buy milk"}, headers=headers).status_code == 201


@pytest.mark.usefixtures("told")
def test_a_change_is_refused_like_a_create(alice: Caller) -> None:
    alice.create()
    path = f"/{alice.create('Buy bread')['id']}"
    assert alice("PUT", path, json={"title": "Buy milk"}).status_code == 409
    assert alice("PUT", path, json={"title": "Buy cheese"}).status_code == 200


@WITH_AND_WITHOUT_KEY
def test_a_sequence_behind_its_table_is_a_500_of_one_statement_and_a_line_in_the_log(
    server: URL, capsys: pytest.CaptureFixture[str], headers: dict[str, str]
) -> None:
    """As after a restore that forgot the sequences."""
    with postgresql_database(server) as url:
        app = migrated_app(url)
        alice = Caller(app, "alice")
        alice.create()
        sql(url, "SELECT setval('tasks_id_seq', 1, false)")
        assert alice("POST", json={"title": "x"}, headers=headers).status_code == 500
        assert capsys.readouterr().err.count('unique constraint "pk_tasks"') == 1
        # Each attempt spends one id: this is the second.
        assert alice("POST", json={"title": "x"}, headers=headers).get_json()["id"] == 2
        close(app)


def test_what_is_unique_is_unique_for_each_user() -> None:
    """Else it would tell that another user has it. Ids are the database's own."""
    for model in Owned.__subclasses__():
        table = table_of(model)
        for unique in (*table.constraints, *table.indexes):
            if isinstance(unique, UniqueConstraint) or (isinstance(unique, Index) and unique.unique):
                assert "user_id" in unique.columns, unique.name
            if isinstance(unique, PrimaryKeyConstraint):
                assert "user_id" in unique.columns or [column.identity for column in unique.columns] != [None]


CREATE_NOTES_TWICE = """
from wsgi import app
for user_id in ("alice", "alice", "bob"):
    answer = app.test_client().post(f"/api/{user_id}/notes", json={"title": "The first"})
    print(answer.status_code, answer.get_json().get("error"))
print(app.test_client().get("/openapi.json").status_code)
"""


def test_the_page_gives_a_second_resource_its_409(tmp_path: Path) -> None:
    """The notes of the recipe, with the lines of docs/decisions/conflicts.md put in where it says."""
    copy = tmp_path / "todo"
    ignored = shutil.ignore_patterns("__pycache__", ".*", "instance", "node_modules")
    for name in ("todo", "migrations"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("config.py", "wsgi.py"):
        shutil.copy(ROOT / name, copy)
    (recipe,) = [text for path in ROOT.glob("**/*.md") if "cp -r todo/tasks todo/notes" in (text := path.read_text())]
    recipe = recipe[recipe.index("cp -r todo/tasks") - 20 :]
    environ = {"PATH": os.environ["PATH"], "FLASK_RUN_FROM_CLI": "true", "IDENTITY_PROVIDER": "development"}

    def run(*command: str) -> str:
        result = subprocess.run(command, cwd=copy, env=environ, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    for command in re.findall(r"^\$ ((?:cp|sed|printf) .*)", recipe, re.MULTILINE):
        run("bash", "-c", command)
    path, migration = re.findall(r"`(migrations/\S+)`:\n\n```python\n(.*?)```", recipe, re.DOTALL)[0]
    (copy / path).write_text(migration)
    page = (ROOT / "docs/decisions/conflicts.md").read_text()
    for name, before, lines in re.findall(r"In `(\S+)`, before `(.*?)`:\n\n```python\n(.*?)```", page, re.DOTALL):
        (file,) = [copy / name] if (copy / name).exists() else (copy / "migrations/versions").glob(name)
        text = file.read_text()
        assert before in text
        # An expression is one more argument of the call.
        added = lines if lines.startswith("from ") else f"        {lines.strip()},\n"
        start = text.rindex("\n", 0, text.index(before)) + 1
        file.write_text(text[:start] + added + text[start:])
    run(sys.executable, "-m", "flask", "db", "upgrade")
    sentence = "You have a note of that title"
    assert run(sys.executable, "-c", CREATE_NOTES_TWICE).splitlines() == [
        "201 None",
        f"409 {sentence}",
        "201 None",
        "200",
    ]
    assert "No new upgrade operations" in run(sys.executable, "-m", "flask", "db", "check")
