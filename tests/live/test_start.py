"""How gunicorn starts and reloads the service: from which folder, with which arguments, onto which code."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.live import Server, free_port, gunicorn, running
from tests.support import PATIENCE, ROOT, SECRET, as_superuser, empty_database, sql, wait_until

PROVIDER = """
from todo.identity import Identity

def identify(request):
    return Identity("alice")
"""


@pytest.fixture
def url(sqlite: URL) -> URL:
    """A migrated database."""
    return sqlite


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the service, to be changed."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "todo", copy / "todo", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("config.py", "gunicorn.conf.py", "wsgi.py"):
        shutil.copy(ROOT / name, copy / name)
    (copy / "provider.py").write_text(PROVIDER)
    return copy


class Load:
    """Requests one after the other, each on a connection of its own, while code is changed."""

    def __init__(self, server: Server) -> None:
        self.answers: Counter[tuple[int, str]] = Counter()
        self._server = server
        self._is_over = threading.Event()

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """While the block is carried out."""
        thread = threading.Thread(target=self._work)
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            thread.join()

    def _work(self) -> None:
        while not self._is_over.is_set():
            try:
                status, body = self._server.request("GET", "/api/alice/tasks/1")
            except OSError as error:
                status, body = 0, {"error": str(error)}
            self.answers[status, body["error"]] += 1


def hang_up(server: Server) -> None:
    """Ask the server to reload."""
    os.kill(server.process.pid, signal.SIGHUP)


def wait_for_line(server: Server, text: str, count: int) -> str:
    """The last line of the log that has that text, once there are so many."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        lines = [line for line in server.log.read_text().splitlines() if text in line]
        if len(lines) == count:
            return lines[-1]
        time.sleep(0.05)
    raise AssertionError(server.log.read_text())


#: A file, what it becomes, and what is then in the log.
BROKEN = [
    ("todo/tasks/views.py", "def broken(:\n", "SyntaxError in {file}, line "),
    ("wsgi.py", f"raise OSError('{SECRET}')\n", "todo: the app does not load: OSError in {file}, line "),
    ("wsgi.py", f"raise SystemExit('{SECRET}')\n", "todo: the app does not load: SystemExit in {file}, line "),
    (
        "gunicorn.conf.py",
        f"raise OSError('{SECRET}')\n",
        "Failed to read config file: {file}\nOSError in {file}, line ",
    ),
    ("gunicorn.conf.py", "workers = 'many'\n", "Invalid value for workers: many"),
    ("gunicorn.conf.py", "preload_app = True\n", "todo: --preload is not supported"),
    ("config.py", "def load_settings(environ): raise ConfigurationError('X is not set')\n", "todo: X is not set"),
    ("provider.py", f"raise OSError('{SECRET}')\n", "=provider:identify cannot be loaded: OSError in {file}, line "),
    ("provider.py", "import os\nos.kill(os.getpid(), 9)\n", ""),
    ("provider.py", "import time\ntime.sleep(600)\n", "the app was not loaded within 8 s"),
]


def test_a_hangup_onto_what_does_not_load_leaves_the_workers_as_they_are(copy: Path, url: URL, tmp_path: Path) -> None:
    """And the next one, once that is mended, brings all of the new code, config.py too."""
    log, arguments = tmp_path / "log", ("--timeout", "8")
    with gunicorn(url, log, arguments=arguments, cwd=copy, IDENTITY_PROVIDER="provider:identify") as live:
        live.wait_for_workers()
        load, workers = Load(live), set(live.workers())
        with load.going_on():
            for number, (name, text, reason) in enumerate(BROKEN, start=1):
                good = (copy / name).read_text()
                (copy / name).write_text(f"{good}\n{text}")
                hang_up(live)
                wait_for_line(live, "Not reloaded, the workers keep running: ", number)
                said = log.read_text().rpartition("Not reloaded")[2]
                assert reason.format(file=copy / name) in said, said
                assert set(live.workers()) == workers
                (copy / name).write_text(good)
            errors, config = copy / "todo/errors.py", copy / "config.py"
            config.write_text(config.read_text() + "\nNOT_FOUND = 'No task of that id'\n")
            errors.write_text(
                "from config import NOT_FOUND\n" + errors.read_text().replace('"Task not found"', "NOT_FOUND")
            )
            hang_up(live)
            live.wait_for_new_workers(workers)
            assert live.request("GET", "/api/alice/tasks/1") == (404, {"error": "No task of that id"})
    assert SECRET not in log.read_text()
    assert set(load.answers) == {(404, "Task not found"), (404, "No task of that id")}
    print(f"{len(BROKEN) + 1} hangups under {sum(load.answers.values())} requests, none failed")


