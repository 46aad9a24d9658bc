"""Prometheus itself reads the figures, as docs/operations.md configures it. Each alert fires, each panel shows data."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from string import ascii_lowercase
from threading import Event
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import URL, create_engine

from tests.ecosystem.programs import program
from tests.identity.issuer import body, jwk, running_issuer
from tests.live import Server, free_port, gunicorn, running
from tests.redis_protocol import StandIn
from tests.support import ROOT, close, migrated_app, postgresql_database, sql, sqlite_database, token, wait_until

pytestmark = pytest.mark.ecosystem

PAGE = (ROOT / "docs/operations.md").read_text()
(CONFIGURATION,) = re.findall("```yaml\n(scrape_configs:.*?)```", PAGE, re.DOTALL)
(TOKEN,) = re.findall("METRICS_TOKEN=(\\S+)", PAGE)
RULES = ROOT / "deploy/prometheus/rules.yml"
ALERTS = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
DASHBOARD = json.loads((ROOT / "deploy/grafana/todo.json").read_text())
#: What the panels of the dashboard ask. Grafana replaces the interval.
EXPRESSIONS = [
    target["expr"].replace("$__rate_interval", "10s") for panel in DASHBOARD["panels"] for target in panel["targets"]
]
#: Connections of the service that gets slow, and its threads: more, so that requests wait for a connection.
CONNECTIONS, THREADS = 4, 12


@pytest.fixture
def database() -> Iterator[URL]:
    """A migrated database."""
    with sqlite_database() as url:
        close(migrated_app(url))
        yield url


@pytest.fixture
def live(database: URL, tmp_path: Path) -> Iterator[Server]:
    """A gunicorn of two workers that has been asked for some things."""
    with gunicorn(database, tmp_path / "log", METRICS_TOKEN=TOKEN) as live:
        for path in [*["/api/alice/tasks"] * 7, "/api/alice/tasks/x", "/nowhere"]:
            live.request("GET", path)
        live.request("POST", "/api/alice/tasks", json={"title": "x"})
        yield live


def promtool(*arguments: str, text: bytes = b"") -> None:
    """Let promtool check something. Raises AssertionError if it has something against it."""
    command = [program("promtool"), *arguments]
    result = subprocess.run(command, input=text, cwd=ROOT, capture_output=True, check=False)
    assert result.returncode == 0, (result.stdout, result.stderr)
    assert b"warning" not in (result.stdout + result.stderr).lower()


def test_promtool_has_nothing_against_them(live: Server) -> None:
    scrape = Request(f"http://127.0.0.1:{live.port}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    with urlopen(scrape, timeout=10) as response:
        promtool("check", "metrics", text=response.read())


def test_promtool_has_nothing_against_the_alerts() -> None:
    """Each has a unit test, and stands on the page."""
    promtool("check", "rules", "--lint-fatal", str(RULES))
    promtool("test", "rules", "tests/ecosystem/alerts.yml")
    assert set(re.findall(r'alertname="(\w+)"', (ROOT / "tests/ecosystem/alerts.yml").read_text())) == ALERTS
    page = (ROOT / "docs/monitoring.md").read_text()
    assert set(re.findall(r"^\| `(Todo\w+)` \|", page, re.MULTILINE)) == ALERTS


@contextmanager
def prometheus_of(folder: Path, *targets: Server, rules: str = "groups: []") -> Iterator[str]:
    """The address of a Prometheus that is configured as docs/operations.md says, and looks every second."""
    configuration, port = folder / "prometheus.yml", free_port()
    addresses = ", ".join(f'"127.0.0.1:{target.port}"' for target in targets)
    scraped = CONFIGURATION.replace('"127.0.0.1:8000"', addresses)
    (folder / "token").write_text(f"{TOKEN}\n")
    scraped = scraped.replace("/etc/prometheus/todo-token", str(folder / "token"))
    intervals = "{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}"
    configuration.write_text(f"global: {intervals}\nrule_files: [rules.yml]\n{scraped}")
    (folder / "rules.yml").write_text(rules)
    command = [program("prometheus"), f"--config.file={configuration}", f"--storage.tsdb.path={folder / 'series'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}"]
    log = folder / "prometheus.log"
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.fixture
def prometheus(live: Server, tmp_path: Path) -> Iterator[str]:
    """A Prometheus that reads the service."""
    with prometheus_of(tmp_path, live) as prometheus:
        yield prometheus


def get(prometheus: str, path: str) -> Any:
    """The data that Prometheus answers; None if it does not."""
    try:
        with urlopen(f"{prometheus}/api/v1/{path}", timeout=5) as response:
            return json.load(response)["data"]
    except OSError:
        return None


def ask(prometheus: str, query: str) -> list[Any]:
    """What Prometheus knows."""
    found = get(prometheus, f"query?query={quote(query)}")
    return list(found["result"]) if found else []


wait_for = partial(wait_until, seconds=30, pause=0.2)


def test_prometheus_knows_what_was_asked(prometheus: str) -> None:
    by_kind = "sum by (method, route, status) (todo_http_requests_total{route!~'/metrics|/health/.*'})"
    found = wait_for(lambda: ask(prometheus, by_kind))
    assert {tuple(sorted(series["metric"].values())): series["value"][1] for series in found} == {
        ("/api/<user_id>/tasks", "200", "GET"): "7",
        ("/api/<user_id>/tasks", "201", "POST"): "1",
        ("/api/<user_id>/tasks/<task_id>", "400", "GET"): "1",
        ("404", "GET", "unmatched"): "1",
    }
    (up,) = ask(prometheus, "up{job='todo'}")
    assert up["value"][1] == "1"
    quantile = "histogram_quantile(0.9, sum by (le) (todo_http_request_duration_seconds_bucket))"
    assert 0 < float(ask(prometheus, quantile)[0]["value"][1]) < 10


def wait_until_up_is(prometheus: str, value: str) -> None:
    """Return once Prometheus has scraped, or has been refused."""
    wait_for(lambda: [series["value"][1] for series in ask(prometheus, "up{job='todo'}")] == [value])


def test_prometheus_reads_a_new_token_without_a_restart(prometheus: str, tmp_path: Path) -> None:
    wait_until_up_is(prometheus, "1")
    (tmp_path / "token").write_text("not-the-token-of-the-service")
    wait_until_up_is(prometheus, "0")
    (tmp_path / "token").write_text(TOKEN)
    wait_until_up_is(prometheus, "1")


class Services:
    """Two services on one database, and what goes wrong with them."""

    def __init__(self, stack: ExitStack, server: URL, folder: Path) -> None:
        self.url = stack.enter_context(postgresql_database(server))
        close(migrated_app(self.url))
        self.issuer, self.redis, self.key = (
            stack.enter_context(running_issuer()),
            StandIn(),
            ec.generate_private_key(ec.SECP256R1()),
        )
        self.issuer.serve(jwk(self.key, "ours"))
        common = {"METRICS_TOKEN": TOKEN, "WEB_CONCURRENCY": "1", "GUNICORN_CMD_ARGS": f"--worker-tmp-dir {folder}"}
        threads = {"arguments": ("--threads", str(THREADS)), "WEB_THREADS": str(CONNECTIONS)}
        #: Verifies tokens with a secret.
        self.plain: Server = stack.enter_context(gunicorn(self.url, folder / "plain", **common, **threads))
        (self.files,) = folder.glob("todo-metrics-*")
        environ = common | {
            "PATH": os.environ["PATH"],
            "DATABASE_URL": self.url.render_as_string(hide_password=False),
            "IDENTITY_PROVIDER": "jwt",
            "JWT_JWKS_URL": self.issuer.url,
            "RATE_LIMIT": "1000000 per day",
            "RATE_LIMIT_STORAGE": f"redis://127.0.0.1:{self.redis.port}",
        }
        command = [sys.executable, "-m", "gunicorn", "wsgi:app", "--bind", f"127.0.0.1:{(port := free_port())}"]
        #: Verifies tokens with a key set, and lets Redis count.
        self.dependent: Server = stack.enter_context(running(command, port, environ, folder / "dependent"))
        self.is_over = Event()
        self.pool = stack.enter_context(ThreadPoolExecutor(THREADS + 3))
        # Before the pool waits for its threads.
        stack.callback(self.is_over.set)

    def call(self) -> None:
        """Call both services all the time, each user one after the other. Does not care for the answers."""
        good = token("bob", key=self.key, algorithm="ES256", headers={"kid": "ours"})

        def go_on(user_id: str) -> None:
            while not self.is_over.wait(0.05):
                with suppress(OSError):
                    self.plain.request("GET", f"/api/{user_id}/tasks", user_id)

        def go_on_elsewhere() -> None:
            while not self.is_over.wait(0.1):
                with suppress(OSError):
                    self.dependent.request("GET", "/api/bob/tasks", Authorization=f"Bearer {good}")

        for user_id in ascii_lowercase[:THREADS]:
            self.pool.submit(go_on, user_id)
        self.pool.submit(go_on_elsewhere)

    def spoil(self) -> None:
        """Let happen what an alert is there for, but for what ends the figures."""
        # A job that does not run, and an upgrade that was forgotten.
        sql(
            self.url,
            "INSERT INTO users (id) VALUES ('a');"
            " INSERT INTO idempotency_keys (user_id, key, fingerprint, answer, created_at)"
            " SELECT 'a', number::text, repeat('0', 64), '', now() - interval '2 days'"
            " FROM generate_series(1, 10001) AS number",
        )
        sql(self.url, "UPDATE alembic_version SET version_num = '0001'")
        # Workers that start now find no key set.
        self.issuer.answer = body("no key set")
        self.redis.close()
        for live in (self.plain, self.dependent):
            os.kill(live.process.pid, signal.SIGHUP)
        self.pool.submit(self._lock)
        self.pool.submit(self._forge)

    def end(self) -> None:
        """Let one service lose the files of its figures, and end the other."""
        shutil.rmtree(self.files)
        self.dependent.process.terminate()

    def _lock(self) -> None:
        engine = create_engine(self.url)
        with engine.begin() as connection:
            connection.exec_driver_sql("LOCK TABLE tasks")
            self.is_over.wait()
        engine.dispose()

    def _forge(self) -> None:
        while not self.is_over.wait(0.01):
            for live in (self.plain, self.dependent):
                with suppress(OSError):
                    live.request("GET", "/api/alice/tasks", Authorization="Bearer forged")


class Fired(dict[str, dict[str, str]]):
    """The annotations of each alert that has fired, as far as somebody looked in time."""

    def __init__(self, prometheus: str) -> None:
        super().__init__()
        self._prometheus = prometheus

    def look(self) -> None:
        """Ask Prometheus what fires now."""
        for alert in (get(self._prometheus, "alerts") or {"alerts": []})["alerts"]:
            if alert["state"] == "firing":
                self[alert["labels"]["alertname"]] = alert["annotations"]

    def wait_for(self, *names: str) -> None:
        """Return once these have fired. Raises AssertionError if that takes too long."""
        deadline = time.monotonic() + 60
        while missing := set(names) - self.keys():
            assert time.monotonic() < deadline, missing
            time.sleep(0.5)
            self.look()


def shows_data(prometheus: str, expression: str) -> bool:
    """Whether the expression of a panel has a number."""
    return any(not math.isnan(float(series["value"][1])) for series in ask(prometheus, expression))


def test_each_alert_fires_in_time_and_each_panel_shows_data(server: URL, tmp_path: Path) -> None:
    # Minutes are seconds here; thresholds stay.
    rules = re.sub(r"\[\d+m\]", "[10s]", re.sub(r"for: \d+[mhd]", "for: 2s", RULES.read_text()))
    with ExitStack() as stack:
        services = Services(stack, server, tmp_path)
        prometheus = stack.enter_context(prometheus_of(tmp_path, services.plain, services.dependent, rules=rules))
        fired = Fired(prometheus)
        services.call()
        wait_for(lambda: len(ask(prometheus, "count_over_time(up[10s]) > 8")) == 2)
        fired.look()
        assert fired == {}
        without_data = [expression for expression in EXPRESSIONS if not shows_data(prometheus, expression)]
        services.spoil()
        fired.wait_for(*ALERTS - {"TodoDown", "TodoMetricsIncomplete"})
        (rows,) = ask(prometheus, "max(todo_prunable_rows{table='idempotency_keys'})")
        assert rows["value"][1] == "10000"
        for expression in without_data:
            wait_for(partial(shows_data, prometheus, expression))
        print(f"{len(EXPRESSIONS)} expressions with data, {len(without_data)} of them only with faults")
        services.end()
        fired.wait_for(*ALERTS)
    for annotations in fired.values():
        assert annotations.keys() == {"summary", "description"}
        assert not re.search("<no value>|error|%!|NaN", annotations["summary"]), annotations
