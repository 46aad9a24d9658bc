"""The units in deploy/systemd, installed as docs/systemd.md says, on a machine whose first process is systemd."""

import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from threading import Event

import pytest
from sqlalchemy import URL

from tests.ecosystem.machine import Machine, booted
from tests.ecosystem.proxy import nginx
from tests.live import Server, free_port
from tests.live.pages import copy_project
from tests.live.wire import wire_to
from tests.support import ROOT, SECRET, empty_database, sql, token, wait_until

pytestmark = pytest.mark.ecosystem

PAGE = (ROOT / "docs/systemd.md").read_text()
(EXPOSURE,) = re.findall(r"rates its exposure with ([0-9.]+) of 10", PAGE)


@pytest.fixture(scope="module")
def port() -> int:
    """The port of the service, in place of 8000."""
    return free_port()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, port: int) -> Path:
    """What the machine has in /srv/todo."""
    copy = copy_project(tmp_path_factory.mktemp("machine") / "todo")
    shutil.rmtree(copy / ".venv")
    for name in ("todo.socket", "todo.service"):
        unit = copy / "deploy/systemd" / name
        unit.write_text(unit.read_text().replace("8000", f"{port}"))
    return copy


@pytest.fixture(scope="module")
def database(server: URL) -> Iterator[URL]:
    """An empty database."""
    with empty_database("postgresql", server) as url:
        yield url


@pytest.fixture(scope="module")
def machine(project: Path, database: URL, port: int) -> Iterator[Machine]:
    """The machine after the commands of the page."""
    with wire_to(database) as (_, reached), booted(project.parent, project) as machine:
        for commands in re.findall("```sh\n(.*?)```", PAGE, re.DOTALL):
            script = commands.replace("$(openssl rand -hex 32)", SECRET).replace("8000", f"{port}")
            script = script.replace("postgresql://todo:secret@127.0.0.1/todo", reached.render_as_string(False))
            printed = machine.do("/bin/bash", "-euc", script)
        assert '"row_level_security":"enforced"' in printed.splitlines()[-1]
        yield machine


@pytest.fixture
def live(machine: Machine, port: int, tmp_path: Path) -> Server:
    """The service on the machine."""
    return Server(machine.process, port, tmp_path / "log")


def main_process(machine: Machine) -> str:
    """The id of gunicorn's main process there."""
    return machine.do("systemctl", "show", "--property=MainPID", "--value", "todo.service").strip()


def test_the_units_are_valid(machine: Machine) -> None:
    units = [f"/etc/systemd/system/{path.name}" for path in sorted((ROOT / "deploy/systemd").iterdir())]
    assert machine.do("systemd-analyze", "verify", *units) == ""


@pytest.mark.parametrize("unit", ["todo.service", "todo-prune.service"])
def test_the_exposure_is_small(machine: Machine, unit: str) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", f"/etc/systemd/system/{unit}"]
    last = machine.do(*command).splitlines()[-1]
    assert re.search(rf"level for {unit}: ([0-9.]+) ", last)[1] == EXPOSURE


def test_the_restrictions_hold_in_the_running_service(machine: Machine) -> None:
    process = main_process(machine)
    status = dict(line.split(":\t", 1) for line in machine.do("cat", f"/proc/{process}/status").splitlines())
    user = machine.do("id", "--user", "todo").strip()
    assert status["Uid"].split() == [user] * 4
    assert (status["NoNewPrivs"], status["CapEff"], status["CapBnd"]) == ("1", "0" * 16, "0" * 16)
    assert status["Seccomp"] == "2"
    assert re.search(r"^Max core file size +0 +0 ", machine.do("cat", f"/proc/{process}/limits"), re.MULTILINE)
    inside = ["nsenter", f"--target={process}", "--mount", "--setuid", user, "--setgid", user]
    for path in ("/srv/todo/instance", "/etc/todo/written", "/var/lib/written"):
        assert "Read-only file system" in machine.run(*inside, "touch", path).stdout
    for path in ("/root", "/etc/todo/environment"):
        assert "Permission denied" in machine.run(*inside, "cat", path).stdout
    machine.do(*inside, "touch", "/tmp/written")
    assert "No such file" in machine.run("cat", "/tmp/written").stdout


