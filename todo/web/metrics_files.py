"""The files through which gunicorn's workers share their metrics. Must not know which metrics there are.

prometheus_client maps such a file into memory (its multi-process mode). If the file system cannot allocate a page of
it, SIGBUS ends the process. So this module allocates every page before it is mapped. If a worker's file cannot grow,
the worker counts in its own memory from then on.
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

#: Bytes of a new file. It doubles when it is full.
SIZE = 65536
#: The most bytes that an entry takes besides its key.
ENTRY_OVERHEAD = 32

#: While a process counts in memory, an empty file exists whose name begins like this. gunicorn.conf.py removes it.
MARKER = "unseen_"

#: The files of this process: one for each kind of metric.
_files: list["FiguresFile"] = []


class FiguresFile(MmapedDict):
    """prometheus_client's file for one process and one kind of metric. After the first failure it is only in memory.

    So counting never raises OSError, and never ends the process.
    """

    # The file and its map. In memory: None and a bytearray.
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
        """The name of the process that writes it."""
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
        # A bytearray grows by itself. The file keeps its counts, so that no counter decreases.
        self._f, self._m, self._capacity = None, bytearray(counted), sys.maxsize
        # Tells the other workers. This usually succeeds, because an empty file takes no space.
        with suppress(OSError):
            (self.path.parent / f"{MARKER}{self.process}").touch()
        if all(file.is_seen for file in _files if file is not self):
            logger.warning(
                "metrics: %s cannot be written (%s). This worker counts in memory until it ends, and /metrics lacks "
                "its counts. Requests are not affected",
                self.path,
                error.strerror,
            )


class FiguresOfAll(Collector):
    """Sums what all processes have written into a folder, as prometheus_client's MultiProcessCollector does.

    It skips empty files; the MultiProcessCollector fails on them. Each file is empty for a moment, and stays so if its
    process is killed at that moment (github.com/prometheus/client_python/issues/1199).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        """Yield the current sums, and the number of workers whose latest counts are missing."""
        files = [str(path) for path in self._folder.glob("*.db") if _has_begun(path)]
        yield from cast(Iterable[Metric], MultiProcessCollector.merge(files))
        unseen = {path.name.removeprefix(MARKER) for path in self._folder.glob(f"{MARKER}*")}
        unseen |= {file.process for file in _files if not file.is_seen}
        yield GaugeMetricFamily(
            "todo_metrics_unseen_workers", "Workers whose latest figures are not in this answer.", value=len(unseen)
        )


def keep(process: str) -> None:
    """Let prometheus_client use FiguresFile, with this name for the current process. Call it before any metric exists.

    A new process may have the name of one that has ended. It then adds to the counts of that process, so the number of
    files does not grow.
    """
    values.MmapedDict = FiguresFile  # type: ignore[attr-defined, assignment]
    values.ValueClass = values.MultiProcessValue(process_identifier=lambda: process)


def _has_begun(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        # Its process has ended in the meantime.
        return False


def _allocate(path: Path, size: int) -> None:
    """Grow the file to at least `size` bytes, by writing zeros. Raises OSError."""
    with path.open("ab") as file:
        file.write(bytes(max(0, size - file.tell())))
