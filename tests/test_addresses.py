"""Where PostgreSQL is found, of several hosts."""

import time

import pytest
from sqlalchemy import URL

from config import ConfigurationError, load_settings
from todo.db import hosts


def parsed(value: str) -> URL:
    """The DATABASE_URL as the service takes it."""
    return load_settings({"DATABASE_URL": value, "IDENTITY_PROVIDER": "development"}).database_url


def test_each_address_of_a_host_has_its_name_and_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = {"h1": ["192.0.2.1", "2001:db8::1"], "h2": [], "h3": ["192.0.2.3"]}
    monkeypatch.setattr(hosts, "getaddrinfo", lambda host, *_args, **_kw: [((it, 0),) for it in addresses[host]])
    for port, ports in (("1,2,3,4", "1,1,3,4"), ("5432", "5432")):
        hosts.resolve_hosts(parameters := {"host": "h1,h2,/run,h3", "port": port}, time.monotonic() + 10)
        found = {"host": "h1,h1,/run,h3", "hostaddr": "192.0.2.1,2001:db8::1,,192.0.2.3"}
        assert parameters == found | {"port": ports}


@pytest.mark.parametrize("given", [{"dbname": "todo"}, {"host": "db.example", "hostaddr": "192.0.2.1"}])
def test_a_socket_and_an_address_that_is_given_are_left_to_libpq(given: dict[str, str]) -> None:
    hosts.resolve_hosts(parameters := dict(given), 0.0)
    assert parameters == given


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
