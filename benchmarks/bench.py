"""`make bench`: compares the service with its peers, in interleaved rounds. ROUNDS and SECONDS shorten it."""

import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import astuple
from datetime import UTC, datetime
from http.client import HTTPConnection
from itertools import cycle, islice
from json import dumps
from pathlib import Path
from platform import release
from statistics import median
from time import perf_counter

from benchmarks import servers
from benchmarks.agreement import Disagreement, answers, compare
from benchmarks.load import LoadFailed, load, send
from benchmarks.measure import idle_cpu_seconds, memory, parent, resident_memory
from benchmarks.report import CPU, MANY, WORKER_SIZES, Results, render
from benchmarks.servers import SERVICE, started
from benchmarks.sync import polls, seed_pollers
from benchmarks.workload import CALLS, Database, seeded_database, write_requests
from tests.live import Server
from tests.live.wire import Wire, wire_to
from tests.support import ROOT, postgresql_server

ROUNDS, SECONDS = 5, 3
#: Seconds of load before a measurement, for servers that compile code while they run.
WARM_UP = 2
#: Polls and a sync: what the service is asked, and what its peers are (names of polls()).
REFRESHES = {
    "poll of 100, nothing changed": ("list of 100, unchanged (304)", "list of 100"),
    "poll of 1,000, nothing changed": ("list of 1000, unchanged (304)", "list of 1000"),
    "sync of 1,000, one change": ("feed of 1000, one change", "list of 1000"),
}
#: At least so many seconds of each: the slowest peer needs a good part of one for an answer to each caller.
REFRESH_SECONDS = 3
CROWD = 256
#: The network delay to a hosted database, in seconds each way.
DISTANCE = 0.005
DISTANT_REQUESTS = 50
#: A worker's memory after SERVED requests may be at most GROWTH_LIMIT times that after FEW.
FEW, SERVED, GROWTH_LIMIT = 1_000, 100_000, 1.10


class Bench:
    """One run: its database and files, and its results so far."""

    def __init__(self, database: Database, folder: Path, seconds: int) -> None:
        self.database, self.folder, self.seconds = database, folder, seconds
        self.files = {call: database.write_requests(call, folder) for call in CALLS}
        self.postmaster = parent(database.execute("SELECT pg_backend_pid()")[0][0])
        self.results = Results()

    def check(self, names: list[str]) -> None:
        """Raise Disagreement unless all servers answer like the first one, the service."""
        expected = None
        for name in names:
            with started(name, self.database.url, self.log(name)) as server:
                given = answers(server.port, self.database)
            expected = expected or given
            compare(name, expected, given)
            print(f"{name} answers as it should", flush=True)

    def measure(self, name: str) -> None:
        """Measure one round of one server: every call under load, then its memory."""
        with started(name, self.database.url, self.log(name)) as server:
            load(server.port, self.files["mix"], WARM_UP)
            for call in CALLS:
                self.measure_call(name, server, call)
            self.measure_refreshes(name, server)
            self.results.add("memory", name, {"proportional set size, MiB": memory(server.process.pid)})

    def measure_call(self, name: str, server: Server, call: str) -> None:
        """Measure one call under load, after one second of the same load."""
        load(server.port, self.files[call], 1)
        idle_cpu_seconds(server.process.pid)
        self.database.forget_writes()
        self.measure_load(call, name, server, self.files[call], self.seconds)
        if name == SERVICE:
            self.measure_crowd(call, server, self.files[call])

    def measure_refreshes(self, name: str, server: Server) -> None:
        """Measure requests for news. Each kind is prepared when its turn comes: the last one changes tasks."""
        is_service = name == SERVICE
        for kind, requests in polls(self.database, server.port, is_service=is_service):
            file = write_requests(requests, self.folder / "refresh.tsv")
            for section, (asked, asked_of_peers) in REFRESHES.items():
                if kind == (asked if is_service else asked_of_peers):
                    self.measure_load(section, name, server, file, max(self.seconds, REFRESH_SECONDS))

    def measure_crowd(self, call: str, server: Server, requests: Path) -> None:
        """Measure many connections, none of which may be cut off."""
        result = load(server.port, requests, self.seconds, connections=CROWD)
        self.results.note_refused(f"{MANY}, {call}", result)
        rate = result.requests / result.seconds
        quantities = {"requests/s": rate, "p50, ms": result.p50, "p99, ms": result.p99, "slowest, ms": result.slowest}
        self.results.add(MANY, call, quantities)

    def measure_load(self, section: str, name: str, server: Server, requests: Path, seconds: int) -> None:
        """Measure the requests under load."""
        pids = (server.process.pid, self.postmaster)
        before = [idle_cpu_seconds(pid) for pid in pids]
        result = load(server.port, requests, seconds)
        self.results.note_refused(f"{name}, {section}", result)
        own, postgresql = (
            (idle_cpu_seconds(pid) - start) / result.asked * 1e6 for pid, start in zip(pids, before, strict=True)
        )
        rate = result.requests / result.seconds
        quantities = {CPU: own, "PostgreSQL's CPU, µs": postgresql, "requests/s": rate}
        self.results.add(section, name, quantities | {"p50, ms": result.p50, "p99, ms": result.p99})
        print(
            f"{name:17} {section:9} {own:6.0f} µs of CPU  {rate:6.0f} requests/s  p50 {result.p50:6.1f} ms", flush=True
        )

    def measure_distance(self, name: str) -> None:
        """Measure the round trips of each call, and its duration with a distant database."""
        with wire_to(self.database.url, DISTANCE) as (wire, url), started(name, url, self.log(name)) as server:
            for call in CALLS[:-1]:
                round_trips, p50 = self.ask_one_by_one(server, wire, call)
                self.results.add("round trips to the database", name, {call: round_trips})
                self.results.add("p50 in ms, one by one, with the database 5 ms away each way", name, {call: p50})
                print(f"{name:17} {call:9} {round_trips:g} round trips, {p50:.1f} ms away", flush=True)

    def ask_one_by_one(self, server: Server, wire: Wire, call: str) -> tuple[float, float]:
        """Return the median round trips and the median milliseconds of a request, on one connection."""
        connection = HTTPConnection("127.0.0.1", server.port, timeout=15)
        round_trips, milliseconds = [], []
        for request in islice(cycle(self.database.requests(call)), 2 * DISTANT_REQUESTS):
            wire.reset()
            start = perf_counter()
            status, body = send(connection, request)
            milliseconds.append((perf_counter() - start) * 1000)
            round_trips.append(wire.round_trips)
            if status >= 300:
                raise LoadFailed(f"{status} for {request}: {body!r}")
        connection.close()
        # The first half is the warm-up.
        return median(round_trips[DISTANT_REQUESTS:]), median(milliseconds[DISTANT_REQUESTS:])

    def measure_growth(self) -> None:
        """Measure the resident size of the service's workers, after few and after many mixed requests."""
        with started(SERVICE, self.database.url, self.log(SERVICE)) as server:
            load(server.port, self.files["mix"], 5, limit=FEW)
            few = [resident_memory(pid) for pid in server.workers()]
            served = FEW
            while served < SERVED:
                served += load(server.port, self.files["mix"], 10).asked
            many = [resident_memory(pid) for pid in server.workers()]
        for number, (before, after) in enumerate(zip(few, many, strict=True), start=1):
            sizes = {
                f"MiB after {FEW:,}": before,
                f"MiB after {served:,} mixed requests": after,
                "growth": after / before,
            }
            self.results.add(WORKER_SIZES, f"worker {number}", sizes)
            print(f"worker {number}: {before:.1f} MiB after {FEW} requests, {after:.1f} after {served}", flush=True)

    def log(self, name: str) -> Path:
        """The path of the server's log."""
        return self.folder / f"{name}.log"


