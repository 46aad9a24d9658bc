"""The commands of the `flask` program that are about users: what they print, and what is left in the database."""

import json
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click import ClickException
from click.testing import Result
from flask import Flask
from sqlalchemy import URL, make_url

from config import JwtSettings
from tests.support import SECRET, Call, Caller, Make, empty_database, sql
from todo.db.commands import on_database
from todo.db.ownership import Owned
from todo.users import commands

pytestmark = pytest.mark.sql

AWAY = {"postgresql": "postgresql+psycopg2://nobody@127.0.0.1:1/todo", "sqlite": "sqlite:////nowhere/at/all.db"}
ODD = 'Ünï "çødé" \u2028 \U0001f95b \\ \x7f \r\n\t ليل e\u0301'


def run(app: Flask, *arguments: str, **options: Any) -> Result:
    """`flask` with those arguments."""
    return app.test_cli_runner().invoke(args=list(arguments), **options)


def owned(url: URL) -> dict[str, Counter[str]]:
    """How many rows of each table each user owns."""
    tables = [model.__tablename__ for model in Owned.__subclasses__()]
    return {table: Counter(user for (user,) in sql(url, f"SELECT user_id FROM {table}")) for table in tables}


def populate(caller: Caller, count: int) -> None:
    """Tasks, every one of them made under a key."""
    for number in range(count):
        response = caller("POST", json={"title": f"{number}"}, headers={"Idempotency-Key": str(number)})
        assert response.status_code == 201


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of two."""
    for feature in ("tasks", "users"):
        monkeypatch.setattr(f"todo.{feature}.commands.BATCH", 2)


def test_help_names_each_command_with_one_line(app: Flask) -> None:
    for group in ([], ["users"]):
        listed = run(app, *group, "--help").output.partition("Commands:\n")[2]
        assert all(re.fullmatch(r"  [a-z-]+ +[A-Z].{10,}", command) for command in listed.splitlines()), listed
    assert {"seed", "token", "users", "prune"} <= set(run(app, "--help").output.split())


class TestToken:
    """`flask token`."""

    @pytest.mark.parametrize(
        "jwt",
        [
            JwtSettings(secret=SECRET),
            JwtSettings(secret=SECRET * 2, algorithms=("HS512", "HS384")),
            JwtSettings(secret=SECRET, issuer="https://app.example.com", audience="https://app.example.com"),
        ],
        ids=["plain", "algorithms", "issuer"],
    )
    def test_the_service_accepts_it(self, url: URL, make: Make, jwt: JwtSettings) -> None:
        app = make(url, jwt=jwt)
        minted = run(app, "token", "alice", "--email", "alice@example.com", "--minutes", "5")
        assert (minted.exit_code, minted.stderr) == (0, "")
        (token,) = minted.stdout.splitlines()
        headers = {"Authorization": f"Bearer {token}"}
        client = app.test_client()
        assert client.post("/api/alice/tasks", json={"title": "x"}, headers=headers).status_code == 201
        assert client.get("/api/bob/tasks", headers=headers).status_code == 403
        assert sql(url, "SELECT id, email FROM users") == [("alice", "alice@example.com")]

    @pytest.mark.parametrize(
        ("provider", "jwt", "why"),
        [
            ("development", None, "IDENTITY_PROVIDER=development takes no tokens of this service"),
            ("jwt", JwtSettings(jwks_url="https://app.example.com/jwks"), "without JWT_SECRET there is nothing"),
        ],
    )
    def test_without_a_secret_it_says_why_in_one_line(
        self, url: URL, make: Make, provider: str, jwt: JwtSettings | None, why: str
    ) -> None:
        result = run(make(url, identity_provider=provider, jwt=jwt), "token", "alice")
        assert (result.exit_code, result.stdout) == (1, "")
        (line,) = result.stderr.splitlines()
        assert why in line

    @pytest.mark.parametrize("minutes", ["1", "525600"])
    def test_it_holds_for_a_minute_to_a_year(self, apps: dict[str, Flask], minutes: str) -> None:
        assert run(apps["sqlite"], "token", "alice", "--minutes", minutes).exit_code == 0

    def test_help_is_of_the_group_and_after_a_user_of_mint(self, apps: dict[str, Flask]) -> None:
        for arguments, says in ((["--help"], "check"), (["alice", "--help"], "--minutes")):
            helped = run(apps["sqlite"], "token", *arguments)
            assert (helped.exit_code, says in helped.stdout) == (0, True)

    def test_what_the_service_does_not_accept_is_refused(self, apps: dict[str, Flask]) -> None:
        user_ids = [["a/b"], [""], ["."], ["x" * 256], ["a\nb"], ["\udcff"]]
        options = [["--minutes", "0"], ["--minutes", "525601"], ["--email", ""], ["--email", "x" * 321]]
        for arguments in (*user_ids, *(["alice", *option] for option in options)):
            result = run(apps["sqlite"], "token", *arguments)
            assert (result.exit_code, result.stdout) == (2, ""), arguments
            name = arguments[1] if arguments[1:] else "USER_ID"
            assert re.search(f"Error: Invalid value for '?{name}'?: ", result.stderr)


class TestSeed:
    """`flask seed`."""

    def test_it_fills_one_user(self, app: Flask, alice: Caller, bob: Caller) -> None:
        bob.create()
        result = run(app, "seed", "alice")
        assert (result.exit_code, result.output) == (0, "Made 50 tasks for alice\n")
        tasks = alice("GET").get_json()
        assert (len(tasks), len(bob.titles())) == (50, 1)
        newer, older = ([task["status"] for task in half].count("complete") for half in (tasks[:25], tasks[25:]))
        assert 0 < newer < older < 25
        assert len({task["title"] for task in tasks}) > 20
        assert {task["description"] is None for task in tasks} == {True, False}
        made = [datetime.fromisoformat(task["created_at"]) for task in tasks]
        assert made == sorted(made, reverse=True)
        assert datetime.now(UTC) - timedelta(weeks=6, minutes=1) < made[-1] < made[0] < datetime.now(UTC)
        assert made[0] - made[-1] > timedelta(weeks=6) * 48 / 50
        assert all(task["created_at"] <= task["updated_at"] for task in tasks)
        # They are tasks like any other.
        assert alice("PUT", f"/{tasks[0]['id']}", json={"title": "x"}).status_code == 200

    def test_it_adds_to_what_is_there_in_batches(
        self, app: Flask, alice: Caller, url: URL, small_batches: None, statements: list[str]
    ) -> None:
        alice.create("First")
        statements.clear()
        assert run(app, "seed", "alice", "--count", "5").output == "Made 5 tasks for alice\n"
        transactions = [statement for statement in statements if statement.startswith("INSERT INTO tasks")]
        assert len(transactions) == (5 if url.get_backend_name() == "sqlite" else 3)
        assert len(alice.titles()) == 6
        assert min(alice.titles()) < "First"

    def test_bad_arguments_are_refused(self, app: Flask, url: URL) -> None:
        for arguments in (["alice", "--count", "0"], ["alice", "--count", "1000001"], ["a/b"], []):
            result = run(app, "seed", *arguments)
            assert result.exit_code == 2
            assert "--count" not in arguments or "is not in the range 1<=x<=1000000." in result.stderr
        assert sql(url, "SELECT * FROM users") == []


class TestDelete:
    """`flask users delete`."""

    def test_it_erases_a_user_and_all_that_is_theirs(
        self, app: Flask, alice: Caller, bob: Caller, url: URL, small_batches: None
    ) -> None:
        populate(alice, 5)
        alice.create()
        populate(bob, 3)
        result = run(app, "users", "delete", "alice", "--yes")
        counts = {"tasks": 6, "idempotency_keys": 5}
        assert result.exit_code == 0
        assert result.stderr == ""
        assert result.stdout.startswith("Erased alice with ")
        for table, count in counts.items():
            assert f"{count} {table.replace('_', ' ')}" in result.stdout
        assert {table: kept for table, kept in owned(url).items() if kept} == {
            table: Counter({"bob": 3}) for table in counts
        }
        assert sql(url, "SELECT id FROM users") == [("bob",)]
        assert alice("GET").get_json() == []

    def test_no_statement_is_long(self, app: Flask, alice: Caller, small_batches: None, statements: list[str]) -> None:
        populate(alice, 5)
        statements.clear()
        run(app, "users", "delete", "alice", "--yes")
        for table in ("tasks", "idempotency_keys"):
            mine = [statement for statement in statements if statement.startswith(f"DELETE FROM {table}")]
            assert ["LIMIT" in statement for statement in mine] == [True, True, True, False]

    def test_it_asks_first(self, app: Flask, alice: Caller, url: URL) -> None:
        populate(alice, 2)
        for answer, is_erased in (("n\n", False), ("", False), ("y\n", True)):
            result = run(app, "users", "delete", "alice", input=answer)
            assert result.exit_code == (0 if is_erased else 1)
            assert re.match(r"Erase alice with (?=.*\b0 deletions).*\b2 tasks.*\? \[y/N\]", result.stderr)
            assert (sql(url, "SELECT id FROM users") == []) is is_erased
            assert len(alice.titles()) == (0 if is_erased else 2)

    def test_an_unknown_user_is_one_line(self, app: Flask, alice: Caller) -> None:
        alice.create()
        for command in (["delete", "--yes"], ["export"]):
            result = run(app, "users", *command, "Alice")
            assert (result.exit_code, result.stdout, result.stderr) == (1, "", "Error: There is no user Alice\n")
        assert len(alice.titles()) == 1


class TestExport:
    """`flask users export`."""

    def lines(self, app: Flask, user_id: str = "alice") -> list[dict[str, Any]]:
        """What is written of the user."""
        result = run(app, "users", "export", user_id)
        assert (result.exit_code, result.stderr) == (0, "")
        return [json.loads(line) for line in result.stdout_bytes.splitlines()]

    def test_it_writes_the_user_and_all_that_is_theirs(
        self, app: Flask, call: Call, bob: Caller, url: URL, small_batches: None
    ) -> None:
        alice = call("alice", "alice@example.com")
        populate(alice, 3)
        alice.create(ODD, description=ODD * 10)
        alice("PATCH", f"/{alice.create()['id']}/complete")
        populate(bob, 2)
        user, *rest = self.lines(app)
        clock = max(task["updated_at"] for task in alice("GET").get_json())
        assert user.pop("forgotten_at") < clock
        assert user.pop("incarnation") > 0
        assert user == {"kind": "user", "id": "alice", "email": "alice@example.com", "changed_at": clock}
        assert Counter(line["kind"] for line in rest) == {"task": 5, "idempotency_key": 3}
        shown = {task["id"]: task for task in alice("GET").get_json()}
        for line in rest:
            assert line["user_id"] == "alice"
            if line.pop("kind") == "task":
                assert line == shown.pop(line["id"])
        assert shown == {}

    def test_it_is_of_one_moment(self, app: Flask, alice: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
        """A task and a key that are made while it is written are not there, not even the half of them."""
        alice.create()
        write = commands.count_owned

        def create_and_count(*arguments: Any) -> Any:
            populate(alice, 2)
            return write(*arguments)

        monkeypatch.setattr(commands, "count_owned", create_and_count)
        assert [line["kind"] for line in self.lines(app)] == ["user", "task"]
        assert len(alice.titles()) == 3


@pytest.mark.parametrize(
    ("failure", "seen"), [(OSError(28, "No space left"), ClickException), (BrokenPipeError(), BrokenPipeError)]
)
def test_an_output_that_fails_is_no_fault_of_the_database(
    apps: dict[str, Flask], failure: OSError, seen: type[Exception]
) -> None:
    @on_database
    def fail() -> None:
        raise failure

    with apps["sqlite"].app_context(), pytest.raises(seen):
        fail()


NEED_DATABASE = [
    ["seed", "alice"],
    ["users", "delete", "alice", "--yes"],
    ["users", "export", "alice"],
    ["prune"],
    ["users", "resync"],
]


def test_a_command_names_the_database_if_nobody_has(make: Make, sqlite: URL) -> None:
    """A job without its environment would else look fine."""
    told = f"DATABASE_URL is not set: the database is {sqlite.database}\n"
    for command in [["ready"], *NEED_DATABASE]:
        assert run(make(sqlite, is_database_default=True), *command).stderr.startswith(told), command
        assert "DATABASE_URL" not in run(make(sqlite), *command).stderr, command


@pytest.mark.parametrize("backend", AWAY)
def test_without_tables_or_a_database_each_command_says_so_in_one_line(server: URL, make: Make, backend: str) -> None:
    with empty_database(backend, server) as url:
        app = make(url)
        for command in NEED_DATABASE:
            result = run(app, *command)
            told = "Error: The database has no tables yet: run flask db upgrade\n"
            assert (result.exit_code, result.stdout, result.stderr) == (1, "", told)
    app = make(make_url(AWAY[backend]))
    for command in NEED_DATABASE:
        result = run(app, *command)
        assert (result.exit_code, result.stdout) == (1, "")
        assert re.fullmatch("Error: The database failed: OperationalError: .+\n", result.stderr)
