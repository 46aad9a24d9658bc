"""GET …/tasks/changes: a client that applies each page holds what the service holds."""

import base64
import re
import time
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL

from tests.conftest import on_postgresql
from tests.support import ROOT, Caller, later, sql
from tests.test_idempotency import age, create, prune
from todo.users import commands
from todo.web.sync import NOTHING, encode_token

pytestmark = pytest.mark.sql

GONE = {"error": "Sync token is no longer valid: start again without it"}
INVALID = {"error": "Invalid sync token"}


def all_tasks(caller: Caller) -> list[dict[str, Any]]:
    """All pages of the list."""
    response = caller("GET")
    tasks = list(response.get_json())
    while "Link" in response.headers:
        response = caller.open("GET", response.headers["Link"].partition(">")[0][1:])
        tasks += response.get_json()
    return tasks


class Client:
    """What a client holds: the tasks by id, and a token."""

    def __init__(self, caller: Caller, limit: int = 1000) -> None:
        self.caller = caller
        self.limit = limit
        self.tasks: dict[int, dict[str, Any]] = {}
        self.token: str | None = None
        self.told: list[tuple[int, bool]] = []

    def page(self) -> bool:
        """Get and apply one page; whether more follow."""
        since = "" if self.token is None else f"&since={self.token}"
        response = self.caller("GET", "/changes", query=f"?limit={self.limit}{since}")
        assert response.status_code == 200, response.get_data(as_text=True)
        answer = response.get_json()
        assert answer.keys() == {"changes", "next", "more"}
        for change in answer["changes"]:
            self.told.append((change["id"], change["task"] is None))
            if change["task"] is None:
                self.tasks.pop(change["id"], None)
            else:
                assert change["task"]["id"] == change["id"]
                self.tasks[change["id"]] = change["task"]
        self.token = answer["next"]
        return bool(answer["more"])

    def sync(self) -> list[tuple[int, bool]]:
        """Get and apply pages until no more follow; the ids that came, each with whether it was deleted."""
        self.told = []
        while self.page():
            pass
        assert self.tasks == {task["id"]: task for task in all_tasks(self.caller)}
        return self.told


def test_the_first_sync_brings_all_tasks_and_no_deletion(alice: Caller, bob: Caller) -> None:
    first, second, third = (alice.create()["id"] for _ in range(3))
    bob.create()
    alice("DELETE", f"/{second}")
    alice("PATCH", f"/{first}/complete")
    assert Client(alice).sync() == [(third, False), (first, False)]


def test_a_sync_brings_each_change_once_as_it_is_now_and_in_order(alice: Caller, bob: Caller) -> None:
    kept, changed, deleted = (alice.create()["id"] for _ in range(3))
    client = Client(alice)
    client.sync()
    assert client.sync() == []
    alice("DELETE", f"/{deleted}")
    alice("PATCH", f"/{changed}/complete")
    alice("PUT", f"/{changed}", json={"title": "Buy oat milk"})
    short_lived = alice.create()["id"]
    alice("DELETE", f"/{short_lived}")
    new = alice.create()["id"]
    bob.create()
    assert client.sync() == [(deleted, True), (changed, False), (short_lived, True), (new, False)]
    assert client.tasks.keys() == {kept, changed, new}
    assert client.sync() == []


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_pages_lose_nothing_whatever_changes_between_them(alice: Caller, limit: int) -> None:
    ids = [alice.create()["id"] for _ in range(7)]
    client = Client(alice, limit)
    assert client.page() == (limit < 7)
    # A task that the client has, one that it does not have, and one that moves to the end.
    for number in (ids[0], ids[-1]):
        alice("DELETE", f"/{number}")
    alice("PATCH", f"/{ids[1]}/complete")
    alice.create()
    client.sync()


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
def test_rows_of_one_bulk_call_share_an_instant_and_pages_split_them(alice: Caller, limit: int) -> None:
    for _ in range(5):
        alice.create()
    client = Client(alice, limit)
    client.sync()
    alice("PATCH", query="?status=incomplete", json={"status": "complete"})
    assert len({task["updated_at"] for task in alice("GET").get_json()}) == 1
    assert len(client.sync()) == 5
    alice("DELETE", query="?status=complete")
    assert [is_deleted for _, is_deleted in client.sync()] == [True] * 5


def test_the_last_tag_with_the_next_url_is_304_only_once_the_client_has_everything(alice: Caller) -> None:
    query, headers = "?limit=1", {}
    for task in [alice.create() for _ in range(3)]:
        page = alice("GET", "/changes", query=query, headers=headers)
        assert page.get_json()["changes"] == [{"id": task["id"], "task": task}]
        headers = {"If-None-Match": page.headers["ETag"]}
        assert alice("GET", "/changes", query=query, headers=headers).status_code == 304
        query = f"?limit=1&since={page.get_json()['next']}"
    assert alice("GET", "/changes", query=query, headers=headers).status_code == 304


