"""`make` and the Dockerfile install what a lock pins, also after a newer release of a package has appeared.

pip 23.2 takes the newer release for a requirement that has an extra, and then refuses it because it has no hash.
"""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.version import Version

from tests.ecosystem.containers import copy_pip
from tests.live.test_supply_chain import TARGETS, dockerfile_install
from tests.support import ROOT

#: The first pip that resolves such a requirement to the pin.
RESOLVES = Version("23.3")
#: Runs a command in a folder, with pip and its index at hand.
Run = Callable[[list[str]], "subprocess.CompletedProcess[str]"]


def publish(index: Path, name: str, version: str, *metadata: str) -> str:
    """Add a release to an index of the simple kind (PEP 503). Returns its hash."""
    described = f"{name}-{version}.dist-info"
    about = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *metadata]
    files = {
        f"{name}.py": "",
        f"{described}/METADATA": "".join(f"{line}\n" for line in about),
        f"{described}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    hashes = {
        path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        for path, text in files.items()
    }
    record = f"{described}/RECORD"
    files[record] = "".join(f"{path},sha256={digest},\n" for path, digest in hashes.items()) + f"{record},,\n"
    folder = index / name
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    links = "".join(f'<a href="{path.name}">{path.name}</a>\n' for path in sorted(folder.glob("*.whl")))
    (folder / "index.html").write_text(f"<!DOCTYPE html>\n{links}")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the pip of the running one, as the Makefile makes it; copied, to save time."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/*/site-packages")
    copy_pip(packages)
    return folder


@pytest.fixture
def clone(tmp_path: Path, environment: Path) -> Path:
    """A clone, whose locks pin two small packages: report, and table with an extra, which report requires."""
    index = tmp_path / "index"
    report = publish(index, "report", "1.0", "Requires-Dist: table[color]>=1.0")
    table = publish(index, "table", "1.0", "Provides-Extra: color")
    publish(index, "table", "1.1", "Provides-Extra: color")
    clone = tmp_path / "clone"
    (clone / "benchmarks").mkdir(parents=True)
    for name in ("Makefile", "Dockerfile"):
        shutil.copy2(ROOT / name, clone)
    for lock in TARGETS.values():
        pinned = f"report==1.0 --hash=sha256:{report}\ntable==1.0 --hash=sha256:{table}\n"
        (clone / lock).write_text(pinned)
    for target in TARGETS:
        folder = clone / Path(target).parent
        if not folder.exists():
            shutil.copytree(environment, folder, symlinks=True)
    return clone


@pytest.fixture
def run(clone: Path, environment: Path) -> Run:
    """Runs a command in the clone; pip is not configured, and knows no index but that one."""
    environ = {
        "PATH": f"{environment}/bin:{os.environ['PATH']}",
        "HOME": str(clone.parent),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": (clone.parent / "index").as_uri(),
    }

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=clone, env=environ, capture_output=True, text=True, timeout=300, check=False)

    return run


def packages(environment: Path) -> set[str]:
    """What was installed into it, pip and what came with it aside."""
    found = {path.name.removesuffix(".dist-info") for path in environment.glob("lib/*/site-packages/*.dist-info")}
    return {name for name in found if not name.startswith(("pip-", "setuptools-", "wheel-"))}


@pytest.mark.parametrize("target", TARGETS)
def test_make_installs_a_lock_although_a_package_has_a_newer_release(clone: Path, run: Run, target: str) -> None:
    result = run(["make", target, f"PYTHON={sys.executable}"])
    assert result.returncode == 0, result.stderr
    assert packages(clone / Path(target).parent) == {"report-1.0", "table-1.0"}


def test_the_dockerfile_installs_a_lock_although_a_package_has_a_newer_release(clone: Path, run: Run) -> None:
    result = run(["sh", "-ec", dockerfile_install()])
    assert result.returncode == 0, result.stderr
    assert packages(clone / "venv") == {"report-1.0", "table-1.0"}


def test_an_older_pip_fails_where_it_resolves(clone: Path, run: Run) -> None:
    """The same command without --no-deps: what the tests above would do with a newer pip is no proof."""
    makefile = clone / "Makefile"
    makefile.write_text(makefile.read_text().replace(" --no-deps", ""))
    result = run(["make", ".venv/installed", f"PYTHON={sys.executable}"])
    version = Version(run(["python", "-m", "pip", "--version"]).stdout.split()[1])
    assert ("all requirements must have their versions pinned" in result.stderr) == (version < RESOLVES), version
    assert (result.returncode != 0) == (version < RESOLVES), version


@pytest.mark.parametrize(
    "step", [dockerfile_install(), f"make .venv/installed PYTHON={sys.executable}"], ids=["Dockerfile", "Makefile"]
)
def test_a_lock_that_lacks_a_requirement_is_refused(clone: Path, run: Run, step: str) -> None:
    lock = clone / "requirements.txt"
    lock.write_text(lock.read_text().splitlines()[0])
    result = run(["sh", "-ec", step])
    assert result.returncode != 0
    assert "report 1.0 requires table, which is not installed" in result.stdout


# The Python of a virtual environment.


@pytest.mark.parametrize("target", [".venv/installed-dev", "benchmarks/.venv/installed"])
def test_make_replaces_a_virtual_environment_of_another_python(clone: Path, run: Run, target: str) -> None:
    folder = clone / Path(target).parent
    (own,) = folder.glob("lib/python*")
    own.rename(own.with_name("python3.0"))
    (clone / target).touch()
    result = run(["make", target, f"PYTHON={sys.executable}"])
    assert result.returncode == 0, result.stderr
    assert [path.name for path in folder.glob("lib/python*")] == [own.name]
    assert packages(folder) == {"report-1.0", "table-1.0"}


def test_make_keeps_a_virtual_environment_of_the_same_python(clone: Path, run: Run) -> None:
    for _ in range(2):
        result = run(["make", ".venv/installed", f"PYTHON={sys.executable}"])
        (clone / ".venv/kept").touch()
        assert result.returncode == 0, result.stderr
    assert "is up to date" in result.stdout
    assert (clone / ".venv/kept").exists()


def test_make_does_not_take_another_python_for_one_that_is_not_there(clone: Path, run: Run) -> None:
    assert run(["make", ".venv/installed", "PYTHON=python3.0"]).returncode != 0
    assert not (clone / ".venv/installed").exists()
