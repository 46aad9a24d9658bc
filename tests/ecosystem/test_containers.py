"""Every command of Dockerfile and compose.yaml, carried out as the containers would; needs root, but no engine.

Other than there: the ports, since those may be taken here, and the programs of PostgreSQL and nginx, which are of this
machine.
"""

import os
import re
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.ecosystem.containers import SYSTEM_PATH, Image, build, in_container
from tests.ecosystem.programs import program
from tests.live import PROGRAMS, Server, free_port, running
from tests.live.containers import compose, copy_context
from tests.support import PATIENCE, ROOT, SECRET

pytestmark = pytest.mark.ecosystem

#: As whom PostgreSQL runs: it refuses to be root.
NOBODY = 65534

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the line of docs/containers.md puts into .env; but for the secret of tokens, which the tests sign with."""
    (line,) = re.findall(r"^.* > \.env\)$", (ROOT / "docs/containers.md").read_text(), re.MULTILINE)
    folder = tmp_path_factory.mktemp("secrets")
    subprocess.run(["sh", "-ec", line], cwd=folder, check=True)
    assert stat.S_IMODE((folder / ".env").stat().st_mode) == 0o600
    made = dict(entry.split("=", 1) for entry in (folder / ".env").read_text().splitlines())
    assert len(set(made.values())) == 3
    assert min(map(len, made.values())) >= 32
    return made | {"TOKEN_SECRET": SECRET}


@pytest.fixture(scope="module")
def services(secrets: dict[str, str]) -> dict[str, Any]:
    """The services of compose.yaml."""
    return dict(compose(secrets)["services"])


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The image, built of what .dockerignore lets in."""
    assert os.geteuid() == 0, "these tests mount, which root may"
    folder = tmp_path_factory.mktemp("image")
    copy_context(folder / "context")
    return build(folder / "context", folder)


@contextmanager
def postgres_listening(folder: Path, port: int, address: str) -> Iterator[None]:
    """PostgreSQL with its data in that folder."""
    options = f"-c listen_addresses='{address}' -c unix_socket_directories='{folder}' -p {port}"
    control = [PROGRAMS / "pg_ctl", "--silent", "--wait", f"--pgdata={folder}/data", f"--log={folder}/log"]
    subprocess.run([*control, "-o", options, "start"], user=NOBODY, check=True)
    try:
        yield
    finally:
        subprocess.run([*control, "-m", "fast", "stop"], user=NOBODY, check=True)


@pytest.fixture(scope="module")
def postgres(services: dict[str, Any]) -> Iterator[int]:
    """A server that was set up as PostgreSQL's image does it, and asks for passwords over TCP; its port."""
    service, port = services["postgres"], free_port()
    # Not pytest's, which it closes to others whenever it is started.
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        folder = Path(name)
        (folder / "password").write_text(service["environment"]["POSTGRES_PASSWORD"])
        os.chown(folder, NOBODY, NOBODY)
        folder.chmod(0o755)
        settings = ["--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={folder}/password"]
        command = [PROGRAMS / "initdb", f"--pgdata={folder}/data", "--username=postgres", "--encoding=utf8", *settings]
        subprocess.run(command, user=NOBODY, check=True, capture_output=True)
        environ = {"PGHOST": str(folder), "PGPORT": str(port), **service["environment"]}
        with postgres_listening(folder, port, address=""):
            assert is_healthy(service, port).returncode == 2, "it is not yet to be reached"
            scripts = [entry.split(":")[0] for entry in service["volumes"] if "/docker-entrypoint-initdb.d/" in entry]
            psql = [PROGRAMS / "psql", "-v", "ON_ERROR_STOP=1", "--no-psqlrc", "--no-password", "--username=postgres"]
            for script in scripts:
                subprocess.run([*psql, "-f", ROOT / script], env=environ, check=True, stdout=subprocess.DEVNULL)
        with postgres_listening(folder, port, address="127.0.0.1"):
            yield port


