"""Bearer tokens, through the app: which are accepted, where they are looked for, and which keys stop the start.

The tokens that are refused are in test_forgeries.py.
"""

import base64
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from flask import Flask
from sqlalchemy import URL

from config import ConfigurationError, JwtSettings
from tests.identity.tokens import (
    AUDIENCE,
    FITTING,
    ISSUER,
    RSA_ALGORITHMS,
    STRICT,
    ask,
    assert_accepted,
    assert_challenged,
    assert_refused,
    assert_unauthorized,
    handmade,
    key,
    members,
    no_database_connection,
    no_log_line,
    pem,
)
from tests.support import SECRET, settings, token
from todo import create_app
from todo.refusals import Refusal

LONG_SECRET = "the secret of the test suite, of 64 bytes, for HS384 and HS512.."
#: Each kind of key with each algorithm that fits it and that PyJWT can sign for by that name.
SIGNABLE = [(kind, name) for kind, names in FITTING.items() for name in names if name not in ("Ed25519", "Ed448")]

AppOf = Callable[..., Flask]


@pytest.fixture(scope="module")
def plain(app_of: AppOf) -> Flask:
    """An app that knows the secret, and expects no issuer and no audience."""
    return app_of(secret=SECRET)


def test_the_helper_sees_a_log_line() -> None:
    with pytest.raises(AssertionError), no_log_line():
        logging.getLogger("todo.identity.jwt").debug("x")


def test_the_helper_sees_a_database_connection(plain: Flask) -> None:
    with pytest.raises(AssertionError), no_database_connection(plain):
        assert_accepted(plain, token())


class TestAccepted:
    """Good tokens."""

    def test_it_is_for_its_subject_alone(self, plain: Flask) -> None:
        with no_database_connection(plain):
            response = ask(plain, f"Bearer {token('bob')}")
        assert (response.status_code, response.get_json()) == (403, {"error": "Forbidden"})

    @pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "bEARER ", "Bearer   "])
    def test_the_scheme_is_named_in_any_letter_case(self, plain: Flask, scheme: str) -> None:
        assert ask(plain, scheme + token()).status_code == 200

    @pytest.mark.parametrize("user_id", ["a" * 255, "jos\xe9", "\U0001f600", "...", "a b"], ids=ascii)
    def test_every_possible_user_id(self, plain: Flask, user_id: str) -> None:
        assert_accepted(plain, token(user_id), f"/api/{user_id}/tasks")

    def test_further_claims_are_kept(self, plain: Flask) -> None:
        bearer_token = token(email="a@example.com", role=["reader"], iss=ISSUER, jti="1")
        identity = ask(plain, f"Bearer {bearer_token}", "/api/alice/who").get_json()
        assert (identity["user_id"], identity["email"]) == ("alice", "a@example.com")
        assert identity["claims"].keys() == {"sub", "exp", "email", "role", "iss", "jti"}
        assert identity["claims"]["role"] == ["reader"]

    @pytest.mark.parametrize("email", [5, "", "a" * 321, ["a@example.com"], {"a": 1}], ids=range(5))
    def test_an_unusable_email_is_no_fault(self, plain: Flask, email: object) -> None:
        response = ask(plain, f"Bearer {token(email=email)}", "/api/alice/who")
        assert (response.status_code, response.get_json()["email"]) == (200, None)

    @pytest.mark.parametrize("kind", ["JWT", "jwt", "at+jwt", "AT+JWT", "application/jwt", "application/at+jwt", ""])
    def test_every_type_of_an_access_token(self, plain: Flask, kind: str) -> None:
        # PyJWT leaves an empty type out.
        assert_accepted(plain, token(headers={"typ": kind}))

    @pytest.mark.parametrize("parameter", [{"kid": '"any"'}, {"kid": '""'}, {"x5t": '"AA"'}, {"x": "[1]"}], ids=str)
    def test_header_parameters_without_a_meaning_here(self, plain: Flask, parameter: dict[str, str]) -> None:
        assert_accepted(plain, handmade(head=members(alg='"HS256"', **parameter)))

    @pytest.mark.parametrize(("kind", "algorithm"), SIGNABLE)
    def test_one_signed_for_a_public_key(self, app_of: AppOf, kind: str, algorithm: str) -> None:
        app = app_of(public_key=pem(key(kind)))
        assert_accepted(app, token(key=key(kind), algorithm=algorithm))

    @pytest.mark.parametrize("kind", ["RSA", "P-256", "Ed25519"])
    def test_a_public_key_with_its_line_ends_written_out_or_in_pkcs1(self, app_of: AppOf, kind: str) -> None:
        for written in {pem(key(kind)).replace("\n", "\\n"), pem(key(kind), is_pkcs1=kind == "RSA")}:
            assert_accepted(app_of(public_key=written), token(key=key(kind), algorithm=FITTING[kind][0]))

    @pytest.mark.parametrize("audience", [AUDIENCE, [AUDIENCE], ["another", AUDIENCE]], ids=repr)
    def test_the_issuer_and_the_audience_that_are_expected(self, app_of: AppOf, audience: object) -> None:
        assert_accepted(app_of(secret=SECRET, **STRICT), token(iss=ISSUER, aud=audience))


