"""The issuer's key set, fetched from a real server: the KeySet on a clock of the tests, and the whole provider."""

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any, cast

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from flask import Flask, Request
from werkzeug.test import TestResponse

from config import ConfigurationError, JwtSettings, load_settings
from tests.identity.test_jwt import base64url, leaving_no_trace, no_database_connection, payload, pem
from tests.live import free_port
from tests.support import SECRET, Make, token
from todo.errors import InvalidCredentials, Refusal, Unavailable
from todo.identity.jwks import GRACE, LIFETIME, LONGEST_PAUSE, MOST_FETCHES, SIZE_LIMIT, TIMEOUT, KeySet
from todo.identity.jwt import JwtProvider

Answer = Callable[[BaseHTTPRequestHandler], None]
Jwk = dict[str, Any]
EcKey = ec.EllipticCurvePrivateKey
RsaKey = rsa.RSAPrivateKey


class Issuer:
    """A server that answers every GET with `answer`, and counts them."""

    def __init__(self) -> None:
        self.requests = 0
        self.paths: set[str] = set()
        self.answer: Answer = body("")
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests += 1
                issuer.paths.add(self.path)
                issuer.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/keys"
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.005})
        self._thread.start()

    def serve(self, *jwks: object) -> None:
        """Answer with the set of those keys from now on."""
        self.answer = key_set(*jwks)

    def wait_for(self, requests: int) -> None:
        """Wait until so many have come."""
        wait_until(lambda: self.requests >= requests)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def body(text: str | bytes, status: int = 200, content_type: str = "application/json") -> Answer:
    """That text."""
    content = text.encode() if isinstance(text, str) else text

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", content_type)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def key_set(*jwks: object) -> Answer:
    """The set of those keys."""
    return body(json.dumps({"keys": jwks}))


def after(go: Event, answer: Answer) -> Answer:
    """That answer, once the test lets it go."""

    def wait(handler: BaseHTTPRequestHandler) -> None:
        go.wait(5)
        answer(handler)

    return wait


def in_two_pieces(pause: Callable[[], object], text: str) -> Answer:
    """That text, with a pause in the middle."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text[:20].encode())
        pause()
        handler.wfile.write(text[20:].encode())

    return answer


def broken_off(text: str) -> Answer:
    """Half of that text."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text[: len(text) // 2].encode())

    return answer


def reset(handler: BaseHTTPRequestHandler) -> None:
    """Nothing: the connection is reset."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.close(handler.connection.detach())


def elsewhere(there: Answer) -> Answer:
    """The way to another place, which has that answer."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/elsewhere":
            there(handler)
        else:
            handler.send_response(302)
            handler.send_header("Location", "/elsewhere")
            handler.send_header("Content-Length", "0")
            handler.end_headers()

    return answer


def garbage(handler: BaseHTTPRequestHandler) -> None:
    """What is not HTTP."""
    handler.wfile.write(b"\x16\x03\x01\x00\x00\r\n\r\n")


def jwk(private_key: Any, kid: object = None, **members: object) -> Jwk:
    """The public key as a JWK; without an id where that is None."""
    algorithm = {RsaKey: "RS256", EcKey: "ES256"}
    name = next((name for kind, name in algorithm.items() if isinstance(private_key, kind)), "EdDSA")
    found = jwt.get_algorithm_by_name(name).to_jwk(private_key.public_key(), as_dict=True)
    return found | ({} if kid is None else {"kid": kid}) | members


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for what happens in another thread, and soon."""
    deadline = time.monotonic() + 5
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def join_fetches() -> None:
    """Wait for the fetches in the background to end."""
    for thread in threading.enumerate():
        if thread.name == "jwks":
            thread.join(5)


@pytest.fixture(scope="session")
def key_a() -> EcKey:
    """The key of most sets."""
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="session")
def key_b() -> EcKey:
    """Another key."""
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="session")
def rsa_key() -> RsaKey:
    """A key that fits six algorithms."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """An issuer whose set is not yet there."""
    issuer = Issuer()
    yield issuer
    join_fetches()
    issuer.close()


@pytest.fixture
def now() -> list[float]:
    """What the clock of the key set shows; a test moves it on."""
    return [0.0]


@pytest.fixture
def keys(issuer: Issuer, now: list[float]) -> KeySet:
    """The issuer's keys, of which nothing is known yet."""
    return KeySet(issuer.url, (), clock=lambda: now[0])


@pytest.fixture
def warm(keys: KeySet, issuer: Issuer, key_a: EcKey) -> KeySet:
    """The issuer's keys, fetched at 0 with one key in them."""
    issuer.serve(jwk(key_a, "a"))
    assert keys.find("a").key == key_a.public_key()
    assert issuer.requests == 1
    return keys


