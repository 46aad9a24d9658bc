"""Nobody reaches the rows of another user: every route, as every kind of caller, and the rules of the code."""

import ast
import json
import re
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL
from werkzeug.routing import Rule

from tests.support import ROOT, Caller, Make, acting_for, sql
from todo.db.failures import DATABASE_ERRORS
from todo.db.ownership import Owned
from todo.db.statements import Statement
from todo.db.table import OwnedTable
from todo.errors import OwnershipViolated
from todo.expected import Expected
from todo.pages import PageWanted
from todo.tasks import queries
from todo.web.swagger import OURS, SWAGGER_UI

pytestmark = pytest.mark.sql

DOCUMENT = json.loads((ROOT / "docs/openapi.json").read_text())
PUBLIC = {("GET", "/health/live"), ("GET", "/health/ready"), ("GET", "/openapi.json")}
#: The documentation in the browser is public too.
DOCS = {("GET", path) for path in ("/", "/docs", *(f"/docs/{name}" for name in OURS + SWAGGER_UI))}
#: Only with METRICS_TOKEN; asks for that token itself (tests/test_metrics.py).
GUARDED = {("GET", "/metrics")}
#: Models whose rows no route names.
WITHOUT_ROUTES = {"idempotency_keys", "deletions"}

#: Each documented call of a user, by method and path.
CALLS = {
    (method.upper(), path): operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
    if "{user_id}" in path
}
#: The body that it has as its example.
BODIES = {
    call: operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
    for call, operation in CALLS.items()
}
#: The query string of its required parameters.
QUERIES_OF = {
    call: "&".join(
        f"{parameter['name']}={parameter['schema'].get('enum', ['incomplete'])[0]}"
        for parameter in operation["parameters"]
        if parameter["in"] == "query" and parameter["required"]
    )
    for call, operation in CALLS.items()
}


def routes(app: Flask) -> set[tuple[str, str]]:
    """Every method of every rule, as the document writes them; HEAD and OPTIONS are Werkzeug's."""
    rules: list[Rule] = list(app.url_map.iter_rules())
    own = {"HEAD", "OPTIONS"}
    return {
        (method, re.sub("<(.+?)>", r"{\1}", rule.rule.replace("row_id:", "")))
        for rule in rules
        for method in (rule.methods or set()) - own
    }


def test_every_route_is_tried_as_a_stranger_or_is_public(app: Flask) -> None:
    """What the document lacks, nobody tries."""
    assert routes(app) == set(BODIES) | PUBLIC | DOCS


def test_the_metrics_are_the_only_route_with_a_rule_of_its_own(make: Make, url: URL) -> None:
    assert routes(make(url, metrics_token="x" * 16)) == set(BODIES) | PUBLIC | DOCS | GUARDED


def test_every_owned_model_has_routes_that_are_tried() -> None:
    tables = {model.__tablename__ for model in Owned.__subclasses__()}
    assert tables == {path.split("/")[3] for _, path in BODIES} | WITHOUT_ROUTES


