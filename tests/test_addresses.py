"""Where PostgreSQL is found, of several hosts."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from flask import Flask
from sqlalchemy import URL

from config import ConfigurationError, load_settings
from tests.live import free_port
from tests.support import PASSWORD, ROLE, Caller, Make, close, migrated_app, postgresql_database
from tests.wire import Wire, wire_to
from todo.db import connections as database
from todo.db import hosts


@pytest.fixture(scope="module")
def wired(server: URL) -> Iterator[tuple[Wire, URL]]:
    """A migrated database on a port of 127.0.0.1."""
    with postgresql_database(server) as url:
        close(migrated_app(url))
        with wire_to(url) as wired:
            yield wired


def parsed(value: str) -> URL:
    """The DATABASE_URL as the service takes it."""
    return load_settings({"DATABASE_URL": value, "IDENTITY_PROVIDER": "development"}).database_url


def status(app: Flask) -> int:
    """The status of a call."""
    return Caller(app, "alice")("GET").status_code


@pytest.mark.parametrize(
    "hosts",
    [
        *("127.0.0.1:{closed},127.0.0.1:{port}", "127.0.0.1:{closed},localhost:{port}", "127.0.0.1,127.0.0.1:{port}"),
        *("nowhere.invalid:{closed},localhost:{port}", "localhost:{port},nowhere.invalid", "localhost:{port}"),
        *("[::1]:{closed},127.0.0.1:{port}", "%2Fnowhere,127.0.0.1:{port}"),
    ],
)
def test_the_first_of_several_hosts_that_answers_is_taken(wired: tuple[Wire, URL], make: Make, hosts: str) -> None:
    """In libpq's own notation; by requests, which look names up within their time, and by commands."""
    wire, url = wired
    wire.reset()
    address = f"postgresql://{ROLE}:{PASSWORD}@{hosts.format(closed=free_port(), port=url.port)}/{url.database}"
    app = make(parsed(f"{address}?target_session_attrs=read-write&sslmode=disable"))
    assert status(app) == 200
    assert wire.connections == 1
    close(app)
    assert app.test_cli_runner().invoke(args=["seed", "alice", "--count", "1"]).exit_code == 0
    assert wire.connections == 2


def test_a_name_of_several_that_is_never_resolved_is_left_out_within_the_budget(
    wired: tuple[Wire, URL], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, url = wired
    go, ask = threading.Event(), socket.getaddrinfo
    monkeypatch.setattr(database, "REQUEST_BUDGET", 3.0)

    def look_up(host: str, *rest: object, type: int) -> object:
        return go.wait(20) and [] if host == "slow" else ask(host, None, type=type)

    monkeypatch.setattr(hosts, "getaddrinfo", look_up)
    names = f"localhost:{url.port},slow"
    app = make(parsed(f"postgresql://{ROLE}:{PASSWORD}@{names}/{url.database}?sslmode=disable"))
    started = time.monotonic()
    assert status(app) == 200
    assert 1.5 <= time.monotonic() - started < 6
    go.set()


def test_without_a_host_the_socket_is_left_to_libpq() -> None:
    hosts.resolve_hosts(parameters := {"dbname": "todo"}, 0.0)
    assert parameters == {"dbname": "todo"}


@pytest.mark.parametrize(
    "query", ["host=127.0.0.1:{closed}&host=127.0.0.1:{port}", "host=127.0.0.1,127.0.0.1&port={closed},{port}"]
)
def test_several_hosts_may_stand_in_the_query(wired: tuple[Wire, URL], make: Make, query: str) -> None:
    _, url = wired
    query = query.format(closed=free_port(), port=url.port)
    assert status(make(parsed(f"postgresql://{ROLE}:{PASSWORD}@/{url.database}?{query}&sslmode=disable"))) == 200


@pytest.mark.parametrize(
    "address",
    [
        *("h1:5432,h2:65536/db", "h1:65536/db", "/db?host=h1,h2,h3&port=5432,5433", "/db?host=h1,h2&port=5432"),
        *("/db?host=h1&host=h2&port=5432", "/db?host=h1,h2&port=http,5432"),
    ],
)
def test_hosts_that_cannot_be_told_apart_are_refused_with_the_notation_that_works(address: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parsed(f"postgresql://todo:secret@{address}")
    assert str(caught.value) == (
        "DATABASE_URL must name several hosts like postgresql://USER@HOST1:5432,HOST2:5432/DATABASE, "
        "with ports from 1 to 65535"
    )


@pytest.mark.parametrize("address", ["[::1,h2/db", "h1:x,h2/db", "h1:1:2,h2/db"])
def test_hosts_that_are_none_are_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="DATABASE_URL is not a database URL"):
        parsed(f"postgresql://todo:secret@{address}")
