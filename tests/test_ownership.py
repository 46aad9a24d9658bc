"""Nobody reaches another's tasks: every route, every kind of caller, and both layers by themselves."""

import ast
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import URL, create_engine
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from tests.support import ROOT, Call, Caller, Make, acting_for, as_superuser, empty_database, migrate, sql
from todo.db.failures import DATABASE_ERRORS
from todo.db.ownership import Owned
from todo.db.statements import Statement
from todo.db.versions import Expected
from todo.errors import OwnershipViolated
from todo.tasks import queries, service
from todo.web.swagger import OURS, SWAGGER_UI

pytestmark = pytest.mark.sql

#: Every call that belongs to somebody: its body, and the status for its owner.
MATRIX = {
    ("GET", "/api/<user_id>/tasks"): (None, 200),
    ("POST", "/api/<user_id>/tasks"): ({"title": "x"}, 201),
    ("GET", "/api/<user_id>/tasks/<task_id>"): (None, 200),
    ("PUT", "/api/<user_id>/tasks/<task_id>"): ({"title": "x"}, 200),
    ("DELETE", "/api/<user_id>/tasks/<task_id>"): (None, 204),
    ("PATCH", "/api/<user_id>/tasks/<task_id>/complete"): (None, 200),
}
PUBLIC = {("GET", "/health/live"), ("GET", "/health/ready"), ("GET", "/openapi.json")}
#: The documentation in the browser, public too.
DOCS = {("GET", path) for path in ("/", "/docs", *(f"/docs/{name}" for name in OURS + SWAGGER_UI))}
#: With METRICS_TOKEN alone; asks for that token itself (tests/test_metrics.py).
GUARDED = {("GET", "/metrics")}


def routes(app: Flask) -> set[tuple[str, str]]:
    """Every method of every rule; HEAD and OPTIONS are Werkzeug's."""
    rules: list[Rule] = list(app.url_map.iter_rules())
    return {(method, rule.rule) for rule in rules for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}}


def test_every_route_is_in_the_matrix_or_named_public(app: Flask) -> None:
    assert routes(app) == set(MATRIX) | PUBLIC | DOCS


def test_the_metrics_are_the_only_route_with_a_rule_of_its_own(make: Make, url: URL) -> None:
    assert routes(make(url, metrics_token="x" * 16)) == set(MATRIX) | PUBLIC | DOCS | GUARDED


@pytest.mark.parametrize(("method", "rule"), MATRIX)
class TestMatrix:
    """Each call of the matrix, as each kind of caller."""

    def send(self, app: Flask, method: str, rule: str, task_id: int, caller: Caller | None) -> TestResponse:
        path = rule.replace("<user_id>", "alice").replace("<task_id>", str(task_id))
        body, _ = MATRIX[method, rule]
        if caller is None:
            return app.test_client().open(path, method=method, json=body)
        return caller.open(method, path, json=body)

    def test_without_identity(self, app: Flask, alice: Caller, statements: list[str], method: str, rule: str) -> None:
        task = alice.create()
        statements.clear()
        response = self.send(app, method, rule, task["id"], None)
        assert (response.status_code, response.get_json()) == (401, {"error": "Unauthorized"})
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert statements == []
        assert alice("GET").get_json() == [task]

    def test_as_a_stranger(
        self, app: Flask, alice: Caller, bob: Caller, statements: list[str], method: str, rule: str
    ) -> None:
        bob.create()
        task = alice.create()
        statements.clear()
        response = self.send(app, method, rule, task["id"], bob)
        assert (response.status_code, response.get_json()) == (403, {"error": "Forbidden"})
        assert statements == []
        assert alice("GET").get_json() == [task]

    def test_as_the_owner(self, app: Flask, alice: Caller, method: str, rule: str) -> None:
        task = alice.create()
        assert self.send(app, method, rule, task["id"], alice).status_code == MATRIX[method, rule][1]

    def test_a_known_user_costs_one_statement(
        self, app: Flask, alice: Caller, statements: list[str], method: str, rule: str
    ) -> None:
        task = alice.create()
        statements.clear()
        self.send(app, method, rule, task["id"], alice)
        assert [statement.split()[0] for statement in statements] in (
            ["checkout", "SELECT"],
            ["checkout", "INSERT"],
            ["checkout", "UPDATE"],
            ["checkout", "DELETE"],
        )


