"""The figures for Prometheus: who may see them, what they count, and that they are those of all workers."""

import re
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from flask import Flask
from limits import parse
from prometheus_client import CollectorRegistry, values
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import URL, text
from werkzeug.test import TestResponse

from config import JwtSettings
from tests.identity.issuer import Issuer, body, join_fetches
from tests.live import free_port
from tests.redis_protocol import StandIn
from tests.support import ROOT, Caller, Make, join_threads, sql, statements_of, token
from tests.tasks.test_sync import deleted_before
from tests.test_idempotency import age, create
from todo.db import db, pool
from todo.db.readiness import revision_wanted
from todo.web import metrics, rate_limits
from todo.web import metrics_files as figures_module

TOKEN = "a-token-for-Prometheus"
MONITORING = ROOT / "docs/monitoring.md"
UNSEEN = "todo_metrics_unseen_workers"
#: The files of a worker.
KINDS = ("counter", "histogram", "gauge_livesum", "gauge_livemax", "gauge_mostrecent")
LIST, ONE = "/api/<user_id>/tasks", "/api/<user_id>/tasks/<task_id>"

#: A figure by the name of its series, or by (method, route, status).
Figures = dict[Any, float]


@pytest.fixture
def counting(make: Make, database: URL) -> Flask:
    """An app with /metrics."""
    return make(database, metrics_token=TOKEN)


@pytest.fixture
def timing(make: Make, url: URL) -> Flask:
    """An app with /metrics on one of the databases."""
    return settled(make(url, metrics_token=TOKEN))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Ends with what a scrape has begun in the background: it would count into the files of the next test."""
    yield
    join_threads("metrics")


def settled(app: Flask) -> Flask:
    """The app, after its first scrape has made it ask the database."""
    assert scrape(app).status_code == 200
    join_threads("metrics")
    return app


def scrape(app: Flask, authorization: str | None = f"Bearer {TOKEN}") -> TestResponse:
    """What a scraper with that header is answered."""
    headers = {} if authorization is None else {"Authorization": authorization}
    return app.test_client().get("/metrics", headers=headers)


def figures(exposition: str) -> Figures:
    """Every figure; of the requests but those to /metrics, and each worker's own to /health/ready."""
    found: Figures = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            labels = sample.labels
            if labels.get("route") in ("/metrics", "/health/ready"):
                continue
            if sample.name == "todo_http_requests_total":
                found[labels["method"], labels["route"], labels["status"]] = sample.value
            elif not labels:
                found[sample.name] = sample.value
            elif sample.name.endswith("_count"):
                found[labels["method"], labels["route"]] = sample.value
    return found


def now(app: Flask) -> Figures:
    """The figures of the app."""
    return figures(scrape(app).get_data(as_text=True))