def is_healthy(service: dict[str, Any], port: int) -> subprocess.CompletedProcess[bytes]:
    """What the health check of PostgreSQL says."""
    kind, *command = service["healthcheck"]["test"]
    assert kind == "CMD"
    environ = {"PATH": f"{PROGRAMS}:{SYSTEM_PATH}", "PGPORT": str(port)}
    return subprocess.run(command, env=environ, capture_output=True, check=False)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The mount by which compose's names of the services lead to this machine."""
    path = tmp_path_factory.mktemp("hosts") / "hosts"
    path.write_text("127.0.0.1 localhost postgres service\n")
    return f"mount --bind {path} /etc/hosts"


@pytest.fixture(scope="module")
def environ(image: Image, services: dict[str, Any], postgres: int) -> dict[str, str]:
    """The environment of the service: the image's, compose's, and the ports of this machine."""
    ports = {"PGPORT": str(postgres), "PORT": str(free_port())}
    return {**image.environ, **services["service"]["environment"], **ports, "LOG_LEVEL": "INFO"}


@pytest.fixture(scope="module")
def run(image: Image, services: dict[str, Any], environ: dict[str, str], hosts: str) -> Run:
    """Runs a command in a container of the service, to its end."""

    def run(command: list[str], **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            contained(image, services["service"], command, hosts),
            env=environ | changes,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    return run


def contained(image: Image, service: dict[str, Any], command: list[str], setup: str) -> list[str]:
    """The command that runs this one as compose.yaml has it."""
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    return in_container(image, command, tmpfs=service["tmpfs"], capabilities=service.get("cap_add", []), setup=setup)


@pytest.fixture(scope="module")
def migrated(run: Run, services: dict[str, Any]) -> None:
    """The database, after the step that migrates it; twice, as after every later `docker compose up`."""
    for _ in range(2):
        result = run(services["migrate"]["command"])
        assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def live(
    image: Image,
    services: dict[str, Any],
    environ: dict[str, str],
    hosts: str,
    migrated: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """The service."""
    command = contained(image, services["service"], image.command, hosts)
    log = tmp_path_factory.mktemp("service") / "log"
    with running(command, int(environ["PORT"]), environ, log, Path("/")) as server:
        yield server


@pytest.fixture(scope="module")
def nginx(
    services: dict[str, Any], live: Server, hosts: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Nginx before it, with the files that compose.yaml gives it."""
    service, port, folder = services["nginx"], free_port(), tmp_path_factory.mktemp("nginx")
    # Where the image has its configuration, and its logs, which lead to the streams.
    setup = [hosts, "mount -t tmpfs tmpfs /etc/nginx", "mount -t tmpfs tmpfs /var/log/nginx"]
    setup += [
        f"ln -s /dev/std{stream} /var/log/nginx/{name}.log" for stream, name in (("out", "access"), ("err", "error"))
    ]
    for number, volume in enumerate(service["volumes"]):
        source, target, mode = volume.split(":")
        assert mode == "ro"
        text = (ROOT / source).read_text()
        text = text.replace("listen 80;", f"listen 127.0.0.1:{port};").replace(":8000;", f":{live.port};")
        path = folder / str(number)
        path.write_text(text)
        setup += [f"touch {target}", f"mount --bind {path} {target}"]
    setup += ["mount -o remount,ro /var/log/nginx"]
    image = Image(folder, {"PATH": SYSTEM_PATH})
    for command in (["nginx", "-t"], ["nginx", "-T"]):
        result = subprocess.run(
            contained(image, service, command, "\n".join(setup)),
            env=image.environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert "warn" not in result.stderr
    assert f"server service:{live.port};" in result.stdout
    program("nginx")
    command = contained(image, service, ["nginx", "-g", "daemon off;"], "\n".join(setup))
    with running(command, port, image.environ, folder / "log", Path("/")) as server:
        yield server


def test_the_image_has_no_pip_and_nothing_to_compile_with(image: Image) -> None:
    programs = {path.name for path in image.at("/srv/venv/bin").iterdir()}
    assert {"gunicorn", "flask", "python"} <= programs
    assert [name for name in programs if re.match("pip|easy_install|wheel|cc|gcc", name)] == []
    packages = {path.name for path in image.at("/srv/venv/lib").glob("python*/site-packages/*")}
    assert {"flask", "psycopg2"} <= packages
    assert packages & {"pip", "setuptools", "wheel"} == set()
    # Nor has the Python that the environment stands on.
    assert [path for path in image.packages.rglob("*") if path.is_file() and path.suffix == ".py"] == []


def test_the_image_has_what_requirements_txt_pins_and_no_more(run: Run) -> None:
    listed = (
        "from importlib.metadata import distributions as d; print(*(f'{p.name}=={p.version}'.lower() for p in d()))"
    )
    result = run(["python", "-c", listed])
    pins = re.findall(
        r"^([\w.-]+)(?:\[[\w,]+\])?==(\S+)(?: ; (.*) \\)?", (ROOT / "requirements.txt").read_text(), re.MULTILINE
    )
    names = {f"{name}=={version}".lower().replace("_", "-") for name, version, _ in pins}
    optional = {f"{name}=={version}".lower().replace("_", "-") for name, version, marker in pins if marker}
    installed = {name.replace("_", "-") for name in result.stdout.split()}
    assert names - optional <= installed <= names


@pytest.mark.parametrize("path", ["/srv/todo/x", "/srv/venv/x", "/var/tmp/x", "/x"])
def test_nothing_can_be_written_but_to_memory(image: Image, run: Run, path: str) -> None:
    assert "Read-only file system" in run(["touch", path]).stderr
    assert run(["touch", "/tmp/x"]).returncode == 0
    assert run(["touch", "/dev/shm/x.todo"]).returncode == 0
    Path("/dev/shm/x.todo").unlink()


def test_nothing_in_the_image_could_be_written_either_way(image: Image) -> None:
    modes = {path: path.lstat() for path in image.srv.rglob("*") if not path.is_symlink()}
    assert [path for path, mode in modes.items() if mode.st_uid or mode.st_mode & stat.S_IWOTH] == []


def test_the_service_is_nobody_and_may_nothing(run: Run) -> None:
    status = run(["grep", "-E", "^(Uid|Gid|Groups|CapEff|CapBnd|NoNewPrivs):", "/proc/self/status"]).stdout
    found = {name: set(rest.split()) for name, _, rest in (line.partition(":") for line in status.splitlines())}
    nothing, user = {"0" * 16}, {"10001"}
    assert found == {
        "Uid": user,
        "Gid": user,
        "Groups": set(),
        "CapEff": nothing,
        "CapBnd": nothing,
        "NoNewPrivs": {"1"},
    }


def test_postgresql_is_healthy_once_it_listens(services: dict[str, Any], postgres: int) -> None:
    assert is_healthy(services["postgres"], postgres).returncode == 0
    assert is_healthy(services["postgres"], free_port()).returncode == 2


def test_the_role_owns_its_database_and_bypasses_nothing(secrets: dict[str, str], postgres: int) -> None:
    password = secrets["DATABASE_PASSWORD"]
    connection = psycopg2.connect(host="127.0.0.1", port=postgres, user="todo", password=password, dbname="todo")
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT rolname, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb FROM pg_roles, pg_database"
            " WHERE pg_roles.oid = datdba AND datname = 'todo'"
        )
        assert cursor.fetchall() == [("todo", False, False, False, False)]
    connection.close()


def test_without_its_password_the_role_is_refused(run: Run, services: dict[str, Any], secrets: dict[str, str]) -> None:
    url = services["service"]["environment"]["DATABASE_URL"].replace(secrets["DATABASE_PASSWORD"], "wrong")
    result = run(services["migrate"]["command"], DATABASE_URL=url)
    assert result.returncode != 0
    assert "password authentication failed" in result.stderr


def test_the_health_check_tells_whether_the_service_lives(run: Run, image: Image, live: Server) -> None:
    assert run(image.health).returncode == 0
    assert run(image.health, PORT=str(free_port())).returncode == 1


def test_the_health_check_asks_no_proxy(run: Run, image: Image, live: Server) -> None:
    assert run(image.health, http_proxy=f"http://127.0.0.1:{free_port()}").returncode == 0


def test_the_service_lives_without_its_database_and_ends_when_it_is_told_to(
    image: Image, services: dict[str, Any], environ: dict[str, str], hosts: str, run: Run, tmp_path: Path
) -> None:
    port, log = free_port(), tmp_path / "log"
    away = environ | {"PORT": str(port), "PGPORT": str(free_port())}
    command = contained(image, services["service"], image.command, hosts)
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=away, cwd="/", stdout=file, stderr=file, start_new_session=True)
    try:
        Server(process, port, log).wait_until("/health/live")
        assert run(image.health, PORT=str(port)).returncode == 0
        # To the one process that Docker would send it to.
        process.terminate()
        assert process.wait(PATIENCE) == 0, log.read_text()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_the_six_calls_go_through_nginx_and_gunicorn_to_postgresql(nginx: Server) -> None:
    status, ready = nginx.request("GET", "/health/ready")
    assert (status, ready["row_level_security"]) == (200, "enforced")
    status, task = nginx.request("POST", "/api/alice/tasks", json={"title": "Buy milk"})
    assert (status, task["title"]) == (201, "Buy milk")
    path = f"/api/alice/tasks/{task['id']}"
    assert nginx.request("GET", path) == (200, task)
    assert nginx.request("GET", "/api/alice/tasks") == (200, [task])
    assert nginx.request("PUT", path, json={"title": "Buy two"})[1]["title"] == "Buy two"
    assert nginx.request("PATCH", f"{path}/complete")[1]["status"] == "complete"
    assert nginx.request("DELETE", path) == (204, None)
    assert nginx.request("GET", path) == (404, {"error": "Task not found"})
    assert nginx.request("GET", path, user_id="bob") == (403, {"error": "Forbidden"})


def test_the_backup_has_every_row(postgres: int, secrets: dict[str, str], nginx: Server, tmp_path: Path) -> None:
    nginx.request("POST", "/api/alice/tasks", json={"title": "To be kept"})
    (command,) = re.findall("`docker compose exec -T postgres (pg_dump .*)`", (ROOT / "docs/containers.md").read_text())
    environ = {"PATH": f"{PROGRAMS}:{SYSTEM_PATH}", "PGHOST": "127.0.0.1", "PGPORT": str(postgres)}
    environ["PGPASSWORD"] = secrets["POSTGRES_PASSWORD"]
    subprocess.run(["sh", "-ec", command], cwd=tmp_path, env=environ, check=True)
    show = ["pg_restore", "--data-only", "--table=tasks", "--file=-", "todo.dump"]
    shown = subprocess.run(show, cwd=tmp_path, env=environ, check=True, capture_output=True, text=True).stdout
    assert "\tTo be kept\t" in shown


def test_the_health_check_of_nginx_reaches_the_service(services: dict[str, Any], nginx: Server) -> None:
    kind, *command = services["nginx"]["healthcheck"]["test"]
    assert kind == "CMD"
    program("curl")
    for port, status in ((nginx.port, 0), (free_port(), 7)):
        here = [word.replace("127.0.0.1/", f"127.0.0.1:{port}/") for word in command]
        assert subprocess.run(here, check=False).returncode == status


def test_the_workers_of_nginx_are_not_root(nginx: Server) -> None:
    users = {Path(f"/proc/{pid}").stat().st_uid for pid in nginx.workers()}
    assert users
    assert 0 not in users


def test_the_logs_of_nginx_go_where_docker_takes_them(nginx: Server) -> None:
    nginx.request("GET", "/health/live")
    assert '"GET /health/live HTTP/1.1" 200' in nginx.log.read_text()
