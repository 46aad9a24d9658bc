"""Tokens as an issuer or a forger makes them, and what the service must do with each."""

import base64
import hmac
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flask import Flask
from werkzeug.test import TestResponse

from tests.support import SECRET, statements_of, token
from todo.refusals import Refusal

PATH = "/api/alice/tasks"
ISSUER = "https://issuer.example"
AUDIENCE = "todo"
#: The settings, and the claims in raw JSON, of an issuer and an audience that are expected.
STRICT = {"issuer": ISSUER, "audience": AUDIENCE}
STRICT_CLAIMS = {"iss": json.dumps(ISSUER), "aud": json.dumps(AUDIENCE)}
RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
HMACS = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}
#: Each kind of key, and the algorithms that fit it.
FITTING = {
    "RSA": RSA_ALGORITHMS,
    "P-256": ("ES256",),
    "P-384": ("ES384",),
    "P-521": ("ES512",),
    "Ed25519": ("EdDSA", "Ed25519"),
    "Ed448": ("EdDSA", "Ed448"),
}
#: The line of todo/web/request_log.py on a request of nobody, with the reason of its refusal.
REQUEST_LINE = re.compile(rf"GET (-|/[a-z_<>/]+) \d{{3}} [\d.]+ ms -( \((?P<reason>{'|'.join(Refusal)})\))?")

_CURVES = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1, "secp256k1": ec.SECP256K1}
_OTHERS = {
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "Ed448": ed448.Ed448PrivateKey.generate,
    "X25519": x25519.X25519PrivateKey.generate,
    "DSA": lambda: dsa.generate_private_key(key_size=2048),
}


@cache
def key(kind: str = "P-256", name: str = "") -> Any:
    """A private key of that kind; another one for each name."""
    if kind.startswith("RSA"):
        return rsa.generate_private_key(public_exponent=65537, key_size=int(kind[4:] or 2048))
    return ec.generate_private_key(_CURVES[kind]()) if kind in _CURVES else _OTHERS[kind]()


def pem(private_key: Any, *, is_pkcs1: bool = False) -> str:
    """The public key in PEM."""
    kind = PublicFormat.PKCS1 if is_pkcs1 else PublicFormat.SubjectPublicKeyInfo
    return str(private_key.public_key().public_bytes(Encoding.PEM, kind).decode())


def base64url(part: str | bytes) -> str:
    """A part of a token."""
    return base64.urlsafe_b64encode(part.encode() if isinstance(part, str) else part).rstrip(b"=").decode()


def members(**values: str) -> str:
    """An object of members in raw JSON; an empty one is left out."""
    return "{" + ", ".join(f'"{name}": {value}' for name, value in values.items() if value) + "}"


def payload(**claims: str) -> str:
    """A payload of alice that expires in 2100, with these claims in raw JSON; an empty one is left out."""
    return members(**{"sub": '"alice"', "exp": "4102444800"} | claims)


def handmade(
    body: str | bytes = payload(), head: str | bytes = "", *, by: bytes = SECRET.encode(), alg: str = "HS256"
) -> str:
    """A token made without a library, which would refuse to make some of these; signed with an HMAC."""
    signed = f"{base64url(head or members(alg=json.dumps(alg)))}.{base64url(body)}"
    return f"{signed}.{base64url(hmac.digest(by, signed.encode(), HMACS[alg]))}"


def signed_by(private_key: Any, kid: str | None = None, algorithm: str = "ES256") -> str:
    """A token that the key signs, under that id."""
    return token(key=private_key, algorithm=algorithm, headers={} if kid is None else {"kid": kid})


def ask(app: Flask, authorization: str, path: str = PATH) -> TestResponse:
    """The answer to that Authorization header."""
    return app.test_client().get(path, headers={"Authorization": authorization})


def assert_accepted(app: Flask, bearer_token: str, path: str = PATH) -> None:
    response = ask(app, f"Bearer {bearer_token}", path)
    assert (response.status_code, response.get_json()) == (200, [])


def assert_refused(app: Flask, bearer_token: str, *reasons: Refusal) -> None:
    """Refused for one of those reasons; for any where none is given. It leaves no trace."""
    assert_unauthorized(app, *reasons, headers={"Authorization": f"Bearer {bearer_token}"})


def assert_unauthorized(app: Flask, *reasons: Refusal, **options: Any) -> None:
    """A request that names a user badly is refused, for one of those reasons, and leaves no trace."""
    assert_challenged(app, 'Bearer error="invalid_token"', *reasons, **options)


def assert_challenged(app: Flask, challenge: str, *reasons: Refusal, **options: Any) -> None:
    with leaving_no_trace(app) as logged:
        response = app.test_client().get(PATH, **options)
    (reason,) = logged
    assert reason in (reasons or set(Refusal))
    assert (response.status_code, response.get_json()) == (401, {"error": "Unauthorized"})
    assert response.headers["WWW-Authenticate"] == challenge


@contextmanager
def no_database_connection(app: Flask) -> Iterator[None]:
    """Fail if the app takes a connection of its pool meanwhile."""
    with statements_of(app) as statements:
        yield
    assert statements == []


@contextmanager
def no_log_line() -> Iterator[list[str]]:
    """Fail if anything but the line on the request is logged meanwhile, at any level.

    Afterwards the list has the reason of each refusal.
    """
    lines: list[str] = []
    reasons: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(handler.format(record))  # type: ignore[method-assign]
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.DEBUG)
    root.addHandler(handler)
    try:
        yield reasons
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    matches = [(line, REQUEST_LINE.fullmatch(line)) for line in lines]
    assert [line for line, match in matches if match is None] == []
    reasons += [match["reason"] for _, match in matches if match and match["reason"]]


@contextmanager
def leaving_no_trace(app: Flask) -> Iterator[list[str]]:
    """Fail if the app takes a connection of its pool meanwhile, or logs anything else; the reason of each refusal."""
    with no_database_connection(app), no_log_line() as reasons:
        yield reasons
