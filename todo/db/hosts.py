"""Look up the addresses of PostgreSQL's hosts within a time limit."""

from concurrent.futures import Future
from socket import SOCK_STREAM, getaddrinfo
from threading import Thread
from time import monotonic
from typing import Any

import psycopg2


def resolve_hosts(parameters: dict[str, Any], deadline: float) -> None:
    """Add the addresses of the hosts to libpq's parameters, before the deadline (time.monotonic).

    libpq itself would look them up without a limit. The names stay beside the addresses, for TLS to check. Hosts
    without an address are left out. Raises OperationalError if none has an address.
    """
    hosts = parameters.get("host", "").split(",")
    if parameters.get("hostaddr") or all(map(_is_local, hosts)):
        return
    ports = str(parameters.get("port", "")).split(",")
    look_ups = [_look_up(host) for host in hosts]
    if len(hosts) > 1:
        # A look-up that never ends must leave time to connect to the other hosts.
        deadline = (deadline + monotonic()) / 2
    found, failures = [], []
    for host, port, look_up in zip(hosts, ports * (len(hosts) // len(ports)), look_ups, strict=True):
        try:
            found += [(host, address, port) for address in look_up.result(timeout=max(0.0, deadline - monotonic()))]
        except (OSError, UnicodeError) as error:
            # TimeoutError is an OSError. UnicodeError: a label of the name is too long, or empty.
            kind = getattr(error, "strerror", None) or type(error).__name__
            failures.append(f"could not find the address of {host}: {kind}")
    if not found:
        # Or libpq would look the names up itself, without a limit.
        raise psycopg2.OperationalError("; ".join(failures))
    parameters["host"] = ",".join(host for host, *_ in found)
    parameters["hostaddr"] = ",".join(address for _, address, _ in found)
    if len(ports) > 1:
        parameters["port"] = ",".join(port for *_, port in found)


def _is_local(host: str) -> bool:
    """Whether libpq reads this as a socket on this machine."""
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

    # A daemon thread, so that a look-up that never ends does not keep the process from ending.
    Thread(target=find, daemon=True).start()
    return look_up
