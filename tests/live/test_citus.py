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


def faults(tree: Node, immutable: set[str]) -> Iterator[str]:
    """What Citus refuses of a statement (docs/scaling.md)."""
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
        if query[":commandType"] == ["3"] and query[":canSetTag"] == ["false"] and query[":returningList"] == ["<>"]:
            yield "an INSERT in WITH that returns nothing"
    for link in (node for node in tree.nodes() if node["tag"] == "SUBLINK" and node[":subLinkType"] == ["2"]):
        if link[":testexpr"][0]["tag"] != "OPEXPR":
            yield "several columns IN a sub-select"


@pytest.fixture
def immutable(url: URL) -> set[str]:
    """The functions that are IMMUTABLE."""
    return {str(oid) for (oid,) in sql(url, "SELECT oid FROM pg_proc WHERE provolatile = 'i'")}


@pytest.mark.parametrize("watched", ["postgresql"], indirect=True)
@pytest.mark.parametrize(("method", "path", "options"), CALLS)
def test_citus_accepts_the_form_of_every_statement(
    app: Flask, url: URL, immutable: set[str], method: str, path: str, options: dict[str, Any]
) -> None:
    alice = Caller(app, "alice")
    task = alice.create()
    seen: list[tuple[str, Any]] = []
    execute = LimitedCursor.execute

    def record(cursor: LimitedCursor, query: str, parameters: Any = None) -> None:
        seen.append((query, parameters))
        execute(cursor, query, parameters)

    with mock.patch.object(LimitedCursor, "execute", record):
        assert alice.send(task, method, path, options).status_code == status_of(method, path)
    assert len(seen) == 1
    assert [fault for each in seen for fault in faults(tree_of(url, *each), immutable)] == []


@pytest.mark.parametrize("watched", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("UPDATE users SET changed_at = changed_at + interval '1 s'", "a change with function 1189"),
        ("UPDATE users SET email = id RETURNING to_char(changed_at, 'YYYY')", "a change with function 1770"),
        ("INSERT INTO users (id) VALUES ('x') ON CONFLICT (id) DO UPDATE SET changed_at = now()", "a conflict with"),
        ("WITH a AS (INSERT INTO users (id) VALUES ('x')) SELECT 1", "an INSERT in WITH that returns nothing"),
        ("DELETE FROM tasks WHERE (user_id, id) IN (SELECT user_id, id FROM tasks)", "several columns IN"),
        ("UPDATE users SET changed_at = now()", None),
    ],
)
def test_what_citus_refuses_is_found(url: URL, immutable: set[str], statement: str, fault: str | None) -> None:
    found = [*faults(tree_of(url, statement, None), immutable)]
    assert found == [] if fault is None else found[0].startswith(fault)


@pytest.mark.parametrize("watched", ["postgresql"], indirect=True)
def test_no_policy_has_a_sub_select(url: URL) -> None:
    policies = sql(url, "SELECT polname, pg_get_expr(polqual, polrelid) FROM pg_policy")
    assert len(policies) >= len(Owned.__subclasses__())
    assert [name for name, shown in policies if "SELECT" in shown] == []
