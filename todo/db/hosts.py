"""The addresses of PostgreSQL's hosts, looked up within a time limit."""

from concurrent.futures import Future
from socket import SOCK_STREAM, getaddrinfo
from threading import Thread
from time import monotonic
from typing import Any

import psycopg2


def resolve_hosts(parameters: dict[str, Any], deadline: float) -> None:
    """Look the server's addresses up before the deadline (time.monotonic): libpq would block, beyond any callback.

    The names stay beside the addresses, for TLS to check. Of several hosts, one without an address is left out.
    """
    hosts = parameters.get("host", "").split(",")
    if parameters.get("hostaddr") or all(map(_is_local, hosts)):
        return
    ports = str(parameters.get("port", "")).split(",")
    look_ups = [_look_up(host) for host in hosts]
    if len(hosts) > 1:
        # A name that is never found must leave time for the other hosts.
        deadline = (deadline + monotonic()) / 2
    found, failures = [], []
    for host, port, look_up in zip(hosts, ports * (len(hosts) // len(ports)), look_ups, strict=True):
        try:
            found += [(host, address, port) for address in look_up.result(timeout=max(0.0, deadline - monotonic()))]
        except (OSError, UnicodeError) as error:
            # TimeoutError is an OSError too. UnicodeError: a label that is too long, or empty.
            kind = getattr(error, "strerror", None) or type(error).__name__
            failures.append(f"could not find the address of {host}: {kind}")
    if not found:
        # libpq must not try again, without a bound.
        raise psycopg2.OperationalError("; ".join(failures))
    parameters["host"] = ",".join(host for host, *_ in found)
    parameters["hostaddr"] = ",".join(address for _, address, _ in found)
    if len(ports) > 1:
        parameters["port"] = ",".join(port for *_, port in found)


def _is_local(host: str) -> bool:
    """Whether libpq takes that for a socket of this machine."""
    return not host or host.startswith(("/", "@"))


def _look_up(host: str) -> "Future[list[str]]":
    look_up: Future[list[str]] = Future()

    def find() -> None:
        try:
            if _is_local(host):
                look_up.set_result([""])
            else:
                look_up.set_result([str(address[0]) for *_, address in getaddrinfo(host, None, type=SOCK_STREAM)])
        except (OSError, UnicodeError) as error:
            look_up.set_exception(error)

    # A daemon: a look-up that never ends holds up neither the request nor the end of the process.
    Thread(target=find, daemon=True).start()
    return look_up
