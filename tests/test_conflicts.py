"""A violated unique constraint: 409 in the words of the model, else 500; never mistaken for that of a key."""

from collections.abc import Iterator

import pytest
from sqlalchemy import URL, Index, PrimaryKeyConstraint, UniqueConstraint

from tests.support import Caller, Make, sql
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


@pytest.mark.parametrize("watched", ["postgresql"], indirect=True)
@pytest.mark.parametrize("unique", ["columns"], indirect=True)
@pytest.mark.usefixtures("told")
def test_one_of_a_shard_is_that_of_the_table(alice: Caller, url: URL) -> None:
    """Citus names it in its message alone, with the number of the shard."""
    raising = "'BEGIN RAISE EXCEPTION USING ERRCODE = ''unique_violation'', MESSAGE = NEW.title; END'"
    sql(url, f"CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS {raising}")
    sql(url, "CREATE TRIGGER fail BEFORE INSERT ON tasks FOR EACH ROW EXECUTE FUNCTION fail()")
    for name, status in (("uq_tasks_user_id_title_102136", 409), ("uq_102136", 500), ("uq_tasks_user_id_title", 500)):
        title = f'duplicate key value violates unique constraint "{name}"'
        assert alice("POST", json={"title": title}).status_code == status
    sql(url, "DROP FUNCTION fail CASCADE")


@WITH_AND_WITHOUT_KEY
def test_a_sequence_behind_its_table_is_a_500_of_one_statement_and_a_line_in_the_log(
    postgresql: URL, make: Make, capsys: pytest.CaptureFixture[str], headers: dict[str, str]
) -> None:
    """As after a restore that forgot the sequences."""
    alice = Caller(make(postgresql), "alice")
    alice.create()
    sql(postgresql, "SELECT setval('tasks_id_seq', 1, false)")
    assert alice("POST", json={"title": "x"}, headers=headers).status_code == 500
    assert capsys.readouterr().err.count('unique constraint "pk_tasks"') == 1
    # Each attempt spends one id: this is the second.
    assert alice("POST", json={"title": "x"}, headers=headers).get_json()["id"] == 2


def test_what_is_unique_is_unique_for_each_user() -> None:
    """Else it would tell that another user has it. Ids are the database's own."""
    for model in Owned.__subclasses__():
        table = table_of(model)
        for unique in (*table.constraints, *table.indexes):
            if isinstance(unique, UniqueConstraint) or (isinstance(unique, Index) and unique.unique):
                assert "user_id" in unique.columns, unique.name
            if isinstance(unique, PrimaryKeyConstraint):
                assert "user_id" in unique.columns or [column.identity for column in unique.columns] != [None]
