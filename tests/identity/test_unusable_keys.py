"""The service ignores some keys of an issuer's set, and the log names them."""

from collections.abc import Callable

import jwt
import pytest

from tests.identity.conftest import Keys
from tests.identity.issuer import Issuer, Jwk, join_fetches, jwk
from tests.identity.tokens import base64url, key
from tests.support import SECRET
from todo.identity.jwks import LIFETIME, LONGEST_PAUSE, KeySet

A, B, RSA = key(), key("P-256", "b"), key("RSA")


def without(found: Jwk, *names: str) -> Jwk:
    """That JWK without those members."""
    return {name: value for name, value in found.items() if name not in names}


KIND, USE, OPERATIONS = "its kty is not RSA, EC or OKP", "its use is not sig", "its key_ops do not have verify"
MALFORMED, ALGORITHM = "it is malformed, or its curve is not known", "its alg is not one for such a key"
WEAK = "it is a private key, an RSA key below 2048 bits, or on a curve that is not accepted"


def private_jwk(kind: str, algorithm: str) -> Jwk:
    """The private key as a JWK."""
    found = jwt.get_algorithm_by_name(algorithm).to_jwk(key(kind), as_dict=True)
    assert "d" in found
    return without(found, "key_ops") | {"kid": "bad"}


#: Keys that must not verify anything, by the fault that the log names. Each is made of a good one; its id is "bad".
UNUSABLE: dict[str, dict[str, Callable[[Jwk], object]]] = {
    KIND: {
        "symmetric": lambda _: {"kty": "oct", "kid": "bad", "k": base64url(SECRET), "alg": "HS256"},
        "symmetric without alg": lambda _: {"kty": "oct", "kid": "bad", "k": base64url(SECRET)},
        "of an unknown kind": lambda good: good | {"kty": "AKP"},
        "of no kind": lambda good: without(good, "kty"),
        "an empty object": lambda _: {},
    },
    USE: {
        "for encryption": lambda good: good | {"use": "enc"},
        "for an unknown use": lambda good: good | {"use": None},
    },
    OPERATIONS: {
        "for signing alone": lambda good: good | {"key_ops": ["sign"]},
        "for nothing": lambda good: good | {"key_ops": []},
    },
    MALFORMED: {
        "for operations that are no list": lambda good: good | {"key_ops": 5},
        "of a kind that is no string": lambda good: good | {"kty": ["EC"]},
        "of another kind than its members": lambda good: good | {"kty": "RSA"},
        "of an unknown curve": lambda good: good | {"crv": "P-192"},
        "of another curve than its members": lambda good: good | {"crv": "P-384"},
        "not on its curve": lambda good: good | {"x": good["y"]},
        "half": lambda good: without(good, "y"),
        "not base64url": lambda good: good | {"x": "!"},
        "not of strings": lambda good: good | {"x": 5},
        "an RSA key of nothing": lambda _: {"kty": "RSA", "kid": "bad", "n": "", "e": ""},
        "null": lambda _: None,
        "a string": lambda _: "bad",
        "a number": lambda _: 5,
        "a list": lambda good: [good],
    },
    ALGORITHM: {
        f"for {algorithm}": lambda good, algorithm=algorithm: good | {"alg": algorithm}  # type: ignore[misc]
        for algorithm in ("ES999", "RS256", "ES512", "none", "HS256", "ECDH-ES", ["ES256"])
    },
    WEAK: {
        "weak": lambda _: jwk(key("RSA 1024"), "bad"),
        "of a curve that is not accepted": lambda _: jwk(key("secp256k1"), "bad"),
        "a private RSA key": lambda _: private_jwk("RSA", "RS256"),
        "a private EC key": lambda _: private_jwk("P-256", "ES256"),
        "a private Ed25519 key": lambda _: private_jwk("Ed25519", "EdDSA"),
    },
}