def test_the_text_is_what_prometheus_reads_and_what_the_table_of_the_page_names(
    make: Make, database: URL, folder: Path, issuer: Issuer
) -> None:
    """With each part of the service that has figures."""
    parts = {"jwt": JwtSettings(jwks_url=issuer.url), "rate_limits": (parse("1000 per minute"),)}
    files = {"metrics_folder": str(folder), "metrics_process": "1"}
    away = f"redis://127.0.0.1:{free_port()}"
    app = settled(make(database, metrics_token=TOKEN, rate_limit_storage=away, **parts, **files))
    # The name of the scheme has no case.
    response = scrape(app, f"bearer {TOKEN}")
    assert (response.status_code, response.content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    families = list(text_string_to_metric_families(response.get_data(as_text=True)))
    assert all(family.documentation for family in families)
    documented = re.findall(r"^\| `(todo_\w+?)(?:_total)?` \| (\w+) \|", MONITORING.read_text(), re.MULTILINE)
    assert sorted((family.name, family.type) for family in families) == sorted(documented)


@pytest.mark.parametrize(
    "authorization",
    [
        *(None, "", TOKEN, "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}"),
        *(f"Bearer {TOKEN.lower()}", f"Bearer {TOKEN}, Bearer {TOKEN}", "Bearer \u00e9\u00e9\u00e9"),
        f"Bearer {token('alice')}",
    ],
)
def test_nobody_else_sees_them(counting: Flask, authorization: str | None) -> None:
    response = scrape(counting, authorization)
    assert (response.status_code, response.get_json()) == (401, {"error": "Unauthorized"})
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert response.content_type == "application/json"


def test_the_development_provider_does_not_open_them_either(make: Make, database: URL) -> None:
    app = make(database, metrics_token=TOKEN, identity_provider="development", jwt=None, is_flask_command=True)
    assert scrape(app, None).status_code == 401
    assert scrape(app).status_code == 200


def test_their_token_opens_nothing_else(counting: Flask) -> None:
    client, headers = counting.test_client(), {"Authorization": f"Bearer {TOKEN}"}
    routes = [(rule.rule, method) for rule in counting.url_map.iter_rules() for method in rule.methods or ()]
    with statements_of(counting) as statements:
        for rule, method in routes:
            if "<user_id>" in rule and method != "OPTIONS":
                path = rule.replace("<user_id>", "alice").replace("<task_id>", "1")
                response = client.open(path, method=method, headers=headers, json={"title": "x"})
                assert response.status_code == 401, (method, path)
    assert statements == []


def plugged_in(app: Flask) -> set[str]:
    """The modules of whatever is called for a request, a connection or a statement."""
    hooks = [app.before_request_funcs, app.after_request_funcs, app.teardown_request_funcs]
    called: list[Any] = [function for kind in hooks for functions in kind.values() for function in functions]
    called += [app.wsgi_app, *app.view_functions.values()]
    with app.app_context():
        engine = db.engine
        called += [*engine.dialect.dispatch.do_connect, *engine.pool.dispatch.connect]
        called += [*engine.pool.dispatch.checkout, *engine.pool.dispatch.checkin]
        with engine.connect() as connection:
            called += [type(connection.connection.cursor())]
    return {function.__module__ for function in called}


def test_off_is_off(app: Flask, timing: Flask) -> None:
    counted = {"todo.web.metrics", "todo.db.observation"}
    assert not counted & plugged_in(app)
    assert counted <= plugged_in(timing)
    response = Caller(app, "alice").open("GET", "/metrics")
    assert (response.status_code, response.get_json()) == (404, {"error": "Unknown route"})


def test_they_are_no_part_of_the_api(counting: Flask, apps: dict[str, Flask]) -> None:
    plain = apps["sqlite"].test_client().get("/openapi.json")
    assert counting.test_client().get("/openapi.json").data == plain.data


def test_each_request_is_counted_once(counting: Flask) -> None:
    alice = Caller(counting, "alice")
    task = alice.create()
    for _ in range(3):
        alice("GET", f"/{task['id']}")
    alice("HEAD")
    alice("GET", "/x")
    alice.open("GET", "/api/bob/tasks")
    alice("PUT")
    alice("BREW", "", query="?q=1")
    alice.open("GET", "/nowhere")
    found = now(counting)
    assert {key: value for key, value in found.items() if isinstance(key, tuple) and len(key) == 3} == {
        ("POST", LIST, "201"): 1,
        ("GET", ONE, "200"): 3,
        ("GET", ONE, "400"): 1,
        ("HEAD", LIST, "200"): 1,
        ("GET", LIST, "403"): 1,
        ("PUT", "unmatched", "405"): 1,
        ("other", "unmatched", "405"): 1,
        ("GET", "unmatched", "404"): 1,
    }
    assert (found["GET", ONE], found["GET", "unmatched"]) == (4, 1)


def test_no_number_of_paths_or_methods_makes_more_series(counting: Flask) -> None:
    client = counting.test_client()

    def series_after(number: int) -> int:
        client.get(f"/{number}?{number}")
        client.get(f"/api/user-{number}/tasks/{number}")
        client.open(f"/{number}", method=f"METHOD{number}")
        return len(scrape(counting).get_data().splitlines())

    # The first scrape is not in its own answer.
    series_after(0)
    join_threads("metrics")
    assert series_after(1) == series_after(2) == series_after(3)


def test_durations_are_those_of_the_requests(counting: Flask) -> None:
    @counting.get("/health/slow")
    def slow() -> str:
        time.sleep(0.06)
        return ""

    counting.test_client().get("/health/slow", headers={"Authorization": f"Bearer {token()}"})
    lines = scrape(counting).get_data(as_text=True).splitlines()
    of_it = [line.rsplit(" ", 1) for line in lines if "duration_seconds_bucket{" in line and "/health/slow" in line]
    bounds = [re.findall('le="(.+?)"', series)[0] for series, _ in of_it]
    assert " ".join(bounds) == "0.001 0.0025 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1.0 2.5 5.0 10.0 +Inf"
    assert [value for _, value in of_it] == ["0.0"] * 6 + ["1.0"] * 8


SLOW = {
    "postgresql": "SELECT pg_sleep(0.2)",
    # The first row is there at once, and it takes a while to see that there is no other.
    "sqlite": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 600000)"
    " SELECT x FROM n WHERE x = 1",
}