def test_a_start_is_complete_when_a_worker_answers(machine: Machine, project: Path, live: Server) -> None:
    """It waits although gunicorn itself has started long before."""
    with changed(project / "wsgi.py", "import os, time\n\nif os.getppid() != 1:\n    time.sleep(3)\n"):
        started = time.monotonic()
        machine.do("systemctl", "restart", "todo.service")
        assert time.monotonic() - started > 3
        started = time.monotonic()
        assert live.request("GET", "/health/live")[0] == 200
        assert time.monotonic() - started < 2
    machine.do("systemctl", "restart", "todo.service")


@contextmanager
def changed(path: Path, first: str) -> Iterator[None]:
    """While this holds, the file begins with that text."""
    text = path.read_text()
    path.write_text(first + text)
    try:
        yield
    finally:
        path.write_text(text)


@contextmanager
def clients(port: int) -> Iterator[Counter[int | str]]:
    """While this holds, eight clients create and read tasks. They count what they get."""
    over, answers = Event(), Counter[int | str]()

    def call(number: int) -> None:
        user = f"user{number}"
        headers = {"Authorization": f"Bearer {token(user)}", "Content-Type": "application/json"}
        connection = HTTPConnection("127.0.0.1", port, timeout=15)
        while not over.is_set():
            for method, body in (("POST", '{"title": "x"}'), ("GET", None)):
                try:
                    connection.request(method, f"/api/{user}/tasks", body, headers)
                    response = connection.getresponse()
                    response.read()
                    answers[response.status] += 1
                except OSError as error:
                    answers[type(error).__name__] += 1
                    connection.close()
        connection.close()

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(call, number) for number in range(8)]
        yield answers
        over.set()
        for client in running:
            client.result()


def test_restarts_and_reloads_refuse_no_request(machine: Machine, database: URL, live: Server, tmp_path: Path) -> None:
    with nginx(live, tmp_path) as proxy, clients(proxy.port) as answers:
        processes = {main_process(machine)}
        for command in ("restart", "reload", "restart", "restart"):
            time.sleep(1)
            machine.do("systemctl", command, "todo.service")
            processes.add(main_process(machine))
        time.sleep(1)
    print(answers)
    assert len(processes) == 4
    assert set(answers) == {200, 201}
    assert sql(database, "SELECT count(*) FROM tasks WHERE user_id LIKE 'user%'") == [(answers[201],)]


def test_a_reload_onto_code_that_does_not_load_fails_and_changes_nothing(
    machine: Machine, project: Path, live: Server
) -> None:
    process = main_process(machine)
    with changed(project / "todo/tasks/views.py", "import nothing_of_that_name\n"):
        assert machine.run("systemctl", "reload", "todo.service").returncode != 0
        assert "nothing_of_that_name" in machine.do("journalctl", "--unit=todo.service", "--lines=20")
        assert live.request("GET", "/api/alice/tasks")[0] == 200
    assert main_process(machine) == process
    machine.do("systemctl", "reload", "todo.service")
    assert main_process(machine) == process


def test_killed_it_starts_again(machine: Machine, live: Server) -> None:
    process = main_process(machine)
    machine.do("kill", "-KILL", process)
    wait_until(lambda: main_process(machine) not in ("0", process), pause=0.1)
    assert live.request("GET", "/health/live")[0] == 200


def test_old_rows_are_deleted_once_a_day(machine: Machine) -> None:
    machine.do("systemctl", "start", "todo-prune.service")
    assert "idempotency keys" in machine.do("journalctl", "--unit=todo-prune.service", "--output=cat")
    assert "todo-prune.timer" in machine.do("systemctl", "list-timers", "--no-pager")


def test_a_setting_that_is_invalid_fails_the_start_with_one_line(machine: Machine) -> None:
    """The last test: afterwards the service is down."""
    machine.do("sed", "--in-place", "s/^IDENTITY_PROVIDER=.*/IDENTITY_PROVIDER=nobody/", "/etc/todo/environment")
    machine.do("systemctl", "stop", "todo.service")
    assert machine.run("systemctl", "start", "todo.service").returncode != 0
    log = machine.do("journalctl", "--unit=todo.service", "--output=cat", "--lines=30")
    assert "todo: IDENTITY_PROVIDER" in log
    assert "Traceback" not in log
