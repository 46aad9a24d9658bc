"""The rules of the house that can be read off the code."""

import ast
from pathlib import Path

import pytest

from tests.support import ROOT

MODULES = sorted((ROOT / "todo").rglob("*.py"))

#: What each room may import of the package; a room that is not named may import none of it.
ALLOWED = {
    "todo/__init__.py": {
        "todo",
        "todo.extensions",
        "todo.health",
        "todo.idempotency.commands",
        "todo.identity",
        "todo.tasks.commands",
        "todo.tasks.views",
        "todo.users.commands",
    },
    "todo/commands.py": {"todo.database", "todo.errors", "todo.extensions", "todo.faults", "todo.readiness"},
    "todo/conditional.py": {"todo.versions"},
    "todo/conflicts.py": {"todo.errors", "todo.extensions", "todo.faults"},
    "todo/cursors.py": {"todo.errors", "todo.instants"},
    "todo/database.py": {"todo.instants"},
    "todo/extensions.py": {"todo.http"},
    "todo/health.py": {"todo.commands", "todo.http", "todo.readiness", "todo.schemas"},
    "todo/http.py": {"todo.conditional", "todo.errors", "todo.faults", "todo.openapi", "todo.schemas"},
    "todo/idempotency/commands.py": {
        "todo.commands",
        "todo.extensions",
        "todo.idempotency.models",
        "todo.idempotency.queries",
    },
    "todo/idempotency/models.py": {"todo.database", "todo.extensions", "todo.ownership"},
    "todo/idempotency/once.py": {
        "todo.conflicts",
        "todo.database",
        "todo.errors",
        "todo.extensions",
        "todo.faults",
        "todo.idempotency",
        "todo.idempotency.models",
        "todo.ownership",
        "todo.statements",
    },
    "todo/idempotency/queries.py": {
        "todo.database",
        "todo.idempotency.models",
        "todo.ownership",
        "todo.statements",
    },
    "todo/identity/__init__.py": {"todo.identity.hook", "todo.identity.identity"},
    "todo/identity/commands.py": {
        "todo.errors",
        "todo.identity.explanation",
        "todo.identity.identity",
        "todo.identity.jwt",
        "todo.identity.keys",
    },
    "todo/identity/development.py": {"todo.identity.identity"},
    "todo/identity/explanation.py": {"todo.errors", "todo.identity.jwt"},
    "todo/identity/hook.py": {
        "todo.errors",
        "todo.identity.development",
        "todo.identity.identity",
        "todo.identity.jwt",
    },
    "todo/identity/jwks.py": {"todo.errors", "todo.identity.keys"},
    "todo/identity/jwt.py": {
        "todo.errors",
        "todo.identity.identity",
        "todo.identity.jwks",
        "todo.identity.keys",
    },
    "todo/metrics.py": {"todo.database", "todo.errors", "todo.figures", "todo.requests"},
    "todo/ownership.py": {
        "todo.conflicts",
        "todo.errors",
        "todo.extensions",
        "todo.faults",
        "todo.statements",
        "todo.users.models",
    },
    "todo/places.py": {"todo.addresses", "todo.database", "todo.errors", "todo.identity"},
    "todo/rate_limits.py": {"todo.addresses", "todo.errors", "todo.http", "todo.identity"},
    "todo/readiness.py": {"todo.errors", "todo.extensions", "todo.faults"},
    "todo/requests.py": {"todo.identity"},
    "todo/search.py": {"todo.database", "todo.errors", "todo.faults", "todo.places"},
    "todo/statements.py": {"todo.conflicts", "todo.extensions", "todo.faults"},
    "todo/tasks/commands.py": {
        "todo.commands",
        "todo.extensions",
        "todo.identity.commands",
        "todo.instants",
        "todo.ownership",
        "todo.tasks.models",
    },
    "todo/tasks/models.py": {"todo.database", "todo.extensions", "todo.ownership", "todo.versions"},
    "todo/tasks/queries.py": {
        "todo.database",
        "todo.idempotency.once",
        "todo.ownership",
        "todo.search",
        "todo.statements",
        "todo.tasks.models",
        "todo.versions",
    },
    "todo/tasks/schemas.py": {"todo.schemas"},
    "todo/tasks/service.py": {
        "todo.cursors",
        "todo.errors",
        "todo.tasks",
        "todo.tasks.queries",
        "todo.tasks.schemas",
        "todo.versions",
    },
    "todo/tasks/views.py": {
        "todo.conditional",
        "todo.errors",
        "todo.http",
        "todo.idempotency.schemas",
        "todo.identity",
        "todo.schemas",
        "todo.tasks",
        "todo.tasks.queries",
        "todo.tasks.schemas",
        "todo.versions",
    },
    "todo/users/commands.py": {"todo.commands", "todo.identity.commands", "todo.ownership", "todo.users.models"},
    "todo/users/models.py": {"todo.extensions"},
    "todo/versions.py": {"todo.database"},
}


def imports(tree: ast.Module) -> set[str]:
    """The modules that are imported, anywhere in the code."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
class TestModule:
    """Each module of the package."""

    def test_it_imports_only_what_its_room_may(self, path: Path) -> None:
        ours = {name for name in imports(ast.parse(path.read_text())) if name.split(".")[0] == "todo"}
        assert ours <= ALLOWED.get(str(path.relative_to(ROOT)), set())

    def test_it_says_what_it_is_for(self, path: Path) -> None:
        assert ast.get_docstring(ast.parse(path.read_text()))

    def test_nothing_is_imported_inside_a_function(self, path: Path) -> None:
        tree = ast.parse(path.read_text())
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef | ast.Lambda):
                assert not [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]


def test_the_list_of_rooms_is_up_to_date() -> None:
    assert set(ALLOWED) <= {str(path.relative_to(ROOT)) for path in MODULES}


def test_the_environment_is_read_in_one_place() -> None:
    for path in MODULES:
        if path.name != "__init__.py" or path.parent.name != "todo":
            assert not {"os", "os.path"} & imports(ast.parse(path.read_text())), path


def test_views_decide_nothing() -> None:
    tree = ast.parse((ROOT / "todo/tasks/views.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.If | ast.IfExp | ast.Try | ast.Raise)]


def test_schemas_import_marshmallow_alone() -> None:
    for path in (ROOT / "todo").rglob("schemas.py"):
        names = imports(ast.parse(path.read_text())) - {"todo.schemas"}
        assert names <= {"re", "typing", "collections.abc", "marshmallow"}, path


def test_errors_import_nothing_but_how_to_list_the_reasons() -> None:
    assert imports(ast.parse((ROOT / "todo/errors.py").read_text())) == {"enum"}
