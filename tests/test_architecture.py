"""The rules of the layout that can be read off the code."""

import ast
from importlib import import_module
from itertools import combinations
from pathlib import Path

import pytest
from msgspec import Struct

from tests.support import ROOT
from todo.db.table import OwnedTable

MODULES = sorted((ROOT / "todo").rglob("*.py"))

#: What a package may import of the others. One that is not here is a feature: it may import FOUNDATION.
ALLOWED: dict[str, set[str]] = {
    "refusals": set(),
    "errors": {"refusals"},
    "instants": set(),
    "expected": set(),
    "pages": set(),
    "identity": {"errors", "refusals"},
    # The users are what owned rows point at.
    "db": {"errors", "refusals", "instants", "expected", "pages", "users"},
    "web": {"errors", "refusals", "instants", "expected", "pages", "identity"},
    "users": {"errors", "refusals", "identity", "db"},
    "idempotency": {"errors", "refusals", "db"},
}
FOUNDATION = set(ALLOWED)
#: Within a feature, each may import those before it.
LAYERS = ["models", "schemas", "queries", "service", "views"]


def package_of(path: Path) -> str:
    """The package, or the module where it is in none."""
    return path.relative_to(ROOT / "todo").parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The modules and names that are imported, anywhere in the code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FEATURES = {path.parent.name for path in MODULES if path.name == "views.py"}


def test_every_module_imports_in_one_direction() -> None:
    for path in MODULES:
        ours = {name.split(".")[1] for name in imports(path) if name.startswith("todo.")}
        package = package_of(path)
        assert package == "__init__" or ours <= ALLOWED.get(package, FOUNDATION) | {package}, path


def test_every_module_says_what_it_is_for() -> None:
    assert [path for path in MODULES if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_every_module_has_fewer_than_250_lines() -> None:
    assert [path for path in MODULES if path.read_text().count("\n") >= 250] == []


def test_no_module_imports_inside_a_function() -> None:
    for path in MODULES:
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.Lambda):
                assert not [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)], path


def test_only_the_factory_reads_the_environment() -> None:
    assert [path for path in MODULES if {"os", "os.environ"} & imports(path)] == [ROOT / "todo/__init__.py"]


@pytest.mark.parametrize("feature", sorted(FEATURES))
class TestFeature:
    """Each resource."""

    def test_its_layers_import_in_one_direction(self, feature: str) -> None:
        for layer, later in combinations(LAYERS, 2):
            found = imports(ROOT / f"todo/{feature}/{layer}.py")
            assert not [name for name in found if name.startswith(f"todo.{feature}.{later}")], (layer, later)

    def test_its_views_call_the_service_alone_and_the_service_knows_no_model(self, feature: str) -> None:
        views, service = (ROOT / f"todo/{feature}/{layer}.py" for layer in ("views", "service"))
        models, queries = (f"todo.{feature}.{layer}" for layer in ("models", "queries"))
        database = ("todo.db", "todo.users", "todo.idempotency", "sqlalchemy", models, queries)
        for name in [name for name in imports(views) if name.startswith(database)]:
            module, _, imported = name.rpartition(".")
            kind = getattr(import_module(module), imported)
            assert isinstance(kind, type), f"{name} is no type of rows or results"
            assert issubclass(kind, Struct), f"{name} is no type of rows or results"
        functions = vars(import_module(f"todo.{feature}.service"))
        for node in ast.walk(ast.parse(views.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "service":
                assert functions[node.attr].__module__ == f"todo.{feature}.service", node.attr
        assert not [name for name in imports(service) if name.startswith((models, "sqlalchemy", "todo.web", "flask"))]

    def test_its_views_decide_nothing(self, feature: str) -> None:
        tree = ast.parse((ROOT / f"todo/{feature}/views.py").read_text())
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.If | ast.IfExp | ast.Try | ast.Raise)]

    def test_each_filter_of_its_list_has_a_criterion(self, feature: str) -> None:
        schemas, queries = (import_module(f"todo.{feature}.{name}") for name in ("schemas", "queries"))
        (query,) = (schema for name, schema in vars(schemas).items() if name.endswith("ListQuerySchema"))
        (table,) = (value for value in vars(queries).values() if isinstance(value, OwnedTable))
        assert query().fields.keys() - {"limit", "cursor"} == table.filters.keys()


def test_schemas_know_no_http_and_no_sql() -> None:
    for path in (ROOT / "todo").rglob("schemas.py"):
        names = {name for name in imports(path) if not name.startswith("todo.web.schemas.")}
        assert not {name.split(".")[0] for name in names} & {"flask", "werkzeug", "sqlalchemy", "todo"}, path