def test_it_ends_while_code_is_on_trial(copy: Path, url: URL, tmp_path: Path) -> None:
    with gunicorn(url, tmp_path / "log", cwd=copy, IDENTITY_PROVIDER="provider:identify") as live:
        live.wait_for_workers()
        (copy / "provider.py").write_text(f"{PROVIDER}\nimport time\ntime.sleep(600)\n")
        hang_up(live)
        wait_until(lambda: len(live.workers()) == 3)
        time.sleep(0.2)
        # This one waits for the first. It must not put the code on trial again.
        hang_up(live)
        time.sleep(0.2)
        os.kill(live.process.pid, signal.SIGTERM)
        assert live.process.wait(10) == 0
    assert "Not reloaded" not in live.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_a_worker_that_is_told_to_end_just_after_its_fork_ends(
    copy: Path, url: URL, tmp_path: Path, number: signal.Signals
) -> None:
    """It does not yet handle signals itself then, here for two seconds."""
    with (copy / "gunicorn.conf.py").open("a") as file:
        file.write("\nhook = post_fork\ndef post_fork(server, worker):\n    sleep(2)\n    hook(server, worker)\n")
    with gunicorn(url, tmp_path / "log", cwd=copy, IDENTITY_PROVIDER="provider:identify") as live:
        live.wait_for_workers()
        is_reload = number == signal.SIGHUP
        os.kill(live.process.pid if is_reload else live.workers()[0], number)
        wait_for_line(live, "Booting worker", 4 if is_reload else 3)
        os.kill(live.process.pid, signal.SIGTERM)
        assert live.process.wait(10) == 0
    # A worker that starts asks itself whether it is ready.
    assert "/health/ready" not in live.log.read_text().rpartition("Handling signal: term")[2]


def test_a_worker_that_dies_while_the_code_does_not_load_takes_nobody_along(
    copy: Path, url: URL, tmp_path: Path
) -> None:
    """The log says why, but not in the words of the error, which may quote a secret."""
    provider, wsgi, log = copy / "provider.py", copy / "wsgi.py", tmp_path / "log"
    with gunicorn(url, log, cwd=copy, IDENTITY_PROVIDER="provider:identify") as live:
        live.wait_for_workers()
        victim, other = live.workers()
        good = wsgi.read_text()
        provider.write_text(f"raise OSError('{SECRET}')\n")
        load = Load(live)
        os.kill(victim, signal.SIGKILL)
        wait_for_line(live, "The app does not load; again in 5 s: the line before says why", 1)
        wait_for_line(live, f"IDENTITY_PROVIDER=provider:identify cannot be loaded: OSError in {provider}, line 1", 1)
        wsgi.write_text(f"raise OSError('{SECRET}')\n")
        with load.going_on():
            # The second attempt.
            wait_for_line(live, f"The app does not load; again in 5 s: OSError in {wsgi}, line 1", 1)
        assert other in live.workers()
        provider.write_text(PROVIDER)
        wsgi.write_text(good)
        live.wait_for_workers(3)
        assert len(live.workers()) == 2
    assert SECRET not in log.read_text()
    assert set(load.answers) == {(404, "Task not found")}


