"""Tasks in partitions by owner, as docs/scaling.md makes them: nothing is lost, and a statement touches only one.

tests/live/test_citus.py has the forms that Citus requires of statements, and tests/citus the cluster.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL

from tests.support import REQUESTS, Caller, Make, partition, plans_of_statements, sql
from tests.test_migrations import DDL

pytestmark = pytest.mark.sql

on_partitions = pytest.mark.parametrize("watched", ["partitioned"], indirect=True)


def status_of(method: str, path: str) -> int:
    """The status of one of REQUESTS that succeeds."""
    return {"POST": 201, "DELETE": 204}.get(method, 200) if "?status" not in path else 200


@pytest.fixture
def plans(app: Flask) -> Iterator[list[Any]]:
    """The plan of each statement that the app executes."""
    with plans_of_statements("ANALYZE") as plans:
        yield plans


def touched(plans: list[Any]) -> set[str]:
    """The partitions that plans name: as what they scan, or as whose foreign key was checked after an insert."""
    return set(re.findall(r'"(tasks_p\d)"', json.dumps(plans)))


def partition_of(url: URL, user_id: str) -> str:
    """Where the user's tasks are."""
    ((name,),) = sql(
        url, "SELECT DISTINCT tableoid::regclass::text FROM tasks WHERE user_id = :user_id", user_id=user_id
    )
    return str(name)


KEY = {"Idempotency-Key": "key"}
#: A request for each statement.
CALLS = [
    *REQUESTS,
    ("POST", "", {"json": {"title": "x"}, "headers": KEY}),
    ("POST", "", {"json": {"title": "x"}, "headers": {"Idempotency-Key": "limited"}, "limits": {"tasks": 1000}}),
]


@on_partitions
@pytest.mark.parametrize(("method", "path", "options"), CALLS)
def test_a_statement_touches_the_partition_of_its_owner_alone(
    plans: list[Any], alice: Caller, bob: Caller, url: URL, method: str, path: str, options: dict[str, Any]
) -> None:
    for caller in (alice, bob):
        task = caller.create()
        owners = partition_of(url, caller.user_id)
        plans.clear()
        status = status_of(method, path)
        assert caller.send(task, method, path, options).status_code == status
        assert touched(plans) == {owners}
        caller.create()
    assert partition_of(url, "alice") != partition_of(url, "bob")


@on_partitions
def test_the_next_page_touches_one_partition(plans: list[Any], alice: Caller, url: URL) -> None:
    alice.create()
    alice.create()
    link = alice("GET", query="?limit=1").headers["Link"]
    plans.clear()
    assert len(alice.open("GET", link.removeprefix("<").removesuffix('>; rel="next"')).get_json()) == 1
    assert touched(plans) == {partition_of(url, "alice")}


@on_partitions
def test_a_first_task_touches_one_partition(plans: list[Any], alice: Caller, url: URL) -> None:
    alice.create()
    assert len(plans) == 1
    assert touched(plans) == {partition_of(url, "alice")}


def test_a_table_that_holds_tasks_keeps_all_of_it_and_counts_on(postgresql: URL, make: Make) -> None:
    app = make(postgresql)
    alice, bob = Caller(app, "alice"), Caller(app, "bob")
    for caller in (alice, bob):
        caller.create(description="Two litres")
    alice("PATCH", f"/{alice.create()['id']}/complete")
    bob("DELETE", f"/{bob.create()['id']}")
    lists = [caller("GET").get_json() for caller in (alice, bob)]
    before = schema(postgresql)
    partition(postgresql)
    assert [caller("GET").get_json() for caller in (alice, bob)] == lists
    assert alice.create()["id"] == 5
    assert schema(postgresql) == {re.sub(r"^(pk_tasks .*)\(id\)", r"\1(user_id, id)", rule) for rule in before}


def schema(url: URL) -> set[str]:
    """The columns, constraints and indexes of both tables."""
    return {" ".join(map(str, row)).replace(" ON ONLY ", " ON ") for row in sql(url, DDL["postgresql"])}
