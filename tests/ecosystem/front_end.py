"""The front end of docs/front-ends.md and docs/sync.md: its files, and the tools of npm that compile and check them."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.ecosystem.programs import program
from tests.support import ROOT

HERE = ROOT / "tests/ecosystem/typescript"
DOCUMENT = ROOT / "docs/openapi.json"
_PATH = r"`((?:app|lib)/[^\s`]+)`"


def files_of(page: str) -> dict[str, str]:
    """The files that a page shows, each with the last path before it."""
    return dict(re.findall(rf"{_PATH}(?:(?!```|`(?:app|lib)/).)*\n\n```tsx?\n(.*?)```", page, re.DOTALL))


def run(name: str, *arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """One of the tools that `make ecosystem` has npm install, without a word to its makers."""
    program("node")
    tool = HERE / "node_modules/.bin" / name
    assert tool.exists(), f"{name} is not installed: make ecosystem does that"
    environ = {"PATH": os.environ["PATH"], "NO_COLOR": "1", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}
    return subprocess.run(
        [tool, *arguments],
        cwd=cwd,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )


def succeed(name: str, *arguments: str | Path, cwd: Path = ROOT) -> None:
    """Run a tool. Raises AssertionError with what it says where it finds fault."""
    result = run(name, *arguments, cwd=cwd)
    assert result.returncode == 0, result.stdout


def succeed_in_node(script: str, folder: Path, environ: dict[str, str], log: Path) -> None:
    """Run the tests of a compiled script. Raises AssertionError, with the service's log, if one fails or none runs."""
    result = subprocess.run(
        [program("node"), "--test-force-exit", script],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr + log.read_text()
    assert re.search(r"^# pass [1-9]", result.stdout, re.MULTILINE), result.stdout


def front_end(folder: Path, files: dict[str, str], beside: Iterable[str], document: Path = DOCUMENT) -> Path:
    """A front end of these files, with its types, and with files of tests/ecosystem/typescript: not compiled yet."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    for name in ("tsconfig.json", *beside):
        shutil.copy(HERE / name, folder)
    (folder / "node_modules").symlink_to(HERE / "node_modules")
    succeed("openapi-typescript", document, "--output", "lib/todo-api.ts", cwd=folder)
    return folder