def test_why_code_does_not_load_is_one_line_of_json_each_time(copy: Path, url: URL, tmp_path: Path) -> None:
    with gunicorn(url, tmp_path / "log", arguments=["--graceful-timeout", "1"], cwd=copy, LOG_FORMAT="json") as live:
        live.wait_for_workers()
        (copy / "wsgi.py").write_text(f"raise OSError('{SECRET}')\n")
        hang_up(live)
        lines = [wait_for_line(live, "Not reloaded, the workers keep running: todo: the app does not load", 1)]
        os.kill(live.workers()[0], signal.SIGKILL)
        lines.append(wait_for_line(live, "The app does not load; again in 5 s", 1))
    for line in map(json.loads, lines):
        assert line["level"] == "ERROR"
        assert line["message"].endswith(f": OSError in {copy / 'wsgi.py'}, line 1")
    assert SECRET not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("arguments", "environ"),
    [
        (["--pythonpath", "{beside}", "--chdir", "{copy}", "--config", "{copy}/gunicorn.conf.py"], {}),
        (["--pythonpath", "{beside}", "--config", "{copy}/gunicorn.conf.py"], {}),
        (["--pythonpath", "{beside}", "--config", "{copy}/gunicorn.conf.py"], {"PYTHONSAFEPATH": "1"}),
        (["--config", "{copy}/gunicorn.conf.py", "--chdir", "{beside}"], {}),
        ([], {"GUNICORN_CMD_ARGS": "--config {copy}/gunicorn.conf.py --pythonpath {beside}"}),
    ],
    ids=["chdir", "config", "safe path", "a provider in the folder of chdir", "arguments in the environment"],
)
def test_it_starts_from_another_folder_with_a_provider_of_yet_another(
    copy: Path, url: URL, tmp_path: Path, arguments: list[str], environ: dict[str, str]
) -> None:
    """And reloads there."""
    elsewhere, beside = tmp_path / "elsewhere", tmp_path / "beside"
    elsewhere.mkdir()
    beside.mkdir()
    (copy / "provider.py").rename(beside / "provider.py")
    whole = [argument.format(copy=copy, beside=beside) for argument in arguments]
    environ = {name: value.format(copy=copy, beside=beside) for name, value in environ.items()}
    log = tmp_path / "log"
    with gunicorn(url, log, arguments=whole, cwd=elsewhere, IDENTITY_PROVIDER="provider:identify", **environ) as live:
        workers = set(live.workers())
        # gunicorn.conf.py says so; gunicorn itself would start one.
        assert len(workers) == 2
        assert live.request("GET", "/api/alice/tasks") == (200, [])
        hang_up(live)
        live.wait_for_new_workers(workers)
        assert live.request("GET", "/api/alice/tasks") == (200, [])


def test_it_starts_on_a_safe_path_in_its_own_folder(copy: Path, url: URL, tmp_path: Path) -> None:
    with gunicorn(url, tmp_path / "log", cwd=copy, IDENTITY_PROVIDER="provider:identify", PYTHONSAFEPATH="1") as live:
        assert live.request("GET", "/api/alice/tasks") == (200, [])


def refusal(url: URL, *arguments: str, cwd: Path, **environ: str) -> list[str]:
    """What gunicorn says when it is started so, and ends with an error."""
    settings = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": url.render_as_string(hide_password=False),
        "IDENTITY_PROVIDER": "jwt",
        "JWT_SECRET": SECRET,
        **environ,
    }
    command = [sys.executable, "-m", "gunicorn", "wsgi:app", *arguments]
    result = subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()


UNREAD = "todo: gunicorn has not read gunicorn.conf.py: start it in the project folder, or name the file with --config"
PRELOAD = "todo: --preload is not supported: a HUP would bring no new code, and /metrics would miss workers"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_start_onto_what_does_not_load_says_where_and_not_what(copy: Path, url: URL, log_format: str) -> None:
    (copy / "wsgi.py").write_text(f"raise OSError('{SECRET}')\n")
    (line,) = refusal(url, cwd=copy, LOG_FORMAT=log_format, PORT=str(free_port()))
    says = f"the app does not load: OSError in {copy / 'wsgi.py'}, line 1"
    assert (json.loads(line)["message"] if log_format == "json" else line.removeprefix("todo: ")) == says


@pytest.mark.parametrize(
    ("arguments", "environ", "says"),
    [
        ([], {"PORT": "65536"}, "PORT must be a number from 1 to 65535"),
        ([], {"IDENTITY_PROVIDER": "nothing:x"}, "IDENTITY_PROVIDER=nothing:x cannot be loaded: "),
        (["--preload"], {}, PRELOAD.removeprefix("todo: ")),
    ],
    ids=["a setting", "what the app needs", "an option"],
)
def test_a_refusal_is_one_line_of_json(
    copy: Path, url: URL, arguments: list[str], environ: dict[str, str], says: str
) -> None:
    (line,) = refusal(url, *arguments, cwd=copy, LOG_FORMAT="json", **{"PORT": str(free_port())} | environ)
    found = json.loads(line)
    assert found["message"].startswith(says)
    assert (found["level"], found["logger"], found.keys()) == (
        "CRITICAL",
        "todo",
        {"time", "level", "logger", "message"},
    )


