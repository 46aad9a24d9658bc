"""What is installed is what was pinned: every requirement by version and by hash, from no place in particular."""

import json
import re
from pathlib import Path

import pytest

from tests.support import ROOT

LOCKS = sorted([*ROOT.glob("requirements*.txt"), ROOT / "benchmarks/requirements.txt"])
NPM_LOCKS = [ROOT / "benchmarks/peers/fastify/package-lock.json", ROOT / "tests/ecosystem/typescript/package-lock.json"]
#: A pin, the platforms that it is for, and its hashes; as `make lock` writes them.
PIN = r"[\w.-]+(\[[\w,-]+\])?==[\w.!+]+( ; [^\\\n]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+"


def unpinned(lock: str) -> list[str]:
    """What is neither a pinned and hashed requirement nor a comment."""
    rest = re.sub(rf"^{PIN}$", "", lock, flags=re.MULTILINE)
    return [line for line in rest.splitlines() if line and not re.fullmatch(" *#.*", line)]


def addresses(lock: str) -> list[str]:
    """What says where something is to be had from."""
    return re.findall(r"(?:https?|file|git\+\w+)://\S+|--(?:index|extra-index|find-links|trusted)\S*", lock)


def test_every_lock_is_looked_at() -> None:
    assert [lock.name for lock in LOCKS].count("requirements.txt") == 2
    assert {"requirements-dev.txt", "requirements-audit.txt"} <= {lock.name for lock in LOCKS}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: str(lock.relative_to(ROOT)))
def test_every_requirement_is_pinned_and_hashed(lock: Path) -> None:
    text = lock.read_text()
    assert unpinned(text) == []
    assert len(re.findall(rf"^{PIN}$", text, re.MULTILINE)) > 10


@pytest.mark.parametrize("lock", [*LOCKS, *NPM_LOCKS], ids=lambda lock: str(lock.relative_to(ROOT)))
def test_no_requirement_says_where_it_is_to_be_had_from(lock: Path) -> None:
    # npm's lock names the pages on which authors ask for money.
    text = re.sub(r'"funding": (\[[^]]*\]|\{[^}]*\}|"[^"]*")', "", lock.read_text())
    assert addresses(text) == []


@pytest.mark.parametrize("lock", NPM_LOCKS, ids=lambda lock: str(lock.relative_to(ROOT)))
def test_every_package_of_npm_is_pinned_and_hashed(lock: Path) -> None:
    packages = json.loads(lock.read_text())["packages"]
    assert [name for name, package in packages.items() if name and not package.get("integrity")] == []


HASH = " \\\n    --hash=sha256:" + "0" * 64


@pytest.mark.parametrize(
    "line",
    [
        "flask==3.1.3",
        f"flask>=3.1.3{HASH}",
        f"flask==3.*{HASH}",
        "flask",
        f"flask==3.1.3 \\\n    --hash=md5:{'0' * 32}",
        "flask @ https://files.example/flask-3.1.3.whl",
        "-e .",
        "-r requirements.txt",
        "--index-url https://packages.example/simple",
        "flask==3.1.3 ; sys_platform == 'win32'",
    ],
)
def test_a_loose_requirement_is_seen(line: str) -> None:
    assert unpinned(f"# A comment\njinja2==3.1.6{HASH}\n    # via flask\n{line}\n")


@pytest.mark.parametrize(
    "line",
    ["--index-url https://packages.example/simple", "--find-links wheels", "# from http://127.0.0.1:8080/simple"],
)
def test_an_address_is_seen(line: str) -> None:
    assert addresses(f"{line}\njinja2==3.1.6{HASH}\n")
