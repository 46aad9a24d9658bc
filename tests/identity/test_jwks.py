"""The issuer's key set, fetched from a real server: the KeySet on a clock of the tests, and the whole provider."""

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from itertools import count
from threading import Event
from typing import Any

import jwt
import pytest

from config import ConfigurationError, JwtSettings, load_settings
from tests.identity.issuer import (
    Answer,
    Issuer,
    Jwk,
    after,
    body,
    broken_off,
    in_two_pieces,
    join_fetches,
    jwk,
    key_set,
    redirect_to,
    reset,
    sending,
    wait_until,
)
from tests.identity.tokens import FITTING, base64url, key, payload, pem, signed_by
from tests.live import free_port
from tests.support import SECRET, token
from todo.errors import InvalidCredentials, Unavailable
from todo.identity import jwks
from todo.identity.jwks import GRACE, LIFETIME, LONGEST_PAUSE, MOST_FETCHES, SIZE_LIMIT, TIMEOUT, KeySet
from todo.identity.jwt import JwtProvider
from todo.identity.keys import VerificationKey
from todo.refusals import Refusal

A, B, C, RSA = key(), key("P-256", "b"), key("P-256", "c"), key("RSA")
SHORT_PAUSES = (1, 2, 4, 8, LONGEST_PAUSE, LONGEST_PAUSE)


class Keys:
    """The issuer's keys on a clock that the test moves, and what the issuer serves."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer, self.now, self.go = issuer, 0.0, Event()
        self.set = KeySet(issuer.url, (), clock=lambda: self.now)

    @property
    def requests(self) -> int:
        """How often the set was fetched."""
        return self.issuer.requests

    def serve(self, **keys: Any) -> None:
        """Answer with these keys by their ids from now on."""
        self.issuer.serve(*(jwk(private_key, kid) for kid, private_key in keys.items()))

    def serve_slowly(self, **keys: Any) -> None:
        """Answer with these keys once `go` is set."""
        self.issuer.answer = after(self.go, key_set(*(jwk(private_key, kid) for kid, private_key in keys.items())))

    def fail(self) -> None:
        """Answer with 500 from now on."""
        self.issuer.answer = body("", 500)

    def find(self, kid: str | None) -> Any:
        """The key of that id."""
        return self.set.find(kid).key.public_numbers()

    def assert_found(self, *kids: str | None, is_key: Any) -> None:
        for kid in kids:
            assert self.find(kid) == is_key.public_key().public_numbers()

    def assert_unknown(self, *kids: str | None) -> None:
        for kid in kids:
            with pytest.raises(InvalidCredentials):
                self.set.find(kid)

    def assert_unavailable(self, *kids: str | None) -> None:
        for kid in kids:
            with pytest.raises(Unavailable):
                self.set.find(kid)

    def assert_all_wait_for_fetch(self, number: int) -> None:
        """All callers wait for that fetch, which brings the key A as "a" once `go` is set."""
        with ThreadPoolExecutor(20) as pool:
            waiting = [pool.submit(self.set.find, "a") for _ in range(20)]
            self.issuer.wait_for(number)
            self.go.set()
            self.assert_found_by(*waiting, is_key=A)
        assert self.requests == number

    def assert_found_by(self, *callers: Future[VerificationKey], is_key: Any) -> None:
        for caller in callers:
            assert caller.result().key.public_numbers() == is_key.public_key().public_numbers()


@pytest.fixture
def keys(issuer: Issuer) -> Keys:
    """The issuer's keys, of which nothing is known yet."""
    return Keys(issuer)


@pytest.fixture
def warm(keys: Keys) -> Keys:
    """The issuer's keys, fetched at 0 with one key in them."""
    keys.serve(a=A)
    assert keys.requests == 0
    keys.assert_found("a", is_key=A)
    assert keys.requests == 1
    return keys


