"""An issuer of signing keys: a real server, and what it can answer in place of a key set."""

import json
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.support import join_threads, wait_until

Answer = Callable[[BaseHTTPRequestHandler], None]
Jwk = dict[str, Any]
EcKey = ec.EllipticCurvePrivateKey


class Issuer:
    """A server that answers every GET with `answer`, and counts them."""

    def __init__(self) -> None:
        self.requests = 0
        self.paths: set[str] = set()
        self.answer: Answer = body("")
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.paths.add(self.path)
                answer = issuer.answer
                # Who waits for this request may set another answer from here on.
                issuer.requests += 1
                answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/keys"
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.005})
        self._thread.start()

    def serve(self, *jwks: object) -> None:
        """Answer with the set of those keys from now on."""
        self.answer = key_set(*jwks)

    def wait_for(self, requests: int) -> None:
        """Wait until that many requests have come."""
        wait_until(lambda: self.requests >= requests)

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def running_issuer() -> Iterator[Issuer]:
    """An issuer, stopped after the last fetch."""
    issuer = Issuer()
    try:
        yield issuer
        join_fetches()
    finally:
        issuer.close()


def body(text: str | bytes, status: int = 200, content_type: str = "application/json") -> Answer:
    """That text."""
    content = text.encode() if isinstance(text, str) else text
    return _sending(content, len(content), status, content_type)


def broken_off(text: str) -> Answer:
    """Half of that text."""
    return _sending(text[: len(text) // 2].encode(), len(text))


def in_two_pieces(pause: Callable[[], object], text: str) -> Answer:
    """That text, with a pause in the middle."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        _sending(text[:20].encode(), len(text))(handler)
        pause()
        handler.wfile.write(text[20:].encode())

    return answer


def _sending(content: bytes, length: int, status: int = 200, content_type: str = "application/json") -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", content_type)
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def key_set(*jwks: object) -> Answer:
    """The set of those keys."""
    return body(json.dumps({"keys": jwks}))


def after(go: Event, answer: Answer) -> Answer:
    """That answer, once the event is set."""

    def wait(handler: BaseHTTPRequestHandler) -> None:
        go.wait(5)
        answer(handler)

    return wait


def reset(handler: BaseHTTPRequestHandler) -> None:
    """Reset the connection."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.close(handler.connection.detach())


def redirect_to(there: Answer) -> Answer:
    """A redirect to another path, which has that answer."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/elsewhere":
            there(handler)
        else:
            handler.send_response(302)
            handler.send_header("Location", "/elsewhere")
            handler.send_header("Content-Length", "0")
            handler.end_headers()

    return answer


def sending(raw: bytes) -> Answer:
    """Those bytes in place of HTTP."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(raw)

    return answer


def jwk(private_key: Any, kid: object = None, **members: object) -> Jwk:
    """The public key as a JWK; without an id where that is None."""
    algorithm = {rsa.RSAPrivateKey: "RS256", EcKey: "ES256"}
    name = next((name for kind, name in algorithm.items() if isinstance(private_key, kind)), "EdDSA")
    found = jwt.get_algorithm_by_name(name).to_jwk(private_key.public_key(), as_dict=True)
    return found | ({} if kid is None else {"kid": kid}) | members


#: Waits for the fetches in the background to end.
join_fetches = partial(join_threads, "jwks")