def facts(database: Database, names: list[str]) -> dict[str, str]:
    """Return the machine, date and versions of this run."""
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    wrk = subprocess.run(["wrk", "--version"], capture_output=True, text=True, check=False).stdout
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "CPU": f"{cpu.partition(': ')[2]}, {os.cpu_count()} cores",
        "kernel": f"Linux {release()}",
        "PostgreSQL": str(database.execute("SHOW server_version")[0][0]),
        "wrk": wrk.split()[1],
    } | {name: servers.versions(name) for name in names}


def write(results: Results, command: str, found: dict[str, str], folder: Path) -> None:
    """Write RESULTS.md and its picture. The Python of the peers draws it, because it has the packages."""
    folder.mkdir(exist_ok=True)
    (folder / "RESULTS.md").write_text(render(results, command, found))
    peers = [name for name in results.sections[CALLS[0]] if name != SERVICE]
    ratios = {name: [astuple(results.times_service(call, name, CPU)) for call in CALLS] for name in peers}
    draw = [servers.PEERS_PYTHON, str(ROOT / "benchmarks" / "picture.py"), str(folder / "ratios.svg")]
    subprocess.run(draw, input=dumps({"calls": CALLS, "ratios": ratios}), text=True, check=True)


def main() -> None:
    """Run, print and write. Exits with 1 if a server fails or differs, or a worker of the service grows too much."""
    rounds, seconds = int(os.environ.get("ROUNDS", ROUNDS)), int(os.environ.get("SECONDS", SECONDS))
    # The CPU time of a PostgreSQL on another machine cannot be read.
    os.environ.pop("TEST_DATABASE_URL", None)
    # SIGTERM must also end all servers that were started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    names = servers.available()
    with postgresql_server() as url, seeded_database(url) as database, tempfile.TemporaryDirectory() as logs:
        seed_pollers(database)
        bench = Bench(database, Path(logs), seconds)
        bench.check(names)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", flush=True)
            # Each round starts with a different server.
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                bench.measure(name)
        for name in names:
            bench.measure_distance(name)
        bench.measure_growth()
        found = facts(database, names) | {"rounds": f"{rounds}, with {seconds} s for each call"}
    is_whole = (rounds, seconds) == (ROUNDS, SECONDS)
    command = "make bench" if is_whole else f"ROUNDS={rounds} SECONDS={seconds} make bench"
    # A shortened run does not overwrite the results of a whole one.
    folder = ROOT / "benchmarks" / ("" if is_whole else "quick")
    write(bench.results, command, found, folder)
    print(f"{folder / 'RESULTS.md'} has it all", flush=True)
    if any(worker["growth"][0] > GROWTH_LIMIT for worker in bench.results.sections[WORKER_SIZES].values()):
        sys.exit("bench: a worker of the service has grown beyond the limit")


if __name__ == "__main__":
    try:
        main()
    except (Disagreement, LoadFailed) as error:
        sys.exit(f"bench: {error}")
