"""How gunicorn runs the service; it reads this file by itself when started in the project folder."""

import atexit
import mmap
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from contextlib import suppress
from itertools import count
from pathlib import Path
from threading import Thread
from time import sleep
from typing import Any

from gunicorn import glogging

# gunicorn may have been started in another folder, and --config may name this file.
if (folder := str(Path(__file__).resolve().parent)) not in sys.path:
    sys.path.insert(0, folder)
# config.py tells by this whether gunicorn has read this file.
os.environ["TODO_GUNICORN_CONF"] = folder
# Not kept by this process: a HUP reads this file again, and new workers are to load a new config.py too.
sys.modules.pop("config", None)
from config import ConfigurationError, load_settings, logging_config  # noqa: E402

del sys.modules["config"]

try:
    settings = load_settings(os.environ)
except ConfigurationError as error:
    sys.exit(f"todo: {error}")

worker_class = "gthread"
# A container may see far more cores than it may use, hence the ceiling.
workers = settings.workers or max(2, min(os.cpu_count() or 1, 4))
# Each worker's connection pool is as large as this (todo/db/connections.py): no thread waits for a connection.
threads = settings.threads
# Every worker loads the code by itself: that is what makes a HUP bring new code, and the figures of all workers add up.
preload_app = False

# A worker that shows no life for this long is replaced. What a request may take is bounded by the database
# deadline (todo/db/connections.py), far below.
timeout = 30
# Where the workers touch a file to show life, and keep their figures: in memory where there is such a folder. gunicorn
# itself ends when it cannot make that file.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 (by names that nobody can guess)
graceful_timeout = 30
keepalive = 5
# Room for a cursor and a long ?q= ; gunicorn itself answers 414 beyond.
limit_request_line = 8190
# By default a request may say SCRIPT_NAME in a header, and so where links lead. Only the environment says it.
forwarder_headers = ""

# On by default at a path per user, where two instances collide.
control_socket_disable = True
logconfig_dict = logging_config(settings)
# gunicorn's own has the name of Basic credentials, the referrer, which is an address with its query, and what the
# client says of itself.
access_log_format = '%(h)s %(t)s "%(r)s" %(s)s %(B)s %(L)s'


# Seconds until a worker that could not load the app is replaced by another.
ANOTHER_LOAD = 5


def nworkers_changed(server: Any, _new: int, old: int | None) -> None:
    """Load the app once before anything else, and before each HUP. The earliest hook: old is None in the first call.

    What the settings alone do not tell (a key that is none, a provider that cannot be imported) ends the start with its
    one line. A HUP onto code or settings that do not load is logged, and the workers go on as they are: gunicorn itself
    would end with the first new worker.
    """
    if old is not None:
        return
    status, said = _trial(server, is_reload=False)
    if status:
        sys.stderr.write(said)
        sys.exit(status)
    reload = server.reload

    def reload_if_it_loads() -> None:
        status, said = _trial(server, is_reload=True)
        if status:
            server.log.error("Not reloaded, the workers go on as they are: %s", said.strip())
        else:
            reload()

    server.reload = reload_if_it_loads
    # Shared with the workers: whether one of them has loaded the app.
    server.has_loaded = mmap.mmap(-1, 1)


def _trial(server: Any, *, is_reload: bool) -> tuple[int, str]:
    """Load the app in a process of its own: its exit status, and what it says.

    Forked from this one, like a worker, so that it sees what a worker will see: --chdir, --pythonpath, the packages
    that this process has imported before.
    """
    try:
        reading, writing = os.pipe()
        process = multiprocessing.get_context("fork").Process(target=_load, args=(server, is_reload, writing))
        process.start()
    except OSError as error:
        return 1, f"todo: no process for a trial: {error.strerror}"
    os.close(writing)
    # gunicorn would end a worker that takes longer than this.
    process.join(server.cfg.timeout or None)
    timed_out = process.is_alive()
    process.kill()
    process.join()
    os.set_blocking(reading, False)
    with open(reading, "rb", buffering=0) as pipe:
        said = (pipe.read(65536) or b"").decode(errors="replace")
    if timed_out:
        said += f"todo: the app was not loaded within {server.cfg.timeout} s\n"
    return process.exitcode or 0, said


def _load(server: Any, is_reload: bool, output: int) -> None:
    os.dup2(output, 1)
    os.dup2(output, 2)
    # The workers will say again what there is to be warned of, and what this process counts is not to be added.
    os.environ["LOG_LEVEL"] = "CRITICAL"
    for name in ("PROMETHEUS_MULTIPROC_DIR", "TODO_METRICS_PROCESS"):
        os.environ.pop(name, None)
    for name in [name for name in sys.modules if name.startswith("prometheus_client")]:
        del sys.modules[name]
    if is_reload:
        server.app.reload()
        server.setup(server.app)
    if server.cfg.preload_app:
        sys.exit("todo: --preload is not supported: a HUP would bring no new code, and /metrics would miss workers")
    server.app.wsgi()


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


def post_fork(server: Any, worker: Any) -> None:
    """Let a worker that replaces another try again where the code does not load any more, for as long as that takes.

    gunicorn would end, and with it the workers that still serve.
    """
    load = worker.load_wsgi

    def load_or_try_again() -> None:
        try:
            load()
        except (Exception, SystemExit):
            if not server.has_loaded[0]:
                raise
            worker.log.exception("The app does not load; again in %s s", ANOTHER_LOAD)
            sleep(ANOTHER_LOAD)
            # One that gunicorn does not end for.
            sys.exit(1)
        server.has_loaded[0] = 1

    worker.load_wsgi = load_or_try_again


def child_exit(_server: Any, worker: Any) -> None:
    """Take a worker's connections out of the figures; what it has counted stays, and its successor goes on with it."""
    if settings.metrics_token is None:
        return
    # Not before on_starting(): when imported, it looks whether there are several processes.
    from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415

    # gunicorn would end with an OSError.
    with suppress(OSError):
        mark_process_dead(worker.metrics_process)
        # todo/web/metrics_files.py; not to be imported here, where a HUP would not load it anew.
        Path(os.environ["PROMETHEUS_MULTIPROC_DIR"], f"unseen_{worker.metrics_process}").unlink(missing_ok=True)


def post_worker_init(worker: Any) -> None:
    """Ask a new worker in the background whether it is ready: what stands in the way is in the log from the start.

    It is a request like any other, and counted as one. Likewise the key set is fetched, where there is one.
    """
    worker.wsgi.extensions["fetch_keys"]()
    Thread(target=worker.wsgi.test_client().get, args=("/health/ready",), daemon=True).start()


def pre_request(_worker: Any, request: Any) -> None:
    """Put SCRIPT_NAME before the path if the proxy has removed it: gunicorn answers 500 to a path without it."""
    prefix = settings.script_name
    if prefix and not f"{request.path}/".startswith(f"{prefix}/"):
        request.path = prefix + request.path


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
