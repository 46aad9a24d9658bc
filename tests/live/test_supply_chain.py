"""What is installed is what was pinned: every requirement by version and by hash, from no place in particular.

The locks can be installed on any day, also after a newer release of any package has appeared.
"""

import json
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.live.containers import DOCKERFILE, instructions
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
    """Where the lock says that a package comes from."""
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
def test_no_requirement_names_an_address(lock: Path) -> None:
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


# Completeness: with --no-deps pip installs what a lock names, and nothing else.


def pins(lock: Path) -> dict[str, Requirement]:
    """Each pinned requirement that is for the running platform, by its name."""
    lines = re.findall(r"^([\w.-]+(?:\[[\w,-]+\])?==[^\\\n]+)", lock.read_text(), re.MULTILINE)
    pinned = [Requirement(line) for line in lines]
    return {canonicalize_name(pin.name): pin for pin in pinned if applies(pin)}


def applies(requirement: Requirement, extras: frozenset[str] = frozenset({""})) -> bool:
    """Whether it is for the running Python and platform, with any of those extras."""
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)


def unmet(requirement: Requirement, pinned: Mapping[str, Requirement]) -> bool:
    """Whether a lock lacks it, in that version and with its extras."""
    pin = pinned.get(canonicalize_name(requirement.name))
    return pin is None or str(pin.specifier)[2:] not in requirement.specifier or not requirement.extras <= pin.extras


def missing(lock: Path) -> list[str]:
    """What the pinned packages require and the lock lacks; of packages that are installed here in that version."""
    pinned = pins(lock)
    return [
        f"{pin}: {requirement}"
        for pin in pinned.values()
        for requirement in map(Requirement, installed(pin))
        if applies(requirement, frozenset({"", *pin.extras})) and unmet(requirement, pinned)
    ]


def installed(pin: Requirement) -> list[str]:
    """What it requires, where it is installed here in the pinned version."""
    try:
        found = distribution(pin.name)
    except PackageNotFoundError:
        return []
    return (found.requires or []) if found.version in pin.specifier else []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: str(lock.relative_to(ROOT)))
def test_every_requirement_of_a_pinned_package_is_pinned_too(lock: Path) -> None:
    assert missing(lock) == []


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_pinned_package_is_installed_here_so_that_its_requirements_are_known(name: str) -> None:
    for pin in pins(ROOT / name).values():
        assert distribution(pin.name).version in pin.specifier, f"{pin}: make test installs it"


@pytest.mark.parametrize("gone", ["coverage", "werkzeug", "redis", "cryptography"])
def test_a_missing_requirement_is_seen(tmp_path: Path, gone: str) -> None:
    lock = tmp_path / "requirements.txt"
    lock.write_text(re.sub(rf"(?m)^{gone}\b", "unrelated", (ROOT / "requirements-dev.txt").read_text()))
    assert any(gone in fault.lower() for fault in missing(lock))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: str(lock.relative_to(ROOT)))
def test_what_was_asked_for_is_in_the_lock_with_its_extras(lock: Path) -> None:
    asked = lock.with_suffix(".in").read_text()
    lines = [line for line in asked.splitlines() if line and not line.startswith(("#", "-r "))]
    pinned = pins(lock)
    assert lines
    assert [line for line in lines if unmet(Requirement(line), pinned)] == []


#: What installs packages, in any file: of pip, uv and the like.
INSTALLS = re.compile(
    r"\b(?:pip[\d.]*|pipx|poetry|conda)\b[^|;&\n]* install\b|\buv (?:pip (?:install|sync)|sync|add|run)\b"
)
#: The targets of the Makefile that install a lock, and where into.
TARGETS = {
    ".venv/installed": "requirements.txt",
    ".venv/installed-dev": "requirements-dev.txt",
    "benchmarks/.venv/installed": "benchmarks/requirements.txt",
    ".venv-audit/installed": "requirements-audit.txt",
}


def dockerfile_install() -> str:
    """The step of the Dockerfile that installs."""
    (step,) = [rest for name, rest in instructions(DOCKERFILE.read_text()) if name == "RUN" and INSTALLS.search(rest)]
    return step


def install_commands() -> list[tuple[str, str]]:
    """Each line of the repository that installs packages of Python, with its file; this file aside."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    found = []
    for name in filter(None, names):
        path = ROOT / name
        if path.is_file() and path != Path(__file__) and not re.search(r"\.(png|svg)$|package-lock\.json$", name):
            joined = re.sub(r" *\\\n\s*", " ", path.read_text())
            found += [(name, line) for line in joined.splitlines() if INSTALLS.search(line) and line.lstrip()[0] != "#"]
    return found


def test_the_makefile_and_the_dockerfile_alone_install_packages_and_never_resolve() -> None:
    """CI, README and other pages go by way of make, so that what is tried below is what everybody runs.

    The packages of one page are in no lock. tests/ecosystem/test_opentelemetry.py installs them.
    """
    found = [(name, line) for name, line in install_commands() if name != "docs/opentelemetry.md"]
    assert sorted(name for name, _ in found) == ["Dockerfile", "Makefile"]
    assert [line for _, line in found if not {"--no-deps", "--require-hashes"} <= set(line.split())] == []


def test_every_target_that_installs_is_tried() -> None:
    text = (ROOT / "Makefile").read_text()
    variables = dict(re.findall(r"^(\w+) := (\S+)$", text, re.MULTILINE))
    found = {}
    for name, stamp, recipe in re.findall(r"^\$\((\w+)\)/(installed\S*): (\S+)", text, re.MULTILINE):
        found[f"{variables[name]}/{stamp}"] = recipe
    assert found == TARGETS
    assert text.count("\t$(call install,") == len(TARGETS)
