"""README and the quickstart are true: their commands are run in a copy of the project, and the output compared."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.live import free_port, running
from tests.support import ROOT, postgresql_database

README = (ROOT / "README.md").read_text()
QUICKSTART = (ROOT / "specs/001-backend-api/quickstart.md").read_text()
SERVERS = ("make run", "gunicorn wsgi:app")
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
NEON = re.compile(r"postgresql://todo:secret@ep-example[^']+")


@dataclass
class Step:
    """A command of a page, and the output that the page shows."""

    command: str
    output: str = ""


@dataclass
class Steps:
    """The commands of one block; or, with a path, a file that the page shows."""

    steps: list[Step] = field(default_factory=list)
    path: str = ""
    text: str = ""


def blocks(page: str) -> Iterator[Steps]:
    """The console and python blocks of a page in their order."""
    for match in re.finditer(r"(?P<before>[^\n]*)\n\n```(?P<kind>console|python)\n(?P<text>.*?)```", page, re.DOTALL):
        if match["kind"] == "python":
            yield Steps(path=re.findall("`([^`]+)`", match["before"])[0], text=match["text"])
            continue
        block = Steps()
        for line in match["text"].splitlines():
            if line.startswith("$ "):
                block.steps.append(Step(line.removeprefix("$ ")))
            else:
                block.steps[-1].output += f"{line}\n"
        yield block


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project as a fresh clone has it, but for the virtual environment, which is this one."""
    copy = tmp_path / "todo"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    # Links, so that make can do no harm to this one; and a stamp newer than the lock, so that it has nothing to do.
    (copy / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (copy / ".venv" / name).symlink_to(Path(sys.prefix, name))
    (copy / ".venv/installed").touch()
    return copy


@pytest.mark.parametrize(("page", "least"), [(README, 25), (QUICKSTART, 9)], ids=["README", "quickstart"])
def test_every_command_does_what_it_shows(copy: Path, server: URL, tmp_path: Path, page: str, least: int) -> None:
    port = free_port()
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PORT": str(port),
        "MAKEFLAGS": "--no-print-directory",
        "PYTHON": sys.executable,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    ran = 0
    with postgresql_database(server) as neon, ExitStack() as started:

        def localized(text: str) -> str:
            text = re.sub(r"127\.0\.0\.1:\d{4}", f"127.0.0.1:{port}", text)
            return NEON.sub(neon.render_as_string(hide_password=False).replace("\\", "\\\\"), text)

        for number, block in enumerate(blocks(page)):
            if block.path:
                (copy / block.path).write_text(block.text)
            for step in block.steps:
                ran += 1
                command, log = localized(step.command), tmp_path / f"log{number}"
                if command.endswith(SERVERS):
                    started.close()
                    # env takes the settings before the command, so that it can take the place of the shell.
                    started.enter_context(running(["bash", "-c", f"exec env {command}"], port, environ, log, copy))
                    assert localized(step.output) in log.read_text()
                else:
                    # A variable that is set is there for the commands to come.
                    assigned = re.fullmatch(r"([A-Z]+)=\$\((.*)\)", command)
                    result = subprocess.run(
                        ["bash", "-c", assigned[2] if assigned else command],
                        cwd=copy,
                        env=environ,
                        capture_output=True,
                        text=True,
                        timeout=30,
                        check=False,
                    )
                    assert result.returncode == 0, (command, result)
                    if assigned:
                        environ[assigned[1]] = result.stdout.strip()
                    else:
                        assert INSTANT.sub("", result.stdout) == INSTANT.sub("", step.output), command
    assert ran > least


@pytest.mark.parametrize("page", [README, QUICKSTART], ids=["README", "quickstart"])
def test_every_call_of_the_service_is_shown(page: str) -> None:
    shown = {step.command for block in blocks(page) for step in block.steps}
    for call in ("-d ", r"/tasks(\?\S+)?'?$", "tasks/1$", "-X PUT", "-X PATCH .*/complete", "-X DELETE"):
        assert any(re.search(call, command) for command in shown), call


def test_every_setting_is_documented() -> None:
    """What config.py and gunicorn.conf.py read, each in a row of the table; and nothing else."""
    code = (ROOT / "config.py").read_text() + (ROOT / "gunicorn.conf.py").read_text()
    prefixes = "API|JWT|LOG|WEB|CORS|DATABASE|IDENTITY|MAX|METRICS|RATE|SCRIPT|TRUSTED"
    read = set(re.findall(rf'"((?:{prefixes})_[A-Z_]+)"', code)) | {"PORT"}
    rows = set(re.findall(r"^\| `([A-Z_]+)` \|", README, re.MULTILINE))
    assert rows == read


@pytest.mark.parametrize(
    "path",
    [
        *ROOT.glob("docs/**/*.md"),
        ROOT / "README.md",
        ROOT / "compose.yaml",
        ROOT / "specs/001-backend-api/quickstart.md",
    ],
    ids=lambda path: path.name,
)
def test_whoever_is_told_to_set_the_key_sets_url_is_told_the_issuer_and_the_audience(path: Path) -> None:
    """Every token of Better Auth has an aud, and is refused without JWT_AUDIENCE."""
    for match in re.finditer(
        "(JWT_JWKS_URL=https:|put `JWT_JWKS_URL`|have public keys: JWT_JWKS_URL)", path.read_text()
    ):
        rest = path.read_text()[match.start() :][:250]
        assert {"JWT_ISSUER", "JWT_AUDIENCE"} <= set(re.findall("JWT_[A-Z]+", rest)), rest


def test_every_decision_is_linked() -> None:
    linked = set(re.findall(r"\(docs/decisions/([\w-]+\.md)\)", README))
    assert linked == {path.name for path in (ROOT / "docs/decisions").glob("*.md")}


@pytest.mark.parametrize("path", [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md"], ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_the_map_of_the_house_is_complete() -> None:
    section = README.partition("## A map of the house")[2].partition("\n## ")[0]
    for path in sorted((ROOT / "todo").rglob("*.py")):
        assert path.name in section or path.stem in section, path


def test_make_alone_lists_the_targets() -> None:
    # Not as a part of the make that runs this.
    environ = {"PATH": os.environ["PATH"]}
    result = subprocess.run(["make"], cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {line.split()[1] for line in result.stdout.splitlines()} == targets
    assert {"run", "test"} <= targets
