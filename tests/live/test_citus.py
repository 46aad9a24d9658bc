"""The forms that Citus requires of statements, read off PostgreSQL's own parse tree: this needs no cluster.

tests/citus has one.
"""

import re
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from flask import Flask
from sqlalchemy import URL

from tests.support import Caller, session, sql, status_of
from tests.test_sharding import CALLS
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


def faults(tree: Node, immutable: set[str], with_identity: set[str]) -> Iterator[str]:
    """What Citus refuses of a statement, or what needs more than one machine (docs/scaling.md)."""
    for query in (node for node in tree.nodes() if node["tag"] == "QUERY"):
        in_conflict = Node(tag="", of=[node.get(":onConflictSet") for node in Node(of=query[":onConflict"]).nodes()])
        computed = Node(
            tag="", of=[query[":returningList"], query[":targetList"] if query[":commandType"] == ["2"] else []]
        )
        for kind, expressions in (("conflict", in_conflict), ("change", computed)):
            for call in expressions.nodes():
                function = (call.get(":funcid") or call.get(":opfuncid") or [None])[0]
                has_column = any(node["tag"] == "VAR" for node in call.nodes())
                if function and function not in immutable and (has_column or kind == "conflict"):
                    yield f"a {kind} with function {function}, which is not IMMUTABLE"
        if query[":commandType"] == ["3"]:
            yield from faults_of_insert(query, with_identity)
    for link in (node for node in tree.nodes() if node["tag"] == "SUBLINK" and node[":subLinkType"] == ["2"]):
        if link[":testexpr"][0]["tag"] != "OPEXPR":
            yield "several columns IN a sub-select"


@pytest.fixture
def immutable(url: URL) -> set[str]:
    """The functions that are IMMUTABLE."""
    return {str(oid) for (oid,) in sql(url, "SELECT oid FROM pg_proc WHERE provolatile = 'i'")}


@pytest.fixture
def with_identity(url: URL) -> set[str]:
    """The tables that give ids."""
    return {str(oid) for (oid,) in sql(url, "SELECT attrelid FROM pg_attribute WHERE attidentity <> ''")}


@pytest.mark.parametrize("watched", ["like citus"], indirect=True)
@pytest.mark.parametrize(("method", "path", "options"), CALLS)
def test_citus_carries_out_every_statement_on_one_machine(
    app: Flask,
    url: URL,
    immutable: set[str],
    with_identity: set[str],
    method: str,
    path: str,
    options: dict[str, Any],
) -> None:
    alice = Caller(app, "alice")
    task = alice("PATCH", f"/{alice.create()['id']}/complete").get_json()
    seen: list[tuple[str, Any]] = []
    execute = LimitedCursor.execute

    def record(cursor: LimitedCursor, query: str, parameters: Any = None) -> None:
        seen.append((query, parameters))
        execute(cursor, query, parameters)

    with mock.patch.object(LimitedCursor, "execute", record):
        assert alice.send(task, method, path, options).status_code == status_of(method, path)
    assert seen
    assert [fault for each in seen for fault in faults(tree_of(url, *each), immutable, with_identity)] == []


@pytest.mark.parametrize("watched", ["like citus"], indirect=True)
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
def test_what_citus_refuses_is_found(
    url: URL, immutable: set[str], with_identity: set[str], statement: str, fault: str | None
) -> None:
    found = [*faults(tree_of(url, statement, None), immutable, with_identity)]
    assert found == [] if fault is None else found[0].startswith(fault)


@pytest.mark.parametrize("watched", ["postgresql"], indirect=True)
def test_no_policy_has_a_sub_select(url: URL) -> None:
    policies = sql(url, "SELECT polname, pg_get_expr(polqual, polrelid) FROM pg_policy")
    assert len(policies) >= len(Owned.__subclasses__())
    assert [name for name, shown in policies if "SELECT" in shown] == []