def test_a_path_of_nobody_is_403_like_one_of_somebody(alice: Caller, bob: Caller) -> None:
    bob.create()
    headers = {"X-Request-ID": "the-same"}
    somebody = alice.open("GET", "/api/bob/tasks", headers)
    nobody = alice.open("GET", "/api/nobody/tasks", headers)
    assert (somebody.status_code, somebody.data, list(somebody.headers)) == (403, nobody.data, list(nobody.headers))


@pytest.mark.parametrize(
    "path", ["/api/Alice/tasks", "/api/alic%65%20/tasks", "/api/alice%00/tasks", "/api/%61lice%2Fx/tasks"]
)
def test_the_path_is_compared_exactly(alice: Caller, path: str) -> None:
    assert alice.open("GET", path).status_code in (403, 404)


def test_the_path_is_decoded_once(call: Call) -> None:
    assert call("alice").open("GET", "/api/%61lice/tasks").status_code == 200
    assert call("alice").open("GET", "/api/%2561lice/tasks").status_code == 403
    assert call("%61lice").open("GET", "/api/%2561lice/tasks").status_code == 200


def test_users_are_not_normalised(call: Call) -> None:
    composed, decomposed = "jos\u00e9", "jose\u0301"
    call(composed).create("composed")
    call(decomposed).create("decomposed")
    assert call(composed).titles() == ["composed"]
    assert call(decomposed).titles() == ["decomposed"]
    assert call(composed).open("GET", "/api/jose%CC%81/tasks").status_code == 403


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


def test_the_queries_alone_keep_users_apart(app: Flask, alice: Caller, bob: Caller) -> None:
    """Where the database would let alice's rows be seen and touched."""
    task = alice.create()
    bob.create()
    expected = Expected(wanted=[1])
    with acting_for(app, "alice"):
        assert queries.find_task("bob", task["id"]) is None
        assert queries.update_task("bob", task["id"], {"title": "stolen"}) is None
        assert queries.update_task("bob", task["id"], {"title": "stolen"}, expected) is None
        assert queries.toggle_task("bob", task["id"]) is None
        assert queries.toggle_task("bob", task["id"], expected) is None
        assert queries.delete_task("bob", task["id"]) is None
        assert queries.delete_task("bob", task["id"], expected) is None
        assert "alice" not in {
            row.user_id
            for row in queries.list_tasks("bob", status=None, q=None, before=None, limit=10, size=1024 * 1024)
        }
    assert alice("GET").get_json() == [task]