class TestUnusableKeys:
    """Keys in a set that are not used, do not keep the others from being used, and are named in the log once."""

    @staticmethod
    def messages(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
        return [(record.levelname, record.getMessage()) for record in caplog.records]

    @pytest.fixture(autouse=True)
    def _talkative(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO")

    @pytest.mark.parametrize(
        ("fault", "make_unusable"),
        [pytest.param(fault, make, id=name) for fault, kinds in UNUSABLE.items() for name, make in kinds.items()],
    )
    def test_it_is_left_out_and_named_once(
        self, keys: Keys, caplog: pytest.LogCaptureFixture, fault: str, make_unusable: Callable[[Jwk], object]
    ) -> None:
        member = make_unusable(jwk(B, "bad"))
        keys.issuer.serve(member, jwk(A, "a"))
        keys.assert_unknown("bad")
        keys.assert_found("a", None, is_key=A)
        for _ in range(2):
            keys.now += LIFETIME
            keys.find("a")
            join_fetches()
        assert keys.requests == 3
        name = '"bad"' if isinstance(member, dict) and member else "number 1, without an id"
        assert self.messages(caplog) == [("INFO", f"JWT_JWKS_URL: the key {name} of the set is left out: {fault}")]

    def test_one_that_the_settings_leave_out_is_named(self, issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
        issuer.serve(jwk(RSA, "rsa"), jwk(A, "ec"))
        KeySet(issuer.url, ("ES256",)).find("ec")
        line = 'JWT_JWKS_URL: the key "rsa" of the set is left out: JWT_ALGORITHMS does not name its algorithm'
        assert self.messages(caplog) == [("INFO", line)]

    def test_of_two_with_the_same_id_the_last_one_is_used(self, keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
        keys.issuer.serve(jwk(B, "a"), jwk(A, "a"))
        keys.assert_found("a", None, is_key=A)
        line = 'JWT_JWKS_URL: the key "a" of the set is left out: a later key of the set has the same id'
        assert self.messages(caplog) == [("INFO", line)]

    def test_a_set_that_changes_is_logged_again(self, keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
        for kid, private_key in (("a", A), ("b", B)):
            keys.issuer.serve(jwk(private_key, kid), jwk(B, "x", use="enc"))
            keys.find(kid)
        keys.issuer.serve(*(dict(reversed(each.items())) for each in (jwk(B, "x", use="enc"), jwk(B, "b"))))
        keys.assert_unknown("a")
        assert len(self.messages(caplog)) == 2, "the order is no change"

    @pytest.mark.parametrize("jwks", [[], [{"kty": "oct", "kid": "x"}]], ids=["none", "none usable"])
    def test_a_set_without_a_usable_key_is_a_warning(
        self, keys: Keys, caplog: pytest.LogCaptureFixture, jwks: list[Jwk]
    ) -> None:
        keys.issuer.serve(*jwks)
        for _ in range(3):
            keys.assert_unknown("a")
            keys.now += LONGEST_PAUSE
        assert keys.requests == 3
        line = "JWT_JWKS_URL: the key set has no usable key: every token is refused"
        assert self.messages(caplog)[len(jwks) :] == [("WARNING", line)]

    def test_an_id_is_quoted_and_cut_and_no_key_is_shown(self, keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
        bad = jwk(A, use="enc")
        odd_ids = [{"kid": 5}, {"kid": '\n\x1b[31m"\u2028'}, {"kid": "k" * 1000}]
        keys.issuer.serve(jwk(A, "a"), bad, *(bad | odd for odd in odd_ids))
        keys.find("a")
        names = [line.split(" the key ")[1].split(" of the set ")[0] for _, line in self.messages(caplog)]
        without_id = ["number 2, without an id", "number 3, without an id"]
        assert names == [*without_id, '"\\n\\u001b[31m\\"\\u2028"', f'"{"k" * 100}"']
        assert bad["x"] not in caplog.text

    @pytest.mark.parametrize(("left_out", "lines"), [(20, 20), (1000, 21)])
    def test_of_many_only_some_are_named(
        self, keys: Keys, caplog: pytest.LogCaptureFixture, left_out: int, lines: int
    ) -> None:
        keys.issuer.serve(jwk(A, "a"), *(jwk(A, f"{number}", use="enc") for number in range(left_out)))
        keys.find("a")
        found = [line for _, line in self.messages(caplog)]
        assert len(found) == lines
        if lines == 21:
            assert found[-1] == "JWT_JWKS_URL: 980 more keys of the set are left out"