class TestFind:
    """Which key is found for which id."""

    @pytest.mark.parametrize("kid", ["a", None])
    def test_without_an_id_a_set_of_one_serves(self, keys: Keys, kid: str | None) -> None:
        keys.issuer.serve(jwk(A, kid))
        keys.assert_found(None, is_key=A)

    @pytest.mark.parametrize("kids", [("a", "b"), ("a", None), (None, None)])
    def test_without_an_id_a_set_of_two_does_not_serve(self, keys: Keys, kids: tuple[str | None, ...]) -> None:
        keys.issuer.serve(jwk(A, kids[0]), jwk(B, kids[1]))
        keys.assert_unknown(None)

    def test_an_id_is_compared_exactly(self, keys: Keys) -> None:
        keys.issuer.serve(jwk(A, "a"), jwk(B))
        keys.assert_unknown("", "b", "A", "a ", "0", "None")

    @pytest.mark.parametrize("kid", [["n"], {}, 1, 0, True, None])
    def test_a_key_whose_id_is_no_string_cannot_be_asked_for_but_counts(self, keys: Keys, kid: object) -> None:
        keys.issuer.serve(jwk(B) | {"kid": kid}, jwk(A, "a"))
        keys.assert_found("a", is_key=A)
        keys.assert_unknown(None, "1", "True")

    @pytest.mark.parametrize("kind", FITTING)
    def test_the_algorithms_are_those_that_fit_the_key(self, keys: Keys, kind: str) -> None:
        keys.issuer.serve(jwk(key(kind), "any"), jwk(RSA, "one", alg="PS512", use="sig", key_ops=["sign", "verify"]))
        assert keys.set.find("any").algorithms == FITTING[kind]
        assert keys.set.find("one").algorithms == ("PS512",)

    def test_the_algorithms_are_narrowed(self, issuer: Issuer) -> None:
        keys = KeySet(issuer.url, ("RS512", "PS256"))
        issuer.serve(jwk(RSA, "any"), jwk(RSA, "PS256", alg="PS256"), jwk(RSA, "PS512", alg="PS512"), jwk(A, "EC"))
        assert keys.find("any").algorithms == ("RS512", "PS256")
        assert keys.find("PS256").algorithms == ("PS256",)
        for kid in ("PS512", "EC"):
            with pytest.raises(InvalidCredentials):
                keys.find(kid)


def edwards_token(curve: str, alg: str) -> str:
    """A token by the key on that curve, under that name of its algorithm."""
    signed = f"{base64url(json.dumps({'alg': alg, 'kid': curve}))}.{base64url(payload())}"
    return f"{signed}.{base64url(key(curve).sign(signed.encode()))}"


def provider_of(**changes: Any) -> JwtProvider:
    """The provider of those JwtSettings."""
    return JwtProvider(JwtSettings(**changes))


def reason_for(provider: JwtProvider, bearer_token: str) -> Refusal | None:
    """Why the provider refuses that token; None where it takes it for one of alice."""
    try:
        assert provider.identify(f"Bearer {bearer_token}").user_id == "alice"
    except InvalidCredentials as refusal:
        return refusal.reason
    return None


