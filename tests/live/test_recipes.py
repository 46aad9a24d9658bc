"""docs/add-a-field.md and docs/add-a-resource.md, carried out in a copy of the project."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.live.pages import Edit, copy_project, edits
from tests.support import ROOT

FIELD, RESOURCE = (edits((ROOT / f"docs/add-a-{name}.md").read_text()) for name in ("field", "resource"))


SCHEMAS = "todo/tasks/schemas.py"
FUNCTION = '''
def is_pinned_field(*, required: bool) -> fields.Boolean:
    """Return the field for whether a task is pinned."""
    invalid = "is_pinned must be true or false"
    return fields.Boolean(
        required=required, error_messages={"invalid": invalid, "null": invalid}, metadata={"examples": [False]}
    )
'''
MIGRATION = '''
"""Add is_pinned to tasks"""

from alembic import op

revision = "9002"
down_revision = "9001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.execute("ALTER TABLE tasks ADD COLUMN is_pinned BOOLEAN DEFAULT '0' NOT NULL")


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("tasks", "is_pinned")
'''
#: Another field in the way of the page, that is neither a text nor ever null.
OTHER_FIELD = [
    Edit("todo/tasks/models.py", 'is_pinned: Mapped[bool] = mapped_column(server_default="0")\n', "    status: Mapped"),
    Edit("migrations/versions/9002_add_is_pinned_to_tasks.py", MIGRATION.lstrip()),
    Edit("todo/tasks/queries.py", "is_pinned: bool\n", "    status: str"),
    Edit("todo/tasks/queries.py", '"is_pinned": Task.is_pinned == bindparam("is_pinned"),\n', '"status": Task.status'),
    Edit(SCHEMAS, FUNCTION.lstrip(), "class TaskSchema", is_before=True),
    Edit(SCHEMAS, "is_pinned = is_pinned_field(required=True)\n", "status = ", within="class TaskSchema"),
    Edit(SCHEMAS, "is_pinned = is_pinned_field(required=False)\n", "description = ", within="class NewTaskSchema"),
    Edit(SCHEMAS, "is_pinned = is_pinned_field(required=False)\n", "status = ", within="class TaskChangesSchema"),
    Edit(SCHEMAS, "is_pinned = is_pinned_field(required=False)\n", "status = ", within="class TaskListQuerySchema"),
]


def lines(found: list[Edit]) -> int:
    """How many lines the edits add."""
    return sum(edit.text.count("\n") for edit in found)


def make(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What make does in the copy, as a user types it."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(copy.parent)}
    command = ["make", *arguments, f"PYTHON={sys.executable}"]
    return subprocess.run(command, cwd=copy, env=environ, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the project."""
    return copy_project(tmp_path / "todo")


def test_a_field_is_a_few_lines_in_a_few_files() -> None:
    assert lines([edit for edit in FIELD if not edit.path.startswith("tests/")]) <= 45
    assert len({edit.path for edit in FIELD if edit.path.startswith("todo/")}) <= 5


def test_a_resource_is_at_most_300_lines() -> None:
    assert lines(RESOURCE) <= 300


def without(found: list[Edit], text: str) -> list[Edit]:
    """The edits, without the lines that have the text; the edit itself is gone if nothing else is in it."""
    kept = [
        replace(edit, text="".join(line for line in edit.text.splitlines(keepends=True) if text not in line))
        for edit in found
    ]
    return [edit for edit in kept if edit.text.strip()]


CRITERION = "tests/test_architecture.py::TestFeature::test_each_filter_of_its_list_has_a_criterion"
POLICY = (
    "tests/test_resources.py::test_every_table_of_owned_rows_has_a_policy_that_its_owner_does_not_bypass[postgresql]"
)
ROUTES = "tests/test_ownership.py::test_every_route_is_tried_as_a_stranger_or_is_public"
#: What can be forgotten: the recipe, the text of the lines that are left out, whether `make openapi` runs, and the test
#: that must fail.
FORGOTTEN = {
    "the filter of the query": (FIELD, '"due_before"', True, CRITERION),
    "the column of the row": (FIELD, "due_at: str | None", True, "tests/tasks/test_schemas.py"),
    "the migration": (FIELD, "op.execute", True, "tests/test_migrations.py"),
    "the document": (FIELD, "nothing", False, "tests/test_openapi.py"),
    "the policy of the table": (RESOURCE, "ROW LEVEL SECURITY", True, POLICY),
    "the routes in the document": (RESOURCE, "nothing", False, ROUTES),
}


@pytest.mark.parametrize("forgotten", FORGOTTEN)
def test_what_is_forgotten_makes_a_test_fail(copy: Path, forgotten: str) -> None:
    recipe, text, is_documented, test = FORGOTTEN[forgotten]
    for edit in without(recipe, text):
        edit.apply(copy)
    if is_documented:
        assert make(copy, "openapi").returncode == 0
    command = [".venv/bin/pytest", "-q", "-p", "no:cacheprovider", test]
    tested = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert tested.returncode == 1, tested.stdout[-3000:]


def after_the_fields(edit: Edit) -> Edit:
    """The edit of the resource's page, with the next number for its migration."""
    text = edit.text.replace('"9001"', '"9003"').replace('"0010"', '"9002"')
    return replace(edit, path=edit.path.replace("9001", "9003"), text=text)


def test_after_both_everything_else_passes(copy: Path) -> None:
    for edit in [*FIELD, *OTHER_FIELD, *map(after_the_fields, RESOURCE)]:
        edit.apply(copy)
    assert make(copy, "openapi").returncode == 0
    tested = make(copy, "test")
    assert tested.returncode == 0, tested.stdout[-6000:] + tested.stderr
