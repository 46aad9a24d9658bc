"""The steps of compose.citus.yaml, carried out on the cluster with other names, hosts and ports."""

import os
import re
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from tests.citus.cluster import coordinator, workers
from tests.live import PROGRAMS
from tests.live.containers import COMPOSE_CITUS, compose
from tests.support import PASSWORD, ROOT, SECRET, Caller, close, migrated_app, run_alone, sql_as_role

pytestmark = pytest.mark.citus

#: Where each container is.
MACHINES = {"postgres": coordinator, "worker1": lambda: workers()[0].url, "worker2": lambda: workers()[1].url}


@pytest.fixture
def name() -> Iterator[str]:
    """The name of the database and its owner, `todo` there. Both are dropped afterwards."""
    name = f"todo_compose_{uuid.uuid4().hex[:8]}"
    yield name
    for machine in [find() for find in MACHINES.values()]:
        run_alone(machine, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        run_alone(machine, f"DROP ROLE IF EXISTS {name}")


def psql(command: list[str], environ: dict[str, Any], folder: Path, name: str) -> None:
    """Run a step, or a script, with the names of the cluster."""
    host = MACHINES[environ["PGHOST"]]()
    user = host.username if environ["PGUSER"] == "postgres" else name
    renamed = {"PGHOST": host.host, "PGPORT": str(host.port), "PGUSER": user, "PGDATABASE": name}
    if environ["PGDATABASE"] != "todo":
        renamed["PGDATABASE"] = host.database
    arguments = [argument.replace("/deploy/", f"{folder}/") for argument in command[1:]]
    subprocess.run([PROGRAMS / command[0], *arguments], env=os.environ | environ | renamed, check=True)


def copy(folder: Path, name: str) -> None:
    """Put the scripts into the folder, with the names of the cluster in them."""
    for path in [ROOT / "deploy/create-role.sql", *ROOT.glob("deploy/citus/*.sql")]:
        text = re.sub(r"\btodo\b", name, path.read_text()).replace("(0, 'postgres'", f"(0, '{coordinator().username}'")
        for host, find in MACHINES.items():
            text = text.replace(f"'{host}', 5432", f"'{find().host}', {find().port}")
        (folder / path.name).write_text(text)


def test_the_steps_of_compose_make_a_cluster_and_may_be_repeated(tmp_path: Path, name: str) -> None:
    passwords = {"POSTGRES_PASSWORD": coordinator().password or "unused", "DATABASE_PASSWORD": PASSWORD}
    services = compose(passwords | {"TOKEN_SECRET": SECRET}, COMPOSE_CITUS)["services"]
    copy(tmp_path, name)
    for machine in MACHINES:
        image = {"PGHOST": machine, "PGUSER": "postgres", "PGDATABASE": "postgres"}
        environ = services[machine]["environment"] | image | {"PGPASSWORD": passwords["POSTGRES_PASSWORD"]}
        mounted = [
            entry.split(":") for entry in services[machine]["volumes"] if "/docker-entrypoint-initdb.d/" in entry
        ]
        for source, *_ in sorted(mounted, key=lambda entry: str(entry[1])):
            psql(
                ["psql", "--no-psqlrc", "--set=ON_ERROR_STOP=1", f"--file=/deploy/{Path(source).name}"],
                environ,
                tmp_path,
                name,
            )
    url: URL = coordinator().set(database=name, username=name, password=PASSWORD)
    lists = []
    for _ in range(2):
        psql(services["cluster"]["command"], services["cluster"]["environment"], tmp_path, name)
        app = migrated_app(url)
        psql(services["distribute"]["command"], services["distribute"]["environment"], tmp_path, name)
        users = [Caller(app, f"user{number}") for number in range(8)]
        lists.append([user("GET").get_json() for user in users])
        for user in users:
            user.create()
        close(app)
    assert [len(tasks) for tasks in lists[0] + lists[1]] == [0] * 8 + [1] * 8
    assert len(sql_as_role(url, "SELECT DISTINCT groupid FROM pg_dist_placement")) == 2
