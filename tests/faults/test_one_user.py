"""One user who keeps the service as busy as it lets them, and how long another user waits meanwhile."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import URL

from tests.faults.attack import attack
from tests.faults.load import held
from tests.faults.test_slow_clients import p99
from tests.live import Server, gunicorn
from tests.support import Caller, close, empty_database, migrated_app, sql
from todo.web.accounts import LONGEST

#: What the attacker has: enough for statements that take seconds.
TASKS, ORDINARY = 1300, 100_000
SEARCHES = {
    "the worst for strpos": ("/api/mallory/tasks?q=b" + "a" * 199, TASKS),
    "of three characters": ("/api/mallory/tasks?q=baa", TASKS),
    "among ordinary tasks": ("/api/mallory/tasks?q=nowhere", ORDINARY),
}
#: How much slower another user's p99 may be beside an attacker who waits as Retry-After says, and how slow at most.
FACTOR, SLOWEST = 3.0, 0.1
#: Seconds added to that for a machine that others use too: a turn of the scheduler or two.
NOISE = 0.005
#: The same beside one who does not wait: SLOWEST, or where as many connections of quick requests make others wait for
#: about as long, so much more than beside those.
BESIDE_QUICK = 2.0
#: The most for the median of the short form, which runs beside other tests.
BUSY = 0.2
ROUNDS = 10


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, server: URL) -> Iterator[URL]:
    """A database with a task of each user."""
    with empty_database(request.param, server) as url:
        app = migrated_app(url)
        for user_id in ("bob", "carol", "dave", "mallory"):
            Caller(app, user_id).create()
        close(app)
        yield url


@pytest.fixture(scope="module")
def live(url: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gunicorn of two workers before it."""
    with gunicorn(url, tmp_path_factory.mktemp("one") / "log", LOG_LEVEL="WARNING") as live:
        yield live


def fill(url: URL, tasks: int) -> None:
    """Give mallory so many tasks: the long ones that cost strpos the most, or ordinary ones."""
    sql(url, "DELETE FROM tasks WHERE user_id = 'mallory'")
    description = (
        "'Two litres, and ask about the delivery of next week ' || i" if tasks == ORDINARY else f"'{'a' * 5000}'"
    )
    numbers = f"WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {tasks})"
    sql(
        url, f"INSERT INTO tasks (user_id, title, description) {numbers} SELECT 'mallory', 'milk', {description} FROM n"
    )


def waits(live: Server, seconds: float, user_id: str = "bob") -> list[float]:
    """How long each request of another user took, over six connections in turn: some to each worker."""
    connections = [live.connect() for _ in range(6)]
    taken = []
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        for connection in connections:
            started_at = time.monotonic()
            assert live.send(connection, "GET", f"/api/{user_id}/tasks", user_id)[0] == 200
            taken.append(time.monotonic() - started_at)
    for connection in connections:
        connection.close()
    return taken


def bursts(live: Server, rounds: int) -> Counter[int]:
    """The answers to an honest front end that sends thirty quick requests at once, again and again."""
    statuses: Counter[int] = Counter()
    with ThreadPoolExecutor(30) as pool:
        for _ in range(rounds):
            statuses.update(pool.map(lambda _: live.request("GET", "/api/carol/tasks", "carol")[0], range(30)))
    return statuses


def typing(live: Server, letters: int) -> Counter[int]:
    """The answers to one that searches as its user types: six times a second, three searches at once."""
    statuses: Counter[int] = Counter()
    with ThreadPoolExecutor(3) as pool:
        for _ in range(letters):
            statuses.update(pool.map(lambda _: live.request("GET", "/api/carol/tasks?q=m", "carol")[0], range(3)))
            time.sleep(1 / 6)
    return statuses


def test_a_user_who_searches_at_the_greatest_cost_keeps_nobody_waiting(url: URL, live: Server) -> None:
    """The short form: without a bound on searches another user waits for half a second and more."""
    fill(url, TASKS)
    with attack(live, SEARCHES["the worst for strpos"][0]) as answers:
        beside = waits(live, 2)
        honest = bursts(live, 2) + typing(live, 3)
    assert answers.keys() <= {"200", "422", "429"}
    assert answers["429"] > answers["200"] + answers["422"]
    assert honest == {200: 69}
    assert statistics.median(beside) < BUSY, beside


@pytest.mark.faults
@pytest.mark.parametrize("search", SEARCHES)
def test_beside_an_attack_another_user_is_served_as_without(
    url: URL, live: Server, search: str, record_property: Callable[[str, object], None]
) -> None:
    path, tasks = SEARCHES[search]
    fill(url, tasks)
    taken = {"without": waits(live, 5), "beside quick requests": [], "beside the attack": []}
    quick, answers, honest = Counter[str](), Counter[str](), Counter[int]()
    # In turn, so that what else the machine does falls on both.
    for _ in range(ROUNDS // 5):
        with attack(live, "/api/dave/tasks", user_id="dave") as statuses:
            taken["beside quick requests"] += waits(live, 3)
        quick += statuses
        with attack(live, path) as statuses:
            taken["beside the attack"] += waits(live, 3)
            honest += bursts(live, 5) + typing(live, 5)
        answers += statuses
    # What the attacker owes is forgiven.
    time.sleep(LONGEST)
    with attack(live, path, is_polite=True) as polite:
        taken["beside it, waiting for Retry-After"] = waits(live, 5)
        honest += bursts(live, ROUNDS) + typing(live, ROUNDS)
    figures: dict[str, object] = {"database": url.get_backend_name(), "attacker": dict(answers), "polite": dict(polite)}
    figures["quick"] = dict(quick)
    for name, seconds in taken.items():
        middle, high, longest = (1000 * value for value in (statistics.median(seconds), p99(seconds), max(seconds)))
        figures[name] = f"p50 {middle:.1f} p99 {high:.1f} max {longest:.0f} ms"
    figures["refused of an honest front end"] = f"{honest[429]} of {honest.total()}"
    record_property("figures", figures)
    # So many quick requests may make each other slow.
    assert quick.keys() <= {"200", "429"}, figures
    assert answers.keys() <= {"200", "422", "429"}, figures
    assert honest == {200: 33 * 2 * ROUNDS}, figures
    without, beside_quick, beside, beside_polite = map(p99, taken.values())
    assert beside_polite <= min(FACTOR * without + NOISE, SLOWEST), figures
    assert beside <= max(BESIDE_QUICK * beside_quick, SLOWEST), figures


@pytest.mark.faults
@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_requests_that_wait_for_a_lock_of_their_user_keep_nobody_waiting(
    url: URL, live: Server, record_property: Callable[[str, object], None]
) -> None:
    fill(url, 1)
    ((task_id,),) = sql(url, "SELECT id FROM tasks WHERE user_id = 'mallory'")
    with (
        held(url, "SELECT 1 FROM tasks WHERE user_id = 'mallory' FOR UPDATE"),
        attack(live, f"/api/mallory/tasks/{task_id}/complete", "PATCH", is_polite=True) as answers,
    ):
        time.sleep(2)
        beside = waits(live, 5)
    figures = {"attacker": dict(answers), "p99": f"{1000 * p99(beside):.1f} ms", "max": f"{1000 * max(beside):.0f} ms"}
    record_property("figures", figures)
    assert answers.keys() == {"503", "429"}, figures
    assert p99(beside) < SLOWEST, figures