class TestAlgorithms:
    """Which algorithms are accepted."""

    @pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
    def test_a_longer_hmac_where_it_is_named_and_only_there(self, app_of: AppOf, algorithm: str) -> None:
        long = handmade(by=LONG_SECRET.encode(), alg=algorithm)
        app = app_of(secret=LONG_SECRET, algorithms=(algorithm,))
        assert_accepted(app, long)
        assert_refused(app, handmade(by=LONG_SECRET.encode()), Refusal.ALGORITHM)
        assert_refused(app_of(secret=LONG_SECRET), long, Refusal.ALGORITHM)

    def test_every_algorithm_that_is_named_and_no_other(self, app_of: AppOf) -> None:
        app = app_of(public_key=pem(key("RSA")), algorithms=("RS512", "PS256"))
        for algorithm in RSA_ALGORITHMS:
            signed = token(key=key("RSA"), algorithm=algorithm)
            if algorithm in ("RS512", "PS256"):
                assert_accepted(app, signed)
            else:
                assert_refused(app, signed, Refusal.ALGORITHM)

    @pytest.mark.parametrize(("kind", "algorithm"), SIGNABLE)
    def test_another_key_than_the_public_key_is_refused(self, app_of: AppOf, kind: str, algorithm: str) -> None:
        app = app_of(public_key=pem(key("P-256", "ours")))
        reason = Refusal.SIGNATURE if algorithm == "ES256" else Refusal.ALGORITHM
        assert_refused(app, token(key=key(kind), algorithm=algorithm), reason)


@pytest.mark.parametrize(
    ("reason", "claims"),
    [
        *((None, {"exp": seconds}) for seconds in (-20, 0.5, 300.5)),
        *((Refusal.EXPIRED, {"exp": seconds}) for seconds in (-31, -3600)),
        *((None, {name: seconds}) for name in ("nbf", "iat") for seconds in (-3600, -0.5, 20)),
        *((Refusal.NOT_YET_VALID, {name: seconds}) for name in ("nbf", "iat") for seconds in (40, 3600)),
    ],
    ids=str,
)
def test_a_date_may_be_off_by_as_much_as_two_clocks_differ(
    plain: Flask, reason: Refusal | None, claims: dict[str, float]
) -> None:
    signed = token(**{"exp": time.time() + 9999} | {name: time.time() + seconds for name, seconds in claims.items()})
    if reason is None:
        assert_accepted(plain, signed)
    else:
        assert_refused(plain, signed, reason)


class TestWhere:
    """Where a token is looked for."""

    @pytest.mark.parametrize(
        "credentials",
        [
            *("", " ", " a=b", " .", " ..", " a.b.c", " a.b", " e30.e30.e30", " e30.e30.", " W10.W10.W10"),
            *(" bnVsbA.bnVsbA.bnVsbA", " eyJhbGciOiJIUzI1NiJ9.e30.AA", " \xe9.\xe9.\xe9", " \xff\xfe", ": a.b.c"),
            " " + "a" * 10_000,
        ],
        ids=range(16),
    )
    def test_what_is_no_token_is_refused(self, plain: Flask, credentials: str) -> None:
        reasons = (Refusal.MALFORMED, Refusal.ALGORITHM, Refusal.SIGNATURE)
        assert_unauthorized(plain, *reasons, headers={"Authorization": f"Bearer{credentials}"})

    @pytest.mark.parametrize("form", ["", "{}", "Token {}", "Basic {}", "Digest username={}", "null", " Bearer {}"])
    def test_another_scheme_is_no_bearer_token(self, plain: Flask, form: str) -> None:
        headers = {"Authorization": form.format(token())}
        assert_challenged(plain, "Bearer", Refusal.MISSING, headers=headers)

    @pytest.mark.parametrize(
        "options",
        [*({"query_string": {name: token()}} for name in ("token", "jwt")), {"headers": {"Cookie": f"jwt={token()}"}}],
        ids=["token", "jwt", "cookie"],
    )
    def test_a_token_elsewhere_is_not_seen(self, plain: Flask, options: dict[str, Any]) -> None:
        assert_challenged(plain, "Bearer", Refusal.MISSING, **options)