def test_it_refuses_to_be_preloaded(copy: Path, url: URL, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    assert refusal(url, "--preload", "--pid", str(pid), cwd=copy, PORT=str(free_port())) == [PRELOAD]
    assert not pid.exists()


@pytest.mark.parametrize("arguments", [["--chdir", "{copy}"], ["--pythonpath", "{copy}"]], ids=" ".join)
def test_it_refuses_a_gunicorn_without_its_settings(copy: Path, url: URL, tmp_path: Path, arguments: list[str]) -> None:
    whole = [argument.format(copy=copy) for argument in arguments]
    assert UNREAD in refusal(url, *whole, cwd=tmp_path, PORT=str(free_port()))


@pytest.mark.parametrize("workers", ["x", "", "2.5"])
def test_a_number_of_workers_that_is_none_is_refused_by_gunicorn_itself(copy: Path, workers: str) -> None:
    """Before it reads gunicorn.conf.py, as docs/settings.md says. If a new gunicorn does not, correct the page."""
    environ = {"PATH": os.environ["PATH"], "WEB_CONCURRENCY": workers}
    command = [sys.executable, "-m", "gunicorn", "wsgi:app"]
    result = subprocess.run(command, cwd=copy, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode != 0
    assert 'os.environ.get("WEB_CONCURRENCY"' in result.stderr
    assert result.stderr.splitlines()[-1].startswith("ValueError: ")


def test_gunicorn_refuses_a_port_that_is_none(url: URL) -> None:
    assert refusal(url, cwd=ROOT, PORT="65536") == ["todo: PORT must be a number from 1 to 65535"]


@pytest.mark.parametrize("in_environment", [True, False])
def test_make_run_refuses_a_port_that_is_none(tmp_path: Path, in_environment: bool) -> None:
    environ = {"PATH": os.environ["PATH"], "MAKEFLAGS": "--old-file=.venv/installed --no-print-directory"}
    # Another Python would replace the virtual environment that runs this.
    command = ["make", "run", f"PYTHON={sys.executable}"]
    if in_environment:
        environ["PORT"] = "65536"
    else:
        command.append("PORT=65536")
    result = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode != 0
    assert "todo: PORT must be a number from 1 to 65535" in result.stderr.splitlines()
    assert "Traceback" not in result.stderr


def wait_for_text(live: Server, text: str, seconds: float = PATIENCE) -> bool:
    """Whether the log has that text within so many seconds. Nobody asks whether the service is ready."""
    deadline = time.monotonic() + seconds
    while text not in live.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    return text in live.log.read_text()


def test_it_says_at_its_start_that_the_role_bypasses_the_policies(postgresql: URL, tmp_path: Path) -> None:
    warning = "row-level security is bypassed"
    with gunicorn(as_superuser(postgresql), tmp_path / "log", ready="/health/live", WEB_CONCURRENCY="1") as live:
        assert wait_for_text(live, warning)
    assert live.log.read_text().count(warning) == 1
    with gunicorn(postgresql, tmp_path / "bound", ready="/health/live", WEB_CONCURRENCY="1") as live:
        assert not wait_for_text(live, warning, seconds=1)


def test_it_says_at_its_start_what_the_database_lacks(sqlite: URL, tmp_path: Path) -> None:
    sql(sqlite, "ALTER TABLE tasks RENAME COLUMN description TO elsewhere")
    with gunicorn(sqlite, tmp_path / "log", ready="/health/live", WEB_CONCURRENCY="1") as live:
        assert wait_for_text(live, "The database lacks tables or columns: table tasks: ")


def test_the_commands_of_the_procfile_migrate_and_serve(server: URL, copy: Path, tmp_path: Path) -> None:
    """Those of a platform, whose shell runs them. The release prefers the direct address."""
    release, web = re.findall(r"^(?:release|web): (.*)$", (ROOT / "Procfile").read_text(), re.MULTILINE)
    shutil.copytree(ROOT / "migrations", copy / "migrations", ignore=shutil.ignore_patterns("__pycache__"))
    port, nowhere = free_port(), "postgresql://todo@127.0.0.1:1/todo"
    environ = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PORT": f"{port}"}
    environ |= {"IDENTITY_PROVIDER": "jwt", "JWT_SECRET": SECRET}
    with empty_database("postgresql", server) as url:
        address = url.render_as_string(hide_password=False)
        released = ["sh", "-c", release]
        for addresses, status in (
            ({"DATABASE_URL": nowhere}, 1),
            ({"DATABASE_URL": nowhere, "DATABASE_URL_UNPOOLED": address}, 0),
            ({"DATABASE_URL": address}, 0),
        ):
            result = subprocess.run(released, cwd=copy, env=environ | addresses, capture_output=True, check=False)
            assert result.returncode == status, result.stderr
        environ |= {"DATABASE_URL": address, "WEB_CONCURRENCY": "1"}
        with running(["sh", "-c", f"exec {web}"], port, environ, tmp_path / "log", copy) as live:
            assert live.request("POST", "/api/alice/tasks", json={"title": "x"})[0] == 201
