"""The results of a run, the verdicts on them, and RESULTS.md. Measures nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.load import Load
from benchmarks.servers import SERVICE
from benchmarks.workload import CALLS

CPU = "server CPU, µs"
WORKER_SIZES = "the service's workers over time: at most 1.10 times as large"
MANY = "the service with 256 connections"

#: FastAPI + SQLModel must need at least this many times the service's CPU.
BARS = {"get": 3.0, "list": 6.0, "create": 4.0, "complete": 6.0, "mix": 5.0}
#: The service may need at most this many times the CPU of the bare function.
BARE_BAR = 2.0
#: It is to need at most this many times the CPU of FastAPI with asyncpg.
ASYNCPG_AIMS = {call: 1 / 0.8 if call in ("list", "mix") else 1 / 0.6 for call in CALLS}

HOW_TO_READ = """\
- Server CPU is the headline: user and system time of all processes of the server over the requests that it served. Load
  generator, server and PostgreSQL share the cores, on which requests/s and percentiles depend far more.
- A figure is the median of the rounds, with the least and the greatest in brackets. A ratio is taken within each round,
  before the median: what slows a round slows both.
- Above 1× a peer takes more than the service; of requests/s, it serves more.
- All verify the token, compare its subject with the path, validate the body, and answer the same to the same requests;
  that is tried before anything is measured. A request without an answer ends the run, and so do many errors. A few are
  listed under the bars.
- The service remembers a token that it has verified (docs/decisions/speed.md), and the 50 callers here send theirs over
  and over; the peers verify it each time, as their documentation does.
- In a poll and a sync the service is asked what has changed (`If-None-Match`, `?since=`). The peers, which cannot tell,
  answer in full. Sizes are numbers of tasks.
- `bare` is the limit rather than a service: a WSGI function under the same gunicorn that mends no connection and bounds
  no wait."""


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, with the least and the greatest value."""

    median: float
    least: float
    greatest: float

    def __str__(self) -> str:
        if self.least == self.greatest:
            return _figure(self.median)
        return f"{_figure(self.median)} [{_figure(self.least)}–{_figure(self.greatest)}]"


def _figure(value: float) -> str:
    """Format a value. More than three digits mean nothing."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def spread(values: Sequence[float]) -> Spread:
    """Return the median with the least and the greatest value."""
    return Spread(median(values), min(values), max(values))


def ratio(values: Sequence[float], base: Sequence[float]) -> Spread:
    """Return the spread of the ratios. Each ratio is of two values of the same round."""
    return spread([value / of for value, of in zip(values, base, strict=True)])


class Results:
    """The results of a run: by section (for example a call), server and quantity, one value for each round."""

    def __init__(self) -> None:
        self.sections: dict[str, dict[str, dict[str, list[float]]]] = {}
        self.refused: list[str] = []

    def add(self, section: str, server: str, quantities: Mapping[str, float]) -> None:
        """Add the values of one more round."""
        kept = self.sections.setdefault(section, {}).setdefault(server, {})
        for quantity, value in quantities.items():
            kept.setdefault(quantity, []).append(value)

    def note_refused(self, what: str, load: Load) -> None:
        """Remember how many answers of a load were errors, if any were."""
        if load.refused:
            self.refused.append(f"{what}: {load.refused} of {load.requests:,}")

    def times_service(self, section: str, server: str, quantity: str) -> Spread:
        """Return the ratio to the service's value."""
        servers = self.sections[section]
        return ratio(servers[server][quantity], servers[SERVICE][quantity])


def render(results: Results, command: str, facts: Mapping[str, str]) -> str:
    """Return the page. facts: the machine, versions and date."""
    servers = list(results.sections[CALLS[0]])
    parts = [
        "# The service beside its peers",
        f"Written by `{command}`, never by hand. Each server has 2 workers of 8 database connections, and 32 callers.",
    ]
    if "fastify" not in servers:
        parts.append("**FASTIFY IS MISSING: without node that peer is left out.**")
    parts += [
        "![Each peer's server CPU per request, as a multiple of the service's](ratios.svg)",
        HOW_TO_READ,
        "## Server CPU for a request, as a multiple of the service's",
        _table(
            ["", *CALLS],
            [[name, *(f"{results.times_service(call, name, CPU)}" for call in CALLS)] for name in servers[1:]],
        ),
        "Must be reached:",
        _table(["server CPU", "bar", "measured", "met"], _bars(results)),
        "Aimed at:",
        _table(["server CPU", "aim", "measured", "met"], _aims(results)),
        f"Answers that were errors: {'; '.join(results.refused) or 'none'}.",
    ]
    for section, figures in results.sections.items():
        quantities = list(figures[next(iter(figures))])
        values = [[name, *(str(spread(figures[name][of])) for of in quantities)] for name in figures]
        parts += [f"## {section[0].upper()}{section[1:]}", _table(["", *quantities], values)]
        if SERVICE in figures:
            ratios = [[name, *(f"{results.times_service(section, name, of)}" for of in quantities)] for name in figures]
            parts += ["As multiples of the service's:", _table(["", *quantities], ratios[1:])]
    parts += ["## Where, and on what", _table(["", ""], list(facts.items()))]
    return "\n\n".join(parts) + "\n"


def _bars(results: Results) -> list[list[str]]:
    rows = []
    for call, least in BARS.items():
        measured = results.times_service(call, "fastapi-sqlmodel", CPU)
        rows.append(_verdict(f"fastapi-sqlmodel / service, {call}", f"≥ {least:g}", measured, measured.median >= least))
    return rows + [_at_most(results, "bare", call, BARE_BAR) for call in CALLS]


def _aims(results: Results) -> list[list[str]]:
    return [_at_most(results, "fastapi-asyncpg", call, most) for call, most in ASYNCPG_AIMS.items()]


def _at_most(results: Results, peer: str, call: str, most: float) -> list[str]:
    figures = results.sections[call]
    measured = ratio(figures[SERVICE][CPU], figures[peer][CPU])
    return _verdict(f"service / {peer}, {call}", f"≤ {_figure(most)}", measured, measured.median <= most)


def _verdict(name: str, bar: str, measured: Spread, is_met: bool) -> list[str]:
    return [name, bar, str(measured), "yes" if is_met else "**NO**"]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
