"""Linters find nothing in Dockerfile, the files of compose and the workflow.

tests/ecosystem carries out the first two, and tests/citus the steps of compose.citus.yaml.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.live.containers import COMPOSE, COMPOSE_CITUS, DOCKERFILE, compose, copy_context, instructions
from tests.support import ROOT

TOOLS = Path(sys.executable).parent
SECRETS = {"POSTGRES_PASSWORD": "first", "DATABASE_PASSWORD": "second", "TOKEN_SECRET": "third"}


def lint(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """What a linter has to say."""
    return subprocess.run([TOOLS / command[0], *command[1:]], capture_output=True, text=True, check=False)


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    result = lint("hadolint", "--no-color", DOCKERFILE)
    assert (result.returncode, result.stdout) == (0, "")


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    faulty = tmp_path / "Dockerfile"
    faulty.write_text(re.sub("^CMD .*$", "CMD gunicorn wsgi:app", DOCKERFILE.read_text(), flags=re.MULTILINE))
    assert "DL3025" in lint("hadolint", "--no-color", faulty).stdout


SCHEMA = ("check-jsonschema", "--builtin-schema", "vendor.compose-spec")


@pytest.mark.parametrize("path", [COMPOSE, COMPOSE_CITUS], ids=lambda path: path.name)
def test_the_files_of_compose_are_of_its_specification(path: Path) -> None:
    result = lint(*SCHEMA, path)
    assert result.returncode == 0, result.stdout


def test_what_is_not_of_the_compose_specification_is_seen(tmp_path: Path) -> None:
    faulty = tmp_path / "compose.yaml"
    faulty.write_text(COMPOSE.read_text().replace("read_only:", "readonly:"))
    assert "readonly" in lint(*SCHEMA, faulty).stdout


WORKFLOW = ROOT / ".github/workflows/ci.yml"
WORKFLOW_SCHEMA = ("check-jsonschema", "--builtin-schema", "vendor.github-workflows")


def test_the_workflow_is_one_of_github() -> None:
    result = lint(*WORKFLOW_SCHEMA, WORKFLOW)
    assert result.returncode == 0, result.stdout


def test_what_is_no_workflow_of_github_is_seen(tmp_path: Path) -> None:
    faulty = tmp_path / "ci.yml"
    faulty.write_text(WORKFLOW.read_text().replace("runs-on:", "runs_on:"))
    assert "runs_on" in lint(*WORKFLOW_SCHEMA, faulty).stdout


def test_every_image_is_pinned_by_a_version() -> None:
    images = [rest.split()[0] for name, rest in instructions(DOCKERFILE.read_text()) if name == "FROM"]
    for others in ([], [COMPOSE_CITUS]):
        services = compose(SECRETS, *others)["services"].values()
        images += [service["image"] for service in services if "build" not in service]
    assert len(images) == 10
    assert [image for image in images if not re.fullmatch(r"[a-z/]+:\d[\w.-]*", image)] == []


def test_the_dockerfile_ends_as_nobody_in_particular_who_is_not_root() -> None:
    (user,) = [rest for name, rest in instructions(DOCKERFILE.read_text()) if name == "USER"]
    assert re.fullmatch("[1-9][0-9]{3,}:[1-9][0-9]{3,}", user)


@pytest.fixture(params=[[], [COMPOSE_CITUS]], ids=["one database", "citus"])
def services(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The services, with one PostgreSQL and with Citus."""
    return dict(compose(SECRETS, *request.param)["services"])


@pytest.mark.parametrize("secret", SECRETS)
def test_the_files_of_compose_have_no_secret_of_their_own(secret: str) -> None:
    with pytest.raises(KeyError):
        compose({name: value for name, value in SECRETS.items() if name != secret})
    assert set(re.findall(r"PASSWORD: *(.*)", COMPOSE_CITUS.read_text())) == {
        f"${{{name}:?make .env as docs/containers.md says}}" for name in SECRETS if name != "TOKEN_SECRET"
    }


