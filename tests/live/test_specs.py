"""The specification is kept: each of its requirements is shown by tests that are there and are run."""

import ast
import re

import pytest

from tests.support import ROOT

FOLDER = ROOT / "specs/001-backend-api"
SPEC = (FOLDER / "spec.md").read_text()
#: What was first asked for, by number.
NUMBERS = [f"FR-{number:03}" for number in range(1, 17)] + [f"SC-{number:03}" for number in range(1, 11)]
ROW = re.compile(r"^\| ((?:FR|SC)-\d{3}) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
LINK = re.compile(r"\[(tests/[\w/]+\.py)((?:::\w+)*)\]\(([^)]+)\)")


def shown_by(spec: str) -> dict[str, list[str]]:
    """The tests that a specification links to, by number of the requirement. Raises AssertionError for a bad link."""
    shown: dict[str, list[str]] = {}
    for number, _, tests in ROW.findall(spec):
        assert number not in shown, f"{number} stands there twice"
        shown[number] = []
        for path, name, target in LINK.findall(tests):
            assert (FOLDER / target).resolve() == ROOT / path, f"{number}: {target} is not {path}"
            shown[number].append(path + name)
    return shown


def exists(test: str) -> bool:
    """Whether `make test` or `make live` runs that test, class or file."""
    path, *names = test.split("::")
    if path.startswith("tests/ecosystem/") or not (ROOT / path).exists():
        return False
    node: ast.Module | ast.ClassDef | ast.FunctionDef = ast.parse((ROOT / path).read_text())
    for name in names:
        found = {child.name: child for child in node.body if isinstance(child, ast.ClassDef | ast.FunctionDef)}
        if name not in found:
            return False
        node = found[name]
    return True


def test_each_requirement_is_there_once_and_shown_by_a_test() -> None:
    shown = shown_by(SPEC)
    assert list(shown) == NUMBERS
    assert [number for number, tests in shown.items() if not tests] == []


def test_every_link_leads_to_a_test_that_is_run() -> None:
    assert [test for tests in shown_by(SPEC).values() for test in tests if not exists(test)] == []


@pytest.mark.parametrize(
    "link",
    [
        "tests/tasks/test_list.py::test_that_nobody_wrote",
        "tests/tasks/test_that_nobody_wrote.py",
        "tests/test_ownership.py::TestRoute::test_that_nobody_wrote",
        # CI does not run it everywhere.
        "tests/ecosystem/test_clients.py",
    ],
)
def test_a_dead_link_is_seen(link: str) -> None:
    assert exists("tests/tasks/test_list.py")
    assert not exists(link)
