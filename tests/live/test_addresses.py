"""Where PostgreSQL is found, of several hosts and addresses; and whether it proves over TLS that it is the one."""

import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

import psycopg2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flask import Flask
from psycopg2.extensions import parse_dsn
from sqlalchemy import URL

from tests.live import free_port
from tests.live.wire import Wire, _connect, wire_to
from tests.support import PASSWORD, ROLE, ROOT, Caller, Make, close, migrated_app, postgresql_database
from tests.test_addresses import parsed
from todo.db import connections as database
from todo.db import hosts as hosts_module


@pytest.fixture(scope="module")
def url(server: URL) -> Iterator[URL]:
    """A migrated database."""
    with postgresql_database(server) as url:
        close(migrated_app(url))
        yield url


@pytest.fixture(scope="module")
def wired(url: URL) -> Iterator[tuple[Wire, URL]]:
    """The same on a port of 127.0.0.1."""
    with wire_to(url) as wired:
        yield wired


def status(app: Flask) -> int:
    """The status of a call."""
    return Caller(app, "alice")("GET").status_code


def test_if_no_host_has_an_address_each_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(host: str, *_: object, **_options: object) -> NoReturn:
        raise socket.gaierror(-2, f"{host[:1].upper()} is unknown")

    monkeypatch.setattr(hosts_module, "getaddrinfo", look_up)
    with pytest.raises(psycopg2.OperationalError) as caught:
        hosts_module.resolve_hosts({"host": "a.example,b.example", "port": "5432"}, time.monotonic() + 5)
    assert str(caught.value) == (
        "could not find the address of a.example: A is unknown; could not find the address of b.example: B is unknown"
    )


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


def test_the_folder_of_a_socket_may_stand_in_the_place_of_the_host(url: URL, make: Make) -> None:
    """In libpq's own notation."""
    folder, _, port = str(url.query["host"]).partition(":")
    host = folder.replace("/", "%2F") + f":{port or url.query.get('port', '')}".removesuffix(":")
    address = f"postgresql://{ROLE}:{PASSWORD}@{host}/{url.database}"
    assert parse_dsn(address)["host"] == folder
    assert status(make(parsed(address))) == 200


def test_a_name_of_several_that_is_never_resolved_is_left_out_within_the_budget(
    wired: tuple[Wire, URL], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, url = wired
    go, ask = threading.Event(), socket.getaddrinfo
    monkeypatch.setattr(database, "REQUEST_BUDGET", 3.0)

    def look_up(host: str, *rest: object, type: int) -> object:
        return go.wait(20) and [] if host == "slow" else ask(host, None, type=type)

    monkeypatch.setattr(hosts_module, "getaddrinfo", look_up)
    names = f"localhost:{url.port},slow"
    app = make(parsed(f"postgresql://{ROLE}:{PASSWORD}@{names}/{url.database}?sslmode=disable"))
    started = time.monotonic()
    assert status(app) == 200
    assert 1.5 <= time.monotonic() - started < 6
    go.set()


@pytest.mark.parametrize(
    "query", ["host=127.0.0.1:{closed}&host=127.0.0.1:{port}", "host=127.0.0.1,127.0.0.1&port={closed},{port}"]
)
def test_several_hosts_may_stand_in_the_query(wired: tuple[Wire, URL], make: Make, query: str) -> None:
    _, url = wired
    query = query.format(closed=free_port(), port=url.port)
    assert status(make(parsed(f"postgresql://{ROLE}:{PASSWORD}@/{url.database}?{query}&sslmode=disable"))) == 200


def test_a_name_is_resolved_to_each_of_its_addresses(
    wired: tuple[Wire, URL], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first address refuses; the second is that of a real server, by way of a proxy."""
    addresses = [((host, 0),) for host in ("127.0.0.2", "127.0.0.1")]
    monkeypatch.setattr(hosts_module, "getaddrinfo", lambda *_args, **_kw: addresses)
    wire, url = wired
    wire.reset()
    assert status(make(url.set(host="db.example"))) == 200
    assert wire.connections == 1


Sign = Callable[[str], Path]


def certificates(folder: Path) -> tuple[Path, Sign]:
    """A certificate authority, and what makes it sign a key and certificate for a host."""
    now = datetime.now(UTC)

    def certificate(
        subject: str,
        key: ec.EllipticCurvePublicKey,
        issuer: str,
        by: ec.EllipticCurvePrivateKey,
        extension: x509.ExtensionType,
    ) -> bytes:
        names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in (subject, issuer)]
        builder = x509.CertificateBuilder(*reversed(names), key, x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        signed = builder.add_extension(extension, critical=True).sign(by, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)

    folder.mkdir()
    authority_key, authority = ec.generate_private_key(ec.SECP256R1()), folder / "authority"
    constraints = x509.BasicConstraints(ca=True, path_length=None)
    authority.write_bytes(certificate("authority", authority_key.public_key(), "authority", authority_key, constraints))

    def sign(host: str) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        alternative = x509.SubjectAlternativeName([x509.DNSName(host)])
        signed = folder / host
        signed.write_bytes(private + certificate(host, key.public_key(), "authority", authority_key, alternative))
        return signed

    return authority, sign


@contextmanager
def over_tls(url: URL, certificate: Path) -> Iterator[int]:
    """The server of that URL by way of TLS, as Neon's proxy speaks it; the port, of 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def pass_on(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def serve(client: socket.socket) -> None:
        # SSLRequest, and yes.
        client.recv(8)
        client.sendall(b"S")
        with suppress(OSError), context.wrap_socket(client, server_side=True) as encrypted, _connect(url) as plain:
            threading.Thread(target=pass_on, args=(plain, encrypted), daemon=True).start()
            pass_on(encrypted, plain)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


#: The TLS parameters of the URLs in docs/neon.md.
(TLS,) = set(re.findall(r"postgresql://todo:secret@ep-example[^?']+\?([^']+)'", (ROOT / "docs/neon.md").read_text()))
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


@pytest.mark.parametrize(
    ("signed_for", "trusted", "expected"),
    [
        ("localhost", "its authority", 200),
        ("db.example", "its authority", 503),
        ("localhost", "another authority", 503),
        ("localhost", "system", 503),
    ],
)
def test_only_the_server_that_the_url_names_is_spoken_to(
    url: URL, make: Make, tmp_path: Path, signed_for: str, trusted: str, expected: int
) -> None:
    """With the parameters of docs/neon.md. The wheel's own OpenSSL looks for the system's bundle where none is."""
    assert BUNDLE in TLS
    authority, sign = certificates(tmp_path / "ours")
    another, _ = certificates(tmp_path / "another")
    bundle = {"its authority": str(authority), "another authority": str(another)}.get(trusted, trusted)
    with over_tls(url, sign(signed_for)) as port:
        address = f"postgresql://{ROLE}:{PASSWORD}@localhost:{port}/{url.database}?{TLS.replace(BUNDLE, bundle)}"
        assert status(make(parsed(address))) == expected
