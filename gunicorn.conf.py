"""How gunicorn runs the service; it reads this file by itself when started in the project folder."""

import atexit
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

from gunicorn import glogging

from config import ConfigurationError, load_settings, logging_config

try:
    settings = load_settings(os.environ)
except ConfigurationError as error:
    sys.exit(f"todo: {error}")

# What the settings alone do not tell (a key that is none, a provider that cannot be imported) is tried here, so that
# the start ends with its one line before there are workers. In a process of its own: what gunicorn itself has
# imported, a HUP would not load anew. It is quiet, since the workers will say again what there is to be warned of.
environ = os.environ | {"LOG_LEVEL": "CRITICAL"}
# Set by on_starting(), when this file is read again for a HUP: what the trial counts is not to be added.
environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
environ.pop("TODO_METRICS_PROCESS", None)
trial = subprocess.run([sys.executable, "-c", "import wsgi"], env=environ, check=False)
if trial.returncode:
    sys.exit(trial.returncode)

worker_class = "gthread"
# A container may see far more cores than it may use, hence the ceiling.
workers = settings.workers or max(2, min(os.cpu_count() or 1, 4))
# Each worker's connection pool is as large as this (todo/database.py): no thread waits for a connection.
threads = settings.threads
# Every worker builds its own app, hence its own pool: a connection shared across fork would mix up answers.
preload_app = False

# A worker that shows no life for this long is replaced. What a request may take is bounded by the database
# deadline (todo/database.py), far below.
timeout = 30
# Where the workers touch a file to show life, and keep their figures: in memory where there is such a folder. gunicorn
# itself ends when it cannot make that file.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 (by names that nobody can guess)
graceful_timeout = 30
keepalive = 5
# Room for a cursor and a long ?q= ; gunicorn itself answers 414 beyond.
limit_request_line = 8190
# By default a request may say SCRIPT_NAME in a header, and so where links lead.
forwarder_headers = ""

# On by default at a path per user, where two instances collide.
control_socket_disable = True
logconfig_dict = logging_config(settings)
# gunicorn's own has the name of Basic credentials, the referrer, which is an address with its query, and what the
# client says of itself.
access_log_format = '%(h)s %(t)s "%(r)s" %(s)s %(B)s %(L)s'


def on_starting(server: Any) -> None:
    """Make the folder where the workers keep their figures for each other, when there is to be /metrics.

    Once in the life of this process, and gone with it. A HUP does not come by here: what was counted is kept.
    """
    if settings.metrics_token is None:
        return
    try:
        folder = tempfile.mkdtemp(prefix="todo-metrics-", dir=server.cfg.worker_tmp_dir)
        os.chown(folder, server.cfg.uid, server.cfg.gid)
    except OSError as error:
        server.log.error("metrics: no folder can be made for the figures (%s)", error.strerror)
        # Where no file can be: each worker counts in memory, and says so.
        folder = os.devnull
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    atexit.register(_remove, folder, os.getpid())


def _remove(folder: str, owner: int) -> None:
    # The workers, forked as they are, come by here too.
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def pre_fork(server: Any, worker: Any) -> None:
    """Name a worker for its figures: by the lowest number that no living worker has."""
    taken = {other.metrics_process for other in server.WORKERS.values()}
    worker.metrics_process = next(name for name in map(str, count(1)) if name not in taken)
    os.environ["TODO_METRICS_PROCESS"] = worker.metrics_process


def child_exit(_server: Any, worker: Any) -> None:
    """Take a worker's connections out of the figures; what it has counted stays, and its successor goes on with it."""
    if settings.metrics_token is None:
        return
    # Not before on_starting(): when imported, it looks whether there are several processes.
    from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415

    # gunicorn would end with an OSError.
    with suppress(OSError):
        mark_process_dead(worker.metrics_process)
        # todo/figures.py; not to be imported here, where a HUP would not load it anew.
        Path(os.environ["PROMETHEUS_MULTIPROC_DIR"], f"unseen_{worker.metrics_process}").unlink(missing_ok=True)


def post_worker_init(worker: Any) -> None:
    """Ask a new worker in the background whether it is ready: what stands in the way is in the log from the start.

    It is a request like any other, and counted as one.
    """
    Thread(target=worker.wsgi.test_client().get, args=("/health/ready",), daemon=True).start()


class Logger(glogging.Logger):  # type: ignore[misc]  # gunicorn bears no types
    """gunicorn's logger, but that it writes of requests only where it is asked to (--access-logfile, --log-syslog).

    Whatever it writes, nobody's token, title or search is in it.
    """

    def access(self, *arguments: Any) -> None:
        """Write of a request. For the sake of a logconfig_dict gunicorn would put a line together that goes nowhere."""
        if self.cfg.accesslog or self.cfg.syslog:
            super().access(*arguments)

    def atoms(self, response: Any, request: Any, environ: dict[str, Any], *arguments: Any) -> dict[str, Any]:
        """What an access line is made of: the request line without its query or fragment."""
        target = re.split("[?#]", environ["RAW_URI"], maxsplit=1)[0]
        line = f"{environ['REQUEST_METHOD']} {target} {environ['SERVER_PROTOCOL']}"
        return {**super().atoms(response, request, environ, *arguments), "r": line}

    def warning(self, message: str, *arguments: Any, **options: Any) -> None:
        """Write a warning. Of what is no HTTP: where it came from and what is wrong, not the quotation."""
        if message.startswith("Invalid request from "):
            message = ": ".join(message.split(": ")[:2])
        super().warning(message, *arguments, **options)


# With --statsd-host, gunicorn's own must be named, whose access lines have the query, if asked for:
# --logger-class gunicorn.instrument.statsd.Statsd
logger_class = Logger
