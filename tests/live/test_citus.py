"""The forms that Citus requires of statements, read off PostgreSQL's own parse tree: this needs no cluster.

tests/citus has one.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
from flask import Flask
from sqlalchemy import URL

from tests.live.test_sharding import CALLS, KEY, status_of
from tests.support import ROOT, Caller, later, session, sql
from todo.db.connections import LimitedCursor
from todo.db.ownership import Owned

pytestmark = pytest.mark.sql


class Node(dict[str, Any]):
    """A node of PostgreSQL's parse tree: its fields, and its name as `tag`."""

    def nodes(self) -> Iterator["Node"]:
        """Yield the node, and all below it."""
        yield self
        waiting = list(self.values())
        while waiting:
            value = waiting.pop()
            if isinstance(value, Node):
                yield from value.nodes()
            elif isinstance(value, list):
                waiting += value


def parsed(tokens: list[str]) -> Any:
    """Read the next value of a parse tree (pg_node_tree), from the end of the list."""
    token = tokens.pop()
    if token == "{":
        node, name = Node(tag=tokens.pop()), ""
        while (token := tokens.pop()) != "}":
            if token.startswith(":"):
                name = token
            else:
                tokens.append(token)
                node.setdefault(name, []).append(parsed(tokens))
        return node
    if token in "([":
        values = []
        while tokens[-1] not in ")]":
            values.append(parsed(tokens))
        tokens.pop()
        return values
    return token


def tree_of(url: URL, statement: str, parameters: Any) -> Node:
    """How PostgreSQL understands the statement, without carrying it out."""
    with session(url) as connection:
        cursor = connection.connection.cursor()
        body = cursor.mogrify(statement, parameters).decode()  # type: ignore[attr-defined]
        cursor.execute(f"CREATE FUNCTION tree() RETURNS void LANGUAGE sql BEGIN ATOMIC {body}; END")
        cursor.execute("SELECT prosqlbody::text FROM pg_proc WHERE proname = 'tree'")
        tokens = re.findall(r'"(?:\\.|[^"])*"|[][(){}]|[^][(){}\s]+', cursor.fetchone()[0])
    return Node(tag="", queries=parsed(tokens[::-1]))


def faults_of_insert(query: Node, with_identity: set[str]) -> Iterator[str]:
    """What an INSERT must not have. Citus would refuse it, need all machines, or let a worker give the id."""
    if query[":canSetTag"] == ["false"]:
        yield "an INSERT in WITH"
    tables = [*query[":rtable"][0]]
    into = tables.pop(int(query[":resultRelation"][0]) - 1)
    sources = [node for node in Node(tag="", of=tables).nodes() if node["tag"] == "RANGETBLENTRY"]
    if any(source[":rtekind"] == ["1"] for source in sources):
        if query[":returningList"] != ["<>"]:
            yield "an INSERT of a SELECT that returns something"
        if into[":relid"][0] in with_identity:
            yield "an INSERT of a SELECT into a table that counts"
        if not any(source[":rtekind"] == ["0"] for source in sources):
            yield "an INSERT of a SELECT from no table"


@dataclass(frozen=True)
class Catalog:
    """What the database knows, by the numbers that a parse tree has.

    immutable: the functions that are IMMUTABLE. with_identity: the tables that give ids. owners: by the tables of
    owned rows and users, the column of the owner.
    """

    immutable: set[str]
    with_identity: set[str]
    owners: Mapping[str, str]


