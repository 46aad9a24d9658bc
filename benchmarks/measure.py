"""CPU time and memory of a process and its descendants, as the kernel reports them (proc(5))."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of the tree so far, including descendants that have ended."""
    ticks = 0
    for member in _tree(pid):
        # A descendant that has just ended counts for its parent, soon.
        with suppress(FileNotFoundError, ProcessLookupError):
            # utime, stime, cutime and cstime.
            ticks += sum(map(int, _stat(member)[11:15]))
    return ticks * _TICK


def idle_cpu_seconds(pid: int) -> float:
    """Wait until the tree does nothing more, and return its CPU time."""
    spent, before = cpu_seconds(pid), -1.0
    while spent > before:
        time.sleep(0.1)
        spent, before = cpu_seconds(pid), spent
    return spent


def memory(pid: int) -> float:
    """Return the proportional set size of the tree in MiB: each process counts its share of shared memory."""
    return sum(_kilobytes(Path(f"/proc/{member}/smaps_rollup"), "Pss:") for member in _tree(pid)) / 1024


def resident_memory(pid: int) -> float:
    """Return the resident size of one process in MiB."""
    return _kilobytes(Path(f"/proc/{pid}/status"), "VmRSS:") / 1024


def parent(pid: int) -> int:
    """Return the process id of the parent."""
    return int(_stat(pid)[1])


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from _tree(int(child))


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/pid/stat from the third on. The name before them may contain spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _kilobytes(path: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(name))