@contextmanager
def taken(app: Flask) -> Iterator[list[float]]:
    """The statements and the seconds of the database that are counted meanwhile."""
    names = ("todo_database_statements_total", "todo_database_seconds_total")
    before = now(app)
    difference: list[float] = []
    yield difference
    after = now(app)
    difference += [after[name] - before[name] for name in names]


def test_what_a_statement_of_sqlalchemy_takes_is_time_of_the_database(timing: Flask) -> None:
    with timing.app_context():
        connection = db.session.connection()
        with taken(timing) as found:
            started = time.perf_counter()
            connection.execute(text(SLOW[connection.dialect.name])).all()
            took = time.perf_counter() - started
    assert found[0] == 1
    assert 0.8 * took <= found[1] <= took


@pytest.mark.parametrize("is_broken", [False, True])
def test_each_statement_of_a_call_is_counted_and_timed_also_where_it_fails(
    timing: Flask, url: URL, *, is_broken: bool
) -> None:
    alice = Caller(timing, "alice")
    alice.create()
    if is_broken:
        sql(url, "ALTER TABLE tasks RENAME TO elsewhere")
    with taken(timing) as found:
        statuses = [alice("GET", path).status_code for path in ("", "/999", "/x")]
    if is_broken:
        sql(url, "ALTER TABLE elsewhere RENAME TO tasks")
    assert statuses == ([500, 500, 400] if is_broken else [200, 404, 400])
    assert found[0] == 2
    assert found[1] > 0


def test_connections_are_in_use_while_somebody_has_them(timing: Flask) -> None:
    with timing.app_context():
        engine = db.engine
    with engine.connect(), engine.connect():
        assert now(timing)["todo_database_connections_in_use"] == 2
    found = now(timing)
    assert (found["todo_database_connections_in_use"], found["todo_database_connections_size"]) == (0, 8)


def test_a_wait_for_a_connection_is_counted(make: Make, database: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "TIMEOUT", 1)
    app = settled(make(database, metrics_token=TOKEN, threads=1))
    before = now(app)["todo_database_connection_wait_seconds_total"]
    alice = Caller(app, "alice")
    assert alice("GET").status_code == 200
    assert now(app)["todo_database_connection_wait_seconds_total"] - before < 0.5
    with app.app_context():
        engine = db.engine
    with engine.connect():
        assert alice("GET").status_code == 503
    assert 1 <= now(app)["todo_database_connection_wait_seconds_total"] - before < 5


def test_requests_in_progress_are_counted(counting: Flask) -> None:
    """A scrape is one itself."""

    @counting.get("/health/asking")
    def asking() -> str:
        return str(now(counting)["todo_http_active_requests"])

    assert Caller(counting, "alice").open("GET", "/health/asking").text == "2.0"
    assert now(counting)["todo_http_active_requests"] == 1


