"""The CPU time of each call in one process, in µs: shows what a change of the code saves. For whole servers: bench.py.

Run it in the project folder: `.venv/bin/python -m benchmarks.cpu`.
"""

import io
import statistics
import time
from typing import Any

from flask import Flask
from werkzeug.test import EnvironBuilder

from tests.support import Caller, close, migrated_app, postgresql_database, postgresql_server, token

ROUNDS = 7
REQUESTS = 500
NEW_TASK = b'{"title": "Buy milk", "description": "Two litres, whole"}'


def calls(app: Flask) -> dict[str, dict[str, Any]]:
    """Return each call as a WSGI environ without its body. The user has 100 tasks; another user creates tasks."""
    alice = Caller(app, "alice")
    task = [alice.create(f"Task {number}", description="Two litres, whole") for number in range(100)][50]
    return {
        "get": environ("GET", f"/api/alice/tasks/{task['id']}"),
        "list": environ("GET", "/api/alice/tasks"),
        "create": environ("POST", "/api/bob/tasks", "bob", NEW_TASK),
        "complete": environ("PATCH", f"/api/alice/tasks/{task['id']}/complete"),
        "live": environ("GET", "/health/live"),
    }


def environ(method: str, path: str, user_id: str = "alice", body: bytes = b"") -> dict[str, Any]:
    """Return the WSGI environ of a request."""
    headers = [("Authorization", f"Bearer {token(user_id, exp=int(time.time()) + 3600)}")]
    content_type = "application/json" if body else None
    built = EnvironBuilder(path, method=method, headers=headers, data=body, content_type=content_type).get_environ()
    return built | {"body": body}


def cpu(app: Any, environ: dict[str, Any]) -> float:
    """Return the microseconds of CPU that this process needs for one request."""
    statuses = set()
    started = time.process_time()
    for _ in range(REQUESTS):
        request = environ | {"wsgi.input": io.BytesIO(environ["body"])}
        answer = app(request, lambda status, *_: statuses.add(status[0]))
        b"".join(answer)
        answer.close()
    if statuses != {"2"}:
        raise RuntimeError(f"answered with {statuses}")
    return (time.process_time() - started) / REQUESTS * 1e6


def main() -> None:
    """Print the median of each call."""
    with postgresql_server() as server, postgresql_database(server) as url:
        app = migrated_app(url, threads=1)
        environs = calls(app)
        rounds = [{name: cpu(app, environ) for name, environ in environs.items()} for _ in range(ROUNDS + 1)]
        close(app)
    for name in environs:
        # The first round is the warm-up.
        figures = [measured[name] for measured in rounds[1:]]
        print(f"{name:9} {statistics.median(figures):6.0f} µs  ({min(figures):.0f} to {max(figures):.0f})")


if __name__ == "__main__":
    main()
