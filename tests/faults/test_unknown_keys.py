"""Thousands of tokens that nobody signed, or that name keys nobody has: what they cost the issuer, and good users."""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Event
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.faults.test_slow_clients import p99
from tests.identity.issuer import EcKey, Issuer, jwk
from tests.identity.tokens import base64url
from tests.live import Server, free_port, running
from tests.support import PATIENCE, close, migrated_app, sqlite_database, token
from todo.identity.jwks import LONGEST_PAUSE, TIMEOUT

pytestmark = pytest.mark.faults

TOKENS = 10_000
WORKERS = 2
#: More than the threads of both workers.
CALLERS = 32
#: Seconds within which a known user is answered in any case: less than a fetch of the keys may take.
SLOWEST = 1.0
#: Seconds of a storm with an issuer that never answers: four fetches.
STORM = 12.0
#: How much slower a known user may be than beside as many forged tokens that name a known key.
FACTOR, ALLOWANCE = 2.0, 0.05


class Service(NamedTuple):
    """A gunicorn that trusts an issuer, and the token of a user whom it knows."""

    live: Server
    issuer: Issuer
    known: str

    def get(self, authorization: Iterator[str] | list[str]) -> tuple[Counter[int], list[float]]:
        """Ask with each of those, on one connection: how often each status was the answer, and how long each took."""
        statuses: Counter[int] = Counter()
        taken = []
        connection = self.live.connect()
        for value in authorization:
            started_at = time.monotonic()
            connection.request("GET", "/api/alice/tasks", headers={"Authorization": f"Bearer {value}"})
            response = connection.getresponse()
            response.read()
            statuses[response.status] += 1
            taken.append(time.monotonic() - started_at)
        connection.close()
        return statuses, taken


@pytest.fixture(scope="module")
def key() -> EcKey:
    """The key of the issuer."""
    return ec.generate_private_key(ec.SECP256R1())


@contextmanager
def trusting(issuer: Issuer, log: Path) -> Iterator[Server]:
    """A gunicorn that trusts that issuer."""
    port = free_port()
    with sqlite_database() as url:
        close(migrated_app(url))
        environ = {"PATH": os.environ["PATH"], "DATABASE_URL": str(url), "WEB_CONCURRENCY": str(WORKERS)}
        environ |= {"IDENTITY_PROVIDER": "jwt", "JWT_JWKS_URL": issuer.url}
        command = [sys.executable, "-m", "gunicorn", "wsgi:app", "--bind", f"127.0.0.1:{port}"]
        with running(command, port, environ, log) as live:
            yield live


