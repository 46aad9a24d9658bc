"""What Dockerfile, compose.yaml and compose.citus.yaml say."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.support import ROOT

DOCKERFILE, IGNORED = ROOT / "Dockerfile", ROOT / ".dockerignore"
COMPOSE, COMPOSE_CITUS = ROOT / "compose.yaml", ROOT / "compose.citus.yaml"


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Each instruction: its name, and the rest in one line."""
    lines = "\n".join(line for line in dockerfile.splitlines() if line and not line.startswith("#"))
    joined = re.sub(r" *\\\n *", " ", lines)
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def compose(secrets: Mapping[str, str], *others: Path) -> dict[str, Any]:
    """compose.yaml with those secrets filled in, and what other files change. Raises KeyError where one is missing."""
    project: dict[str, Any] = {}
    for path in (COMPOSE, *others):
        filled = re.sub(r"\$\{(\w+):\?[^}]+\}", lambda match: secrets[match[1]], path.read_text())
        assert "$" not in filled
        project = merged(project, yaml.safe_load(filled))
    return project


def merged(first: Any, second: Any) -> Any:
    """How compose merges what two files say of one thing."""
    if isinstance(first, dict):
        return first | {name: merged(first[name], new) if name in first else new for name, new in second.items()}
    # A command is another one.
    return first + second if isinstance(first, list) and "postgres" not in second else second


def copy_context(folder: Path) -> None:
    """What .dockerignore lets into the build: all is shut out but what is named, and of that what is shut out again."""
    first, *rest = [line for line in IGNORED.read_text().splitlines() if not line.startswith("#")]
    assert first == "*"
    shut_out = [line.removeprefix("**/") for line in rest if line.startswith("**/")]
    named = [line.removeprefix("!") for line in rest if line.startswith("!")]
    assert len(shut_out) + len(named) == len(rest)
    for name in named:
        copy(ROOT / name, folder / name, shutil.ignore_patterns(*shut_out))


def copy(source: Path, target: Path, ignore: Any = None) -> None:
    """Copy a file or a folder, and make the folders on its way."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, ignore=ignore, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)