def faults(tree: Node, catalog: Catalog) -> Iterator[str]:
    """What Citus refuses of a statement, or what needs more than one machine (docs/scaling.md)."""
    for query in queries_of(tree):
        in_conflict = Node(tag="", of=[node.get(":onConflictSet") for node in Node(of=query[":onConflict"]).nodes()])
        computed = Node(
            tag="", of=[query[":returningList"], query[":targetList"] if query[":commandType"] == ["2"] else []]
        )
        for kind, expressions in (("conflict", in_conflict), ("change", computed)):
            for call in expressions.nodes():
                function = (call.get(":funcid") or call.get(":opfuncid") or [None])[0]
                has_column = any(node["tag"] == "VAR" for node in call.nodes())
                if function and function not in catalog.immutable and (has_column or kind == "conflict"):
                    yield f"a {kind} with function {function}, which is not IMMUTABLE"
        if query[":commandType"] == ["3"]:
            yield from faults_of_insert(query, catalog.with_identity)
    for link in (node for node in tree.nodes() if node["tag"] == "SUBLINK" and node[":subLinkType"] == ["2"]):
        if link[":testexpr"][0]["tag"] != "OPEXPR":
            yield "several columns IN a sub-select"


def queries_of(tree: Node) -> list[Node]:
    """The statement and all within it."""
    return [node for node in tree.nodes() if node["tag"] == "QUERY"]


def is_plain_read(tree: Node) -> bool:
    """Whether the statement changes and locks nothing."""
    return all(query[":commandType"] == ["1"] and query[":rowMarks"] == ["<>"] for query in queries_of(tree))


def unowned(tree: Node, catalog: Catalog, user_id: str) -> Iterator[str]:
    """Yield each place where the statement reads or changes rows, or those of a WITH, without naming their owner."""
    parts = {node[":ctename"][0]: node[":ctequery"][0] for node in tree.nodes() if node["tag"] == "COMMONTABLEEXPR"}
    for query in queries_of(tree):
        joined = [*joined_in(query)]
        named = {owner_named(node, user_id) for node in joined if node["tag"] == "OPEXPR"}
        for place in (node[":rtindex"][0] for node in joined if node["tag"] == "RANGETBLREF"):
            source = query[":rtable"][0][int(place) - 1]
            part = parts.get(source.get(":ctename", [""])[0])
            owner = catalog.owners.get(source.get(":relid", [""])[0]) if part is None else owner_in(part, catalog)
            if owner is not None and (place, owner) not in named:
                yield f"{source[':eref'][0][':aliasname'][0]} without its owner"


def joined_in(query: Node) -> Iterator[Node]:
    """Yield the tables that the query joins, and the conditions that must all be true."""
    waiting: list[Any] = [*query[":jointree"]]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, Node):
            yield node
            if node["tag"] in ("FROMEXPR", "JOINEXPR") or node.get(":boolop") == ["and"]:
                waiting += node.values()


def owner_named(condition: Node, user_id: str) -> tuple[str, str] | None:
    """The place of the table, and the column, that the condition says to be equal to the user id."""
    # 98 is = of two texts.
    sides = {node["tag"]: node for node in condition[":args"][0]} if condition[":opno"] == ["98"] else {}
    if sides.keys() != {"VAR", "CONST"} or sides["VAR"][":varlevelsup"] != ["0"]:
        return None
    # The length comes first.
    text = bytes(map(int, sides["CONST"][":constvalue"][1][4:])).decode()
    return (sides["VAR"][":varno"][0], sides["VAR"][":varattno"][0]) if text == user_id else None


def owner_in(part: Node, catalog: Catalog) -> str | None:
    """The column in which a part of WITH returns the owner; None if it does not."""
    returned = part[":targetList" if part[":commandType"] == ["1"] else ":returningList"][0]
    for entry in returned:
        column = entry[":expr"][0]
        if column["tag"] == "VAR":
            source = part[":rtable"][0][int(column[":varno"][0]) - 1]
            if column[":varattno"][0] == catalog.owners.get(source.get(":relid", [""])[0]):
                return str(entry[":resno"][0])
    return None


@contextmanager
def recorded() -> Iterator[list[tuple[str, Any]]]:
    """The queries and changes that the app executes, each with its parameters."""
    seen: list[tuple[str, Any]] = []
    execute = LimitedCursor.execute

    def record(cursor: LimitedCursor, query: Any, parameters: Any = None) -> None:
        text = query.decode() if isinstance(query, bytes) else str(query)
        if re.match("(SELECT|WITH|INSERT|UPDATE|DELETE) ", text):
            seen.append((text, parameters))
        execute(cursor, query, parameters)

    with mock.patch.object(LimitedCursor, "execute", record):
        yield seen


