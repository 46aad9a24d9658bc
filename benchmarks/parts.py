"""`make bench-parts`: the cost of log, metrics and rate limits per request, in interleaved rounds of one run.

Several processes send the same request in turn. Each differs from the first in one setting. It compares their CPU time,
because the machine may be busy. If redis-server is installed, it also measures rate limits with Redis.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from os import devnull, environ
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from sqlalchemy import make_url

from tests.live import free_port
from tests.support import ROOT, SECRET, Caller, close, migrated_app, sqlite_database, token
from todo import create_app

ROUNDS, REQUESTS = 40, 100
BARE = "nothing"
#: What each process has in its environment in addition to the first. No run reaches the limits.
PARTS = {
    BARE: {},
    "nothing, once more": {},
    "the documentation": {"API_DOCS": "on"},
    "a line in the log, as text": {"LOG_LEVEL": "INFO"},
    "a line in the log, as JSON": {"LOG_LEVEL": "INFO", "LOG_FORMAT": "json"},
    "metrics": {"METRICS_TOKEN": "x" * 16},
    "rate limits, in memory": {"RATE_LIMIT": "1000000 per minute"},
}


def serve() -> None:
    """Run in a process: for each line on stdin, make the requests, and print their CPU seconds."""
    app = create_app()
    request: dict[str, Any] = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/api/alice/tasks/1",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.url_scheme": "http",
        "HTTP_AUTHORIZATION": f"Bearer {token('alice')}",
    }

    def start(status: str, *_: object) -> Any:
        assert status == "200 OK", status

    for _ in sys.stdin:
        begun = time.process_time()
        for _ in range(REQUESTS):
            answer = app.wsgi_app(request.copy(), start)
            assert b"".join(answer)
        print(time.process_time() - begun, flush=True)


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """Start a Redis for this run, and yield its URL."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Measure and print a table."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = make_url(stack.enter_context(sqlite_database()))
        app = migrated_app(url)
        Caller(app, "alice").create()
        close(app)
        parts = dict(PARTS)
        if shutil.which("redis-server"):
            storage = {"RATE_LIMIT_STORAGE": stack.enter_context(redis(folder))}
            parts["rate limits, in Redis"] = PARTS["rate limits, in memory"] | storage
        log = stack.enter_context(Path(devnull).open("w"))
        common = {
            "PATH": environ["PATH"],
            "DATABASE_URL": url.render_as_string(),
            "IDENTITY_PROVIDER": "jwt",
            "JWT_SECRET": SECRET,
            "LOG_LEVEL": "WARNING",
            "API_DOCS": "off",
        }
        command = [sys.executable, "-m", "benchmarks.parts", "serve"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True}
        processes: dict[str, Any] = {
            name: stack.enter_context(subprocess.Popen(command, cwd=ROOT, env=common | more, **pipes))
            for name, more in parts.items()
        }
        rounds = [{name: take_turn(process) for name, process in processes.items()} for _ in range(ROUNDS + 1)][1:]
        for process in processes.values():
            process.stdin.close()
    report(rounds)


def take_turn(process: Any) -> float:
    """Run one round in the process, and return the microseconds of CPU per request."""
    process.stdin.write("go\n")
    process.stdin.flush()
    return float(process.stdout.readline()) / REQUESTS * 1e6


def report(rounds: list[dict[str, float]]) -> None:
    """Print medians, and for each the median and quartiles of its ratio to the first in the same round."""
    print("| with | µs of CPU for a GET of one task | ratio | quartiles |")
    print("|---|---|---|---|")
    for name in rounds[0]:
        ratios = [round_[name] / round_[BARE] for round_ in rounds]
        low, middle, high = quantiles(ratios, n=4) if name != BARE else (1.0, 1.0, 1.0)
        print(f"| {name} | {median(round_[name] for round_ in rounds):.0f} | {middle:.2f} | {low:.2f}-{high:.2f} |")


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else main()
