"""A machine with systemd, for the units in deploy/systemd."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ecosystem.programs import program
from tests.support import PATIENCE

SCRIPT = Path(__file__).with_name("machine.sh")
#: Where process control is written: of all controllers together, or of systemd alone.
CGROUPS = next(path for path in map(Path, ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup")) if path.exists())


class Machine:
    """A running machine. Its network is that of this one. process: ends the machine if it is killed."""

    def __init__(self, process: subprocess.Popen[bytes], pid: int) -> None:
        self.process = process
        self._enter = [program("nsenter"), f"--target={pid}", "--mount", "--pid", "--uts", "--ipc", "--root", "--wd"]

    def run(self, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command there, as root."""
        environ = {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        return subprocess.run(
            [*self._enter, *command],
            env=environ,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
        )

    def do(self, *command: str, stdin: str = "") -> str:
        """Run a command that must succeed, and return what it printed."""
        result = self.run(*command, stdin=stdin)
        log = ["journalctl", "--no-pager", "--lines=50", "--output=cat", "_TRANSPORT=stdout", "+", "_PID=1"]
        assert result.returncode == 0, (command, result.stdout, self.run(*log).stdout)
        return result.stdout


@contextmanager
def booted(folder: Path, project: Path) -> Iterator[Machine]:
    """A machine with the project in /srv/todo, and what it needs in a virtual environment of Debian's Python."""
    (root := folder / "machine").mkdir()
    # systemd gets a group of its own, so that it sees no other.
    (group := CGROUPS / f"todo-{os.getpid()}").mkdir()
    namespaces = ["--mount", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child"]
    boot = [program("unshare"), *namespaces, str(SCRIPT), str(root), str(project)]
    start = ["/bin/sh", "-c", 'echo $$ > "$0"; exec "$@"', str(group / "cgroup.procs")]
    with (folder / "boot").open("wb") as log:
        process = subprocess.Popen(
            [*start, *boot],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        machine = _started(process, folder / "boot")
        machine.do("/usr/bin/python3", "-m", "venv", "--without-pip", "/srv/todo/.venv")
        install = [sys.executable, "-m", "pip", "--python=/srv/todo/.venv/bin/python", "install", "--quiet"]
        machine.do(*install, "--no-deps", "--require-hashes", "--requirement=/srv/todo/requirements.txt")
        yield machine
    finally:
        process.kill()
        process.wait()
        for path, _, _ in os.walk(group, topdown=False):
            _remove(Path(path))


def _started(process: subprocess.Popen[bytes], log: Path) -> Machine:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        for pid in children.read_text().split():
            machine = Machine(process, int(pid))
            if machine.run("systemctl", "is-active", "machine.target").returncode == 0:
                return machine
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def _remove(group: Path) -> None:
    """Remove a group, as soon as the last process in it has ended."""
    for _ in range(100):
        try:
            return group.rmdir()
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"{group} is still in use")
