"""A TCP proxy before PostgreSQL that counts round trips: how often the client speaks after the server has spoken."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import URL


class Wire:
    """What went over the wire."""

    def __init__(self) -> None:
        self.connections = 0
        self.round_trips = 0
        self.sockets: list[socket.socket] = []

    def reset(self) -> None:
        """Count from nought."""
        self.connections = self.round_trips = 0


@contextmanager
def wire_to(server: URL) -> Iterator[tuple[Wire, URL]]:
    """A proxy on a port of 127.0.0.1, and the server's URL by way of it."""
    wire = Wire()
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
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


class _Conversation:
    def __init__(self, wire: Wire, client: socket.socket, server: socket.socket) -> None:
        self.wire, self.client, self.server = wire, client, server
        self.has_server_spoken = True

    def run(self) -> None:
        answers = threading.Thread(target=self._answer, daemon=True)
        answers.start()
        with suppress(OSError):
            while said := self.client.recv(65536):
                # X is good-bye, which asks for no answer.
                if self.has_server_spoken and said[:1] != b"X":
                    self.wire.round_trips += 1
                self.has_server_spoken = False
                self.server.sendall(said)
        _close(self.server)
        answers.join()
        _close(self.client)

    def _answer(self) -> None:
        with suppress(OSError):
            while answer := self.server.recv(65536):
                self.has_server_spoken = True
                self.client.sendall(answer)