def test_each_fetch_of_the_key_set_is_counted(make: Make, database: URL, issuer: Issuer) -> None:
    app = make(database, metrics_token=TOKEN, jwt=JwtSettings(jwks_url=issuer.url))

    def after_a_fetch() -> list[float]:
        app.extensions["fetch_keys"]()
        join_fetches()
        return fetches()

    def fetches() -> list[float]:
        names = ("fetches_total", "fetch_failures_total", "fetched_timestamp_seconds")
        return [now(app)[f"todo_key_set_{name}"] for name in names]

    assert fetches() == [0, 0, 0]
    issuer.serve()
    count, failures, fetched_at = after_a_fetch()
    assert (count, failures) == (1, 0)
    assert abs(time.time() - fetched_at) < 10
    issuer.answer = body("no key set")
    assert after_a_fetch() == [2, 1, fetched_at]


def test_a_worker_that_counts_for_itself_is_counted(make: Make, database: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "PAUSE", 0.0)
    port = free_port()
    storage = f"redis://127.0.0.1:{port}"
    app = make(database, metrics_token=TOKEN, rate_limits=(parse("99 per minute"),), rate_limit_storage=storage)
    alice, name = Caller(app, "alice"), "todo_rate_limits_fallback_workers"
    assert (now(app)[name], alice("GET").status_code, now(app)[name]) == (0, 200, 1)
    stand_in = StandIn(port)
    assert (alice("GET").status_code, now(app)[name]) == (200, 0)
    stand_in.close()


def from_the_database(app: Flask) -> list[float | None]:
    """What the database says: its migration, that of the code, and rows to prune."""
    settled(app)
    families = text_string_to_metric_families(scrape(app).get_data(as_text=True))
    found = {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}
    rows = [("todo_prunable_rows", table) for table in ("idempotency_keys", "deletions")]
    return [found.get(key) for key in [("todo_schema_revision",), ("todo_schema_revision_wanted",), *rows]]


