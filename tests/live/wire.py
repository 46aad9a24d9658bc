"""A TCP proxy before PostgreSQL that counts round trips: how often the client speaks after the server has spoken.

It can also forget connections and tell nobody. tests/faults/network.py cuts them, and loses packets.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue

from sqlalchemy import URL


class Wire:
    """What went over the wire."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.connections = 0
        self.round_trips = 0
        self.forgotten = 0
        self.sockets: list[socket.socket] = []

    def reset(self) -> None:
        """Count from nought."""
        self.connections = self.round_trips = 0

    def forget(self) -> None:
        """Pass on nothing more on the connections there are, and tell nobody; later ones work."""
        self.forgotten = self.connections


@contextmanager
def wire_to(server: URL, delay: float = 0.0) -> Iterator[tuple[Wire, URL]]:
    """A proxy on a port of 127.0.0.1, so many seconds long each way, and the server's URL by way of it."""
    wire = Wire(delay)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(wire, listener, server), daemon=True).start()
        # Unencrypted, so that a turn of the conversation is one packet after the other.
        query = {name: value for name, value in server.query.items() if name not in ("host", "port")}
        url = server.set(host="127.0.0.1", port=listener.getsockname()[1], query=query | {"sslmode": "disable"})
        yield wire, url
        listener.shutdown(socket.SHUT_RDWR)
        for connection in wire.sockets:
            _close(connection)


def _accept(wire: Wire, listener: socket.socket, server: URL) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        # The rest of a long answer does not wait until the client has acknowledged its beginning.
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.connections += 1
        wire.sockets += (client, server_side := _connect(server))
        threading.Thread(target=_Conversation(wire, client, server_side).run, daemon=True).start()


def _connect(server: URL) -> socket.socket:
    host = str(server.query.get("host") or server.host or "127.0.0.1")
    port = server.port or 5432
    if not host.startswith("/"):
        return socket.create_connection((host, port))
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(f"{host}/.s.PGSQL.{port}")
    return connection


def _close(connection: socket.socket) -> None:
    with suppress(OSError):
        # Wakes whoever is reading from it.
        connection.shutdown(socket.SHUT_RD)
    connection.close()


def _sender(receiver: socket.socket, delay: float) -> Callable[[bytes], None]:
    """What sends to the receiver; with a delay each part arrives so much later, however many are on their way."""
    if not delay:
        return receiver.sendall
    on_its_way: SimpleQueue[tuple[float, bytes]] = SimpleQueue()

    def deliver() -> None:
        with suppress(OSError):
            while True:
                due, said = on_its_way.get()
                time.sleep(max(0.0, due - time.monotonic()))
                receiver.sendall(said)

    threading.Thread(target=deliver, daemon=True).start()
    return lambda said: on_its_way.put((time.monotonic() + delay, said))


class _Conversation:
    def __init__(self, wire: Wire, client: socket.socket, server: socket.socket) -> None:
        self.wire, self.client, self.server = wire, client, server
        self.number = wire.connections
        self.has_server_spoken = True

    def is_forgotten(self) -> bool:
        """Whether nothing is passed on."""
        return self.number <= self.wire.forgotten

    def run(self) -> None:
        send = _sender(self.server, self.wire.delay)
        answers = threading.Thread(target=self._answer, daemon=True)
        answers.start()
        with suppress(OSError):
            while said := self.client.recv(65536):
                # X is good-bye, which asks for no answer.
                if self.has_server_spoken and said[:1] != b"X":
                    self.wire.round_trips += 1
                self.has_server_spoken = False
                if not self.is_forgotten():
                    send(said)
        _close(self.server)
        answers.join()
        _close(self.client)

    def _answer(self) -> None:
        send = _sender(self.client, self.wire.delay)
        with suppress(OSError):
            while answer := self.server.recv(65536):
                self.has_server_spoken = True
                if not self.is_forgotten():
                    send(answer)