def test_a_page_has_a_mebibyte_at_most_and_nothing_is_lost(alice: Caller) -> None:
    client = Client(alice)
    for number in range(60):
        alice.create(f"{number}", description="🥛" * 5000)
    alice("DELETE", f"/{alice.create()['id']}")
    assert client.page()
    assert 40 <= len(client.tasks) < 60
    client.sync()


def test_a_user_without_tasks_has_a_token_that_stays_good(alice: Caller, url: URL) -> None:
    client = Client(alice)
    assert client.sync() == []
    assert client.sync() == []
    task = alice.create()["id"]
    assert client.sync() == [(task, False)]
    empty = Client(alice)
    sql(url, "DELETE FROM users")
    assert empty.sync() == []
    alice.create()
    assert len(empty.sync()) == 1


def deleted_before(url: URL, user_id: str, days: float) -> None:
    """Let all that has happened to the user have happened that many days earlier."""
    for table, owner, *columns in (
        ("users", "id", "changed_at", "forgotten_at"),
        ("tasks", "user_id", "created_at", "updated_at"),
        ("deletions", "user_id", "deleted_at"),
    ):
        values = ", ".join(f"{column} = {later(url, column, -days * 86400)}" for column in columns)
        sql(url, f"UPDATE {table} SET {values} WHERE {owner} = :user_id", user_id=user_id)


@pytest.fixture
def client(alice: Caller) -> Client:
    """A client that is in sync, after a deletion and a change."""
    kept, deleted = (alice.create()["id"] for _ in range(2))
    client = Client(alice)
    client.sync()
    alice("DELETE", f"/{deleted}")
    alice("PATCH", f"/{kept}/complete")
    return client


def answer(client: Client) -> tuple[int, Any]:
    """What the service answers to the client's token."""
    response = client.caller("GET", "/changes", query=f"?since={client.token}")
    return response.status_code, response.get_json()


