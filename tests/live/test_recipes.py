"""docs/add-a-field.md and docs/add-a-resource.md, carried out in a copy of the project."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.live.pages import Edit, copy_project, edits
from tests.support import ROOT

FIELD, RESOURCE = (edits((ROOT / f"docs/add-a-{name}.md").read_text()) for name in ("field", "resource"))


def lines(found: list[Edit]) -> int:
    """How many lines the edits add."""
    return sum(edit.text.count("\n") for edit in found)


def make(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What make does in the copy, as a user types it."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(copy.parent)}
    return subprocess.run(["make", *arguments], cwd=copy, env=environ, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the project."""
    return copy_project(tmp_path / "todo")


def test_a_field_is_a_few_lines_in_a_few_files() -> None:
    assert lines(FIELD) <= 45
    assert len({edit.path for edit in FIELD if edit.path.startswith("todo/")}) <= 5


def test_a_resource_is_at_most_300_lines() -> None:
    assert lines(RESOURCE) <= 300


@pytest.mark.parametrize("recipe", [FIELD, RESOURCE], ids=["field", "resource"])
def test_after_it_everything_else_passes(copy: Path, recipe: list[Edit]) -> None:
    for edit in recipe:
        edit.apply(copy)
    made = make(copy, "openapi")
    assert made.returncode == 0, made.stderr
    tested = make(copy, "test")
    assert tested.returncode == 0, tested.stdout[-6000:] + tested.stderr
