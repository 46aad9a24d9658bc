"""The service and its peers: how to start them, and their versions. All have 2 workers with 8 connections each."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from json import loads
from pathlib import Path

from sqlalchemy import URL

from tests.live import Server, free_port, gunicorn, running
from tests.support import ROOT, SECRET, as_superuser

SERVICE = "service"
PEERS_PYTHON = str(ROOT / "benchmarks" / ".venv" / "bin" / "python")

_PEERS = ROOT / "benchmarks" / "peers"
_UVICORN = [PEERS_PYTHON, "-m", "uvicorn", "main:app", "--workers=2", "--no-access-log", "--log-level=warning"]
_GUNICORN = [PEERS_PYTHON, "-m", "gunicorn", "wsgi:application", "--config=../gunicorn.conf.py"]
#: The command for each peer, in the folder of the same name.
_COMMANDS = {
    "fastapi-sqlmodel": [*_UVICORN, "--port={port}"],
    "fastapi-asyncpg": [*_UVICORN, "--port={port}"],
    "drf": [*_GUNICORN, "--bind=127.0.0.1:{port}"],
    "fastify": ["node", "server.js"],
    "bare": [*_GUNICORN, "--bind=127.0.0.1:{port}"],
}
_PACKAGES = {
    SERVICE: "flask flask-smorest marshmallow msgspec flask-sqlalchemy sqlalchemy psycopg2-binary pyjwt gunicorn",
    "fastapi-sqlmodel": "fastapi sqlmodel sqlalchemy pydantic psycopg2-binary pyjwt uvicorn uvloop httptools",
    "fastapi-asyncpg": "fastapi asyncpg pydantic pyjwt uvicorn uvloop httptools",
    "drf": "django djangorestframework psycopg2-binary pyjwt gunicorn",
    "fastify": "fastify @fastify/jwt pg",
    "bare": "psycopg2-binary orjson pyjwt gunicorn",
}

# Runs in the server's Python. Its arguments are names of packages.
_VERSIONS = """
import importlib.metadata, platform, sys
print(platform.python_version(), *map(importlib.metadata.version, sys.argv[1:]))
"""


def available() -> list[str]:
    """Return the servers that can start on this machine, the service first. Fastify needs node."""
    has_node = shutil.which("node") is not None and (_PEERS / "fastify" / "node_modules").is_dir()
    return [SERVICE, *(name for name in _COMMANDS if name != "fastify" or has_node)]


@contextmanager
def started(name: str, url: URL, log: Path) -> Iterator[Server]:
    """Start the server on the database, and yield it once it answers. After a failure its log is printed."""
    port = free_port()
    environ = {
        "PATH": os.environ["PATH"],
        # The peers do not tell PostgreSQL who the user is, so its policies would hide every task.
        "DATABASE_URL": as_superuser(url).set(drivername="postgresql").render_as_string(hide_password=False),
        "JWT_SECRET": SECRET,
        "NODE_ENV": "production",
        "PORT": str(port),
    }
    command = [part.format(port=port) for part in _COMMANDS.get(name, [])]
    peer = running(command, port, environ, log, _PEERS / name, ready="/api/alice/tasks")
    # The peers do not log requests either.
    with gunicorn(url, log, LOG_LEVEL="WARNING") if name == SERVICE else peer as server:
        try:
            yield server
        except Exception:
            sys.stderr.write(f"{name} failed; its log:\n{log.read_text()}")
            raise


def versions(name: str) -> str:
    """Return the versions of the server's platform and packages."""
    packages = _PACKAGES[name].split()
    if name == "fastify":
        platform, command = "Node", ["node", "--version"]
        manifests = (_PEERS / name / "node_modules" / package / "package.json" for package in packages)
        found = [loads(manifest.read_text())["version"] for manifest in manifests]
    else:
        platform, command = "Python", [sys.executable if name == SERVICE else PEERS_PYTHON, "-c", _VERSIONS, *packages]
        found = []
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return ", ".join(f"{of} {version}" for of, version in zip([platform, *packages], printed + found, strict=True))