@pytest.fixture
def catalog(url: URL) -> Catalog:
    """The catalog of the database."""
    owned = [model.__tablename__ for model in Owned.__subclasses__()]
    return Catalog(
        {str(oid) for (oid,) in sql(url, "SELECT oid FROM pg_proc WHERE provolatile = 'i'")},
        {str(oid) for (oid,) in sql(url, "SELECT attrelid FROM pg_attribute WHERE attidentity <> ''")},
        {
            str(table): str(column)
            for table, column in sql(
                url,
                "SELECT attrelid, attnum FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid"
                " WHERE (relname = 'users' AND attname = 'id') OR (relname = ANY(:owned) AND attname = 'user_id')",
                owned=owned,
            )
        },
    )


like_citus = pytest.mark.parametrize("watched", ["like citus"], indirect=True)


@like_citus
@pytest.mark.parametrize(("method", "path", "options"), CALLS)
def test_citus_carries_out_every_statement_on_one_machine(
    app: Flask, url: URL, catalog: Catalog, method: str, path: str, options: dict[str, Any]
) -> None:
    alice = Caller(app, "alice")
    task = alice("PATCH", f"/{alice.create()['id']}/complete").get_json()
    with recorded() as seen:
        assert alice.send(task, method, path, options).status_code == status_of(method, path)
    trees = [tree_of(url, *each) for each in seen]
    assert trees
    assert [fault for tree in trees for fault in faults(tree, catalog)] == []
    assert [fault for tree in trees for fault in unowned(tree, catalog, "alice")] == []


@like_citus
@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("seed alice --count 3", "Made 3 tasks for alice"),
        ("prune", "Deleted 1 idempotency keys and 1 deletions"),
        ("users resync", "1 users start their sync again"),
        ("users export alice", '"kind":"task"'),
        ("users delete --yes alice", "Erased alice with 1 deletions and 1 idempotency keys"),
        ("ready", "The database has what the service needs"),
    ],
)
def test_a_command_changes_the_rows_of_one_user_at_a_time(
    app: Flask, url: URL, catalog: Catalog, statements: list[str], command: str, output: str
) -> None:
    """A command may search all users for rows to change."""
    alice = Caller(app, "alice")
    old = alice("POST", json={"title": "x"}, headers=KEY).get_json()
    alice("DELETE", f"/{old['id']}")
    alice.create()
    for table, column in (("idempotency_keys", "created_at"), ("deletions", "deleted_at")):
        sql(url, f"UPDATE {table} SET {column} = {later(url, column, -31 * 86400)}")
    with recorded() as seen:
        assert output in app.test_cli_runner().invoke(args=command.split()).stdout
    statements.clear()
    trees = [tree_of(url, *each) for each in seen]
    assert trees
    assert [fault for tree in trees for fault in faults(tree, catalog)] == []
    changes = [tree for tree in trees if not is_plain_read(tree)]
    assert (changes == []) == (command in ("ready", "users export alice"))
    assert [fault for tree in changes for fault in unowned(tree, catalog, "alice")] == []