def test_the_service_alone_keeps_users_apart(app: Flask, alice: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the statements return the rows of another user, they are still not handed on."""
    task = alice.create()
    execute = Statement.all
    monkeypatch.setattr(Statement, "all", lambda self, **named: execute(self, **named | {"user_id": "alice"}))
    with acting_for(app, "alice"):
        for steal in (
            lambda: service.list_tasks("bob"),
            lambda: service.get_task("bob", task["id"]),
            lambda: service.update_task("bob", task["id"], {"title": "x"}),
            lambda: service.complete_task("bob", task["id"]),
            lambda: service.delete_task("bob", task["id"]),
        ):
            with pytest.raises(OwnershipViolated):
                steal()


NO_EMAILS = {
    "sqlite": [
        "CREATE TRIGGER no_emails BEFORE INSERT ON users WHEN NEW.email IS NOT NULL BEGIN SELECT RAISE(IGNORE); END"
    ],
    "postgresql": [
        "CREATE FUNCTION no_emails() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TRIGGER no_emails BEFORE INSERT ON users FOR EACH ROW WHEN (NEW.email IS NOT NULL)"
        " EXECUTE FUNCTION no_emails()",
    ],
}


@pytest.mark.parametrize("backend", NO_EMAILS)
def test_an_email_that_is_taken_at_the_same_moment_is_none(server: URL, make: Make, backend: str) -> None:
    """The trigger does what ON CONFLICT does where somebody else is a moment faster: no user is made."""
    with empty_database(backend, server) as url:
        migrate(make(url))
        for statement in NO_EMAILS[backend]:
            sql(url, statement)
        Caller(make(url), "alice", "alice@example.com").create()
        assert sql(url, "SELECT id, email FROM users") == [("alice", None)]


@pytest.mark.parametrize("watched", ["postgresql", "partitioned"], indirect=True)
@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "x"}])
def test_a_task_of_a_user_who_is_deleted_at_the_same_moment_is_a_new_users_first(
    call: Call, url: URL, headers: dict[str, str]
) -> None:
    alice = call("alice", "alice@example.com")
    alice.create()
    deleting = create_engine(as_superuser(url))
    with deleting.connect() as connection, ThreadPoolExecutor(1) as pool:
        connection.exec_driver_sql("DELETE FROM users WHERE id = 'alice'")
        waiting = pool.submit(alice, "POST", json={"title": "x"}, headers=headers)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.3)
        connection.commit()
        assert waiting.result().status_code == 201
    deleting.dispose()
    assert alice.titles() == ["x"]
    assert sql(url, "SELECT id, email FROM users") == [("alice", "alice@example.com")]


def test_an_insert_that_breaks_another_rule_is_not_repeated(app: Flask, alice: Caller, url: URL) -> None:
    alice.create()
    with acting_for(app, "alice"), pytest.raises(DATABASE_ERRORS, match="title"):
        queries.insert_task("alice", None, {"title": ""})
    with acting_for(app, "new"), pytest.raises(DATABASE_ERRORS, match="title"):
        queries.insert_task("new", None, {"title": ""})
    assert sql(url, "SELECT id FROM users") == [("alice",)]


def test_the_owner_goes_first_in_every_query_and_service_function() -> None:
    for module in (queries, service):
        for function in parsed(Path(module.__file__)).body:
            if isinstance(function, ast.FunctionDef) and not function.name.startswith("_"):
                assert function.args.args[0].arg == "user_id", function.name
                assert not function.args.posonlyargs
                assert len(function.args.defaults) < len(function.args.args), function.name


QUERIES = sorted((ROOT / "todo").glob("*/queries.py"))


@pytest.mark.parametrize("path", QUERIES, ids=lambda path: path.parent.name)
def test_every_select_update_and_delete_is_written_inside_owned_by(path: Path) -> None:
    calls = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
    owned = {id(call.args[1]) for call in calls if name_of(call) == "owned_by"}
    assert owned
    for call in calls:
        if ast.unparse(call).startswith("select(*(measured.c["):
            # It reads a sub-query, which is written inside owned_by itself.
            continue
        assert name_of(call) not in ("select", "update", "delete") or id(call) in owned, f"{path}:{call.lineno}"
        assert name_of(call) not in ("insert", "text", "exists", "get", "query", "merge", "add"), (
            f"{path}:{call.lineno}"
        )


def test_every_feature_with_an_owned_model_has_its_queries_read() -> None:
    features = {model.__module__.split(".")[1] for model in Owned.__subclasses__()}
    assert features == {path.parent.name for path in QUERIES}


def parsed(path: Path) -> ast.Module:
    """The module's syntax tree."""
    return ast.parse(path.read_text())


def name_of(call: ast.Call) -> str:
    """The name that is called, be it a function's or a method's."""
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
