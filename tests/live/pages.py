"""What the pages of the project say to do, and a copy of the project in which it is done."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import indent

from tests.support import ROOT


@dataclass(frozen=True)
class Edit:
    """A file that a page writes; or, with an anchor, lines that it puts before or after the line with the anchor."""

    path: str
    text: str
    anchor: str = ""
    is_before: bool = False
    #: Where to look for the anchor: from the line that begins with this on.
    within: str = ""

    def apply(self, root: Path) -> None:
        """Change the copy. Raises ValueError if the anchor is not there."""
        (path,) = [root / self.path] if "*" not in self.path else (root / "migrations/versions").glob(self.path)
        if not self.anchor:
            path.parent.mkdir(exist_ok=True)
            path.write_text(self.text)
            return
        whole = path.read_text()
        found = whole.index(self.anchor, whole.index(f"\n{self.within}") if self.within else 0)
        start = whole.rfind("\n", 0, found) + 1
        place = start if self.is_before else whole.index("\n", found) + 1
        line = whole[start : whole.index("\n", found)]
        # Like the line of the anchor; and what is put before a class is one itself.
        added = indent(self.text, line[: len(line) - len(line.lstrip())]) + ("\n\n" if line.startswith("class") else "")
        path.write_text(whole[:place] + added + whole[place:])


@dataclass
class Step:
    """A command of a page, and the output that the page shows."""

    command: str
    output: str = ""


@dataclass
class Block:
    """The commands of one block, or an edit."""

    steps: list[Step] = field(default_factory=list)
    edit: Edit | None = None


def blocks(page: str) -> Iterator[Block]:
    """The console and python blocks of a page in their order."""
    for match in re.finditer(
        r"(?P<before>(?:[^\n]+\n)*)\n```(?P<kind>console|python|text)\n(?P<text>.*?)```", page, re.DOTALL
    ):
        if match["kind"] != "console":
            edit = _edit(match["before"].replace("\n", " "), match["text"])
            if match["kind"] == "python" or edit.anchor:
                yield Block(edit=edit)
            continue
        block = Block()
        for line in match["text"].splitlines():
            if line.startswith("$ "):
                block.steps.append(Step(line.removeprefix("$ ")))
            else:
                block.steps[-1].output += f"{line}\n"
        yield block


def edits(page: str) -> list[Edit]:
    """What a page writes and changes."""
    return [block.edit for block in blocks(page) if block.edit is not None]


def _edit(before: str, text: str) -> Edit:
    place = re.search(r"In `([^`]+)`,(?: in `(?P<within>[^`]+)`,)? (before|after) `([^`]+)`:\s*$", before)
    if place is None:
        # Of a page that shows a file without "Write", the first name.
        return Edit((re.findall("Write `([^`]+)`", before) or re.findall("`([^`]+)`", before))[0], text)
    return Edit(place[1], text, anchor=place[4], is_before=place[3] == "before", within=place["within"] or "")


def perform(command: str, cwd: Path, environ: dict[str, str]) -> str:
    """Run a command of a page; what it prints. A variable that it sets is there for the commands to come.

    Raises AssertionError where its status is not 0.
    """
    assigned = re.fullmatch(r"(?:export )?([A-Z_]+)=(?:\$\((.*)\)|(\S+))", command)
    if assigned and assigned[3]:
        environ[assigned[1]] = assigned[3]
        return ""
    result = subprocess.run(
        ["bash", "-c", assigned[2] if assigned else command],
        cwd=cwd,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, (command, result)
    if not assigned:
        return result.stdout
    environ[assigned[1]] = result.stdout.strip()
    return ""


def copy_project(copy: Path) -> Path:
    """The project as a fresh clone has it, except for the virtual environment, which is this one."""
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
    for stamp in ("installed", "installed-dev"):
        (copy / ".venv" / stamp).touch()
    return copy