class TestOldDeletions:
    """`flask prune` and later deletions forget them."""

    def test_a_token_before_a_forgotten_deletion_is_410(
        self, app: Flask, url: URL, client: Client, bob: Caller, statements: list[str]
    ) -> None:
        bob("DELETE", f"/{bob.create()['id']}")
        bobs = Client(bob)
        bobs.sync()
        later = Client(client.caller)
        later.sync()
        deleted_before(url, "alice", 31)
        # The tokens are of that time, too.
        for each in (client, later):
            each.token = earlier(str(each.token), 31)
        assert answer(client)[0] == 200
        assert prune(app).output == "Deleted 0 idempotency keys and 1 deletions\n"
        assert answer(client) == (410, GONE)
        assert answer(later)[0] == answer(bobs)[0] == 200
        assert prune(app).output == "Deleted 0 idempotency keys and 0 deletions\n"
        statements.clear()

    def test_a_deletion_is_kept_for_30_days_and_longer_where_wanted(
        self, app: Flask, url: URL, client: Client, statements: list[str]
    ) -> None:
        deleted_before(url, "alice", 29.9)
        assert prune(app).output == "Deleted 0 idempotency keys and 0 deletions\n"
        deleted_before(url, "alice", 1)
        assert prune(app, "--deletions", "40").output == "Deleted 0 idempotency keys and 0 deletions\n"
        assert app.test_cli_runner().invoke(args=["prune", "--deletions", "29"]).exit_code == 2
        assert prune(app).output == "Deleted 0 idempotency keys and 1 deletions\n"
        statements.clear()

    def test_an_old_token_is_good_where_nothing_was_lost(
        self, app: Flask, url: URL, client: Client, statements: list[str]
    ) -> None:
        client.sync()
        deleted_before(url, "alice", 400)
        client.token = earlier(str(client.token), 400)
        prune(app)
        statements.clear()
        new = client.caller.create()["id"]
        client.told = []
        assert not client.page()
        assert client.told == [(new, False)]

    def test_many_are_forgotten_in_short_transactions(
        self, app: Flask, url: URL, alice: Caller, bob: Caller, statements: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So are keys."""
        monkeypatch.setattr("todo.pruning.BATCH", 2)
        for caller in (alice, bob):
            for number in range(5):
                caller("DELETE", f"/{create(caller, str(number)).get_json()['id']}")
            deleted_before(url, caller.user_id, 31)
        age(url, "%", 25)
        statements.clear()
        assert prune(app).output == "Deleted 10 idempotency keys and 10 deletions\n"
        for table in ("idempotency_keys", "deletions"):
            assert len([statement for statement in statements if f"DELETE FROM {table}" in statement]) == 6
            assert sql(url, f"SELECT count(*) FROM {table}") == [(0,)]
        statements.clear()

    @pytest.mark.parametrize("at_once", [False, True])
    def test_a_deletion_forgets_old_ones_of_its_user(
        self, url: URL, client: Client, bob: Caller, at_once: bool
    ) -> None:
        """Those of the ten oldest at least. A deletion that finds no task forgets none."""
        alice = client.caller
        ids = [alice.create()["id"] for _ in range(15)]
        late = Client(alice)
        late.sync()
        for number in ids:
            alice("PATCH", f"/{number}/complete")
        if at_once:
            alice("DELETE", query="?status=complete")
        else:
            for number in ids:
                alice("DELETE", f"/{number}")
        bob("DELETE", f"/{bob.create()['id']}")
        deleted_before(url, "alice", 31)
        deleted_before(url, "bob", 31)
        fresh = alice.create()["id"]
        now = Client(alice)
        now.sync()
        late.token = earlier(str(late.token), 31)
        assert alice("DELETE", f"/{ids[0]}").status_code == 404
        assert answer(late)[0] == 200
        alice("PATCH", f"/{fresh}/complete")
        assert alice("DELETE", "" if at_once else f"/{fresh}", query="?status=complete" * at_once).status_code < 300
        left = sql(url, "SELECT count(*) FROM deletions WHERE user_id = 'alice' AND row_id <> :fresh", fresh=fresh)
        # The deletion of the fixture is the oldest one.
        assert left == [(0 if at_once else 6,)]
        assert sql(url, "SELECT count(*) FROM deletions WHERE user_id = 'bob'") == [(1,)]
        assert answer(late) == (410, GONE)
        assert now.sync() == [(fresh, True)]


def earlier(token: str, days: float) -> str:
    """The same token, of so many days before."""
    layout = bytearray(base64.urlsafe_b64decode(token))
    for start in (1, 17):
        instant = int.from_bytes(layout[start : start + 8], signed=True) - int(days * 86400e6)
        layout[start : start + 8] = instant.to_bytes(8, signed=True)
    return base64.urlsafe_b64encode(layout).decode()


def test_a_token_that_is_ahead_of_the_database_is_410(client: Client, url: URL) -> None:
    """A backup was restored."""
    client.sync()
    sql(url, f"UPDATE users SET changed_at = {later(url, 'changed_at', -1e-6)}")
    assert answer(client) == (410, GONE)


def test_after_a_restore_one_command_makes_every_client_start_again(
    app: Flask, client: Client, bob: Caller, statements: list[str]
) -> None:
    bob.create()
    bobs = Client(bob)
    bobs.sync()
    tag = bob("GET").headers["ETag"]
    result = app.test_cli_runner().invoke(args=["users", "resync"])
    statements.clear()
    assert (result.exit_code, result.output) == (0, "2 users start their sync again\n")
    assert answer(client) == answer(bobs) == (410, GONE)
    assert bob("GET", headers={"If-None-Match": tag}).status_code == 200
    for caller in (client.caller, bob):
        again = Client(caller)
        again.sync()
        caller.create()
        again.sync()


def test_after_an_erasure_a_token_is_410(app: Flask, client: Client, statements: list[str]) -> None:
    for _ in range(2):
        assert app.test_cli_runner().invoke(args=["users", "delete", "alice", "--yes"]).exit_code == 0
        statements.clear()
        assert answer(client) == (410, GONE)
        # Also when the user is there again.
        client.caller.create()
        assert answer(client) == (410, GONE)
    Client(client.caller).sync()


def test_a_token_from_before_an_erasure_is_410_also_if_the_clock_was_ahead(
    app: Flask, client: Client, url: URL, statements: list[str]
) -> None:
    """So that the clock of the user who is created again passes it later."""
    client.sync()
    assert app.test_cli_runner().invoke(args=["users", "delete", "alice", "--yes"]).exit_code == 0
    statements.clear()
    client.caller.create()
    long_ago = "0" if url.get_backend_name() == "sqlite" else "timestamptz '1970-01-01 00:00:00Z'"
    sql(url, f"UPDATE users SET forgotten_at = {long_ago}")
    assert answer(client) == (410, GONE)


def test_a_token_between_pages_knows_the_deletions_of_the_pages_before(
    app: Flask, url: URL, alice: Caller, statements: list[str]
) -> None:
    """Of a client that comes back after a long time, while old deletions are forgotten."""
    first, *others = [alice.create()["id"] for _ in range(4)]
    client = Client(alice, limit=2)
    client.sync()
    alice("DELETE", f"/{first}")
    for number in others:
        alice("PATCH", f"/{number}/complete")
    deleted_before(url, "alice", 31)
    client.token = earlier(str(client.token), 31)
    begun = client.token
    assert client.page()
    assert prune(app).output == "Deleted 0 idempotency keys and 1 deletions\n"
    statements.clear()
    assert not client.page()
    client.token = begun
    assert answer(client) == (410, GONE)


def test_a_token_in_the_middle_of_a_forgotten_instant_is_410(
    app: Flask, url: URL, alice: Caller, statements: list[str]
) -> None:
    for _ in range(3):
        alice.create()
    client = Client(alice, limit=2)
    client.sync()
    alice("PATCH", query="?status=incomplete", json={"status": "complete"})
    alice("DELETE", query="?status=complete")
    deleted_before(url, "alice", 31)
    client.token = earlier(str(client.token), 31)
    assert client.page(), "one of three deletions is left"
    prune(app)
    statements.clear()
    assert answer(client) == (410, GONE)


def test_an_erasure_that_is_interrupted_leaves_no_gap(
    app: Flask, alice: Caller, statements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        alice.create()
    client = Client(alice)
    client.sync()
    tag = alice("GET").headers["ETag"]
    monkeypatch.setattr("todo.users.commands.BATCH", 2)
    seen: list[int] = []

    def interrupt(connection: Any, *arguments: Any) -> int:
        seen.append(delete_batch(connection, *arguments))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return seen[-1]

    delete_batch = commands.delete_batch
    monkeypatch.setattr(commands, "delete_batch", interrupt)
    assert app.test_cli_runner().invoke(args=["users", "delete", "alice", "--yes"]).exit_code == 1
    statements.clear()
    assert 0 < len(alice("GET").get_json()) < 5
    assert answer(client) == (410, GONE)
    assert alice("GET", headers={"If-None-Match": tag}).status_code == 200


@on_postgresql
def test_a_statement_as_the_page_shows_it_is_a_change_like_any_other(alice: Caller, url: URL) -> None:
    task = alice.create()["id"]
    client = Client(alice)
    client.sync()
    (statement,) = re.findall("```sql\n(.*?)```", (ROOT / "docs/decisions/clock.md").read_text(), re.DOTALL)
    assert sql(url, statement, user_id="alice", id=task, title="Buy oat milk") == [(task,)]
    assert client.sync() == [(task, False)]
    tag = alice("GET").headers["ETag"]
    assert sql(url, statement, user_id="alice", id=task + 1, title="Buy oat milk") == []
    assert alice("GET").headers["ETag"] == tag


@pytest.mark.parametrize("limit", [2, 1000])
def test_rows_that_are_written_without_the_clock_come_with_the_next_change(alice: Caller, url: URL, limit: int) -> None:
    old = alice.create()["id"]
    for _ in range(5):
        sql(url, "INSERT INTO tasks (user_id, title) VALUES ('alice', 'by hand')")
    sql(url, f"UPDATE tasks SET updated_at = {later(url, 'updated_at', 1e-3)} WHERE id > {old}")
    client = Client(alice, limit)
    for _ in range(2):
        while client.page():
            pass
        assert client.tasks.keys() == {old}
    time.sleep(0.01)
    alice.create()
    client.sync()
    assert len(client.tasks) == 7


def test_seeded_tasks_are_changes_like_any_other(app: Flask, alice: Caller, statements: list[str]) -> None:
    """They are old by created_at, not by updated_at."""
    client = Client(alice)
    client.sync()
    assert app.test_cli_runner().invoke(args=["seed", "alice", "--count", "30"]).exit_code == 0
    statements.clear()
    assert len(client.sync()) == 30


def test_a_token_is_good_as_it_was_given_to_that_user_or_not_at_all(alice: Caller, bob: Caller) -> None:
    alice.create()
    client = Client(alice)
    client.sync()
    token = str(client.token)
    raw = base64.urlsafe_b64decode(token)
    bad = [token[:-1], token + "A", token.lower(), f"{token}=", "", "x", "*", "\u00e9", "A" * 5000, "%00"]
    bad += [base64.urlsafe_b64encode(changed).decode() for changed in (b"\2" + raw[1:], raw[:-1] + b"\0", raw[:25])]
    bad += [base64.urlsafe_b64encode(raw[:1] + b"\x7f" + b"\xff" * 7 + raw[9:]).decode()]
    bad += [encode_token("alice", "notes", NOTHING), encode_token("bob", "tasks", NOTHING)]
    for since in bad:
        response = alice("GET", "/changes", query=f"?since={since}")
        assert (response.status_code, response.get_json()) == (400, INVALID), since
    assert bob("GET", "/changes", query=f"?since={token}").get_json() == INVALID


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "cursor=x", "status=complete", "since=&since="])
def test_bad_parameters_are_400(alice: Caller, query: str) -> None:
    assert alice("GET", "/changes", query=f"?{query}").status_code == 400
