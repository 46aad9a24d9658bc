"""A stand-in for Redis that counts, keeps silent or complains as a test wants; a real one is in tests/ecosystem.

It speaks as much of the protocol (RESP2) as the rate limits need.
"""

import socketserver
from collections import Counter
from threading import Event, Lock, Thread
from typing import Any


class StandIn:
    """Listens on a port of 127.0.0.1 until it is closed."""

    def __init__(self, port: int = 0) -> None:
        self.counts: Counter[str] = Counter()
        self.asked = 0
        self.complaint = ""
        self.is_silent = False
        self.lock = Lock()
        self._closed = Event()
        self._server = _Server(("127.0.0.1", port), _Connection)
        self._server.stand_in = self
        self.port = int(self._server.server_address[1])
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        """Close the port, and every connection once it is asked something."""
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, command: list[str]) -> str | None:
        """What Redis says to that; None to say nothing and hang up."""
        with self.lock:
            self.asked += 1
            if self.is_silent:
                self._closed.wait()
            if self._closed.is_set():
                return None
            if self.complaint:
                return f"-{self.complaint.format(*command)}\r\n"
            if command[0] == "EVALSHA":
                self.counts[command[3]] += 1
                return f":{self.counts[command[3]]}\r\n"
            return "+OK\r\n"


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    stand_in: StandIn


class _Connection(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server: Any = self.server
        while line := self.rfile.readline():
            command = []
            for _ in range(int(line[1:])):
                length = int(self.rfile.readline()[1:])
                command.append(self.rfile.read(length + 2)[:-2].decode())
            answer = server.stand_in.answer(command)
            if answer is None:
                return
            self.wfile.write(answer.encode())
