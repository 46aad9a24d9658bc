"""The documents are true: their commands are run in a copy of the project, and their links lead somewhere."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import click
import pytest
from sqlalchemy import URL

from tests.live import free_port, running
from tests.live.pages import blocks, copy_project, perform
from tests.support import ROOT, Make, postgresql_database

README = ROOT / "README.md"
QUICKSTART = ROOT / "specs/001-backend-api/quickstart.md"
INDEXED = [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [README, *INDEXED, *sorted(ROOT.glob("specs/**/*.md")), *sorted(ROOT.glob("benchmarks/*.md"))]
}
SERVERS = ("make run", "gunicorn wsgi:app")
REVISION = re.compile(r'(?<=":")\d{4}(?=")')
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
NEON = re.compile(r"postgresql://todo:secret@ep-example[^']+")
TARGETS = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the project."""
    return copy_project(tmp_path / "todo")


def comparable(printed: str, shown: str) -> str:
    """What was printed, without instants and revisions, and without members that are null and that the page lacks."""

    def drop(match: re.Match[str]) -> str:
        return match[0] if match[0] in shown else ""

    return REVISION.sub("", INSTANT.sub("", re.sub(r',"[a-z_]+":null', drop, printed)))


#: tests/live/test_backup.py runs these, on a server of their own.
OTHERS = {"docs/backup.md"}


@pytest.mark.parametrize(
    "name", [name for name, text in PAGES.items() if "```console\n" in text and name not in OTHERS]
)
def test_every_command_does_what_it_shows(copy: Path, server: URL, tmp_path: Path, name: str) -> None:
    port = free_port()
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PORT": str(port),
        "MAKEFLAGS": "--no-print-directory",
        "PYTHON": sys.executable,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with postgresql_database(server) as neon, ExitStack() as started:

        def localized(text: str) -> str:
            text = re.sub(r"127\.0\.0\.1:\d{4}", f"127.0.0.1:{port}", text)
            return NEON.sub(neon.render_as_string(hide_password=False).replace("\\", "\\\\"), text)

        for number, block in enumerate(blocks(PAGES[name])):
            if block.edit:
                block.edit.apply(copy)
            for step in block.steps:
                command, log = localized(step.command), tmp_path / f"log{number}"
                if command.endswith(SERVERS):
                    started.close()
                    # env takes the settings before the command, so that it can take the place of the shell.
                    started.enter_context(running(["bash", "-c", f"exec env {command}"], port, environ, log, copy))
                    assert localized(step.output) in log.read_text()
                else:
                    printed = perform(command, copy, environ)
                    assert comparable(printed, step.output) == comparable(step.output, step.output), command


@pytest.mark.parametrize("path", [README, QUICKSTART], ids=lambda path: path.name)
def test_every_call_of_the_service_is_shown(path: Path) -> None:
    shown = {step.command for block in blocks(path.read_text()) for step in block.steps}
    for call in ("-d ", r"/tasks(\?\S+)?'?$", "tasks/1$", "-X PUT", "-X PATCH .*/complete", "-X DELETE"):
        assert any(re.search(call, command) for command in shown), call


@pytest.mark.parametrize("name", PAGES)
def test_every_example_is_tested(name: str) -> None:
    """Console blocks are found and run above; a page with other blocks is named by the test that runs them."""
    text = PAGES[name]
    found = list(blocks(text))
    assert sum(bool(block.steps) for block in found) == text.count("```console")
    others = set(re.findall(r"^```(\w+)$", text, re.MULTILINE)) - {"console", "mermaid"}
    if "```console" in text:
        others -= {"python"}
    tests = "".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))
    assert not others or name in tests, others


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", PAGES[name]):
        path = ((ROOT / name).parent / target).resolve() if target else ROOT / name
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, anchor


def test_readme_is_short_and_links_to_every_page() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 170
    linked = {ROOT / target for target in re.findall(r"\]\(([^):]+)\)", PAGES["README.md"])}
    assert [path for path in INDEXED if path not in linked] == []


def test_every_setting_is_documented() -> None:
    """What config.py and gunicorn.conf.py read, each in a row of the table; and nothing else."""
    code = (ROOT / "config.py").read_text() + (ROOT / "gunicorn.conf.py").read_text()
    prefixes = "API|JWT|LOG|WEB|CORS|DATABASE|IDENTITY|MAX|METRICS|RATE|SCRIPT|TRUSTED"
    read = set(re.findall(rf'"((?:{prefixes})_[A-Z_]+)"', code)) | {"PORT"}
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", PAGES["docs/settings.md"], re.MULTILINE)) == read


def test_every_flask_command_is_documented_and_no_other(make: Make, database: URL) -> None:
    def names(command: click.Command) -> Iterator[str]:
        if not isinstance(command, click.Group):
            yield command.name or ""
        elif command.name not in {"db", "openapi"}:
            yield from (f"{command.name} {name}" for each in command.commands.values() for name in names(each))

    ours = {name for command in make(database).cli.commands.values() for name in names(command)}
    documented = re.findall(r"^\| `flask ([a-z- ]+?)(?: USER_ID)?` \|", PAGES["docs/commands.md"], re.MULTILINE)
    # `flask token USER_ID` is short for `flask token mint USER_ID`.
    assert {"token mint" if name == "token" else name for name in documented} == ours | {"db upgrade"}


def test_make_lists_its_targets_and_the_pages_name_no_other() -> None:
    # Not as a part of the make that runs this.
    environ = {"PATH": os.environ["PATH"]}
    result = subprocess.run(["make"], cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    assert {line.split()[1] for line in result.stdout.splitlines()} == TARGETS
    for name, text in PAGES.items():
        assert set(re.findall(r"(?:^|`|^\$.* )make ([a-z-]+)", text, re.MULTILINE)) <= TARGETS, name
    ci = set(re.findall(r"\bmake ([a-z]+)$|make ([a-z]+);", (ROOT / ".ci/run").read_text(), re.MULTILINE))
    assert {first or second for first, second in ci} <= set(re.findall("`make ([a-z]+)`", PAGES["README.md"]))


def test_every_address_of_neon_verifies_the_certificate() -> None:
    """sslmode=require encrypts, but accepts any server."""
    addresses = [address for text in PAGES.values() for address in re.findall(r"neon\.tech/[^\s'\"`]*", text)]
    assert addresses
    assert [address for address in addresses if "sslmode=verify-full" not in address] == []


@pytest.mark.parametrize("name", [*PAGES, "compose.yaml"])
def test_a_page_that_sets_the_key_sets_url_also_sets_the_issuer_and_the_audience(name: str) -> None:
    """Every token of Better Auth has an aud, and is refused without JWT_AUDIENCE."""
    text = (ROOT / name).read_text()
    for match in re.finditer("(JWT_JWKS_URL=https:|put `JWT_JWKS_URL`|public keys: JWT_JWKS_URL)", text):
        rest = text[match.start() :][:250]
        assert {"JWT_ISSUER", "JWT_AUDIENCE"} <= set(re.findall("JWT_[A-Z]+", rest)), rest