@pytest.fixture(params=BODIES, ids=" ".join)
def route(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Each call of a user."""
    method, path = request.param
    return method, path


def create(caller: Caller, route: tuple[str, str]) -> str:
    """Make a row of the caller's with the documented example; the path with the caller and that row filled in."""
    method, documented = route
    collection, _, rest = documented.partition("/{user_id}/")[2].partition("/")
    root = f"/api/{caller.user_id}/{collection}"
    made = caller.open("POST", root, json=BODIES["POST", f"/api/{{user_id}}/{collection}"])
    assert made.status_code == 201, made.get_json()
    path = f"{root}/{re.sub('{.+?}', str(made.get_json()['id']), rest)}".rstrip("/")
    return f"{path}?{QUERIES_OF[method, documented]}".rstrip("?")


def rows_of(caller: Caller, path: str) -> object:
    """What the caller lists there."""
    return caller.open("GET", "/".join(path.partition("?")[0].split("/")[:4])).get_json()


class TestRoute:
    """Each call of a user, as each kind of caller."""

    def test_without_identity(self, app: Flask, alice: Caller, statements: list[str], route: tuple[str, str]) -> None:
        path = create(alice, route)
        before = rows_of(alice, path)
        statements.clear()
        response = app.test_client().open(path, method=route[0], json=BODIES[route])
        assert (response.status_code, response.get_json()) == (401, {"error": "Unauthorized"})
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert statements == []
        assert rows_of(alice, path) == before

    def test_as_a_stranger(self, alice: Caller, bob: Caller, statements: list[str], route: tuple[str, str]) -> None:
        """Under the owner's path it is 403; under their own, the owner's row is not there."""
        create(bob, route)
        path = create(alice, route)
        before = rows_of(alice, path)
        statements.clear()
        response = bob.open(route[0], path, json=BODIES[route])
        assert (response.status_code, response.get_json()) == (403, {"error": "Forbidden"})
        assert statements == []
        if "_id}" in route[1].replace("{user_id}", ""):
            assert bob.open(route[0], path.replace("alice", "bob"), json=BODIES[route]).status_code == 404
        assert rows_of(alice, path) == before

    def test_as_the_owner_it_costs_one_statement(
        self, alice: Caller, statements: list[str], route: tuple[str, str]
    ) -> None:
        path = create(alice, route)
        statements.clear()
        response = alice.open(route[0], path, json=BODIES[route])
        assert response.status_code in (200, 201, 204)
        assert statements[0] == "checkout"
        assert statements.count("checkout") == 1
        if len(statements) > 2:
            # In turn (todo/db/statements.py). psycopg2 begins and ends transactions unseen.
            assert statements[1] == "BEGIN IMMEDIATE" or statements[1].split()[0] in ("UPDATE", "INSERT")
            assert statements[-1] in ("COMMIT", "ROLLBACK") or statements[1] != "BEGIN IMMEDIATE"


def test_the_checks_come_in_order(alice: Caller, app: Flask) -> None:
    broken = {"data": b"{broken", "content_type": "text/plain"}
    nobody = app.test_client()
    assert nobody.open("/api/alice/task/x", method="PUT", **broken).status_code == 404
    assert nobody.open("/api/alice/tasks/x", method="POST", **broken).status_code == 405
    assert nobody.open("/api/alice/tasks/x", method="PUT", **broken).status_code == 401
    assert alice.open("PUT", "/api/bob/tasks/x", **broken).status_code == 403
    assert alice("PUT", "/x", **broken).get_json() == {"error": "Invalid task ID"}
    assert alice("PUT", "/1", **broken).status_code == 415
    assert alice("PUT", "/1", data=b"{broken", content_type="application/json").status_code == 400
    assert alice("PUT", "/1", json={"title": "x"}).status_code == 404


def test_an_insert_that_breaks_another_rule_is_not_repeated(app: Flask, alice: Caller, url: URL) -> None:
    alice.create()
    with acting_for(app, "alice"), pytest.raises(DATABASE_ERRORS, match="title"):
        queries.TASKS.insert("alice", None, {"title": ""})
    with acting_for(app, "new"), pytest.raises(DATABASE_ERRORS, match="title"):
        queries.TASKS.insert("new", None, {"title": ""})
    assert sql(url, "SELECT id FROM users") == [("alice",)]


QUERIES = sorted(
    [*(ROOT / "todo").glob("*/queries.py"), *(ROOT / "todo/db" / name for name in ("table.py", "pages.py", "bulk.py"))]
)
FUNCTIONS = sorted((ROOT / "todo").glob("*/queries.py")) + sorted((ROOT / "todo").glob("*/service.py"))


def public_functions(path: Path) -> list[ast.FunctionDef]:
    """The module's functions that others call."""
    functions = [node for node in parsed(path).body if isinstance(node, ast.FunctionDef)]
    return [function for function in functions if not function.name.startswith("_")]


@pytest.mark.parametrize("path", FUNCTIONS, ids=lambda path: f"{path.parent.name} {path.stem}")
def test_the_owner_goes_first_in_every_query_and_service_function(path: Path) -> None:
    for function in public_functions(path):
        if ast.unparse(function.returns or function) == "Delete":
            # It writes a statement, and executes none.
            continue
        assert function.args.args[0].arg == "user_id", function.name
        assert not function.args.posonlyargs
        assert len(function.args.defaults) < len(function.args.args), function.name


RESOURCES = [import_module(f"todo.{path.parent.name}.service") for path in sorted((ROOT / "todo").glob("*/service.py"))]


def made_by(caller: Caller, resource: ModuleType) -> dict[str, Any]:
    """A new row of the resource, made as its document says."""
    name = resource.__name__.split(".")[1]
    response = caller.open("POST", f"/api/{caller.user_id}/{name}", json=BODIES["POST", f"/api/{{user_id}}/{name}"])
    assert response.status_code == 201, response.get_data(as_text=True)
    return dict(response.get_json())


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda module: module.__name__)
def test_the_queries_alone_keep_users_apart(app: Flask, alice: Caller, bob: Caller, resource: ModuleType) -> None:
    """The database lets them see and change the rows of alice."""
    row = made_by(alice, resource)
    made_by(bob, resource)
    values = {"title": "stolen"} if "title" in row else {}
    tables = [value for value in vars(resource.queries).values() if isinstance(value, OwnedTable)]
    assert tables
    wanted = PageWanted(10, 1024 * 1024)
    with acting_for(app, "alice"):
        for table in tables:
            assert table.find("bob", row["id"]) is None
            for expected in (None, Expected(wanted=[row["updated_at"]])):
                assert table.update("bob", row["id"], values, expected) is None
                assert table.delete("bob", row["id"], expected) is None
                assert table.updating()("bob", row["id"], expected) is None
            for page in (table.list("bob", {}, wanted), table.changes("bob", wanted)):
                assert {each.user_id for each in page.rows} <= {"bob"}
            assert table.bulk.update("bob", {}, values).first_owner in (None, "bob")
            assert table.bulk.delete("bob", {}).first_owner in (None, "bob")
            assert table.find("alice", row["id"]) is not None


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda module: module.__name__)
def test_the_service_alone_keeps_users_apart(
    app: Flask, alice: Caller, monkeypatch: pytest.MonkeyPatch, resource: ModuleType
) -> None:
    """The statements return the rows of another user; no function of the service hands them on."""
    row = made_by(alice, resource)
    arguments: dict[str, Any] = {
        "filters": {},
        "wanted": PageWanted(10, 1024 * 1024),
        "completion": {"status": "complete"},
        "expected": None,
    }
    arguments["changes"] = {"title": "x"} if "title" in row else {}
    execute = Statement.all
    monkeypatch.setattr(Statement, "all", lambda self, **named: execute(self, **named | {"user_id": "alice"}))
    functions = [getattr(resource, function.name) for function in public_functions(Path(str(resource.__file__)))]
    for function in functions:
        names = [name for name in signature(function).parameters if name != "user_id"]
        if "email" in names:
            # What inserts returns what it has just inserted.
            continue
        row = made_by(alice, resource)
        with acting_for(app, "alice"), pytest.raises(OwnershipViolated) as raised:
            function("bob", **{name: row["id"] if name.endswith("_id") else arguments[name] for name in names})
        assert "for 'bob'" in str(raised.value.detail)


@pytest.mark.parametrize("path", QUERIES, ids=lambda path: path.parent.name)
def test_every_select_update_and_delete_is_written_inside_owned_by(path: Path) -> None:
    calls = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
    owned = {id(call.args[1]) for call in calls if name_of(call) == "owned_by"}
    for call in calls:
        if name_of(call) == "select" and re.search(r"\.c\b", ast.unparse(call)):
            # It reads a sub-query or a CTE that is written inside owned_by.
            continue
        assert name_of(call) not in ("select", "update", "delete") or id(call) in owned, f"{path}:{call.lineno}"
        is_method = isinstance(call.func, ast.Attribute) and name_of(call) in ("exists", "insert")
        assert is_method or name_of(call) not in ("insert", "text", "exists", "get", "query", "merge", "add"), (
            f"{path}:{call.lineno}"
        )


def test_every_feature_with_an_owned_model_has_its_queries_read() -> None:
    features = {model.__module__.split(".")[1] for model in Owned.__subclasses__()}
    assert features <= {path.parent.name for path in QUERIES}


def parsed(path: Path) -> ast.Module:
    """The module's syntax tree."""
    return ast.parse(path.read_text())


def name_of(call: ast.Call) -> str:
    """The name of the function or method that is called."""
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
