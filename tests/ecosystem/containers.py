"""Dockerfile and compose.yaml, carried out without a container engine.

A container is a process of this machine in a mount namespace: the image's files at /srv, everything read-only but what
compose.yaml says, and the user and capabilities that it says. Network, Python and all programs are the machine's.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from string import Template

from tests.live.containers import DOCKERFILE, copy, instructions

SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
#: Where the base image has its Python; a container finds that of the tests there.
PYTHON = f"/usr/local/bin/python{sys.version_info.major}.{sys.version_info.minor}"


@dataclass
class Image:
    """What the Dockerfile makes: the files below /srv, and how they are run."""

    srv: Path
    environ: dict[str, str]
    #: The packages of the base image's own Python: pip alone.
    packages: Path = Path()
    folder: str = "/"
    user: str = "0:0"
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    def at(self, path: str) -> Path:
        """Where on this machine the image's path is."""
        absolute = Path(self.folder, path)
        assert absolute.is_relative_to("/srv"), f"{path}: an image's files other than those of /srv are not tried"
        return self.srv / absolute.relative_to("/srv")


def copy_pip(packages: Path) -> None:
    """As much of the tests' pip as can be used and uninstalled: its programs are elsewhere, and this machine's."""
    installed = Path(str(find_spec("pip").origin)).parent
    shutil.copytree(installed, packages / "pip")
    (described,) = installed.parent.glob("pip-*.dist-info")
    shutil.copytree(described, packages / described.name)
    record = packages / described.name / "RECORD"
    lines = record.read_text().splitlines(keepends=True)
    record.write_text("".join(line for line in lines if not line.startswith("..")))
    (packages / described.name / "entry_points.txt").unlink()


def write_python(path: Path, packages: Path) -> None:
    """Write the `python` of a base image: that of the tests, with no packages but these."""
    path.parent.mkdir()
    # No link, to which a virtual environment would link on. -S: without the packages of Debian.
    path.write_text(f'#!/bin/sh\nPYTHONPATH={packages} exec {PYTHON} -S "$@"\n')
    path.chmod(0o755)


def build(context: Path, folder: Path) -> Image:  # noqa: C901, PLR0912 (a case for each instruction)
    """Carry the Dockerfile out, all but what the base image does. Raises where an instruction fails or is not known."""
    stages: dict[str, Image] = {}
    for name, rest in instructions(DOCKERFILE.read_text()):
        match name, shlex.split(rest):
            case "FROM", [_, *label]:
                stage = folder / f"stage{len(stages)}"
                srv, packages, python = stage / "srv", stage / "packages", stage / "bin/python"
                srv.mkdir(parents=True)
                copy_pip(packages)
                write_python(python, packages)
                # The base image's loader knows its library by itself.
                known = {"LD_LIBRARY_PATH": "/usr/local/lib", "HOME": "/"}
                image = Image(srv, {"PATH": f"{python.parent}:{SYSTEM_PATH}"} | known, packages)
                stages[label[1] if label else ""] = image
            case "ENV", variables:
                values = (variable.partition("=") for variable in variables)
                image.environ |= {key: Template(value).substitute(image.environ) for key, _, value in values}
            case "WORKDIR", [path]:
                image.folder = path
                image.at(path).mkdir(parents=True, exist_ok=True)
            case "COPY", [option, source, target] if option.startswith("--from="):
                copy(stages[option.removeprefix("--from=")].at(source), image.at(target))
            case "COPY", [*sources, target]:
                for source in sources:
                    copy(context / source, image.at(target) / ("" if target == f"./{source}" else source))
            case "RUN", _:
                # A step of the build must not change the Python of this machine.
                own = "mount -o remount,bind,ro /usr/local"
                command = in_container(image, ["sh", "-c", rest], read_only=False, setup=own)
                # Where pip finds its packages is this machine's affair.
                names = [name for name in os.environ if re.match("(?i)HOME$|PIP_|.*_PROXY$", name)]
                affairs = {name: os.environ[name] for name in names}
                # Debian's Python says that it is Debian's affair, which that of the image does not.
                affairs["PIP_BREAK_SYSTEM_PACKAGES"] = "1"
                subprocess.run(command, env=image.environ | affairs, cwd="/", check=True, stdout=subprocess.DEVNULL)
            case "USER", [user]:
                image.user = user
            case "HEALTHCHECK", _:
                image.health = json.loads(rest.partition("CMD ")[2])
            case "CMD", _:
                image.command = json.loads(rest)
            case "EXPOSE", [port]:
                assert port == image.environ["PORT"]
            case _:
                raise AssertionError(f"{name} {rest}")
    return image


def in_container(
    image: Image,
    command: Sequence[str],
    *,
    read_only: bool = True,
    tmpfs: Sequence[str] = (),
    capabilities: Sequence[str] = (),
    setup: str = "",
) -> list[str]:
    """The command that runs this one in a container of the image. Its environment is to be the image's.

    setup: what else to mount, as lines of a shell. What is not read-only is a step of the build: as root, below /srv.
    """
    uid, gid = image.user.split(":")
    bounding = ",".join(["-all", *(f"+{capability.lower()}" for capability in capabilities)])
    script = [
        f"mount --bind {sys.base_prefix} /usr/local",
        f"mount --bind {image.srv} /srv",
        "mount -o remount,bind,ro /srv" if read_only else "mount --bind /tmp /tmp",
        setup,
        *(
            f"mount -t tmpfs -o {options or 'rw'} tmpfs {path}"
            for path, _, options in (m.partition(":") for m in tmpfs)
        ),
        "mount -o remount,bind,ro /",
        f"cd {image.folder}",
        f"exec setpriv --reuid {uid} --regid {gid} --clear-groups --no-new-privs --inh-caps=-all"
        f' --bounding-set={bounding} "$@"',
    ]
    return ["unshare", "--mount", "--propagation", "private", "sh", "-ec", "\n".join(script), "sh", *command]
