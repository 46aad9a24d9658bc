"""The files in which the workers of one gunicorn keep their figures for each other.

prometheus_client maps such a file into memory (its multi-process mode). A page of it that the file system cannot
allocate ends the process with SIGBUS. So every page is allocated before it is mapped, and a worker whose file cannot
have more goes on counting in its own memory. Must not know which figures there are.
"""

import logging
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from prometheus_client import values
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

logger = logging.getLogger(__name__)

#: Bytes of a new file. It doubles where that is not enough.
SIZE = 65536
#: What an entry takes beside its key, at most.
ENTRY_OVERHEAD = 32

#: What the empty file is called that is there while a process counts in memory; gunicorn.conf.py removes it.
MARKER = "unseen_"

#: Those of this process, which are as many as there are kinds of figures.
_files: list["FiguresFile"] = []


class FiguresFile(MmapedDict):
    """prometheus_client's file of one process and kind; in memory alone from the first failure on.

    Nothing that a request counts raises an OSError, or ends the process.
    """

    # None, and a bytearray, in memory.
    _f: Any
    _m: Any

    def __init__(self, filename: str) -> None:
        self.path = Path(filename)
        try:
            _allocate(self.path, SIZE)
            super().__init__(filename)
        except OSError as error:
            self._used, self._positions = 8, {}
            self._go_on_in_memory(self._used.to_bytes(8, sys.byteorder), error)
        _files.append(self)

    @property
    def process(self) -> str:
        """Whose it is."""
        return self.path.stem.rpartition("_")[2]

    @property
    def is_seen(self) -> bool:
        """Whether the other workers see what is counted here."""
        return self._f is not None and self.path.exists()

    def _init_value(self, key: str) -> None:
        size = self._used + len(key.encode()) + ENTRY_OVERHEAD
        if size > self._capacity:
            try:
                _allocate(self.path, max(size, 2 * self._capacity))
            except OSError as error:
                counted = bytes(self._m[: self._used])
                self.close()
                self._go_on_in_memory(counted, error)
        super()._init_value(key)

    def _go_on_in_memory(self, counted: bytes, error: OSError) -> None:
        # A bytearray grows by itself. What stands in the file stays there, so that no counter goes back.
        self._f, self._m, self._capacity = None, bytearray(counted), sys.maxsize
        # Tells the other workers. An empty file needs no room, so that this mostly succeeds.
        with suppress(OSError):
            (self.path.parent / f"{MARKER}{self.process}").touch()
        if all(file.is_seen for file in _files if file is not self):
            logger.warning(
                "metrics: %s cannot be written (%s). This worker counts in memory until it ends, and /metrics goes "
                "without. Requests are not affected",
                self.path,
                error.strerror,
            )


class FiguresOfAll(Collector):
    """The sums over what each process has written into a folder: prometheus_client's MultiProcessCollector.

    But it passes over files that are empty, as each is for a moment. That one fails there, and for ever where a process
    was killed at that moment (github.com/prometheus/client_python/issues/1199).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        """The sums as they are now, and how many workers they are known to leave out."""
        files = [str(path) for path in self._folder.glob("*.db") if _has_begun(path)]
        yield from cast(Iterable[Metric], MultiProcessCollector.merge(files))
        unseen = {path.name.removeprefix(MARKER) for path in self._folder.glob(f"{MARKER}*")}
        unseen |= {file.process for file in _files if not file.is_seen}
        yield GaugeMetricFamily(
            "todo_metrics_unseen_workers", "Workers whose latest figures are not in this answer.", value=len(unseen)
        )


def keep(process: str) -> None:
    """Let prometheus_client keep its figures in FiguresFile, under that name for this process.

    A new process goes on with the files of one that has ended, and so with what that one has counted: there are never
    more files than processes at the same time. Called before there are any figures.
    """
    values.MmapedDict = FiguresFile  # type: ignore[attr-defined, assignment]
    values.ValueClass = values.MultiProcessValue(process_identifier=lambda: process)


def _has_begun(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        # That of a process that ended meanwhile.
        return False


def _allocate(path: Path, size: int) -> None:
    """Make the file at least so large, with zeros that have been written. Raises OSError."""
    with path.open("ab") as file:
        file.write(bytes(max(0, size - file.tell())))
