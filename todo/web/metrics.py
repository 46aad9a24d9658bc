"""Figures for Prometheus at /metrics: requests, the time they took, and what they take of the database.

Must not tell of a single request or user: each label has few values. Without METRICS_TOKEN it does nothing.
"""

import sqlite3
from collections.abc import Callable
from hmac import compare_digest
from pathlib import Path
from time import perf_counter
from typing import Any

from flask import Flask, Response, request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from sqlalchemy import Engine, event

from config import Settings
from todo.db.connections import LimitedCursor
from todo.errors import NotAuthenticated, Refusal
from todo.web.metrics_files import FiguresOfAll, keep
from todo.web.request_log import method_and_route, on_answer

#: The endpoint as Flask names it.
ENDPOINT = "metrics"
#: Seconds. A call takes a few milliseconds, and none waits for the database longer than 10 s.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def init_app(app: Flask, settings: Settings, engine: Engine) -> None:
    """Count, and show the figures to whoever has the token. Under several workers the figures are those of all."""
    if settings.metrics_token is None:
        return
    # A series more for each, with the time at which it began.
    disable_created_metrics()
    own = shown = CollectorRegistry()
    if settings.metrics_folder is not None:
        if settings.metrics_process is not None:
            keep(settings.metrics_process)
        shown = CollectorRegistry()
        shown.register(FiguresOfAll(Path(settings.metrics_folder)))
    _count_requests(app, own)
    _time_statements(engine, own)
    _count_connections(engine, own, settings.threads)
    _show(app, shown, settings.metrics_token)


def _show(app: Flask, registry: CollectorRegistry, token: str) -> None:
    """The route. The users' identity rules do not hold there: it asks for the token itself."""

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


def _time_statements(engine: Engine, registry: CollectorRegistry) -> None:
    """Time what the drivers' cursors do, since statements run on them with SQLAlchemy and without."""
    statements = Counter("todo_database_statements", "Statements given to the database.", registry=registry)
    seconds = Counter("todo_database_seconds", "Seconds spent waiting for these statements.", registry=registry)

    def timed(call: Callable[..., Any], *arguments: Any) -> Any:
        started = perf_counter()
        try:
            return call(*arguments)
        finally:
            seconds.inc(perf_counter() - started)

    class PostgresqlCursor(LimitedCursor):
        def execute(self, query: Any, vars: Any = None) -> None:
            statements.inc()
            timed(super().execute, query, vars)

    # SQLite looks for a row when it is fetched.
    class SqliteCursor(sqlite3.Cursor):
        def execute(self, *arguments: Any) -> Any:
            statements.inc()
            return timed(super().execute, *arguments)

        def fetchone(self) -> Any:
            return timed(super().fetchone)

        def fetchall(self) -> Any:
            return timed(super().fetchall)

    class SqliteConnection(sqlite3.Connection):
        def cursor(self, *_: Any) -> Any:
            return super().cursor(SqliteCursor)

    factory = {"factory": SqliteConnection} if engine.name == "sqlite" else {"cursor_factory": PostgresqlCursor}

    def connect(_dialect: object, _record: object, _arguments: object, parameters: dict[str, Any]) -> None:
        parameters |= factory

    event.listen(engine, "do_connect", connect)


def _count_connections(engine: Engine, registry: CollectorRegistry, size: int) -> None:
    # Of the workers that live, that is: gunicorn.conf.py says which have died.
    options: dict[str, Any] = {"multiprocess_mode": "livesum", "registry": registry}
    Gauge("todo_database_connections_size", "Connections that the pools may hold.", **options).set(size)
    in_use = Gauge("todo_database_connections_in_use", "Connections that requests hold.", **options)

    def take(_connection: object, record: Any, _proxy: object) -> None:
        record.record_info["is_counted"] = True
        in_use.inc()

    def give_back(_connection: object, record: Any) -> None:
        # One that was found lost, and could not be replaced, comes home without having been taken.
        if record.record_info.pop("is_counted", False):
            in_use.dec()

    event.listen(engine, "checkout", take)
    event.listen(engine, "checkin", give_back)
