"""How gunicorn runs the service. gunicorn reads this file by itself if it starts in the project folder."""

import atexit
import mmap
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import traceback
from array import array
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from threading import Thread
from time import sleep
from typing import Any

from gunicorn import glogging
from gunicorn.workers import gthread

# gunicorn may have started in another folder, with --config.
if (folder := str(Path(__file__).resolve().parent)) not in sys.path:
    sys.path.insert(0, folder)
# Tells config.py that gunicorn has read this file.
os.environ["TODO_GUNICORN_CONF"] = folder
# Not kept in this process: a HUP reads this file again, and its workers must load the new config.py.
sys.modules.pop("config", None)
from config import (  # noqa: E402
    SPARE_THREADS,
    ConfigurationError,
    kind_and_place,
    load_settings,
    logging_config,
    refusal,
)

del sys.modules["config"]

try:
    settings = load_settings(os.environ)
except ConfigurationError as error:
    sys.exit(refusal(str(error), os.environ))

# At most 4: a container may see far more cores than it may use.
workers = settings.workers or max(2, min(os.cpu_count() or 1, 4))
threads = settings.threads + SPARE_THREADS
# Each worker loads the code itself. Otherwise a HUP would not load new code, and /metrics would miss workers.
preload_app = False

# A worker without a heartbeat for this long is replaced. The time of a request is limited by the database deadline
# (todo/db/connections.py), far below.
timeout = 30
# For the heartbeat files of the workers, and their metrics: in memory if possible. gunicorn ends if it cannot create
# a heartbeat file.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 (with unguessable names)
# Some platforms grant 10 s. After this time gunicorn closes what is left, for example the connection of a client that
# has sent half a body, and a busy machine needs the rest to end. Longer than a request takes, unless the database is
# silent: then it would be a 503 after 9 s.
graceful_timeout = 8
keepalive = 5
# Enough for a cursor and a long ?q= . gunicorn answers 414 to a longer line.
limit_request_line = 8190
# By default a header of the request can set SCRIPT_NAME, and so change links. Only the environment may.
forwarder_headers = ""

# Its default path is per user, so that two instances would collide.
control_socket_disable = True
logconfig_dict = logging_config(settings)
# The default format contains the user name of Basic credentials, the referrer with its query, and the user agent.
access_log_format = '%(h)s %(t)s "%(r)s" %(s)s %(B)s %(L)s'

# A worker that has MANY connections more than another one leaves it a new one: it waits up to TURNS times TURN seconds.
MANY, TURNS, TURN = 4, 5, 0.001
# How many workers share connections evenly, and the number of connections of a worker that accepts none.
SHARING, NONE = 64, 0xFFFFFFFF
# The signals that end gunicorn.
ENDS = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}
# Seconds until a worker that could not load the app is replaced.
ANOTHER_LOAD = 5


