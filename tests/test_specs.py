"""The specification is kept: each of its requirements is shown by tests that are there and are run."""

import re
import subprocess
import sys
from functools import cache

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


@cache
def run() -> set[str]:
    """What `make test` runs: tests, and the files and classes that they are in."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    tests = set(re.findall(r"^(tests/[^\[\n]+)", result.stdout, re.MULTILINE))
    return tests | {"::".join(test.split("::")[:depth]) for test in tests for depth in (1, 2)}


def test_each_requirement_is_there_once_and_shown_by_a_test() -> None:
    shown = shown_by(SPEC)
    assert list(shown) == NUMBERS
    assert [number for number, tests in shown.items() if not tests] == []


def test_every_link_leads_to_a_test_that_is_run() -> None:
    assert {test for tests in shown_by(SPEC).values() for test in tests} - run() == set()


@pytest.mark.parametrize(
    "link",
    [
        "tests/tasks/test_list.py::test_that_nobody_wrote",
        "tests/tasks/test_that_nobody_wrote.py",
        "tests/test_ownership.py::TestMatrix::test_that_nobody_wrote",
        # Deselected, hence not run.
        "tests/faults/test_nginx.py",
    ],
)
def test_a_dead_link_is_seen(link: str) -> None:
    assert "tests/tasks/test_list.py" in run()
    assert link not in run()


def test_a_link_to_another_file_than_it_names_is_seen() -> None:
    with pytest.raises(AssertionError, match="FR-001"):
        shown_by("| FR-001 | lists | [tests/test_live.py](../../tests/test_http.py) |\n")