def test_the_password_of_the_superuser_stays_with_postgresql(services: dict[str, Any]) -> None:
    for name in services.keys() - {"postgres", "worker1", "worker2", "cluster"}:
        assert SECRETS["POSTGRES_PASSWORD"] not in str(services[name])


def test_no_service_gets_more_rights_and_only_databases_write_to_disks(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["security_opt"] == ["no-new-privileges:true"]
        is_database = name in ("postgres", "worker1", "worker2")
        assert (service.get("read_only"), service.get("cap_drop")) == ((None, None) if is_database else (True, ["ALL"]))


def test_only_nginx_is_to_be_reached_and_from_this_machine_alone(services: dict[str, Any]) -> None:
    assert {name: service["ports"] for name, service in services.items() if "ports" in service} == {
        "nginx": ["127.0.0.1:8080:80"]
    }


NEEDS = {
    "postgres": {},
    "migrate": {"postgres": "service_healthy"},
    "service": {"migrate": "service_completed_successfully"},
    "nginx": {"service": "service_healthy"},
}
DATABASES_FIRST = dict.fromkeys(("postgres", "worker1", "worker2"), "service_healthy")
NEEDS_ON_CITUS = NEEDS | {
    "worker1": {},
    "worker2": {},
    "cluster": DATABASES_FIRST,
    "migrate": NEEDS["migrate"] | {"cluster": "service_completed_successfully"},
    "distribute": {"migrate": "service_completed_successfully"},
    "service": NEEDS["service"] | {"distribute": "service_completed_successfully"},
}


def test_nobody_starts_before_what_it_needs(services: dict[str, Any]) -> None:
    needs = {name: service.get("depends_on", {}) for name, service in services.items()}
    conditions = {name: {other: how["condition"] for other, how in these.items()} for name, these in needs.items()}
    assert conditions == (NEEDS_ON_CITUS if "cluster" in services else NEEDS)


def test_every_machine_of_citus_has_the_same_health_check_and_all_scripts_that_are_named_exist() -> None:
    services = compose(SECRETS, COMPOSE_CITUS)["services"]
    machines = [services[name] for name in ("postgres", "worker1", "worker2")]
    assert len({str(machine["healthcheck"]) for machine in machines}) == 1
    scripts = [{entry for entry in machine["volumes"] if entry.startswith("./")} for machine in machines]
    assert scripts[0] == scripts[1] == scripts[2]
    assert all((ROOT / entry.split(":")[0]).is_file() for entry in scripts[0])


def test_the_coordinator_has_the_settings_of_the_page() -> None:
    _, *flags = compose(SECRETS, COMPOSE_CITUS)["services"]["postgres"]["command"]
    settings = [re.sub("^--(.*?)=(.*)$", r"\1 = '\2'", flag) for flag in flags]
    assert "```\n" + "\n".join(settings) + "\n```" in (ROOT / "docs/scaling.md").read_text()


def test_gunicorn_has_the_time_that_it_gives_to_requests() -> None:
    (patience,) = re.findall(r"^graceful_timeout = (\d+)$", (ROOT / "gunicorn.conf.py").read_text(), re.MULTILINE)
    assert int(compose(SECRETS)["services"]["service"]["stop_grace_period"].removesuffix("s")) > int(patience)


def test_the_build_is_given_what_the_image_takes_and_nothing_else(tmp_path: Path) -> None:
    copy_context(tmp_path)
    copies = [rest.split() for name, rest in instructions(DOCKERFILE.read_text()) if name == "COPY"]
    taken = {source for *sources, _ in copies if not sources[0].startswith("--") for source in sources}
    assert {path.name for path in tmp_path.iterdir()} == taken
    assert [path for path in tmp_path.rglob("*") if path.name in ("__pycache__", ".env", ".flaskenv")] == []


def test_with_what_the_image_takes_the_service_starts_and_migrates(tmp_path: Path) -> None:
    copy_context(tmp_path)
    environ = {"DATABASE_URL": f"sqlite:///{tmp_path}/todo.db", "IDENTITY_PROVIDER": "development"}
    command = [sys.executable, "-m", "flask", "db", "upgrade"]
    result = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "todo.db").exists()