class ThreadWorker(gthread.ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's worker with threads, except that the workers share connections evenly.

    They all wait at the same socket. Without this, one worker often takes all connections that a proxy opens at once,
    and keeps them: the others have nothing to do, while its threads wait for each other.
    """

    def accept(self, listener: Any) -> None:
        """Accept a connection, unless a worker that has fewer takes it first."""
        for _ in range(TURNS):
            if self.nr_conns < min(self.connections) + MANY:
                break
            sleep(TURN)
        super().accept(listener)

    def notify(self) -> None:
        """Tell gunicorn that this worker lives, and the other workers how many connections it has.

        gunicorn calls this before each wait for events, so also after each new connection.
        """
        self.connections[_place(self)] = self.nr_conns if self.alive else NONE
        super().notify()


worker_class = ThreadWorker


def _place(worker: Any) -> int:
    """Return where `connections`, which all workers share, has the number of this worker's connections."""
    return int(worker.metrics_process) % SHARING


class EndOfReload(Exception):
    """A signal to end arrived during a reload."""


def nworkers_changed(server: Any, _new: int, old: int | None) -> None:
    """Load the app on trial, at the start and before each HUP. This is the earliest hook: at first, old is None.

    If the app does not load (an invalid key, a provider that cannot be imported), the start ends with one line. A HUP
    is then only logged, and the workers continue: without this, gunicorn would end with the first new worker.
    """
    if old is not None:
        return
    # Some platforms send SIGINT. gunicorn would cut the requests in progress.
    server.handle_int = server.handle_term
    status, said = _trial(server, is_reload=False)
    if status:
        is_text = settings.log_format == "text"
        sys.stderr.write(said if is_text else refusal(said.strip().removeprefix("todo: "), os.environ) + "\n")
        sys.exit(status)
    _limit_reloads(server)
    # Shared with the workers: 1 once one of them has loaded the app.
    server.has_loaded = mmap.mmap(-1, 1)


def _limit_reloads(server: Any) -> None:
    """Reload only what loads on trial, and end during a reload as soon as at any other time."""
    reload, reap_workers = server.reload, server.reap_workers
    server.is_ending = False
    # gunicorn's handler of all signals. It only queues them.
    server.signal = _noting_ends(server, server.signal)

    def reap_workers_until_end() -> None:
        reap_workers()
        if server.is_ending:
            raise EndOfReload

    def reload_if_it_loads() -> None:
        # A signal to end may have come before this one, or during the trial.
        if server.is_ending:
            return
        status, said = _trial(server, is_reload=True)
        if server.is_ending:
            return
        if status:
            server.log.error("Not reloaded, the workers keep running: %s", said.strip())
            return
        # gunicorn waits for the old workers, and notices no other signal until then. It calls this each time.
        server.reap_workers = reap_workers_until_end
        try:
            reload()
        except EndOfReload:
            server.log.info("The reload ends early")
        finally:
            server.reap_workers = reap_workers

    server.reload = reload_if_it_loads


def _noting_ends(server: Any, queue: Callable[[int, Any], None]) -> Callable[[int, Any], None]:
    """A handler of signals that calls `queue`, and notes at once when gunicorn is to end. Workers inherit it."""

    def note_end(number: int, frame: Any) -> None:
        if number in ENDS:
            if os.getpid() != server.pid:
                # A worker that was just forked, and has no handlers of its own yet. If it only queued the signal, it
                # would serve until gunicorn kills it, in the middle of its answers.
                os._exit(0)
            server.is_ending = True
            # A trial may take as long as a start may.
            for trial in multiprocessing.active_children():
                trial.kill()
        queue(number, frame)

    return note_end


def _trial(server: Any, *, is_reload: bool) -> tuple[int, str]:
    """Load the app in a separate process. Returns its exit status and its output.

    The process is forked like a worker, so that it has what a worker will have: --chdir, --pythonpath, and the packages
    that this process has imported.
    """
    try:
        reading, writing = os.pipe()
        process = multiprocessing.get_context("fork").Process(target=_load, args=(server, is_reload, writing))
        process.start()
    except OSError as error:
        return 1, f"todo: the app cannot be loaded on trial: {error.strerror}"
    os.close(writing)
    # gunicorn ends a worker that takes longer.
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
    # The workers log the warnings, and /metrics must not include this process.
    os.environ["LOG_LEVEL"] = "CRITICAL"
    # What it says becomes a part of one line.
    os.environ["LOG_FORMAT"] = "text"
    for name in ("PROMETHEUS_MULTIPROC_DIR", "TODO_METRICS_PROCESS"):
        os.environ.pop(name, None)
    for name in [name for name in sys.modules if name.startswith("prometheus_client")]:
        del sys.modules[name]
    # gunicorn prints why it cannot read this file, with the message, which may quote a secret.
    traceback.print_exc = _print_kind_and_place  # type: ignore[assignment]  # it ignores the arguments
    if is_reload:
        server.app.reload()
        server.setup(server.app)
    if server.cfg.preload_app:
        sys.exit("todo: --preload is not supported: a HUP would bring no new code, and /metrics would miss workers")
    try:
        server.app.wsgi()
    except (Exception, SystemExit) as error:
        if _is_refusal(server, error):
            raise
        sys.exit(f"todo: the app does not load: {kind_and_place(error)}")


def _print_kind_and_place(*_: Any) -> None:
    if (error := sys.exception()) is not None:
        print(kind_and_place(error), file=sys.stderr)


def _is_refusal(server: Any, error: BaseException) -> bool:
    """Whether create_app() ended the process. It has printed why, and its words are clean."""
    return isinstance(error, SystemExit) and error.code == server.APP_LOAD_ERROR


def on_starting(server: Any) -> None:
    """Create the folder where the workers share their metrics, if /metrics is on.

    It exists as long as this process. A HUP does not call this hook, so that counts survive it.
    """
    if settings.metrics_token is None:
        return
    try:
        folder = tempfile.mkdtemp(prefix="todo-metrics-", dir=server.cfg.worker_tmp_dir)
        os.chown(folder, server.cfg.uid, server.cfg.gid)
    except OSError as error:
        server.log.error("metrics: the folder for the workers cannot be created (%s)", error.strerror)
        # No file can be created there: each worker counts in memory, and logs that.
        folder = os.devnull
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    atexit.register(_remove, folder, os.getpid())


def _remove(folder: str, owner: int) -> None:
    # The workers are forks, and call this too.
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def pre_fork(server: Any, worker: Any) -> None:
    """Name a worker, also in /metrics: the lowest number that no running worker has."""
    taken = {other.metrics_process for other in server.WORKERS.values()}
    worker.metrics_process = next(name for name in map(str, count(1)) if name not in taken)
    os.environ["TODO_METRICS_PROCESS"] = worker.metrics_process
    # An attribute of gunicorn: a HUP may load this file in the place of an older one, without it.
    if not hasattr(server, "connections"):
        server.connections = memoryview(mmap.mmap(-1, 4 * SHARING)).cast("I")
        server.connections[:] = array("I", [NONE] * SHARING)
    worker.connections = server.connections


def post_fork(server: Any, worker: Any) -> None:
    """Let a replacement worker try again if the code no longer loads, until it does.

    Without this gunicorn would end, with the workers that still serve. The log has the kind and place of the error:
    gunicorn's own line would have its message, which may quote a secret.
    """
    load = worker.load_wsgi

    def load_or_try_again() -> None:
        try:
            load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 (whatever the code raises)
            reason = "the line before says why" if _is_refusal(server, error) else kind_and_place(error)
            if not server.has_loaded[0]:
                worker.log.critical("The app does not load: %s", reason)
                sys.exit(server.APP_LOAD_ERROR)
            worker.log.error("The app does not load; again in %s s: %s", ANOTHER_LOAD, reason)
            sleep(ANOTHER_LOAD)
            # gunicorn continues after this status.
            sys.exit(1)
        server.has_loaded[0] = 1

    worker.load_wsgi = load_or_try_again


def child_exit(server: Any, worker: Any) -> None:
    """Forget a worker's connections, also in the metrics. Its counts stay there, and its successor adds to them."""
    server.connections[_place(worker)] = NONE
    if settings.metrics_token is None:
        return
    # Not before on_starting(): its import decides whether there are several processes.
    from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415

    # An OSError would end gunicorn.
    with suppress(OSError):
        mark_process_dead(worker.metrics_process)
        # See todo/web/metrics_files.py. Not imported here: a HUP would not load it again.
        Path(os.environ["PROMETHEUS_MULTIPROC_DIR"], f"unseen_{worker.metrics_process}").unlink(missing_ok=True)


def post_worker_init(worker: Any) -> None:
    """Ask a new worker in the background whether it is ready, so that problems are logged at the start.

    This is an ordinary request, and counted as one. The key set is fetched too, if there is one.
    """
    worker.wsgi.extensions["fetch_keys"]()
    Thread(target=worker.wsgi.test_client().get, args=("/health/ready",), daemon=True).start()


def pre_request(_worker: Any, request: Any) -> None:
    """Put SCRIPT_NAME before the path if the proxy has removed it. gunicorn answers 500 to a path without it."""
    prefix = settings.script_name
    if prefix and not f"{request.path}/".startswith(f"{prefix}/"):
        request.path = prefix + request.path


class Logger(glogging.Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's logger, which logs requests only with --access-logfile or --log-syslog.

    Its lines contain no token, title or search.
    """

    def access(self, *arguments: Any) -> None:
        """Log a request. With a logconfig_dict, gunicorn would format a line that nothing writes."""
        if self.cfg.accesslog or self.cfg.syslog:
            super().access(*arguments)

    def atoms(self, response: Any, request: Any, environ: dict[str, Any], *arguments: Any) -> dict[str, Any]:
        """The parts of an access line: the request line has neither query nor fragment."""
        target = re.split("[?#]", environ["RAW_URI"], maxsplit=1)[0]
        line = f"{environ['REQUEST_METHOD']} {target} {environ['SERVER_PROTOCOL']}"
        return {**super().atoms(response, request, environ, *arguments), "r": line}

    def warning(self, message: str, *arguments: Any, **options: Any) -> None:
        """Log a warning. For an invalid request: the address and the fault, without quoting the request."""
        if message.startswith("Invalid request from "):
            message = ": ".join(message.split(": ")[:2])
        super().warning(message, *arguments, **options)


# --statsd-host needs --logger-class gunicorn.instrument.statsd.Statsd, whose access lines contain the query.
logger_class = Logger