class TestEdwards:
    """EdDSA under its name of RFC 8037, and under those of RFC 9864."""

    @pytest.mark.parametrize("curve", ["Ed25519", "Ed448"])
    @pytest.mark.parametrize("named_by_key", [None, "EdDSA", "CURVE"])
    @pytest.mark.parametrize("named_by_token", ["EdDSA", "CURVE"])
    @pytest.mark.parametrize("named_by_settings", [None, "EdDSA", "CURVE"])
    def test_all_names_are_one(
        self, issuer: Issuer, curve: str, named_by_key: str | None, named_by_token: str, named_by_settings: str | None
    ) -> None:
        own = {None: None, "EdDSA": "EdDSA", "CURVE": curve}
        alg, algorithm = own[named_by_key], own[named_by_settings]
        # With what WebCrypto of Node adds to the public key that it exports.
        added = {"key_ops": ["verify"], "ext": True} | ({} if alg is None else {"alg": alg})
        issuer.serve(jwk(key(curve), curve, **added))
        provider = provider_of(jwks_url=issuer.url, algorithms=(algorithm,) if algorithm else ())
        assert reason_for(provider, edwards_token(curve, own[named_by_token] or "")) is None

    @pytest.mark.parametrize("curve", ["Ed25519", "Ed448"])
    def test_a_public_key_in_pem_too(self, curve: str) -> None:
        for algorithms in ((), ("EdDSA",), (curve,), ("Ed25519", "Ed448")):
            provider = provider_of(public_key=pem(key(curve)), algorithms=algorithms)
            assert [reason_for(provider, edwards_token(curve, alg)) for alg in ("EdDSA", curve)] == [None, None]

    @pytest.mark.parametrize(("curve", "other"), [("Ed25519", "Ed448"), ("Ed448", "Ed25519")])
    def test_the_name_of_the_other_curve_is_another_algorithm(self, issuer: Issuer, curve: str, other: str) -> None:
        issuer.serve(jwk(key(curve), curve), jwk(key(other), other, alg=curve))
        provider = provider_of(jwks_url=issuer.url)
        assert reason_for(provider, edwards_token(curve, other)) == Refusal.ALGORITHM
        assert reason_for(provider, edwards_token(curve, "ed25519")) == Refusal.ALGORITHM
        # The key names an algorithm that it does not fit.
        assert reason_for(provider, edwards_token(other, other)) == Refusal.UNKNOWN_KEY
        with pytest.raises(ConfigurationError):
            provider_of(public_key=pem(key(curve)), algorithms=(other,))

    def test_settings_that_name_both_are_of_one_family(self) -> None:
        environ = {"DATABASE_URL": "sqlite:////x", "IDENTITY_PROVIDER": "jwt", "JWT_JWKS_URL": "https://x/keys"}
        settings = load_settings(environ | {"JWT_ALGORITHMS": "EdDSA,Ed25519,Ed448"}).jwt
        assert settings is not None
        assert settings.algorithms == ("EdDSA", "Ed25519", "Ed448")


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

    def test_a_set_that_changes_is_logged_again(self, keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
        for kid, private_key in (("a", A), ("b", B)):
            keys.issuer.serve(jwk(private_key, kid), jwk(B, "x", use="enc"))
            keys.find(kid)
        join_fetches()
        assert len(self.messages(caplog)) == 2

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


class TestUnknownKeys:
    """Ids that are not in the set that is held."""

    def test_one_that_the_issuer_has_meanwhile_is_found_at_once(self, warm: Keys) -> None:
        warm.serve(b=B)
        warm.assert_found("b", is_key=B)
        assert warm.requests == 2
        # It has taken the other key away.
        warm.assert_unknown("a")

    def test_an_issuer_that_restarts_with_new_keys_again_and_again_makes_nobody_wait(self, warm: Keys) -> None:
        for number in range(1, MOST_FETCHES):
            # The key is another one, or its id.
            warm.serve(**{f"{number}": B if number % 2 else A})
            warm.find(f"{number}")
        assert warm.requests == MOST_FETCHES

    def test_tokens_of_before_the_restart_keep_the_new_keys_from_nobody_for_long(self, warm: Keys) -> None:
        warm.serve(b=B)
        warm.find("b")
        warm.assert_unknown(*["a"] * 50)
        assert warm.requests == 3
        # It restarts once more, after three seconds of many requests with the old key.
        warm.now = 1.5
        warm.assert_unknown("a")
        warm.serve(c=C)
        warm.now = 3.5
        warm.assert_found("c", is_key=C)

    def test_an_issuer_with_new_keys_at_each_fetch_is_not_stormed(self, warm: Keys) -> None:
        def serve_another(handler: BaseHTTPRequestHandler) -> None:
            key_set(jwk(A, f"{warm.requests}"))(handler)

        warm.issuer.answer = serve_another
        for fetches in (MOST_FETCHES, 2 * MOST_FETCHES):
            warm.assert_unknown(*["unknown"] * 100)
            assert warm.requests == fetches
            warm.now += LONGEST_PAUSE

    @pytest.mark.parametrize("is_failing", [False, True])
    def test_the_pause_after_fetches_that_bring_nothing_doubles_up_to_the_longest(
        self, keys: Keys, is_failing: bool
    ) -> None:
        if is_failing:
            keys.fail()
        else:
            keys.serve(a=A)
            keys.find("a")
        assert_refused = keys.assert_unavailable if is_failing else keys.assert_unknown
        for requests, pause in enumerate(SHORT_PAUSES, start=keys.requests + 1):
            assert_refused(f"unknown {requests}")
            assert keys.requests == requests
            keys.now += pause - 0.001
            assert_refused("another")
            assert keys.requests == requests
            keys.now += 0.001
        keys.serve(b=B)
        keys.assert_found("b", is_key=B)
        keys.assert_unknown("a")

    def test_after_a_quiet_time_the_pauses_are_short_again(self, warm: Keys) -> None:
        for seconds in (0, 1, 3, 7, 15, 35):
            warm.now = seconds
            warm.assert_unknown("unknown")
        warm.serve(b=B)
        warm.now += 1
        warm.assert_found("b", is_key=B)

    def test_a_fetch_because_of_their_age_does_not_delay_one_for_an_unknown_id(self, warm: Keys) -> None:
        warm.now = LIFETIME
        warm.find("a")
        join_fetches()
        warm.serve(b=B)
        warm.assert_found("b", is_key=B)
        assert warm.requests == 3

    def test_while_a_slow_fetch_runs_a_known_key_is_answered_and_an_unknown_one_is_unavailable(
        self, warm: Keys
    ) -> None:
        warm.serve_slowly(a=A, b=B)
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(warm.set.find, "b")
            warm.issuer.wait_for(2)
            warm.assert_found("a", is_key=A)
            warm.assert_unavailable("b")
            assert not waiting.done()
            warm.go.set()
            warm.assert_found_by(waiting, is_key=B)
        assert warm.requests == 2

    def test_a_key_that_comes_just_after_it_was_looked_for_is_not_unknown(
        self, warm: Keys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        look_up, calls = warm.set._cached, count(1)

        def look_up_just_before_it_comes(kid: str | None) -> VerificationKey | None:
            key = look_up(kid)
            # The second look-up comes after the decision whether to wait for the fetch.
            if next(calls) == 2:
                warm.go.set()
                join_fetches()
            return key

        warm.serve_slowly(a=A, b=B)
        warm.now = LIFETIME
        warm.find("a")
        warm.issuer.wait_for(2)
        monkeypatch.setattr(warm.set, "_cached", look_up_just_before_it_comes)
        warm.assert_unavailable("b")
        warm.assert_found("b", is_key=B)


class TestAge:
    """Keys that grow old."""

    def test_they_are_fetched_in_the_background_after_their_lifetime_and_not_before(self, warm: Keys) -> None:
        warm.serve_slowly(a=B)
        warm.now = LIFETIME - 0.001
        warm.find("a")
        join_fetches()
        assert warm.requests == 1
        warm.now = LIFETIME
        warm.assert_found("a", "a", "a", is_key=A)
        warm.go.set()
        join_fetches()
        warm.assert_found("a", is_key=B)
        assert warm.requests == 2

    @pytest.mark.parametrize("age", [LIFETIME, LIFETIME + GRACE - 0.001])
    def test_they_are_used_in_the_grace_while_the_issuer_is_away(self, warm: Keys, age: float) -> None:
        warm.fail()
        warm.now = age
        for _ in range(3):
            warm.assert_found("a", is_key=A)
            join_fetches()
        assert warm.requests == 2

    def test_an_issuer_that_is_away_is_asked_again_after_a_pause(self, warm: Keys) -> None:
        warm.fail()
        warm.now = LIFETIME
        warm.find("a")
        join_fetches()
        warm.serve(a=B)
        for at, requests in ((LIFETIME + 0.999, 2), (LIFETIME + 1, 3)):
            warm.now = at
            warm.find("a")
            join_fetches()
            assert warm.requests == requests
        warm.assert_found("a", is_key=B)

    def test_they_are_not_used_after_the_grace(self, warm: Keys) -> None:
        warm.fail()
        warm.now = LIFETIME + GRACE
        warm.assert_unavailable("a", "a", "a")
        assert warm.requests == 2


GOOD = json.dumps({"keys": [jwk(B, "a")]})
GOOD_AND_MORE = json.dumps({"keys": [jwk(B, "a")], "x": "?"})
#: What an issuer may answer in place of its key set. Each is a good set, but for what its name says.
FAILURES: dict[str, Answer] = {
    "HTML": body("<!doctype html><title>Down for maintenance</title>", content_type="text/html"),
    "nothing": body(""),
    "not JSON": body(GOOD[:-1]),
    "not UTF-8": body(GOOD_AND_MORE.encode().replace(b"?", b"\xff")),
    "a list": body(json.dumps([jwk(B, "a")])),
    "no keys": body(json.dumps(jwk(B, "a"))),
    **{f"keys that are {keys}": body(f'{{"keys": {keys}}}') for keys in ("null", "5", "{}", '"abc"')},
    "nested too deeply": body(GOOD_AND_MORE.replace('"?"', "[" * 100_000 + "]" * 100_000)),
    "a number that is too long": body(GOOD_AND_MORE.replace('"?"', "1" * 5000)),
    "more than 1 MiB": body(GOOD.ljust(SIZE_LIMIT + 1)),
    **{f"HTTP {status}": body(GOOD, status) for status in (500, 404, 302)},
    "a redirect": redirect_to(body(GOOD)),
    "a reset": reset,
    "a body that breaks off": broken_off(GOOD),
    "not HTTP": sending(b"\x16\x03\x01\x00\x00\r\n\r\n"),
}
FAILED = "JWT_JWKS_URL: the key set cannot be fetched: "


class TestFailures:
    """Issuers that do not answer with a key set."""

    @pytest.mark.parametrize("answer", FAILURES.values(), ids=FAILURES)
    def test_without_keys_it_is_unavailable_else_they_are_kept_and_nothing_of_the_answer_is_logged(
        self, keys: Keys, caplog: pytest.LogCaptureFixture, answer: Answer
    ) -> None:
        keys.issuer.answer = answer
        keys.assert_unavailable("a", "a", "a")
        assert keys.requests == 1
        ((level, message),) = [(record.levelname, record.getMessage()) for record in caplog.records]
        assert level == "WARNING"
        assert re.fullmatch(
            rf"{FAILED}([A-Za-z]+|ConnectionResetError: ECONNRESET|the answer has the status (500|404|302)"
            "|its keys are not an array|the answer is larger than 1 MiB, or too slow)",
            message,
        )
        keys.now += LONGEST_PAUSE
        keys.serve(a=A)
        keys.find("a")
        keys.issuer.answer = answer
        keys.now += LIFETIME
        keys.find("a")
        join_fetches()
        assert keys.requests == 3
        keys.assert_found("a", is_key=A)

    def test_one_mebibyte_itself_is_accepted(self, keys: Keys) -> None:
        keys.issuer.answer = body(GOOD.ljust(SIZE_LIMIT))
        keys.assert_found("a", is_key=B)

    def test_an_answer_in_pieces_is_accepted_within_its_time(self, keys: Keys) -> None:
        def pass_the_time(seconds: float) -> None:
            keys.now += seconds

        keys.issuer.answer = in_two_pieces(lambda: pass_the_time(TIMEOUT + 0.001), GOOD)
        keys.assert_unavailable("a")
        keys.now += LONGEST_PAUSE
        keys.issuer.answer = in_two_pieces(lambda: pass_the_time(TIMEOUT - 0.001), GOOD)
        keys.assert_found("a", is_key=B)

    def test_nobody_waits_longer_than_the_time_limit(
        self, issuer: Issuer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(jwks, "TIMEOUT", 0.5)
        enough = Event()

        def trickle(handler: BaseHTTPRequestHandler) -> None:
            handler.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
            while not enough.wait(0.1):
                handler.wfile.write(b".")

        started_at = time.monotonic()
        with ThreadPoolExecutor() as pool:
            issuer.answer = trickle
            trickling = pool.submit(KeySet(issuer.url, ()).find, "a")
            issuer.wait_for(1)
            issuer.answer = after(enough, body(""))
            silent = pool.submit(KeySet(issuer.url, ()).find, "a")
            for waiting in (trickling, silent):
                with pytest.raises(Unavailable):
                    waiting.result()
        assert 0.4 < time.monotonic() - started_at < 2
        wait_until(lambda: "TimeoutError" in caplog.text)
        enough.set()

    def test_a_fetch_that_has_not_ended_by_its_time_is_given_up(self, keys: Keys) -> None:
        keys.serve_slowly(a=A)
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(keys.set.find, "a")
            keys.issuer.wait_for(1)
            keys.now = TIMEOUT - 0.001
            _, is_another = keys.set._refresh(is_for_unknown=False)
            assert not is_another
            keys.now = TIMEOUT
            keys.serve(b=B)
            keys.assert_found("b", is_key=B)
            keys.go.set()
            # The latter on a busy machine, if its own 2 s are over.
            with pytest.raises((InvalidCredentials, Unavailable)):
                waiting.result()
        join_fetches()
        keys.assert_found("b", is_key=B)
        assert keys.requests == 2

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
    def test_the_reason_is_logged_in_our_words(
        self, issuer: Issuer, caplog: pytest.LogCaptureFixture, url: str, reason: str
    ) -> None:
        issuer.answer = sending(b"secret\r\n\r\n")
        with pytest.raises(Unavailable):
            KeySet(url.format(port=issuer.port, free=free_port()), ()).find("a")
        (record,) = caplog.records
        assert record.getMessage() == FAILED + reason


class TestColdStart:
    """A key set that has never been fetched."""

    def test_it_may_be_fetched_before_anybody_asks(self, keys: Keys) -> None:
        keys.serve(a=A)
        keys.set.fetch_early()
        join_fetches()
        assert keys.requests == 1
        keys.assert_found("a", is_key=A)
        assert keys.requests == 1

    @pytest.mark.parametrize("is_early", [True, False])
    def test_everybody_waits_for_the_one_fetch(self, keys: Keys, is_early: bool) -> None:
        keys.serve_slowly(a=A)
        if is_early:
            keys.set.fetch_early()
        keys.assert_all_wait_for_fetch(1)

    def test_everybody_waits_after_a_long_time_without_a_caller(self, warm: Keys) -> None:
        warm.now = LIFETIME + GRACE
        warm.serve_slowly(a=A)
        warm.assert_all_wait_for_fetch(2)

    def test_after_a_fetch_that_failed_nobody_waits_for_another_callers_fetch(self, keys: Keys) -> None:
        keys.fail()
        keys.assert_unavailable("a")
        keys.now += 1
        keys.serve_slowly(a=A)
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(keys.set.find, "a")
            keys.issuer.wait_for(2)
            keys.assert_unavailable(*["a"] * 20)
            assert not waiting.done()
            keys.go.set()
            keys.assert_found_by(waiting, is_key=A)
        keys.assert_found("a", is_key=A)
        assert keys.requests == 2

    def test_everybody_waits_again_once_the_pauses_are_short_again(self, keys: Keys) -> None:
        keys.fail()
        keys.assert_unavailable("a")
        keys.now += 1 + LONGEST_PAUSE
        keys.serve_slowly(a=A)
        keys.assert_all_wait_for_fetch(2)

    def test_who_joins_a_fetch_waits_until_it_is_given_up_and_no_longer(self, keys: Keys) -> None:
        keys.serve_slowly(a=A)
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(keys.set.find, "a")
            keys.issuer.wait_for(1)
            keys.now = TIMEOUT - 0.1
            started_at = time.monotonic()
            keys.assert_unavailable("a")
            assert 0.05 < time.monotonic() - started_at < TIMEOUT / 2
            keys.go.set()
            keys.assert_found_by(waiting, is_key=A)


class TestProvider:
    """Bearer tokens whose key is in the issuer's set; more of them are in test_forgeries.py."""

    def test_the_key_is_found_by_its_id_alone(self, issuer: Issuer) -> None:
        issuer.serve(jwk(A, "a"), jwk(B, "b"))
        provider = provider_of(jwks_url=issuer.url)
        assert [reason_for(provider, signed_by(key, kid)) for key, kid in ((A, "a"), (B, "b"))] == [None, None]
        assert reason_for(provider, signed_by(A, "b")) == Refusal.SIGNATURE
        assert issuer.requests == 1

    def test_the_algorithms_that_are_set_narrow_those_of_the_key(self, issuer: Issuer) -> None:
        issuer.serve(jwk(RSA, "a"))
        provider = provider_of(jwks_url=issuer.url, algorithms=("RS512", "PS256"))
        reasons = {name: reason_for(provider, signed_by(RSA, "a", name)) for name in FITTING["RSA"]}
        assert reasons == dict.fromkeys(FITTING["RSA"], Refusal.ALGORITHM) | {"RS512": None, "PS256": None}

    def test_nothing_is_fetched_for_a_token_of_another_kind(self, issuer: Issuer) -> None:
        signed = token(key=A, algorithm="ES256", headers={"kid": "a", "typ": "logout+jwt"})
        assert reason_for(provider_of(jwks_url=issuer.url), signed) == Refusal.TYPE
        assert reason_for(provider_of(jwks_url=issuer.url), "") == Refusal.MALFORMED
        assert issuer.requests == 0
