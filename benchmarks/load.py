"""Sends requests: many at once with wrk, or one after the other."""

import subprocess
from dataclasses import dataclass
from http.client import HTTPConnection
from json import loads
from pathlib import Path

from benchmarks.workload import Request

CONNECTIONS = 32
#: The greatest share of errors among the answers. On a saturated machine PostgreSQL can be without a core for so long
#: that the service refuses a user's further requests (docs/decisions/places.md).
MOST_REFUSED = 0.005
SCRIPT = Path(__file__).with_name("load.lua")


class LoadFailed(Exception):
    """A server did not answer every request, or refused more than a few."""


@dataclass(frozen=True)
class Load:
    """The result of a load. Percentiles are in milliseconds.

    requests: the number answered in time. slowest: of those. asked: the number sent; every server carries out all of
    them. refused: the number of answers with a status of 400 or more. bytes: of an answer, with its headers.
    """

    requests: int
    asked: int
    refused: int
    seconds: float
    p50: float
    p99: float
    slowest: float
    bytes: float


def load(port: int, requests: Path, seconds: int, limit: int | None = None, connections: int = CONNECTIONS) -> Load:
    """Keep all connections busy for `seconds`, or for `limit` requests. Raises LoadFailed."""
    command = ["wrk", "--threads=1", f"--connections={connections}", f"--duration={seconds}s", "--timeout=10s"]
    arguments = [str(requests)] + ([] if limit is None else [str(limit)])
    url = f"http://127.0.0.1:{port}"
    result = subprocess.run(
        [*command, f"--script={SCRIPT}", url, *arguments], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise LoadFailed(result.stdout + result.stderr)
    return parse(result.stdout, connections)


def parse(output: str, connections: int = CONNECTIONS) -> Load:
    """Parse the last line that load.lua prints. Raises LoadFailed if a request was not answered, or many refused."""
    result = loads(output.splitlines()[-1])
    if result["refused"] > MOST_REFUSED * result["requests"] or result["broken"] or not result["requests"]:
        raise LoadFailed(f"{result['refused']} answers were errors, {result['broken']} connections broke:\n{output}")
    asked = result["requests"] + connections
    size = result["bytes"] / result["requests"]
    percentiles = (result["p50"], result["p99"], result["slowest"])
    return Load(result["requests"], asked, result["refused"], result["seconds"], *percentiles, size)


def send(connection: HTTPConnection, request: Request) -> tuple[int, bytes]:
    """Send one request on the connection. Return the status and the body."""
    headers = {} if request.token is None else {"Authorization": f"Bearer {request.token}"}
    if request.body:
        headers["Content-Type"] = "application/json"
    connection.request(request.method, request.path, request.body.encode() or None, headers)
    response = connection.getresponse()
    return response.status, response.read()
