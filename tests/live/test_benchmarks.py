"""The parts of `make bench` that decide whether a run is to be believed; the run itself takes half an hour."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import URL

from benchmarks.agreement import Disagreement, compare, masked
from benchmarks.load import CONNECTIONS, LoadFailed, parse
from benchmarks.measure import cpu_seconds, memory
from benchmarks.report import BARS, CPU, Results, render
from benchmarks.workload import CALLS, MIX
from tests.live.wire import wire_to

TASK = {
    "id": 7,
    "title": "Buy milk",
    "created_at": "2025-01-09T12:34:56.123456Z",
    "updated_at": "2025-01-09T12:34:57.123456Z",
}


def results(cpu: dict[str, list[float]]) -> Results:
    """A run in which every call took the servers that much CPU."""
    found = Results()
    for server, values in cpu.items():
        for value in values:
            for call in CALLS:
                found.add(call, server, {CPU: value})
    return found


SERVERS = {"service": [100.0], "fastapi-sqlmodel": [600.0], "fastapi-asyncpg": [100.0], "bare": [100.0]}


@pytest.mark.parametrize("given", [(200, TASK | {"title": "Buy bread"}), (201, TASK), (200, [TASK]), (200, {})])
def test_the_run_stops_where_a_server_answers_otherwise(given: object) -> None:
    compare("drf", {"get": (200, TASK)}, {"get": (200, TASK)})
    with pytest.raises(Disagreement, match="drf differs on 'get'"):
        compare("drf", {"get": (200, TASK)}, {"get": given})


def test_of_two_lists_the_first_difference_is_told() -> None:
    other = TASK | {"title": "Buy bread"}
    with pytest.raises(Disagreement) as caught:
        compare("drf", {"list": (200, [TASK, TASK])}, {"list": (200, [TASK, other])})
    assert str(caught.value).endswith(f"200 {other}\nrather than\n  200 {TASK}")


def test_ids_and_instants_of_a_write_may_differ() -> None:
    other = TASK | {"id": 8, "created_at": "2026-01-01T00:00:00.000001Z", "updated_at": "2026-01-01T00:00:00.000001Z"}
    assert masked("POST", 201, TASK) == masked("POST", 201, other)
    assert masked("GET", 200, TASK) != masked("GET", 200, other)
    assert masked("POST", 201, TASK) != masked("POST", 201, other | {"title": "Buy bread"})


@pytest.mark.parametrize(
    "wrong", [{"id": "8"}, {"created_at": "2025-01-09T12:34:56Z"}, {"updated_at": "2025-01-09T12:34:56.123456+00:00"}]
)
def test_ids_and_instants_of_a_write_have_one_form(wrong: dict[str, str]) -> None:
    assert masked("POST", 201, TASK) != masked("POST", 201, TASK | wrong)


def test_only_a_400_has_a_wording_of_its_own() -> None:
    assert masked("POST", 400, {"error": "Too long"}) == masked("POST", 400, {"error": "At most 255"})
    assert masked("POST", 400, {"error": "Too long"}) != masked("POST", 400, {"error": {"title": "Too long"}})
    assert masked("POST", 400, {"error": "Too long"}) != masked("POST", 400, {"detail": "Too long"})
    assert masked("GET", 404, {"error": "Task not found"}) != masked("GET", 404, {"error": "Not found"})


def printed(requests: int = 900, refused: int = 0, broken: int = 0) -> str:
    """What wrk prints, and what load.lua adds to it."""
    counts = f'"requests": {requests}, "refused": {refused}, "broken": {broken}'
    counts += ', "seconds": 3.0, "p50": 1.5, "p99": 9.25, "slowest": 20.5, "bytes": 90000'
    return f"Running 3s test\n  1 threads and 32 connections\n\n{{{counts}}}\n"


def test_a_load_is_read_from_what_is_printed() -> None:
    load = parse(printed())
    assert (load.requests, load.seconds, load.p50, load.p99, load.slowest) == (900, 3.0, 1.5, 9.25, 20.5)
    # Time was up with one request on each connection still on its way.
    assert load.asked == 900 + CONNECTIONS


def test_a_few_errors_among_many_answers_are_told() -> None:
    measured = results(SERVERS)
    assert "Answers that were errors: none." in render(measured, "make bench", {})
    measured.note_refused("service, get", parse(printed(requests=6000, refused=0)))
    measured.note_refused("service, list", parse(printed(requests=6000, refused=6)))
    assert "Answers that were errors: service, list: 6 of 6,000." in render(measured, "make bench", {})


@pytest.mark.parametrize("wrong", [{"refused": 5}, {"requests": 6000, "refused": 31}, {"broken": 1}, {"requests": 0}])
def test_the_run_stops_where_a_request_fails(wrong: dict[str, int]) -> None:
    with pytest.raises(LoadFailed):
        parse(printed(**wrong))


def test_a_ratio_is_taken_round_by_round() -> None:
    # The second round was slow for both: the ratio of the medians would be 2.5.
    spread = results({"service": [100.0, 400.0, 120.0], "drf": [300.0, 800.0, 240.0]}).times_service("get", "drf", CPU)
    assert (spread.median, spread.least, spread.greatest) == (2.0, 2.0, 3.0)


def test_the_page_says_which_bars_are_met() -> None:
    page = render(results(SERVERS), "make bench", {})
    assert "| fastapi-sqlmodel / service, list | ≥ 6 | 6 | yes |" in page
    assert "| service / bare, mix | ≤ 2 | 1 | yes |" in page
    assert "| service / fastapi-asyncpg, mix | ≤ 1.25 | 1 | yes |" in page
    assert "NO" not in page.replace("FASTIFY IS MISSING", "")


def test_the_page_says_which_bars_are_missed() -> None:
    page = render(results(SERVERS | {"fastapi-sqlmodel": [500.0], "bare": [40.0]}), "make bench", {})
    for call, bar in BARS.items():
        assert f"| fastapi-sqlmodel / service, {call} | ≥ {bar:g} | 5 | {'yes' if bar <= 5 else '**NO**'} |" in page
        assert f"| service / bare, {call} | ≤ 2 | 2.5 | **NO** |" in page


def test_the_page_says_that_fastify_is_missing() -> None:
    assert "**FASTIFY IS MISSING" in render(results(SERVERS), "make bench", {})
    page = render(results(SERVERS | {"fastify": [200.0]}), "make bench", {})
    assert "MISSING" not in page


def test_the_mix_is_what_it_is_said_to_be() -> None:
    assert {call: MIX.count(call) / len(MIX) for call in MIX} == {
        "list": 0.7,
        "get": 0.2,
        "create": 0.05,
        "complete": 0.05,
    }


def test_cpu_time_and_memory_are_those_of_the_whole_tree() -> None:
    burn = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)"
    # A child that has ended, and one that lives.
    script = f"import subprocess, sys\nburn = [sys.executable, '-c', {burn!r}]\nsubprocess.run(burn)\n"
    script += f"subprocess.run([sys.executable, '-c', {burn + chr(10) + 'input()'!r}])"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        process.stdout.readline()
        assert 0.38 <= cpu_seconds(process.pid) < 1.5
        assert memory(process.pid) > 0
        process.stdin.write(b"\n")


@pytest.fixture
def echo() -> Iterator[URL]:
    """A server that says everything again, by a URL as of PostgreSQL."""

    def repeat() -> None:
        connection, _ = listener.accept()
        with connection:
            while said := connection.recv(65536):
                connection.sendall(said)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=repeat, daemon=True).start()
        yield URL.create("postgresql", host="127.0.0.1", port=listener.getsockname()[1])


def test_distance_delays_all_parts_alike(echo: URL) -> None:
    with wire_to(echo, delay=0.05) as (wire, url), socket.create_connection((url.host, url.port)) as client:
        start = time.monotonic()
        for _ in range(10):
            client.sendall(b"x")
            time.sleep(0.002)
        heard = b""
        while len(heard) < 10:
            heard += client.recv(10)
        # There and back once, not ten times.
        assert 0.1 <= time.monotonic() - start < 1
        assert wire.connections == 1