@like_citus
@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("UPDATE users SET changed_at = changed_at + interval '1 s'", "a change with function 1189"),
        ("UPDATE users SET email = id RETURNING to_char(changed_at, 'YYYY')", "a change with function 1770"),
        ("INSERT INTO users (id) VALUES ('x') ON CONFLICT (id) DO UPDATE SET changed_at = now()", "a conflict with"),
        ("WITH a AS (INSERT INTO users (id) VALUES ('x')) SELECT 1", "an INSERT in WITH"),
        ("INSERT INTO users (id) SELECT id FROM users RETURNING id", "an INSERT of a SELECT that returns something"),
        ("INSERT INTO tasks (title) SELECT id FROM users", "an INSERT of a SELECT into a table that counts"),
        ("INSERT INTO users (id) SELECT 'x' WHERE true", "an INSERT of a SELECT from no table"),
        ("INSERT INTO users (id) SELECT id FROM users", None),
        ("INSERT INTO tasks (title) VALUES ('x') RETURNING id", None),
        ("DELETE FROM tasks WHERE (user_id, id) IN (SELECT user_id, id FROM tasks)", "several columns IN"),
        ("UPDATE users SET changed_at = now()", None),
    ],
)
def test_what_citus_refuses_is_found(url: URL, catalog: Catalog, statement: str, fault: str | None) -> None:
    found = [*faults(tree_of(url, statement, None), catalog)]
    assert found == [] if fault is None else found[0].startswith(fault)


CLOCK = "WITH clock AS (UPDATE users SET email = NULL WHERE id = 'a' RETURNING id)"


@like_citus
@pytest.mark.parametrize(
    ("statement", "tables"),
    [
        ("SELECT 1 FROM users WHERE id = 'a'", []),
        ("SELECT 1 FROM users WHERE id = 'b'", ["users"]),
        ("SELECT 1 FROM users WHERE id = 'a' OR email = 'a'", ["users"]),
        ("SELECT 1 FROM users WHERE email = 'a'", ["users"]),
        ("DELETE FROM tasks WHERE user_id = 'a' AND id IN (SELECT id FROM tasks LIMIT 1)", ["tasks"]),
        ("DELETE FROM tasks WHERE user_id = 'a' AND EXISTS (SELECT FROM deletions)", ["deletions"]),
        ("SELECT 1 FROM tasks JOIN users ON users.id = user_id WHERE user_id = 'a'", ["users"]),
        ("SELECT 1 FROM tasks JOIN users ON users.id = 'a' WHERE user_id = 'a'", []),
        (f"{CLOCK} UPDATE tasks SET title = 'x' FROM clock WHERE user_id = 'a'", ["clock"]),
        (f"{CLOCK} UPDATE tasks SET title = 'x' FROM clock WHERE user_id = 'a' AND clock.id = 'a'", []),
        ("INSERT INTO users (id) VALUES ('a') ON CONFLICT (id) DO UPDATE SET email = NULL", []),
    ],
)
def test_a_table_without_its_owner_is_found(url: URL, catalog: Catalog, statement: str, tables: list[str]) -> None:
    assert [*unowned(tree_of(url, statement, None), catalog, "a")] == [f"{name} without its owner" for name in tables]


@like_citus
def test_citus_carries_out_the_statement_of_the_page_on_the_clock(url: URL, catalog: Catalog) -> None:
    """Who writes SQL of their own copies it."""
    (block,) = re.findall("```sql\n(.*?)```", (ROOT / "docs/decisions/clock.md").read_text(), re.DOTALL)
    tree = tree_of(url, re.sub(r":(\w+)", r"%(\1)s", block), {"user_id": "alice", "id": 1, "title": "x"})
    assert [*faults(tree, catalog), *unowned(tree, catalog, "alice")] == []


def test_each_owned_table_is_distributed_and_brought_back() -> None:
    forth, back = (ROOT.joinpath(f"deploy/citus/{name}.sql").read_text() for name in ("distribute", "undistribute"))
    for table in (model.__tablename__ for model in Owned.__subclasses__()):
        assert f"create_distributed_table('{table}', 'user_id', colocate_with => 'users')" in forth
        for script in (forth, back):
            assert f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY" in script


@pytest.mark.parametrize("watched", ["postgresql"], indirect=True)
def test_no_policy_has_a_sub_select(url: URL) -> None:
    policies = sql(url, "SELECT polname, pg_get_expr(polqual, polrelid) FROM pg_policy")
    assert len(policies) >= len(Owned.__subclasses__())
    assert [name for name, shown in policies if "SELECT" in shown] == []