def test_the_database_is_asked_now_and_then(
    timing: Flask, url: URL, statements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    head = int(revision_wanted() or 0)
    assert from_the_database(timing) == [head, head, 0, 0]
    alice = Caller(timing, "alice")
    for key in ("new", "old", "older"):
        alice("DELETE", f"/{create(alice, key).get_json()['id']}")
    for key in ("old", "older"):
        age(url, key, 25)
    statements.clear()
    # Not at each scrape.
    assert from_the_database(timing) == [head, head, 0, 0]
    assert not [statement for statement in statements if "prunable" in statement]
    monkeypatch.setattr(metrics, "ASK_AGAIN", 0.0)
    assert from_the_database(timing) == [head, head, 2, 0]
    deleted_before(url, "alice", 31)
    assert from_the_database(timing) == [head, head, 2, 3]
    # What it does not answer stays as it was.
    sql(url, "UPDATE alembic_version SET version_num = '0001'")
    sql(url, "ALTER TABLE deletions RENAME TO elsewhere")
    assert from_the_database(timing) == [1, head, 2, 3]
    sql(url, f"UPDATE alembic_version SET version_num = '{revision_wanted()}'")
    sql(url, "ALTER TABLE elsewhere RENAME TO deletions")


def test_a_database_that_is_away_leaves_its_figures_unknown(make: Make) -> None:
    away = URL.create("postgresql+psycopg2", host="127.0.0.1", port=9, database="todo")
    assert from_the_database(make(away, metrics_token=TOKEN)) == [0, int(revision_wanted() or 0), None, None]


def test_lost_connections_are_not_in_use_nor_fewer_than_none(make: Make, server: URL, postgresql: URL) -> None:
    app = make(postgresql, metrics_token=TOKEN)
    alice = Caller(app, "alice")
    alice.create()
    sql(server, f"ALTER DATABASE {postgresql.database} ALLOW_CONNECTIONS false")
    terminate = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = :name"
    sql(server, terminate, name=postgresql.database)
    assert alice("GET").status_code == 503
    assert now(app)["todo_database_connections_in_use"] == 0
    sql(server, f"ALTER DATABASE {postgresql.database} ALLOW_CONNECTIONS true")
    assert alice("GET").status_code == 200
    sql(server, terminate, name=postgresql.database)
    # Lost and replaced.
    assert alice("GET").status_code == 200
    assert now(app)["todo_database_connections_in_use"] == 0


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder where this process, as a worker, keeps its figures; undone afterwards."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(values, "MmapedDict", values.MmapedDict)
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setattr(figures_module, "_files", [])
    return tmp_path


def test_what_other_processes_have_counted_is_shown(make: Make, database: URL, folder: Path) -> None:
    own = values.ValueClass
    for amount in (1, 2):
        values.ValueClass = values.MultiProcessValue(process_identifier=lambda amount=amount: amount)
        prometheus_client.Counter("seen", "How often.", registry=CollectorRegistry()).inc(amount)
    values.ValueClass = own
    app = make(database, metrics_token=TOKEN, metrics_folder=str(folder))
    assert now(app) == {"seen_total": 3, UNSEEN: 0}


def test_a_process_that_has_only_begun_or_just_ended_stops_nobody(make: Make, database: URL, folder: Path) -> None:
    (folder / "histogram_1.db").touch()
    (folder / "gauge_livesum_2.db").symlink_to("gone")
    assert now(make(database, metrics_token=TOKEN, metrics_folder=str(folder))) == {UNSEEN: 0}


@pytest.fixture
def count_in_files(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[[int], Figures]:
    """Counts to 2,001 as a worker does, all but the first when no file may become larger; what is shown of it."""

    def count(limit: int) -> Figures:
        monkeypatch.setattr(figures_module, "_files", [])
        figures_module.keep("1")
        counter = prometheus_client.Counter("seen", "How often.", ["number"], registry=CollectorRegistry())
        counter.labels("first").inc()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        # What would become larger is refused, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            for number in range(2000):
                counter.labels(number).inc()
            counter.labels("first").inc()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        families = figures_module.FiguresOfAll(folder).collect()
        samples = [sample for family in families for sample in family.samples]
        return {sample.labels.get("number", sample.name): sample.value for sample in samples}

    return count


def test_every_page_of_a_file_is_there_before_it_is_used(
    count_in_files: Callable[[int], Figures], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shown = count_in_files(2**30)
    assert (len(shown), shown["first"], shown["1999"], shown[UNSEEN], caplog.messages) == (2002, 2, 1, 0, [])
    (file,) = tmp_path.iterdir()
    # Or the file would have holes, and a disk that is full then would end the process.
    assert file.stat().st_blocks * 512 >= file.stat().st_size > 65536


def test_a_file_that_cannot_grow_stays_as_it_was_and_the_process_counts_in_memory(
    count_in_files: Callable[[int], Figures], caplog: pytest.LogCaptureFixture
) -> None:
    shown = count_in_files(65536)
    assert (shown["first"], shown["0"], shown[UNSEEN]) == (1, 1, 1)
    assert "1999" not in shown
    (line,) = caplog.messages
    assert "cannot be written (File too large)" in line
    caplog.clear()
    # The next process of that name goes on with what is there.
    shown = count_in_files(2**30)
    assert (shown["first"], shown["0"], shown["1999"], caplog.messages) == (3, 2, 1, [])


def test_a_file_that_cannot_be_made_is_done_without(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for kind in ("counter", "histogram"):
        file = figures_module.FiguresFile(str(folder / "nowhere" / f"{kind}_7.db"))
        file.write_value("a", 1.0, 0.0)
        assert (file.read_value("a"), file.is_seen) == ((1.0, 0.0), False)
    assert len(caplog.messages) == 1
    (family,) = figures_module.FiguresOfAll(folder / "nowhere").collect()
    assert [(sample.name, sample.value) for sample in family.samples] == [(UNSEEN, 1)]


def test_a_worker_keeps_its_figures_under_the_name_that_it_is_given(make: Make, database: URL, folder: Path) -> None:
    for times in (1, 2):
        app = make(database, metrics_token=TOKEN, metrics_folder=str(folder), metrics_process="7")
        app.test_client().get("/nowhere")
        assert now(app)["GET", "unmatched", "404"] == times
    join_threads("metrics")
    assert {path.stem for path in folder.iterdir()} == {f"{kind}_7" for kind in KINDS}
