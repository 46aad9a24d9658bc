"""Metrics for Prometheus at /metrics: docs/monitoring.md has a table of them.

Must not reveal a single request or user: each label has few values. Does nothing if METRICS_TOKEN is not set.
"""

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from hmac import compare_digest
from pathlib import Path
from threading import Lock, Thread
from time import monotonic, time
from typing import Any, Protocol

from flask import Flask, Response, request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from config import SPARE_THREADS, Settings
from todo.errors import NotAuthenticated
from todo.refusals import Refusal
from todo.web.metrics_files import FiguresOfAll, keep
from todo.web.request_log import method_and_route, on_answer

#: Flask's name of the endpoint.
ENDPOINT = "metrics"
#: Upper bounds in seconds. A call takes a few milliseconds, and waits for the database at most 10 s.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: Seconds until a process asks the database again.
ASK_AGAIN = 300.0


class Found(Protocol):
    """What the database answered. None: it did not."""

    @property
    def revision(self) -> int | None:
        """The number of its last migration."""

    @property
    def prunable(self) -> Mapping[str, int] | None:
        """For each table, how many rows wait for `flask prune`."""


class Observable(Protocol):
    """What tells a function about each change of its state."""

    def observe(self, tell: Callable[[bool], Any]) -> None:
        """Call `tell` from now on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The parts of the service that know what is to be counted."""

    #: Takes functions, and calls them as statements and connections are used (todo/db/observation.py).
    observe_database: Callable[..., None]
    #: Tells after each fetch whether it succeeded. None if tokens are not verified with a key set.
    key_set: Observable | None
    #: Tells whether Redis is unavailable. None if Redis does not count.
    limits: Observable | None
    #: The number of the newest migration of the code.
    revision_wanted: int
    #: Asks the database, which may take seconds.
    ask: Callable[[], Found]


def init_app(app: Flask, settings: Settings, sources: Sources) -> None:
    """Count, and add the route /metrics for callers with the token. It covers all gunicorn workers."""
    if settings.metrics_token is None:
        return
    # Else each metric gets another series, with the time of its creation.
    disable_created_metrics()
    own = shown = CollectorRegistry()
    if settings.metrics_folder is not None:
        if settings.metrics_process is not None:
            keep(settings.metrics_process)
        shown = CollectorRegistry()
        shown.register(FiguresOfAll(Path(settings.metrics_folder)))
    _describe_worker(own, settings.threads + SPARE_THREADS, app.config["API_VERSION"], sources.revision_wanted)
    _count_requests(app, own)
    _count_on_database(sources.observe_database, own, settings.threads)
    if sources.key_set is not None:
        _count_fetches(sources.key_set, own)
    if sources.limits is not None:
        _watch_limits(sources.limits, own)
    _show(app, shown, settings.metrics_token, _asker(sources.ask, own))


def _show(app: Flask, registry: CollectorRegistry, token: str, ask: Callable[[], None]) -> None:
    """Add the route. It is public to the identity hook, and checks its own token."""

    def metrics() -> Response:
        scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise NotAuthenticated(reason=Refusal.MISSING)
        if not compare_digest(credentials.strip().encode(), token.encode()):
            raise NotAuthenticated(reason=Refusal.METRICS)
        ask()
        return app.response_class(generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)

    app.add_url_rule("/metrics", ENDPOINT, metrics)


def _gauge(name: str, text: str, registry: CollectorRegistry, *, mode: Any = "livesum", labels: Any = ()) -> Gauge:
    """Make a gauge. By default it is the sum over the running workers: gunicorn.conf.py removes those that have ended.

    With the mode `mostrecent` it is a fact that all workers share: the worker that set it last is right.
    """
    return Gauge(name, text, labels, multiprocess_mode=mode, registry=registry)


def _describe_worker(registry: CollectorRegistry, threads: int, version: str, revision_wanted: int) -> None:
    Counter("todo_worker_starts", "Workers that have started.", registry=registry).inc()
    _gauge("todo_worker_threads", "Threads that serve requests.", registry).set(threads)
    text = "1 for each version of the service, with its Python, that runs."
    build = _gauge("todo_build_info", text, registry, mode="livemax", labels=["version", "python_version"])
    build.labels(version, platform.python_version()).set(1)
    text = "The number of the newest migration of the code; 0 if it is not known."
    _gauge("todo_schema_revision_wanted", text, registry, mode="livemax").set(revision_wanted)