class TestFind:
    """Which key answers to which id."""

    def test_a_key_is_found_by_its_id(self, keys: KeySet, issuer: Issuer, key_a: EcKey, key_b: EcKey) -> None:
        issuer.serve(jwk(key_a, "a"), jwk(key_b, "b"))
        assert keys.find("a").key == key_a.public_key()
        assert keys.find("b").key == key_b.public_key()
        assert issuer.requests == 1

    def test_nothing_is_fetched_before_the_first_question(self, keys: KeySet, issuer: Issuer) -> None:
        assert issuer.requests == 0

    @pytest.mark.parametrize("kid", ["a", None])
    def test_without_an_id_a_set_of_one_serves(
        self, keys: KeySet, issuer: Issuer, key_a: EcKey, kid: str | None
    ) -> None:
        issuer.serve(jwk(key_a, kid))
        assert keys.find(None).key == key_a.public_key()

    @pytest.mark.parametrize("kids", [("a", "b"), ("a", None), (None, None)])
    def test_without_an_id_a_set_of_two_does_not_serve(
        self, keys: KeySet, issuer: Issuer, key_a: EcKey, key_b: EcKey, kids: tuple[str | None, str | None]
    ) -> None:
        issuer.serve(jwk(key_a, kids[0]), jwk(key_b, kids[1]))
        with pytest.raises(InvalidCredentials):
            keys.find(None)

    @pytest.mark.parametrize("kid", ["", "b", "A", "a ", "0", "None"])
    def test_an_id_is_compared_exactly(
        self, keys: KeySet, issuer: Issuer, key_a: EcKey, key_b: EcKey, kid: str
    ) -> None:
        issuer.serve(jwk(key_a, "a"), jwk(key_b))
        with pytest.raises(InvalidCredentials):
            keys.find(kid)

    def test_a_set_of_none_has_no_key(self, keys: KeySet, issuer: Issuer) -> None:
        issuer.serve()
        for kid in ("a", None):
            with pytest.raises(InvalidCredentials):
                keys.find(kid)

    def test_the_algorithms_are_those_that_fit_the_key(
        self, keys: KeySet, issuer: Issuer, key_a: EcKey, rsa_key: RsaKey
    ) -> None:
        curves = {"ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
        issuer.serve(
            jwk(key_a, "ES256"),
            jwk(ed25519.Ed25519PrivateKey.generate(), "EdDSA"),
            *(jwk(ec.generate_private_key(curve), name) for name, curve in curves.items()),
            jwk(rsa_key, "any"),
            jwk(rsa_key, "PS512", alg="PS512", use="sig", key_ops=["sign", "verify"]),
        )
        for name in ("ES256", "ES384", "ES512", "PS512"):
            assert keys.find(name).algorithms == (name,)
        assert keys.find("EdDSA").algorithms == ("EdDSA", "Ed25519")
        assert keys.find("any").algorithms == ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")

    def test_the_algorithms_are_narrowed(self, issuer: Issuer, key_a: EcKey, rsa_key: RsaKey) -> None:
        keys = KeySet(issuer.url, ("RS512", "PS256"))
        issuer.serve(
            jwk(rsa_key, "any"),
            jwk(rsa_key, "PS256", alg="PS256"),
            jwk(rsa_key, "PS512", alg="PS512"),
            jwk(key_a, "EC"),
        )
        assert keys.find("any").algorithms == ("RS512", "PS256")
        assert keys.find("PS256").algorithms == ("PS256",)
        for kid in ("PS512", "EC"):
            with pytest.raises(InvalidCredentials):
                keys.find(kid)


#: What WebCrypto of Node 20 exports as a public key, and a token that it signed for alice with the private one.
NODE_JWK = {
    "key_ops": ["verify"],
    "ext": True,
    "crv": "Ed25519",
    "x": "ZzJ6ddynNOy1Pf30Ql8T1eqmJ594BBndMLcAgxXD8IQ",
    "kty": "OKP",
    "alg": "Ed25519",
}
NODE_TOKEN = (
    "eyJhbGciOiJFZDI1NTE5Iiwia2lkIjoibm9kZSJ9.eyJzdWIiOiJhbGljZSIsImV4cCI6NDEwMjQ0NDgwMH0."
    "a7-iGG-ifK8YuLMJl-cQAMNvdpaJMIqfwNzq4Jj5jEp1w-ZFlP_oYhJ3143MQPvKF32VG3MWxm83gvxtxyAOCQ"
)
EDWARDS = {"Ed25519": ed25519.Ed25519PrivateKey.generate(), "Ed448": ed448.Ed448PrivateKey.generate()}


def edwards_token(curve: str, alg: str) -> str:
    """A token by the key on that curve, which calls its algorithm so."""
    signed = f"{base64url(json.dumps({'alg': alg, 'kid': curve}))}.{base64url(payload())}"
    return f"{signed}.{base64url(EDWARDS[curve].sign(signed.encode()))}"


class TestEdwards:
    """EdDSA under its name of RFC 8037, and under those of RFC 9864."""

    @pytest.mark.parametrize("curve", EDWARDS)
    @pytest.mark.parametrize("named_by_key", [None, "EdDSA", "its own"])
    @pytest.mark.parametrize("named_by_token", ["EdDSA", "its own"])
    @pytest.mark.parametrize("named_by_settings", [None, "EdDSA", "its own"])
    def test_all_names_are_one(
        self, issuer: Issuer, curve: str, named_by_key: str | None, named_by_token: str, named_by_settings: str | None
    ) -> None:
        own = {None: None, "EdDSA": "EdDSA", "its own": curve}
        alg, algorithm = own[named_by_key], own[named_by_settings]
        issuer.serve(jwk(EDWARDS[curve], curve, **{} if alg is None else {"alg": alg}))
        provider = JwtProvider(JwtSettings(jwks_url=issuer.url, algorithms=(algorithm,) if algorithm else ()))
        signed = edwards_token(curve, own[named_by_token] or "")
        assert provider.identify(f"Bearer {signed}").user_id == "alice"

    @pytest.mark.parametrize("curve", EDWARDS)
    def test_a_public_key_in_pem_too(self, curve: str) -> None:
        for algorithms in ((), ("EdDSA",), (curve,), ("Ed25519", "Ed448")):
            provider = JwtProvider(JwtSettings(public_key=pem(EDWARDS[curve]), algorithms=algorithms))
            for alg in ("EdDSA", curve):
                assert provider.identify(f"Bearer {edwards_token(curve, alg)}").user_id == "alice"

    @pytest.mark.parametrize(("curve", "other"), [("Ed25519", "Ed448"), ("Ed448", "Ed25519")])
    def test_the_name_of_the_other_curve_is_another_algorithm(self, issuer: Issuer, curve: str, other: str) -> None:
        issuer.serve(jwk(EDWARDS[curve], curve), jwk(EDWARDS[other], other, alg=curve))
        provider = JwtProvider(JwtSettings(jwks_url=issuer.url))
        for kid, alg, reason in (
            (curve, other, Refusal.ALGORITHM),
            (curve, "ed25519", Refusal.ALGORITHM),
            # The key names an algorithm that it is not for.
            (other, other, Refusal.UNKNOWN_KEY),
        ):
            with pytest.raises(InvalidCredentials) as caught:
                provider.identify(f"Bearer {edwards_token(kid, alg)}")
            assert caught.value.reason == reason
        with pytest.raises(ConfigurationError):
            JwtProvider(JwtSettings(public_key=pem(EDWARDS[curve]), algorithms=(other,)))

    def test_what_node_exports_and_signs_is_understood(self, issuer: Issuer) -> None:
        issuer.serve(NODE_JWK | {"kid": "node"})
        provider = JwtProvider(JwtSettings(jwks_url=issuer.url))
        assert provider.identify(f"Bearer {NODE_TOKEN}").user_id == "alice"

    def test_settings_that_name_both_are_of_one_family(self) -> None:
        environ = {"DATABASE_URL": "sqlite:////x", "IDENTITY_PROVIDER": "jwt", "JWT_JWKS_URL": "https://x/keys"}
        settings = load_settings(environ | {"JWT_ALGORITHMS": "EdDSA,Ed25519,Ed448"}).jwt
        assert settings is not None
        assert settings.algorithms == ("EdDSA", "Ed25519", "Ed448")


def without(found: Jwk, *names: str) -> Jwk:
    """That JWK without those members."""
    return {name: value for name, value in found.items() if name not in names}


#: Keys that must not verify anything: each made of a good one, with the id "bad" where it can have one.
UNUSABLE: dict[str, Callable[[Jwk], object]] = {
    "symmetric": lambda _: {"kty": "oct", "kid": "bad", "k": base64url(SECRET), "alg": "HS256"},
    "symmetric without alg": lambda _: {"kty": "oct", "kid": "bad", "k": base64url(SECRET)},
    "for encryption": lambda good: good | {"use": "enc"},
    "for an unknown use": lambda good: good | {"use": None},
    "for signing alone": lambda good: good | {"key_ops": ["sign"]},
    "for nothing": lambda good: good | {"key_ops": []},
    "for operations that are no list": lambda good: good | {"key_ops": 5},
    "of an unknown kind": lambda good: good | {"kty": "AKP"},
    "of no kind": lambda good: without(good, "kty"),
    "of a kind that is no string": lambda good: good | {"kty": ["EC"]},
    "of another kind than its members": lambda good: good | {"kty": "RSA"},
    "of an unknown curve": lambda good: good | {"crv": "P-192"},
    "of another curve than its members": lambda good: good | {"crv": "P-384"},
    "of a curve that is not accepted": lambda _: jwk(ec.generate_private_key(ec.SECP256K1()), "bad"),
    "not on its curve": lambda good: good | {"x": good["y"]},
    "half": lambda good: without(good, "y"),
    "not base64url": lambda good: good | {"x": "!"},
    "not of strings": lambda good: good | {"x": 5},
    "for an unknown algorithm": lambda good: good | {"alg": "ES999"},
    "for an algorithm of another kind": lambda good: good | {"alg": "RS256"},
    "for an algorithm of another curve": lambda good: good | {"alg": "ES512"},
    "for no algorithm": lambda good: good | {"alg": "none"},
    "for a symmetric algorithm": lambda good: good | {"alg": "HS256"},
    "for encryption by algorithm": lambda good: good | {"alg": "ECDH-ES"},
    "for an algorithm that is no string": lambda good: good | {"alg": ["ES256"]},
    "weak": lambda _: jwk(rsa.generate_private_key(public_exponent=65537, key_size=1024), "bad"),
    "an RSA key of nothing": lambda _: {"kty": "RSA", "kid": "bad", "n": "", "e": ""},
    "null": lambda _: None,
    "a string": lambda _: "bad",
    "a number": lambda _: 5,
    "a list": lambda good: [good],
    "empty": lambda _: {},
}


class TestIds:
    """Ids that are none."""

    @pytest.mark.parametrize("kid", [["n"], {}, 1, 0, True])
    def test_a_key_whose_id_is_no_string_cannot_be_asked_for_but_counts(
        self, keys: KeySet, issuer: Issuer, key_a: EcKey, key_b: EcKey, kid: object
    ) -> None:
        issuer.serve(jwk(key_b) | {"kid": kid}, jwk(key_a, "a"))
        assert keys.find("a").key == key_a.public_key()
        for asked in (None, "1", "True"):
            with pytest.raises(InvalidCredentials):
                keys.find(asked)

    def test_keys_without_an_id_do_not_stand_in_each_others_place(
        self, keys: KeySet, issuer: Issuer, key_a: EcKey, key_b: EcKey
    ) -> None:
        issuer.serve(jwk(key_a) | {"kid": None}, jwk(key_b) | {"kid": None})
        with pytest.raises(InvalidCredentials):
            keys.find(None)


class TestUnusableKeys:
    """Keys in a set that are not used, and do not keep the others from being used."""

    @pytest.mark.parametrize("kind", UNUSABLE)
    def test_it_is_not_used(self, keys: KeySet, issuer: Issuer, key_a: EcKey, key_b: EcKey, kind: str) -> None:
        issuer.serve(UNUSABLE[kind](jwk(key_b, "bad")), jwk(key_a, "a"))
        with pytest.raises(InvalidCredentials):
            keys.find("bad")
        assert keys.find("a").key == key_a.public_key()
        assert keys.find(None).key == key_a.public_key()

    @pytest.mark.parametrize("name", ["RS256", "ES256", "EdDSA"])
    def test_a_private_key_is_not_used(
        self, keys: KeySet, issuer: Issuer, rsa_key: RsaKey, key_a: EcKey, name: str
    ) -> None:
        private = {"RS256": rsa_key, "ES256": key_a, "EdDSA": ed25519.Ed25519PrivateKey.generate()}[name]
        found = jwt.get_algorithm_by_name(name).to_jwk(private, as_dict=True)
        assert "d" in found
        issuer.serve(without(found, "key_ops") | {"kid": "bad"})
        with pytest.raises(InvalidCredentials):
            keys.find("bad")


class TestLog:
    """What the log has of a set: what is left out, once, and that none is left."""

    @staticmethod
    def messages(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
        return [(record.levelname, record.getMessage()) for record in caplog.records]

    @pytest.fixture(autouse=True)
    def _talkative(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO")

    @pytest.mark.parametrize(
        ("kind", "fault"),
        [
            ("symmetric", "its kty is not RSA, EC or OKP"),
            ("for encryption", "its use is not sig"),
            ("for signing alone", "its key_ops do not have verify"),
            ("not on its curve", "it is malformed, or its curve is not known"),
            ("for an algorithm of another kind", "its alg is not one for such a key"),
            ("weak", "it is a private key, an RSA key below 2048 bits, or on a curve that is not accepted"),
        ],
    )
    def test_a_key_that_is_left_out_is_named_once(
        self,
        keys: KeySet,
        issuer: Issuer,
        now: list[float],
        key_a: EcKey,
        caplog: pytest.LogCaptureFixture,
        kind: str,
        fault: str,
    ) -> None:
        issuer.serve(UNUSABLE[kind](jwk(key_a, "bad")), jwk(key_a, "a"))
        keys.find("a")
        for _ in range(3):
            now[0] += LIFETIME
            keys.find("a")
            join_fetches()
        assert issuer.requests == 4
        assert self.messages(caplog) == [("INFO", f'JWT_JWKS_URL: the key "bad" of the set is left out: {fault}')]

    def test_one_that_the_settings_leave_out_too(
        self, issuer: Issuer, rsa_key: RsaKey, key_a: EcKey, caplog: pytest.LogCaptureFixture
    ) -> None:
        issuer.serve(jwk(rsa_key, "rsa"), jwk(key_a, "ec"))
        KeySet(issuer.url, ("ES256",)).find("ec")
        line = 'JWT_JWKS_URL: the key "rsa" of the set is left out: JWT_ALGORITHMS does not name its algorithm'
        assert self.messages(caplog) == [("INFO", line)]

    def test_a_set_that_changes_is_told_of_again(
        self, keys: KeySet, issuer: Issuer, key_a: EcKey, key_b: EcKey, caplog: pytest.LogCaptureFixture
    ) -> None:
        issuer.serve(jwk(key_a, "a"), jwk(key_b, "x", use="enc"))
        keys.find("a")
        issuer.serve(jwk(key_b, "b"), jwk(key_b, "x", use="enc"))
        keys.find("b")
        join_fetches()
        assert len(self.messages(caplog)) == 2

    @pytest.mark.parametrize("jwks", [[], [{"kty": "oct", "kid": "x"}]], ids=["none", "none usable"])
    def test_a_set_without_a_usable_key_is_a_warning(
        self, keys: KeySet, issuer: Issuer, now: list[float], caplog: pytest.LogCaptureFixture, jwks: list[Jwk]
    ) -> None:
        issuer.serve(*jwks)
        for _ in range(3):
            with pytest.raises(InvalidCredentials):
                keys.find("a")
            now[0] += LONGEST_PAUSE
        assert issuer.requests == 3
        line = "JWT_JWKS_URL: the key set has no usable key: every token is refused"
        assert self.messages(caplog)[len(jwks) :] == [("WARNING", line)]

    def test_an_id_is_quoted_and_cut_and_no_key_is_shown(
        self, keys: KeySet, issuer: Issuer, key_a: EcKey, caplog: pytest.LogCaptureFixture
    ) -> None:
        bad = jwk(key_a, use="enc")
        issuer.serve(
            jwk(key_a, "a"), bad, bad | {"kid": 5}, bad | {"kid": '\n\x1b[31m"\u2028'}, bad | {"kid": "k" * 1000}
        )
        keys.find("a")
        names = [line.split(" the key ")[1].split(" of the set ")[0] for _, line in self.messages(caplog)]
        without_id = ["number 2, without an id", "number 3, without an id"]
        assert names == [*without_id, '"\\n\\u001b[31m\\"\\u2028"', f'"{"k" * 100}"']
        assert bad["x"] not in caplog.text

    def test_of_many_only_some_are_named(
        self, keys: KeySet, issuer: Issuer, key_a: EcKey, caplog: pytest.LogCaptureFixture
    ) -> None:
        issuer.serve(jwk(key_a, "a"), *(jwk(key_a, f"{number}", use="enc") for number in range(1000)))
        keys.find("a")
        lines = [line for _, line in self.messages(caplog)]
        assert (len(lines), lines[-1]) == (21, "JWT_JWKS_URL: 980 more keys of the set are left out")


class TestUnknownKeys:
    """Ids that are not in the set that is held."""

    def test_one_that_the_issuer_has_meanwhile_is_found_at_once(
        self, warm: KeySet, issuer: Issuer, key_b: EcKey
    ) -> None:
        issuer.serve(jwk(key_b, "b"))
        assert warm.find("b").key == key_b.public_key()
        assert issuer.requests == 2

    def test_an_issuer_that_restarts_with_new_keys_again_and_again_makes_nobody_wait(
        self, warm: KeySet, issuer: Issuer, key_a: EcKey, key_b: EcKey
    ) -> None:
        for number in range(1, MOST_FETCHES):
            # The key is another one, or its id.
            issuer.serve(jwk(key_b if number % 2 else key_a, f"{number}"))
            warm.find(f"{number}")
        assert issuer.requests == MOST_FETCHES

    def test_tokens_of_before_the_restart_keep_the_new_keys_from_nobody_for_long(
        self, warm: KeySet, issuer: Issuer, now: list[float], key_b: EcKey, rsa_key: RsaKey
    ) -> None:
        issuer.serve(jwk(key_b, "b"))
        warm.find("b")
        for _ in range(50):
            with pytest.raises(InvalidCredentials):
                warm.find("a")
        assert issuer.requests == 3
        # It restarts once more, after three seconds in which many have asked with the old key.
        now[0] = 1.5
        with pytest.raises(InvalidCredentials):
            warm.find("a")
        issuer.serve(jwk(rsa_key, "c"))
        now[0] = 3.5
        assert warm.find("c").key == rsa_key.public_key()

    def test_an_issuer_with_new_keys_at_each_fetch_is_not_stormed(
        self, warm: KeySet, issuer: Issuer, now: list[float], key_a: EcKey
    ) -> None:
        def serve_another(handler: BaseHTTPRequestHandler) -> None:
            key_set(jwk(key_a, f"{issuer.requests}"))(handler)

        issuer.answer = serve_another
        for fetches in (MOST_FETCHES, 2 * MOST_FETCHES):
            for _ in range(100):
                with pytest.raises(InvalidCredentials):
                    warm.find("unknown")
            assert issuer.requests == fetches
            now[0] += LONGEST_PAUSE

    def test_the_pause_after_fetches_that_bring_nothing_doubles_up_to_the_longest(
        self, warm: KeySet, issuer: Issuer, now: list[float]
    ) -> None:
        for requests, pause in enumerate((1, 2, 4, 8, LONGEST_PAUSE, LONGEST_PAUSE), start=2):
            with pytest.raises(InvalidCredentials):
                warm.find(f"unknown {requests}")
            assert issuer.requests == requests
            now[0] += pause - 0.001
            with pytest.raises(InvalidCredentials):
                warm.find("another")
            assert issuer.requests == requests
            now[0] += 0.001

    def test_under_an_attack_new_keys_are_found_after_the_longest_pause(
        self, warm: KeySet, issuer: Issuer, now: list[float], key_b: EcKey
    ) -> None:
        for tenths in range(600):
            now[0] = tenths / 10
            with pytest.raises(InvalidCredentials):
                warm.find(f"unknown {tenths}")
        issuer.serve(jwk(key_b, "b"))
        now[0] += LONGEST_PAUSE
        assert warm.find("b").key == key_b.public_key()
        # 0, 1, 3, 7 and 15 s, then every ten, the fetch of the start, and the last.
        assert issuer.requests == 5 + 4 + 2

    def test_after_a_quiet_time_the_pauses_are_short_again(
        self, warm: KeySet, issuer: Issuer, now: list[float], key_b: EcKey
    ) -> None:
        for seconds in (0, 1, 3, 7, 15, 35):
            now[0] = seconds
            with pytest.raises(InvalidCredentials):
                warm.find("unknown")
        issuer.serve(jwk(key_b, "b"))
        now[0] += 1
        assert warm.find("b").key == key_b.public_key()

    def test_a_fetch_because_of_their_age_puts_off_none_for_an_unknown_id(
        self, warm: KeySet, issuer: Issuer, now: list[float], key_b: EcKey
    ) -> None:
        now[0] = LIFETIME
        warm.find("a")
        join_fetches()
        issuer.serve(jwk(key_b, "b"))
        assert warm.find("b").key == key_b.public_key()
        assert issuer.requests == 3

    def test_a_key_that_the_issuer_took_away_is_refused_after_the_next_fetch(
        self, warm: KeySet, issuer: Issuer, now: list[float], key_b: EcKey
    ) -> None:
        issuer.serve(jwk(key_b, "b"))
        warm.find("b")
        with pytest.raises(InvalidCredentials):
            warm.find("a")

    def test_many_cost_one_fetch(self, warm: KeySet, issuer: Issuer) -> None:
        for number in range(200):
            with pytest.raises(InvalidCredentials):
                warm.find(f"unknown {number}")
        assert issuer.requests == 2

    def test_many_cost_one_fetch_where_the_issuer_is_away(self, warm: KeySet, issuer: Issuer) -> None:
        issuer.answer = body("", 500)
        for number in range(200):
            with pytest.raises(Unavailable):
                warm.find(f"unknown {number}")
        assert issuer.requests == 2

    def test_ten_thousand_from_four_callers_cost_one_fetch_and_hold_up_nobody_who_is_known(
        self, warm: KeySet, issuer: Issuer, now: list[float]
    ) -> None:
        go = Event()
        issuer.answer = after(go, body("", 500))

        def ask(numbers: range) -> int:
            refused = 0
            for number in numbers:
                with pytest.raises(Unavailable):
                    warm.find(f"unknown {number}")
                refused += 1
            return refused

        slowest = 0.0
        with ThreadPoolExecutor(4) as pool:
            storm = [pool.submit(ask, range(start, 10_000, 4)) for start in range(4)]
            # One of them waits for the fetch, which the issuer does not answer before the others are done.
            while sum(callers.done() for callers in storm) < 3:
                started_at = time.perf_counter()
                warm.find("a")
                slowest = max(slowest, time.perf_counter() - started_at)
            go.set()
            assert sum(callers.result() for callers in storm) == 10_000
        assert issuer.requests == 2
        assert slowest < 0.5

    def test_a_known_key_is_answered_while_a_slow_fetch_is_under_way(
        self, warm: KeySet, issuer: Issuer, now: list[float], key_a: EcKey, key_b: EcKey
    ) -> None:
        go = Event()
        issuer.answer = after(go, key_set(jwk(key_a, "a"), jwk(key_b, "b")))
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(warm.find, "b")
            issuer.wait_for(2)
            assert warm.find("a").key == key_a.public_key()
            assert not waiting.done()
            go.set()
            assert waiting.result().key == key_b.public_key()

    def test_another_is_unavailable_at_once_while_a_slow_fetch_is_under_way(
        self, warm: KeySet, issuer: Issuer, now: list[float], key_b: EcKey
    ) -> None:
        go = Event()
        issuer.answer = after(go, key_set(jwk(key_b, "b")))
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(warm.find, "b")
            issuer.wait_for(2)
            with pytest.raises(Unavailable):
                warm.find("b")
            assert not waiting.done()
            go.set()
            assert waiting.result().key == key_b.public_key()
        assert issuer.requests == 2


class TestAge:
    """Keys that grow old."""

    def test_keys_are_not_fetched_again_within_their_lifetime(
        self, warm: KeySet, issuer: Issuer, now: list[float]
    ) -> None:
        now[0] = LIFETIME - 0.001
        warm.find("a")
        join_fetches()
        assert issuer.requests == 1

    def test_they_are_fetched_in_the_background_after_their_lifetime(
        self, warm: KeySet, issuer: Issuer, now: list[float], key_a: EcKey, key_b: EcKey
    ) -> None:
        go = Event()
        issuer.answer = after(go, key_set(jwk(key_b, "a")))
        now[0] = LIFETIME
        for _ in range(3):
            assert warm.find("a").key == key_a.public_key()
        go.set()
        join_fetches()
        assert warm.find("a").key == key_b.public_key()
        assert issuer.requests == 2

    @pytest.mark.parametrize("age", [LIFETIME, LIFETIME + GRACE - 0.001])
    def test_they_are_used_in_the_grace_while_the_issuer_is_away(
        self, warm: KeySet, issuer: Issuer, now: list[float], key_a: EcKey, age: float
    ) -> None:
        issuer.answer = body("", 500)
        now[0] = age
        for _ in range(3):
            assert warm.find("a").key == key_a.public_key()
            join_fetches()
        assert issuer.requests == 2

    def test_an_issuer_that_is_away_is_asked_again_after_a_pause(
        self, warm: KeySet, issuer: Issuer, now: list[float], key_b: EcKey
    ) -> None:
        issuer.answer = body("", 500)
        now[0] = LIFETIME
        warm.find("a")
        join_fetches()
        issuer.serve(jwk(key_b, "a"))
        for at, requests in ((LIFETIME + 0.999, 2), (LIFETIME + 1, 3)):
            now[0] = at
            warm.find("a")
            join_fetches()
            assert issuer.requests == requests
        assert warm.find("a").key == key_b.public_key()

    def test_they_are_not_used_after_the_grace(self, warm: KeySet, issuer: Issuer, now: list[float]) -> None:
        issuer.answer = body("", 500)
        now[0] = LIFETIME + GRACE
        for _ in range(3):
            with pytest.raises(Unavailable):
                warm.find("a")
        assert issuer.requests == 2

    def test_everybody_waits_for_the_fetch_after_the_grace(
        self, warm: KeySet, issuer: Issuer, now: list[float], key_b: EcKey
    ) -> None:
        go = Event()
        issuer.answer = after(go, key_set(jwk(key_b, "a")))
        now[0] = LIFETIME + GRACE
        with ThreadPoolExecutor(8) as pool:
            waiting = [pool.submit(warm.find, "a") for _ in range(8)]
            issuer.wait_for(2)
            go.set()
            assert {found.result().key.public_numbers() for found in waiting} == {key_b.public_key().public_numbers()}
        assert issuer.requests == 2

    def test_they_are_fetched_anew_after_the_grace(
        self, warm: KeySet, issuer: Issuer, now: list[float], key_b: EcKey
    ) -> None:
        issuer.serve(jwk(key_b, "a"))
        now[0] = LIFETIME + GRACE
        assert warm.find("a").key == key_b.public_key()


#: What an issuer may answer in place of its key set. Each would serve, but for what its name says.
FAILURES: dict[str, Callable[[Jwk], Answer]] = {
    "HTML": lambda _: body("<!doctype html><title>Down for maintenance</title>", content_type="text/html"),
    "nothing": lambda _: body(""),
    "not JSON": lambda good: body(json.dumps({"keys": [good]})[:-1]),
    "two documents": lambda good: body(json.dumps({"keys": [good]}) * 2),
    "not UTF-8": lambda good: body(json.dumps({"x": "?", "keys": [good]}).encode().replace(b"?", b"\xff")),
    "a list": lambda good: body(json.dumps([good])),
    "keys that are an object": lambda _: body(json.dumps({"keys": {}})),
    "keys that are a string": lambda _: body(json.dumps({"keys": "abc"})),
    "a redirect": lambda good: elsewhere(key_set(good)),
    "a string": lambda _: body('"keys"'),
    "a number": lambda _: body("5"),
    "null": lambda _: body("null"),
    "no keys": lambda good: body(json.dumps(good)),
    "keys that are null": lambda _: body('{"keys": null}'),
    "keys that are a number": lambda _: body('{"keys": 5}'),
    "nested too deeply": lambda good: body(
        json.dumps({"keys": [good], "x": "?"}).replace('"?"', "[" * 100_000 + "]" * 100_000)
    ),
    "a number that is too long": lambda good: body(json.dumps({"keys": [good], "x": "?"}).replace('"?"', "1" * 5000)),
    "more than 1 MiB": lambda good: body(json.dumps({"keys": [good]}).ljust(SIZE_LIMIT + 1)),
    "HTTP 500": lambda good: body(json.dumps({"keys": [good]}), 500),
    "HTTP 404": lambda good: body(json.dumps({"keys": [good]}), 404),
    "HTTP 302 to nowhere": lambda good: body(json.dumps({"keys": [good]}), 302),
    "a reset": lambda _: reset,
    "a body that breaks off": lambda good: broken_off(json.dumps({"keys": [good]})),
    "not HTTP": lambda _: garbage,
}


class TestFailures:
    """Issuers that do not answer with a key set."""

    @pytest.mark.parametrize("kind", FAILURES)
    def test_without_keys_it_is_unavailable(self, keys: KeySet, issuer: Issuer, key_a: EcKey, kind: str) -> None:
        issuer.answer = FAILURES[kind](jwk(key_a, "a"))
        for _ in range(3):
            with pytest.raises(Unavailable):
                keys.find("a")
        assert issuer.requests == 1

    @pytest.mark.parametrize("kind", FAILURES)
    def test_the_keys_that_are_held_are_kept(
        self, warm: KeySet, issuer: Issuer, now: list[float], key_a: EcKey, key_b: EcKey, kind: str
    ) -> None:
        issuer.answer = FAILURES[kind](jwk(key_b, "a"))
        now[0] = LIFETIME
        warm.find("a")
        join_fetches()
        assert issuer.requests == 2
        assert warm.find("a").key == key_a.public_key()

    def test_one_mebibyte_itself_is_accepted(self, keys: KeySet, issuer: Issuer, key_a: EcKey) -> None:
        issuer.answer = body(json.dumps({"keys": [jwk(key_a, "a")]}).ljust(SIZE_LIMIT))
        assert keys.find("a").key == key_a.public_key()

    def test_an_answer_in_pieces_is_accepted(self, keys: KeySet, issuer: Issuer, key_a: EcKey) -> None:
        issuer.answer = in_two_pieces(lambda: time.sleep(0.02), json.dumps({"keys": [jwk(key_a, "a")]}))
        assert keys.find("a").key == key_a.public_key()

    def test_an_answer_that_trickles_for_too_long_is_not(
        self, keys: KeySet, issuer: Issuer, now: list[float], key_a: EcKey
    ) -> None:
        def pass_the_time() -> None:
            now[0] += TIMEOUT + 0.001

        issuer.answer = in_two_pieces(pass_the_time, json.dumps({"keys": [jwk(key_a, "a")]}))
        with pytest.raises(Unavailable):
            keys.find("a")

    def test_nobody_waits_longer_than_the_time_limit(self, issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
        enough = Event()

        def trickle(handler: BaseHTTPRequestHandler) -> None:
            handler.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
            while not enough.wait(0.1):
                handler.wfile.write(b".")

        def keep_silent(_handler: BaseHTTPRequestHandler) -> None:
            enough.wait(5)

        started_at = time.monotonic()
        with ThreadPoolExecutor() as pool:
            issuer.answer = trickle
            trickling = pool.submit(KeySet(issuer.url, ()).find, "a")
            issuer.wait_for(1)
            issuer.answer = keep_silent
            silent = pool.submit(KeySet(issuer.url, ()).find, "a")
            for waiting in (trickling, silent):
                with pytest.raises(Unavailable):
                    waiting.result()
        assert TIMEOUT - 0.1 < time.monotonic() - started_at < TIMEOUT + 1.5
        wait_until(lambda: "TimeoutError" in caplog.text)
        enough.set()

    def test_a_fetch_that_has_not_ended_by_its_time_is_given_up(
        self, keys: KeySet, issuer: Issuer, now: list[float], key_a: EcKey, key_b: EcKey
    ) -> None:
        go = Event()
        issuer.answer = after(go, key_set(jwk(key_a, "a")))
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(keys.find, "a")
            issuer.wait_for(1)
            now[0] = TIMEOUT
            issuer.serve(jwk(key_b, "b"))
            assert keys.find("b").key == key_b.public_key()
            go.set()
            with pytest.raises(InvalidCredentials):
                waiting.result()
        join_fetches()
        assert keys.find("b").key == key_b.public_key()
        assert issuer.requests == 2

    def test_a_failure_is_logged(self, keys: KeySet, issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
        issuer.answer = body("", 500)
        with pytest.raises(Unavailable):
            keys.find("a")
        message = "JWT_JWKS_URL: the key set cannot be fetched: the answer has the status 500"
        assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("WARNING", message)]

    @pytest.mark.parametrize(
        ("url", "reason"),
        [
            ("http://127.0.0.1:{free}/secret", "ConnectionRefusedError: ECONNREFUSED"),
            ("http://nowhere.invalid/secret", "gaierror: the host is not found"),
            ("http://a..secret/", "UnicodeError"),
            ("https://127.0.0.1:{port}/secret", "SSLError: WRONG_VERSION_NUMBER"),
            ("http://127.0.0.1:{port}/secret", "BadStatusLine"),
        ],
    )
    def test_why_it_cannot_be_fetched_is_said_in_our_words(
        self, issuer: Issuer, caplog: pytest.LogCaptureFixture, url: str, reason: str
    ) -> None:
        issuer.answer = lambda handler: cast(None, handler.wfile.write(b"secret\r\n\r\n"))
        port = issuer.url.split(":")[2].split("/")[0]
        with pytest.raises(Unavailable):
            KeySet(url.format(port=port, free=free_port()), ()).find("a")
        (record,) = caplog.records
        assert record.getMessage() == f"JWT_JWKS_URL: the key set cannot be fetched: {reason}"

    @pytest.mark.parametrize("kind", FAILURES)
    def test_nothing_of_the_answer_is_logged(
        self, keys: KeySet, issuer: Issuer, key_a: EcKey, caplog: pytest.LogCaptureFixture, kind: str
    ) -> None:
        issuer.answer = FAILURES[kind](jwk(key_a, "a"))
        with pytest.raises(Unavailable):
            keys.find("a")
        (record,) = caplog.records
        assert re.fullmatch(
            "JWT_JWKS_URL: the key set cannot be fetched: "
            r"([A-Za-z]+|ConnectionResetError: ECONNRESET|the answer has the status \d+"
            "|its keys are not an array|the answer is larger than 1 MiB, or too slow)",
            record.getMessage(),
        )


class TestColdStart:
    """A key set that has never been fetched."""

    def test_it_may_be_fetched_before_anybody_asks(self, keys: KeySet, issuer: Issuer, key_a: EcKey) -> None:
        issuer.serve(jwk(key_a, "a"))
        keys.fetch_early()
        join_fetches()
        assert issuer.requests == 1
        assert keys.find("a").key == key_a.public_key()
        assert issuer.requests == 1

    def test_whoever_asks_meanwhile_waits_for_that_fetch(self, keys: KeySet, issuer: Issuer, key_a: EcKey) -> None:
        go = Event()
        issuer.answer = after(go, key_set(jwk(key_a, "a")))
        keys.fetch_early()
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(keys.find, "a")
            issuer.wait_for(1)
            go.set()
            assert waiting.result().key == key_a.public_key()
        assert issuer.requests == 1

    def test_everybody_waits_for_the_one_fetch(self, keys: KeySet, issuer: Issuer, key_a: EcKey) -> None:
        go = Event()
        issuer.answer = after(go, key_set(jwk(key_a, "a")))
        with ThreadPoolExecutor(20) as pool:
            waiting = [pool.submit(keys.find, "a") for _ in range(20)]
            issuer.wait_for(1)
            go.set()
            assert {found.result().key.public_numbers() for found in waiting} == {key_a.public_key().public_numbers()}
        assert issuer.requests == 1

    def test_it_recovers_after_the_pause(self, keys: KeySet, issuer: Issuer, now: list[float], key_a: EcKey) -> None:
        issuer.answer = body("", 500)
        with pytest.raises(Unavailable):
            keys.find("a")
        issuer.serve(jwk(key_a, "a"))
        now[0] = 0.999
        with pytest.raises(Unavailable):
            keys.find("a")
        assert issuer.requests == 1
        now[0] = 1
        assert keys.find("a").key == key_a.public_key()

    def test_the_pause_doubles_up_to_the_longest(self, keys: KeySet, issuer: Issuer, now: list[float]) -> None:
        issuer.answer = body("", 500)
        for requests, backoff in enumerate((1, 2, 4, 8, LONGEST_PAUSE, LONGEST_PAUSE), start=1):
            with pytest.raises(Unavailable):
                keys.find("a")
            assert issuer.requests == requests
            now[0] += backoff - 0.001
            with pytest.raises(Unavailable):
                keys.find("a")
            assert issuer.requests == requests
            now[0] += 0.001

    def test_an_unknown_id_is_refused_once_the_set_is_there(
        self, keys: KeySet, issuer: Issuer, now: list[float], key_a: EcKey
    ) -> None:
        issuer.serve(jwk(key_a, "a"))
        with pytest.raises(InvalidCredentials):
            keys.find("b")


class TestProvider:
    """The whole of it: bearer tokens whose key is in the issuer's set."""

    @pytest.fixture
    def app_of(self, make: Make, apps: dict[str, Flask], issuer: Issuer) -> Make:
        """Makes an app that trusts the issuer's set."""
        url = apps["sqlite"].config["SQLALCHEMY_DATABASE_URI"]
        return lambda **changes: make(url, jwt=JwtSettings(jwks_url=issuer.url, **changes))

    @pytest.fixture
    def app(self, app_of: Make) -> Flask:
        """An app that trusts the issuer's set."""
        return app_of()

    def ask(self, app: Flask, key: Any, kid: str | None = None, algorithm: str = "ES256") -> TestResponse:
        """The answer to a token that the key signs."""
        bearer_token = token(key=key, algorithm=algorithm, headers={} if kid is None else {"kid": kid})
        return app.test_client().get("/api/alice/tasks", headers={"Authorization": f"Bearer {bearer_token}"})

    def assert_accepted(self, *question: Any) -> None:
        response = self.ask(*question)
        assert (response.status_code, response.get_json()) == (200, [])

    def assert_refused(self, app: Flask, *question: Any) -> None:
        with leaving_no_trace(app):
            response = self.ask(app, *question)
        assert (response.status_code, response.get_json()) == (401, {"error": "Unauthorized"})
        assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'

    def assert_unavailable(self, app: Flask, *question: Any) -> None:
        with no_database_connection(app):
            response = self.ask(app, *question)
        assert (response.status_code, response.get_json()) == (503, {"error": "Service unavailable"})
        assert response.headers["Retry-After"] == "1"

    def test_the_key_is_found_by_its_id(self, app: Flask, issuer: Issuer, key_a: EcKey, key_b: EcKey) -> None:
        issuer.serve(jwk(key_a, "a"), jwk(key_b, "b"))
        self.assert_accepted(app, key_a, "a")
        self.assert_accepted(app, key_b, "b")
        assert issuer.requests == 1

    def test_the_key_of_another_id_does_not_verify(
        self, app: Flask, issuer: Issuer, key_a: EcKey, key_b: EcKey
    ) -> None:
        issuer.serve(jwk(key_a, "a"), jwk(key_b, "b"))
        self.assert_refused(app, key_a, "b")

    def test_without_an_id_a_set_of_one_serves(self, app: Flask, issuer: Issuer, key_a: EcKey) -> None:
        issuer.serve(jwk(key_a, "a"))
        self.assert_accepted(app, key_a)

    def test_without_an_id_a_set_of_two_does_not_serve(
        self, app: Flask, issuer: Issuer, key_a: EcKey, key_b: EcKey
    ) -> None:
        issuer.serve(jwk(key_a, "a"), jwk(key_b, "b"))
        self.assert_refused(app, key_a)

    def test_an_unknown_id_is_refused_where_the_set_was_fetched_lately(
        self, app: Flask, issuer: Issuer, key_a: EcKey
    ) -> None:
        issuer.serve(jwk(key_a, "a"))
        self.assert_accepted(app, key_a, "a")
        for _ in range(3):
            self.assert_refused(app, key_a, "unknown")
        assert issuer.requests == 2

    def test_an_issuer_that_fails_makes_the_service_unavailable(self, app: Flask, issuer: Issuer, key_a: EcKey) -> None:
        issuer.answer = body("", 500)
        self.assert_unavailable(app, key_a, "a")

    def test_an_issuer_that_is_not_there_makes_the_service_unavailable(
        self, app: Flask, issuer: Issuer, key_a: EcKey
    ) -> None:
        issuer.close()
        self.assert_unavailable(app, key_a, "a")

    def test_a_token_without_credentials_asks_no_issuer(self, app: Flask, issuer: Issuer) -> None:
        response = app.test_client().get("/api/alice/tasks")
        assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert issuer.requests == 0

    def test_the_algorithm_that_the_key_names_is_the_only_one(
        self, app: Flask, issuer: Issuer, rsa_key: RsaKey
    ) -> None:
        issuer.serve(jwk(rsa_key, "a", alg="RS256"))
        self.assert_accepted(app, rsa_key, "a", "RS256")
        for algorithm in ("RS384", "RS512", "PS256", "PS384", "PS512"):
            self.assert_refused(app, rsa_key, "a", algorithm)

    def test_the_algorithms_that_are_set_narrow_those_of_the_key(
        self, app_of: Make, issuer: Issuer, rsa_key: RsaKey
    ) -> None:
        app = app_of(algorithms=("RS512", "PS256"))
        issuer.serve(jwk(rsa_key, "a"))
        for algorithm in ("RS512", "PS256"):
            self.assert_accepted(app, rsa_key, "a", algorithm)
        for algorithm in ("RS256", "RS384", "PS384", "PS512"):
            self.assert_refused(app, rsa_key, "a", algorithm)

    def test_a_symmetric_key_of_the_set_verifies_nothing(self, app: Flask, issuer: Issuer) -> None:
        issuer.serve({"kty": "oct", "kid": "a", "k": base64url(SECRET), "alg": "HS256"})
        # What is said of the set, is said once.
        self.ask(app, SECRET, "a", "HS256")
        self.assert_refused(app, SECRET, "a", "HS256")

    def test_an_hmac_keyed_with_a_key_of_the_set_is_refused(self, app: Flask, issuer: Issuer, rsa_key: RsaKey) -> None:
        found = jwk(rsa_key, "a")
        issuer.serve(found)
        self.assert_refused(app, found["n"].encode(), "a", "HS256")


def test_a_remembered_token_falls_with_its_key(
    monkeypatch: pytest.MonkeyPatch, issuer: Issuer, now: list[float], key_a: EcKey, key_b: EcKey
) -> None:
    """The issuer gives the key's id to another key: what the old one has signed is refused as soon as that is known."""
    monkeypatch.setattr("todo.identity.jwt.KeySet", lambda *known: KeySet(*known, clock=lambda: now[0]))
    provider = JwtProvider(JwtSettings(jwks_url=issuer.url))
    signed = token(key=key_a, algorithm="ES256", headers={"kid": "a"})
    request = cast(Request, SimpleNamespace(headers={"Authorization": f"Bearer {signed}"}))
    issuer.serve(jwk(key_a, "a"))
    assert provider(request) is provider(request)
    issuer.serve(jwk(key_b, "a"))
    now[0] += LIFETIME
    provider(request)
    join_fetches()
    assert issuer.requests == 2
    with pytest.raises(InvalidCredentials):
        provider(request)


def test_nothing_is_fetched_for_a_token_of_another_kind(issuer: Issuer, key_a: EcKey) -> None:
    provider = JwtProvider(JwtSettings(jwks_url=issuer.url))
    signed = token(key=key_a, algorithm="ES256", headers={"kid": "a", "typ": "logout+jwt"})
    with pytest.raises(InvalidCredentials):
        provider(cast(Request, SimpleNamespace(headers={"Authorization": f"Bearer {signed}"})))
    assert issuer.requests == 0