#: What is no public key in PEM.
NO_PEM = {
    "nothing": "",
    "an empty key": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
    "a certificate": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    "no ASCII": "\xe9",
    "no UTF-8": "\udcff",
    # A SubjectPublicKeyInfo (RFC 5280 section 4.1) whose algorithm is 1.2.3.4.
    "of an unknown kind": "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n".format(
        base64.b64encode(bytes.fromhex("300e 3007 06032a0304 0500 0303 00ffff")).decode()
    ),
    **{
        f"a private key, {kind}": key(kind).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        for kind in ("RSA", "P-256", "Ed25519")
    },
}


class TestNotSetUp:
    """Keys that stop the start."""

    @pytest.fixture
    def refusal(self, database: URL) -> Callable[..., str]:
        """The line of the error of a start with those JwtSettings."""

        def start(**changes: Any) -> str:
            with pytest.raises(ConfigurationError) as caught:
                create_app(settings(database, jwt=JwtSettings(**changes)))
            assert len(str(caught.value).splitlines()) == 1
            return str(caught.value)

        return start

    @pytest.mark.parametrize("kind", ["RSA", "P-256", "Ed25519"])
    def test_a_secret_that_is_a_public_key(self, refusal: Callable[..., str], kind: str) -> None:
        ssh = key(kind).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        for secret in (pem(key(kind)), ssh):
            assert refusal(secret=secret).startswith("JWT_SECRET is a key of another kind")

    @pytest.mark.parametrize("public_key", NO_PEM.values(), ids=NO_PEM)
    def test_a_public_key_that_is_none(self, refusal: Callable[..., str], public_key: str) -> None:
        assert refusal(public_key=public_key) == "JWT_PUBLIC_KEY is not a public key in PEM"

    @pytest.mark.parametrize("kind", ["RSA 1024", "DSA", "secp256k1", "X25519"])
    def test_a_public_key_that_is_weak_or_of_another_kind(self, refusal: Callable[..., str], kind: str) -> None:
        assert refusal(public_key=pem(key(kind))).startswith("JWT_PUBLIC_KEY is of no kind ")

    @pytest.mark.parametrize(
        ("kind", "algorithms"),
        [
            *(("RSA", ("ES256",)), ("RSA", ("EdDSA",)), ("RSA", ("HS256",)), ("P-256", ("RS256", "PS256"))),
            *(("P-256", ("ES384", "ES512")), ("P-521", ("ES256",)), ("Ed25519", ("ES256",))),
        ],
        ids=repr,
    )
    def test_an_algorithm_that_does_not_fit_the_public_key(
        self, refusal: Callable[..., str], kind: str, algorithms: tuple[str, ...]
    ) -> None:
        message = refusal(public_key=pem(key(kind)), algorithms=algorithms)
        assert message.startswith("JWT_PUBLIC_KEY is of no kind that JWT_ALGORITHMS")


def test_while_a_secret_is_replaced_the_tokens_of_both_are_accepted(app_of: AppOf) -> None:
    app = app_of(secret=LONG_SECRET, previous_secret=SECRET, algorithms=("HS256", "HS512"))
    for _ in range(2):
        for accepted in (token(key=LONG_SECRET), token(key=SECRET), token(key=LONG_SECRET, algorithm="HS512")):
            assert_accepted(app, accepted)
    assert_refused(app, token(key="x" * 32), Refusal.SIGNATURE)
    assert_refused(app, token(key=SECRET, exp=1), Refusal.EXPIRED)
    assert_refused(app_of(secret=LONG_SECRET), token(key=SECRET), Refusal.SIGNATURE)