def _count_requests(app: Flask, registry: CollectorRegistry) -> None:
    active = _gauge("todo_http_active_requests", "Requests in progress. Each holds a thread.", registry)
    requests = Counter(
        "todo_http_requests", "Requests that were answered.", ["method", "route", "status"], registry=registry
    )
    durations = Histogram(
        "todo_http_request_duration_seconds",
        "Time from a request's arrival in the application to its answer.",
        ["method", "route"],
        buckets=BUCKETS,
        registry=registry,
    )
    # Each saves a microsecond. The labels have few values.
    requests_of, durations_of = cache(requests.labels), cache(durations.labels)

    def count(status: int, seconds: float) -> None:
        method, route = method_and_route()
        requests_of(method, route or "unmatched", str(status)).inc()
        durations_of(method, route or "unmatched").observe(seconds)

    on_answer(app, count)
    answer = app.wsgi_app

    def counted(environ: Any, start_response: Any) -> Any:
        active.inc()
        try:
            return answer(environ, start_response)
        finally:
            active.dec()

    app.wsgi_app = counted  # type: ignore[method-assign]  # as Flask's documentation does


def _count_on_database(observe: Callable[..., None], registry: CollectorRegistry, size: int) -> None:
    statements = Counter("todo_database_statements", "Statements given to the database.", registry=registry)
    seconds = Counter("todo_database_seconds", "Seconds spent waiting for these statements.", registry=registry)
    _gauge("todo_database_connections_size", "Connections that the pools may hold.", registry).set(size)
    in_use = _gauge("todo_database_connections_in_use", "Connections that requests hold.", registry)
    waits = Counter(
        "todo_database_connection_wait_seconds",
        "Seconds spent waiting for a connection, a free or a new one. Waits below 1 ms are left out.",
        registry=registry,
    )
    observe(begin=statements.inc, wait=seconds.inc, take=in_use.inc, give_back=in_use.dec, wait_to_take=waits.inc)


def _count_fetches(key_set: Observable, registry: CollectorRegistry) -> None:
    fetches = Counter("todo_key_set_fetches", "Fetches of the key set, failed ones included.", registry=registry)
    failures = Counter("todo_key_set_fetch_failures", "Fetches of the key set that failed.", registry=registry)
    text = "When the worker with the oldest keys fetched them; 0 if a worker has none yet."
    fetched_at = _gauge("todo_key_set_fetched_timestamp_seconds", text, registry, mode="livemin")

    def tell(is_fetched: bool) -> None:
        fetches.inc()
        if is_fetched:
            fetched_at.set(time())
        else:
            failures.inc()

    key_set.observe(tell)


def _watch_limits(limits: Observable, registry: CollectorRegistry) -> None:
    text = "Workers that count requests for themselves, because Redis is unavailable."
    limits.observe(_gauge("todo_rate_limits_fallback_workers", text, registry).set)


def _asker(ask: Callable[[], Found], registry: CollectorRegistry) -> Callable[[], None]:
    """Return a function to call at each scrape. From time to time it starts a thread that asks the database.

    It does not wait for that thread: /metrics also answers while the database is silent.
    """
    text = "The number of the last migration that the database has run; 0 if there is none, or it is not known yet."
    revision = _gauge("todo_schema_revision", text, registry, mode="mostrecent")
    text = "Rows that flask prune would delete. At most 10,000 are counted."
    prunable = _gauge("todo_prunable_rows", text, registry, mode="mostrecent", labels=["table"])
    lock, asked_at = Lock(), -ASK_AGAIN

    def run() -> None:
        found = ask()
        if found.revision is not None:
            revision.set(found.revision)
        for table, rows in (found.prunable or {}).items():
            prunable.labels(table).set(rows)

    def ask_if_due() -> None:
        nonlocal asked_at
        with lock:
            if monotonic() < asked_at + ASK_AGAIN:
                return
            asked_at = monotonic()
        Thread(target=run, name="metrics", daemon=True).start()

    return ask_if_due
