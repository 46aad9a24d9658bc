"""What holds for every resource, found in the OpenAPI document and the models: nothing here names a resource."""

import json
import re
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from sqlalchemy import URL, inspect

from tests.support import Caller, sql
from tests.test_ownership import DOCUMENT
from todo.db.ownership import Owned

MODELS = Owned.__subclasses__()
COLLECTIONS = [path for path, calls in DOCUMENT["paths"].items() if "post" in calls]


def schema_of(described: dict[str, Any]) -> dict[str, Any]:
    """The schema itself, if that is a reference."""
    name = described.get("$ref", "").rpartition("/")[2]
    return DOCUMENT["components"]["schemas"][name] if name else described


#: By type or format: two values.
VALUES = {"boolean": [True, False], "integer": [1, 2], "string": ["x", "y"], "date-time": ["2025-01-09T12:34:56Z"]}


def value_of(described: dict[str, Any], other_than: Any = None) -> Any:
    """A value that the schema allows."""
    schema = schema_of(described)
    kind = schema.get("format") or next(kind for kind in VALUES if kind in schema.get("type", "string"))
    return next(value for value in schema.get("enum") or VALUES[kind] if value != other_than)


def create(caller: Caller, path: str, key: str = "", **changes: Any) -> int:
    """Send the example of a create, changed in those members; the status."""
    body = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"] | changes
    headers = {"Idempotency-Key": key} if key else {}
    return caller.open("POST", path.replace("{user_id}", caller.user_id), headers, json=body).status_code


@pytest.mark.parametrize("path", COLLECTIONS)
def test_a_cursor_is_refused_under_another_filter(alice: Caller, path: str) -> None:
    for _ in range(2):
        assert create(alice, path) == 201
    first = alice.open("GET", f"{path.replace('{user_id}', 'alice')}?limit=1")
    (link,) = re.findall("<(.*)>", first.headers["Link"])
    assert alice.open("GET", link).status_code == 200
    for parameter in DOCUMENT["paths"][path]["get"]["parameters"]:
        if parameter["in"] == "query" and parameter["name"] not in ("limit", "cursor"):
            text = value if isinstance(value := value_of(parameter["schema"]), str) else json.dumps(value)
            response = alice.open("GET", f"{link}&{parameter['name']}={quote(text)}")
            assert (response.status_code, response.get_json()) == (400, {"error": "Invalid cursor"}), parameter["name"]


@pytest.mark.parametrize("path", COLLECTIONS)
def test_a_key_is_refused_for_another_value_of_any_field(alice: Caller, path: str) -> None:
    body = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    for name, field in schema_of(body["schema"])["properties"].items():
        if not field.get("readOnly"):
            assert create(alice, path, key=name) == 201
            assert create(alice, path, key=name, **{name: value_of(field, body["example"].get(name))}) == 422, name


@pytest.mark.parametrize("path", COLLECTIONS)
def test_the_change_feed_has_each_row_and_each_deletion(alice: Caller, path: str) -> None:
    rows = path.replace("{user_id}", "alice")
    assert create(alice, path) == 201
    first = alice.open("GET", f"{rows}/changes").get_json()
    (row,) = alice.open("GET", rows).get_json()
    ((number, shown),) = (change.values() for change in first["changes"])
    assert (number, shown) == (row["id"], row)
    assert alice.open("DELETE", f"{rows}/{number}").status_code == 204
    second = alice.open("GET", f"{rows}/changes?since={first['next']}").get_json()
    assert [list(change.values()) for change in second["changes"]] == [[number, None]]


def test_an_export_has_each_column_of_each_row(app: Flask, alice: Caller) -> None:
    for number, path in enumerate(COLLECTIONS):
        assert create(alice, path, key=str(number)) == 201
        (row,) = alice.open("GET", path.replace("{user_id}", "alice")).get_json()
        assert alice.open("DELETE", f"{path.replace('{user_id}', 'alice')}/{row['id']}").status_code == 204
        assert create(alice, path) == 201
    result = app.test_cli_runner().invoke(args=["users", "export", "alice"])
    exported = {row.pop("kind"): row for row in map(json.loads, result.stdout_bytes.splitlines())}
    for model in MODELS:
        kind = re.sub("(?<=[a-z])(?=[A-Z])", "_", model.__name__).lower()
        assert exported[kind].keys() == set(inspect(model).columns.keys())


@pytest.mark.parametrize("watched", ["postgresql"], indirect=True)
def test_every_table_of_owned_rows_has_a_policy_that_its_owner_does_not_bypass(app: Flask, url: URL) -> None:
    statement = (
        "SELECT relrowsecurity, relforcerowsecurity, EXISTS (SELECT FROM pg_policy WHERE polrelid = pg_class.oid AND"
        " strpos(pg_get_expr(polqual, polrelid), 'app.user_id') > 0) FROM pg_class WHERE relname = :name"
    )
    for model in MODELS:
        assert sql(url, statement, name=model.__tablename__) == [(True, True, True)], model.__tablename__