@pytest.fixture(scope="module")
def service(key: EcKey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """It, with each worker having fetched the keys just now."""
    issuer = Issuer()
    issuer.serve(jwk(key, "known"))
    with trusting(issuer, tmp_path_factory.mktemp("keys") / "log") as live:
        known = token(key=key, algorithm="ES256", headers={"kid": "known"}, exp=int(time.time()) + 3600)
        service = Service(live, issuer, known)
        deadline = time.monotonic() + PATIENCE
        while issuer.requests < WORKERS:
            assert service.get([known])[0] == {200: 1}
            assert time.monotonic() < deadline
        yield service
    issuer.close()


def forged(number: int, kid: str) -> str:
    """A token that nobody signed."""
    head = base64url(json.dumps({"alg": "ES256", "kid": kid}))
    payload = base64url(json.dumps({"sub": "alice", "exp": 4102444800, "jti": number}))
    return f"{head}.{payload}.{base64url(bytes(64))}"


def beside_a_storm(service: Service, kid: str) -> tuple[Counter[int], list[float]]:
    """What so many forged tokens of all callers are answered, and how long a known user's requests took meanwhile."""
    statuses: Counter[int] = Counter()
    over = Event()

    def until_over() -> Iterator[str]:
        while not over.is_set():
            yield service.known

    with ThreadPoolExecutor(CALLERS + 1) as pool:
        user = pool.submit(service.get, until_over())
        storm = [
            pool.submit(service.get, [forged(number, kid.format(number)) for number in range(start, TOKENS, CALLERS)])
            for start in range(CALLERS)
        ]
        for caller in storm:
            statuses += caller.result()[0]
        over.set()
        known, taken = user.result()
    assert known.keys() == {200}
    return statuses, taken


def test_they_cost_a_handful_of_fetches_and_nobody_known_notices(
    service: Service, key: EcKey, record_property: Callable[[str, object], None]
) -> None:
    usual = service.get([service.known] * 2000)[1]
    before, started_at = service.issuer.requests, time.monotonic()
    control, beside_control = beside_a_storm(service, "known")
    # The latter while another caller asks the issuer for a new key of that id.
    assert control.keys() <= {401, 503}
    unknown, beside_unknown = beside_a_storm(service, "unknown {}")
    assert unknown.keys() <= {401, 503}
    enough = Event()

    def keep_silent(_handler: BaseHTTPRequestHandler) -> None:
        enough.wait(60)

    answer, service.issuer.answer = service.issuer.answer, keep_silent
    silent, beside_silent = beside_a_storm(service, "unknown {}")
    fetches, seconds = service.issuer.requests - before, time.monotonic() - started_at
    enough.set()
    service.issuer.answer = answer
    figures: dict[str, object] = {"forged": TOKENS, "unknown keys": 2 * TOKENS}
    figures |= {"seconds": f"{seconds:.0f}", "fetches": fetches}
    for name, taken in (
        ("alone", usual),
        ("beside forged", beside_control),
        ("beside unknown", beside_unknown),
        ("beside unknown, issuer silent", beside_silent),
    ):
        figures[f"p99 {name}"] = f"{p99(taken) * 1000:.1f} ms"
        figures[f"max {name}"] = f"{max(taken) * 1000:.1f} ms"
    figures["new key found after"] = f"{seconds_until_a_new_key_is_found(service, key):.1f} s"
    record_property("figures", figures)
    assert silent.keys() <= {401, 503}
    # At once, after 1, 3 and 7 s, and then one every ten, of each worker.
    assert WORKERS <= fetches <= WORKERS * (4 + seconds / LONGEST_PAUSE)
    for taken in (beside_unknown, beside_silent):
        assert p99(taken) <= FACTOR * p99(beside_control) + ALLOWANCE, figures
        assert max(taken) < SLOWEST, figures


def seconds_until_a_new_key_is_found(service: Service, key: EcKey) -> float:
    """How long after the storm, the pauses being at their longest, an issuer's new key is unknown to a worker."""
    service.issuer.serve(jwk(key, "known"), jwk(key, "new"))
    started_at = time.monotonic()
    new = token(key=key, algorithm="ES256", headers={"kid": "new"})
    # Of both workers, since nobody knows which one answers.
    while service.get([new] * 20)[0] != {200: 20}:
        assert time.monotonic() < started_at + LONGEST_PAUSE + 2 * SLOWEST
        time.sleep(0.1)
    return time.monotonic() - started_at


def test_an_issuer_that_restarts_twice_within_seconds_signs_nobody_out(service: Service, key: EcKey) -> None:
    # After what came before.
    time.sleep(2 * LONGEST_PAUSE)
    for kid in ("first", "second"):
        service.issuer.serve(jwk(key, kid))
        new = token(key=key, algorithm="ES256", headers={"kid": kid})
        assert [service.get([new])[0] for _ in range(40)] == [{200: 1}] * 40


def test_an_issuer_that_was_never_there_holds_all_threads_once_and_never_again(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Nobody can be known yet. What needs no identity is answered: a load balancer keeps the workers."""
    enough, over = Event(), Event()
    issuer = Issuer()
    issuer.answer = lambda _handler: enough.wait(60)
    statuses: Counter[int] = Counter()
    taken: list[tuple[float, float]] = []

    def ask(live: Server, number: int) -> Counter[int]:
        service = Service(live, issuer, "")
        return service.get(forged(number, f"unknown {number}") for _ in iter(over.is_set, True))[0]

    with trusting(issuer, tmp_path / "log") as live, ThreadPoolExecutor(CALLERS) as pool:
        started_at = time.monotonic()
        storm = [pool.submit(ask, live, number) for number in range(CALLERS)]
        while (since := time.monotonic() - started_at) < STORM:
            assert live.request("GET", "/health/live")[0] == 200
            taken.append((since, time.monotonic() - started_at - since))
        over.set()
        for caller in storm:
            statuses += caller.result()
        enough.set()
    issuer.close()
    later = [seconds for since, seconds in taken if since > TIMEOUT]
    figures = {
        "answers": dict(statuses),
        "fetches": issuer.requests,
        "slowest at first": f"{max(seconds for _, seconds in taken):.2f} s",
        "p99 later": f"{p99(later) * 1000:.1f} ms",
        "max later": f"{max(later) * 1000:.1f} ms",
    }
    record_property("figures", figures)
    assert statuses.keys() == {503}, figures
    assert max(seconds for _, seconds in taken) < TIMEOUT + SLOWEST, figures
    assert max(later) < SLOWEST, figures
