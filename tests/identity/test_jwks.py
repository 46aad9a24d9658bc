"""The issuer's key set, fetched from a real server: the KeySet on a clock of the tests, and the whole provider."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from itertools import count
from typing import Any

import pytest

from config import ConfigurationError, JwtSettings, load_settings
from tests.identity.conftest import Keys
from tests.identity.issuer import (
    Answer,
    Issuer,
    body,
    broken_off,
    in_two_pieces,
    join_fetches,
    jwk,
    key_set,
    redirect_to,
    reset,
    sending,
)
from tests.identity.tokens import FITTING, base64url, key, payload, pem, signed_by
from tests.live import free_port
from tests.support import threads_named, token, wait_until
from todo.errors import InvalidCredentials, Unavailable
from todo.identity import jwks
from todo.identity.jwks import GRACE, LIFETIME, LONGEST_PAUSE, MOST_FETCHES, SIZE_LIMIT, TIMEOUT, KeySet
from todo.identity.jwt import JwtProvider
from todo.identity.keys import VerificationKey
from todo.refusals import Refusal

A, B, C, RSA = key(), key("P-256", "b"), key("P-256", "c"), key("RSA")
SHORT_PAUSES = (1, 2, 4, 8, LONGEST_PAUSE, LONGEST_PAUSE)


def test_the_numbers_are_those_of_the_page() -> None:
    """docs/decisions/key-set.md. Other tests count in them, or replace them."""
    assert (LIFETIME, GRACE, TIMEOUT, SIZE_LIMIT) == (300, 3600, 2, 1024 * 1024)
    assert (LONGEST_PAUSE, MOST_FETCHES) == (10, 10)


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

    @pytest.mark.parametrize("cause", ["failing", "unknown", "forged"])
    def test_the_pause_after_fetches_that_bring_nothing_doubles_up_to_the_longest(self, keys: Keys, cause: str) -> None:
        if cause == "failing":
            keys.fail()
        else:
            keys.serve(a=A)
            keys.find("a")
        assert_refused = {"failing": keys.assert_unavailable, "unknown": keys.assert_unknown}.get(
            cause, keys.assert_forged
        )
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
        known = warm.set.find("a")
        warm.serve_slowly(a=C, b=B)
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(warm.set.find, "b")
            warm.issuer.wait_for(2)
            warm.assert_found("a", is_key=A)
            warm.assert_unavailable("b")
            with pytest.raises(Unavailable):
                warm.set.find_newer("a", known)
            assert not waiting.done()
            warm.go.set()
            warm.assert_found_by(waiting, is_key=B)
        assert warm.set.find_newer("a", known) is warm.set.find("a")
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
            rf"{FAILED}((?!None)[A-Za-z]+|ConnectionResetError: ECONNRESET|the answer has the status (500|404|302)"
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
        def fetch_in(seconds: float) -> None:
            # In the background: a caller's wait is measured by the clock that is moved meanwhile.
            keys.now += LONGEST_PAUSE
            keys.issuer.answer = in_two_pieces(lambda: setattr(keys, "now", keys.now + seconds), GOOD)
            keys.set.fetch_early()
            join_fetches()

        fetch_in(jwks.TIMEOUT + 0.001)
        assert keys.set.ids() == []
        fetch_in(jwks.TIMEOUT - 0.001)
        keys.assert_found("a", is_key=B)
        assert keys.requests == 2

    def test_a_fetch_that_has_not_ended_by_its_time_is_given_up(self, keys: Keys) -> None:
        are_kept: list[bool] = []
        keys.set.observe(are_kept.append)
        keys.serve_slowly(a=A)
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(keys.set.find, "a")
            keys.issuer.wait_for(1)
            keys.now = jwks.TIMEOUT - 0.001
            _, is_another = keys.set._refresh(is_for_unknown=False)
            assert not is_another
            keys.now = jwks.TIMEOUT
            keys.serve(b=B)
            keys.assert_found("b", is_key=B)
            wait_until(lambda: are_kept == [True])
            keys.go.set()
            # The latter if the clock was moved before it began to wait.
            with pytest.raises((InvalidCredentials, Unavailable)):
                waiting.result()
        join_fetches()
        keys.assert_found("b", is_key=B)
        assert (keys.requests, are_kept) == (2, [True, False])

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
        assert record.getMessage().replace("UnicodeEncodeE", "UnicodeE") == FAILED + reason  # so since Python 3.13


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
        keys.set.fetch_early()
        keys.issuer.wait_for(1)
        assert {fetch.daemon for fetch in threads_named("jwks")} == {True}, "a process can end"
        keys.now = jwks.TIMEOUT - 0.1
        started_at = time.monotonic()
        keys.assert_unavailable("a")
        assert 0.05 < time.monotonic() - started_at < jwks.TIMEOUT / 2
        keys.go.set()
        join_fetches()
        keys.assert_found("a", is_key=A)


class TestProvider:
    """Bearer tokens whose key is in the issuer's set; more of them are in test_forgeries.py."""

    def test_the_key_is_found_by_its_id_alone(self, issuer: Issuer) -> None:
        issuer.serve(jwk(A, "a"), jwk(B, "b"))
        provider = provider_of(jwks_url=issuer.url)
        assert [reason_for(provider, signed_by(key, kid)) for key, kid in ((A, "a"), (B, "b"))] == [None, None]
        assert reason_for(provider, signed_by(A, "b")) == Refusal.SIGNATURE
        # Once more: the issuer may have replaced the key.
        assert issuer.requests == 2

    @pytest.mark.parametrize("kid", ["a", None])
    @pytest.mark.parametrize(("new", "alg"), [(B, "ES256"), (RSA, "RS256")])
    def test_a_new_key_under_the_old_id_is_used_at_once(
        self, issuer: Issuer, kid: str | None, new: Any, alg: str
    ) -> None:
        provider = provider_of(jwks_url=issuer.url)
        for signer, algorithm in ((A, "ES256"), (new, alg)):
            issuer.serve(jwk(signer, kid))
            assert [reason_for(provider, signed_by(signer, kid, algorithm)) for _ in range(2)] == [None, None]
        assert reason_for(provider, signed_by(A, kid)) in (Refusal.SIGNATURE, Refusal.ALGORITHM)

    def test_keys_that_are_old_are_fetched_for_a_signature_that_is_not_theirs_and_not_beside_it(
        self, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else the fetch because of their age would be under way, and the caller would not wait for it."""
        provider = provider_of(jwks_url=issuer.url)
        issuer.serve(jwk(A, "a"))
        assert reason_for(provider, signed_by(A, "a")) is None
        monkeypatch.setattr(provider.key_set, "_clock", lambda: time.monotonic() + LIFETIME)
        assert reason_for(provider, signed_by(C, "a")) == Refusal.SIGNATURE
        replaced = key_set(jwk(B, "a"))
        issuer.answer = lambda handler: (time.sleep(0.2), replaced(handler))[1]
        monkeypatch.setattr(provider.key_set, "_clock", lambda: time.monotonic() + 3 * LIFETIME)
        assert reason_for(provider, signed_by(B, "a")) is None

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
