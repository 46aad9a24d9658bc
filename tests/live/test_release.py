"""What belongs to a release: one version, the changelog, the licence, the Pythons of CI and its workflow."""

import re
import sys
import tomllib
from itertools import pairwise

import yaml
from flask import Flask
from packaging.version import Version

from tests.live.containers import DOCKERFILE, instructions
from tests.support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
WORKFLOW = ROOT / ".github/workflows/ci.yml"
JOB = yaml.safe_load(WORKFLOW.read_text())["jobs"]["test"]
#: Each image that CI runs in: the version of Python, and the name of the Debian.
IMAGES = [re.fullmatch(r"python:(\d\.\d+)-(\w+)", image).groups() for image in JOB["strategy"]["matrix"]["image"]]
KINDS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]


def releases(changelog: str) -> list[tuple[str, str]]:
    """Version and date of each release, the newest first. Raises AssertionError for another format."""
    headings = re.findall(r"^## (.*)$", changelog, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    matches = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", heading) for heading in headings[1:]]
    assert all(matches), headings
    found = [match.groups() for match in matches]
    for (newer, later), (older, earlier) in pairwise(found):
        assert Version(newer) > Version(older)
        assert later >= earlier
    assert set(re.findall(r"^### (.*)$", changelog, re.MULTILINE)) <= set(KINDS)
    return found


def test_the_version_is_one(app: Flask) -> None:
    client = app.test_client()
    assert client.get("/health/live").get_json()["version"] == PROJECT["version"]
    assert client.get("/openapi.json").get_json()["info"]["version"] == PROJECT["version"]
    assert releases(CHANGELOG)[0][0] == PROJECT["version"]


def test_the_changelog_begins_with_the_first_release() -> None:
    assert releases(CHANGELOG)[-1][0] == "1.0.0"


def test_the_licence_is_that_of_pyproject() -> None:
    first, _, copyright_line, *_ = (ROOT / "LICENSE").read_text().splitlines()
    assert first == f"{PROJECT['license']} License"
    assert re.fullmatch(r"Copyright \(c\) \d{4} the todo contributors", copyright_line)


def test_the_pythons_of_ci_are_those_that_the_pages_name() -> None:
    pythons = sorted({python for python, _ in IMAGES}, key=Version)
    assert PROJECT["requires-python"] == f">={pythons[0]}"
    assert f"--python-version {pythons[0]} " in (ROOT / "Makefile").read_text()
    named = f"Python {', '.join(pythons[:-1])} or {pythons[-1]}"
    for page in ("README.md", "CONTRIBUTING.md", "specs/001-backend-api/quickstart.md"):
        assert named in (ROOT / page).read_text(), page


def test_the_suite_runs_on_a_python_that_the_pages_name() -> None:
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in {python for python, _ in IMAGES}


def test_the_image_is_built_on_the_newest_python_of_ci() -> None:
    newest = max(IMAGES, key=lambda image: Version(image[0]))
    bases = {rest.split()[0] for name, rest in instructions(DOCKERFILE.read_text()) if name == "FROM"}
    assert bases == {"python:{}-slim-{}".format(*newest)}
    assert bases.pop() in (ROOT / "docs/decisions/dependencies.md").read_text()


def test_ci_runs_what_a_clone_has_and_may_only_read() -> None:
    assert yaml.safe_load(WORKFLOW.read_text())["permissions"] == {"contents": "read"}
    assert JOB["steps"][-1] == {"run": ".ci/run"}
    used = [step["uses"] for step in JOB["steps"] if "uses" in step]
    assert used
    assert [action for action in used if not re.fullmatch(r"actions/[\w-]+@v\d+\.\d+\.\d+", action)] == []
