"""Metrics for Prometheus at /metrics: requests, their durations, and their use of the database.

Must not reveal a single request or user: each label has few values. Does nothing if METRICS_TOKEN is not set.
"""

from collections.abc import Callable
from hmac import compare_digest
from pathlib import Path
from typing import Any

from flask import Flask, Response, request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from config import Settings
from todo.errors import NotAuthenticated
from todo.refusals import Refusal
from todo.web.metrics_files import FiguresOfAll, keep
from todo.web.request_log import method_and_route, on_answer

#: Flask's name of the endpoint.
ENDPOINT = "metrics"
#: Upper bounds in seconds. A call takes a few milliseconds, and waits for the database at most 10 s.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def init_app(app: Flask, settings: Settings, observe: Callable[..., None]) -> None:
    """Count, and add the route /metrics for callers with the token. It sums over all gunicorn workers.

    observe: takes functions, and calls them when statements and connections are used (todo/db/observation.py).
    """
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
    _count_requests(app, own)
    _count_on_database(observe, own, settings.threads)
    _show(app, shown, settings.metrics_token)


def _show(app: Flask, registry: CollectorRegistry, token: str) -> None:
    """Add the route. It is public to the identity hook, and checks its own token."""

    def metrics() -> Response:
        scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise NotAuthenticated(reason=Refusal.MISSING)
        if not compare_digest(credentials.strip().encode(), token.encode()):
            raise NotAuthenticated(reason=Refusal.METRICS)
        return app.response_class(generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)

    app.add_url_rule("/metrics", ENDPOINT, metrics)


def _count_requests(app: Flask, registry: CollectorRegistry) -> None:
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

    def count(status: int, seconds: float) -> None:
        method, route = method_and_route()
        requests.labels(method, route or "unmatched", str(status)).inc()
        durations.labels(method, route or "unmatched").observe(seconds)

    on_answer(app, count)


def _count_on_database(observe: Callable[..., None], registry: CollectorRegistry, size: int) -> None:
    statements = Counter("todo_database_statements", "Statements given to the database.", registry=registry)
    seconds = Counter("todo_database_seconds", "Seconds spent waiting for these statements.", registry=registry)
    # The sum over running workers: gunicorn.conf.py removes those that have ended.
    options: dict[str, Any] = {"multiprocess_mode": "livesum", "registry": registry}
    Gauge("todo_database_connections_size", "Connections that the pools may hold.", **options).set(size)
    in_use = Gauge("todo_database_connections_in_use", "Connections that requests hold.", **options)
    observe(begin=statements.inc, wait=seconds.inc, take=in_use.inc, give_back=in_use.dec)
