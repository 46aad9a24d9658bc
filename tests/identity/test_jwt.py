"""Bearer tokens, through the app: which are accepted, which are refused, and which keys are not set up."""

import base64
import hmac
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from flask import Flask, jsonify
from flask.typing import ResponseReturnValue
from sqlalchemy import URL, event
from werkzeug.test import TestResponse

from config import ConfigurationError, JwtSettings
from tests.support import SECRET, close, settings, token
from todo import create_app
from todo.db import db
from todo.errors import Refusal
from todo.identity import current_identity

PATH = "/api/alice/tasks"
ISSUER = "https://issuer.example"
AUDIENCE = "todo"
#: What todo/web/request_log.py says of a request of nobody, and of why it was refused.
REQUEST_LINE = re.compile(rf"GET (-|/[a-z_<>/]+) \d{{3}} [\d.]+ ms -( \((?P<reason>{'|'.join(Refusal)})\))?")
LONG_SECRET = "the secret of the test suite, of 64 bytes, for HS384 and HS512.."
RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")

#: Each kind of key, and the algorithms that fit it.
FITTING = [
    *(("RSA", algorithm) for algorithm in RSA_ALGORITHMS),
    ("P-256", "ES256"),
    ("P-384", "ES384"),
    ("P-521", "ES512"),
    ("Ed25519", "EdDSA"),
    ("Ed448", "EdDSA"),
]

Keys = dict[str, Any]
AppOf = Callable[..., Flask]


@pytest.fixture(scope="session")
def private_keys() -> Keys:
    """A private key of each kind."""
    return {
        "RSA": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "P-256": ec.generate_private_key(ec.SECP256R1()),
        "P-384": ec.generate_private_key(ec.SECP384R1()),
        "P-521": ec.generate_private_key(ec.SECP521R1()),
        "Ed25519": ed25519.Ed25519PrivateKey.generate(),
        "Ed448": ed448.Ed448PrivateKey.generate(),
        "RSA 1024": rsa.generate_private_key(public_exponent=65537, key_size=1024),
        "DSA": dsa.generate_private_key(key_size=2048),
        "secp256k1": ec.generate_private_key(ec.SECP256K1()),
        "X25519": x25519.X25519PrivateKey.generate(),
    }


@pytest.fixture(scope="module")
def database(apps: dict[str, Flask]) -> URL:
    """A database with its tables, empty."""
    url: URL = apps["sqlite"].config["SQLALCHEMY_DATABASE_URI"]
    return url


@pytest.fixture(scope="module")
def app_of(database: URL) -> Iterator[AppOf]:
    """Makes the app of those JwtSettings, once, with a view that shows who is calling."""
    made: list[Flask] = []

    @cache
    def make(**changes: Any) -> Flask:
        app = create_app(settings(database, jwt=JwtSettings(**changes)))
        made.append(app)

        @app.get("/api/<user_id>/who")
        def who() -> ResponseReturnValue:
            identity = current_identity()
            return jsonify(user_id=identity.user_id, email=identity.email, claims=dict(identity.claims))

        return app

    yield make
    for app in made:
        close(app)


@pytest.fixture(scope="module")
def plain(app_of: AppOf) -> Flask:
    """An app that knows the secret, and expects no issuer and no audience."""
    return app_of(secret=SECRET)


@pytest.fixture(scope="module")
def strict(app_of: AppOf) -> Flask:
    """An app that knows the secret, and expects an issuer and an audience."""
    return app_of(secret=SECRET, issuer=ISSUER, audience=AUDIENCE)


def pem(private_key: Any, *, is_pkcs1: bool = False) -> str:
    """The public key in PEM."""
    kind = PublicFormat.PKCS1 if is_pkcs1 else PublicFormat.SubjectPublicKeyInfo
    return str(private_key.public_key().public_bytes(Encoding.PEM, kind).decode())


def base64url(part: str | bytes) -> str:
    """A part of a token."""
    return base64.urlsafe_b64encode(part.encode() if isinstance(part, str) else part).rstrip(b"=").decode()


def payload(**members: str) -> str:
    """A payload that holds until 2100, but for these members in raw JSON; an empty one is left out."""
    members = {"sub": '"alice"', "exp": "4102444800"} | members
    return "{" + ", ".join(f'"{name}": {value}' for name, value in members.items() if value) + "}"


def header(members: str = "", algorithm: str = "HS256") -> str:
    """A header that holds, and these further members in raw JSON."""
    return f'{{"alg": "{algorithm}"{members and ", "}{members}}}'


def handmade(
    body: str | bytes, head: str | bytes = '{"alg": "HS256"}', key: bytes = SECRET.encode(), digest: str = "sha256"
) -> str:
    """A token made without a library, which would refuse to make some of these; signed with an HMAC."""
    signed = f"{base64url(head)}.{base64url(body)}"
    return f"{signed}.{base64url(hmac.digest(key, signed.encode(), digest))}"


def ask(app: Flask, authorization: str, path: str = PATH) -> TestResponse:
    """The answer to that Authorization header."""
    return app.test_client().get(path, headers={"Authorization": authorization})


def assert_accepted(app: Flask, bearer_token: str, path: str = PATH) -> None:
    response = ask(app, f"Bearer {bearer_token}", path)
    assert (response.status_code, response.get_json()) == (200, [])


def assert_refused(app: Flask, bearer_token: str, *reasons: Refusal) -> None:
    """Refused, for one of those reasons; for any where none is named."""
    assert_unauthorized(app, f"Bearer {bearer_token}", *reasons)


def assert_unauthorized(app: Flask, authorization: str, *reasons: Refusal) -> None:
    with leaving_no_trace(app) as logged:
        response = ask(app, authorization)
    (reason,) = logged
    assert reason in (reasons or set(Refusal))
    assert (response.status_code, response.get_json()) == (401, {"error": "Unauthorized"})
    assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


@contextmanager
def no_database_connection(app: Flask) -> Iterator[None]:
    """Fail if the app takes a connection of its pool meanwhile."""
    taken: list[str] = []

    def take(*_: Any) -> None:
        taken.append("checkout")

    with app.app_context():
        engine = db.engine
    event.listen(engine, "checkout", take)
    try:
        yield
    finally:
        event.remove(engine, "checkout", take)
    assert taken == []


@contextmanager
def no_log_line() -> Iterator[list[str]]:
    """Fail if anything is logged meanwhile, at whatever level, but the line on the request, which has fixed words.

    In the list, afterwards, is the reason of each refusal.
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
    assert [line for line in lines if not REQUEST_LINE.fullmatch(line)] == []
    reasons += [match["reason"] for line in lines if (match := REQUEST_LINE.fullmatch(line)) and match["reason"]]


@contextmanager
def leaving_no_trace(app: Flask) -> Iterator[list[str]]:
    """Fail if the app takes a connection of its pool meanwhile, or logs anything; the reason of each refusal."""
    with no_database_connection(app), no_log_line() as reasons:
        yield reasons


def test_the_helper_sees_a_log_line() -> None:
    with pytest.raises(AssertionError), no_log_line():
        logging.getLogger("todo.identity.jwt").debug("x")


def test_the_helper_sees_a_database_connection(plain: Flask) -> None:
    with pytest.raises(AssertionError), no_database_connection(plain):
        assert_accepted(plain, token())


class TestAccepted:
    """Tokens that hold."""

    def test_one_signed_with_the_secret(self, plain: Flask) -> None:
        assert_accepted(plain, token())

    def test_one_that_is_made_by_hand(self, plain: Flask) -> None:
        assert_accepted(plain, handmade(payload()))

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
        response = ask(plain, f"Bearer {bearer_token}", "/api/alice/who")
        identity = response.get_json()
        assert (identity["user_id"], identity["email"]) == ("alice", "a@example.com")
        assert identity["claims"].keys() == {"sub", "exp", "email", "role", "iss", "jti"}
        assert identity["claims"]["role"] == ["reader"]

    @pytest.mark.parametrize("email", [5, "", "a" * 321, ["a@example.com"], {"a": 1}], ids=range(5))
    def test_an_unusable_email_is_no_fault(self, plain: Flask, email: object) -> None:
        response = ask(plain, f"Bearer {token(email=email)}", "/api/alice/who")
        assert (response.status_code, response.get_json()["email"]) == (200, None)

    @pytest.mark.parametrize("claim", ["iat", "nbf"])
    @pytest.mark.parametrize("ago", [3600, 0, -20])
    def test_a_beginning_that_has_come_or_is_within_the_leeway(self, plain: Flask, claim: str, ago: int) -> None:
        assert_accepted(plain, token(**{claim: int(time.time()) - ago}))

    def test_an_end_within_the_leeway(self, plain: Flask) -> None:
        assert_accepted(plain, token(exp=int(time.time()) - 20))

    def test_dates_with_fractions(self, plain: Flask) -> None:
        now = time.time()
        assert_accepted(plain, token(exp=now + 300.5, iat=now - 0.5, nbf=now - 0.5))

    @pytest.mark.parametrize("kind", ["JWT", "jwt", "at+jwt", "AT+JWT", "application/jwt", "application/at+jwt", ""])
    def test_every_type_of_an_access_token(self, plain: Flask, kind: str) -> None:
        # PyJWT leaves an empty type out.
        assert_accepted(plain, token(headers={"typ": kind}))

    @pytest.mark.parametrize("members", ['"kid": "any"', '"kid": ""', '"x5t": "AA"', '"x": [1]'])
    def test_header_parameters_without_a_meaning_here(self, plain: Flask, members: str) -> None:
        assert_accepted(plain, handmade(payload(), header(members)))

    @pytest.mark.parametrize(("kind", "algorithm"), FITTING)
    def test_one_signed_for_a_public_key(self, app_of: AppOf, private_keys: Keys, kind: str, algorithm: str) -> None:
        app = app_of(public_key=pem(private_keys[kind]))
        assert_accepted(app, token(key=private_keys[kind], algorithm=algorithm))

    @pytest.mark.parametrize("kind", ["RSA", "P-256", "Ed25519"])
    def test_a_public_key_with_its_line_ends_written_out(self, app_of: AppOf, private_keys: Keys, kind: str) -> None:
        public_key = pem(private_keys[kind])
        app = app_of(public_key=public_key.replace("\n", "\\n"))
        algorithm = dict(FITTING)[kind]
        assert_accepted(app, token(key=private_keys[kind], algorithm=algorithm))

    def test_a_public_key_in_pkcs1(self, app_of: AppOf, private_keys: Keys) -> None:
        app = app_of(public_key=pem(private_keys["RSA"], is_pkcs1=True))
        assert_accepted(app, token(key=private_keys["RSA"], algorithm="RS256"))

    @pytest.mark.parametrize(("algorithm", "digest"), [("HS384", "sha384"), ("HS512", "sha512")])
    def test_a_longer_hmac_where_it_is_named(self, app_of: AppOf, algorithm: str, digest: str) -> None:
        app = app_of(secret=LONG_SECRET, algorithms=(algorithm,))
        assert_accepted(app, handmade(payload(), header(algorithm=algorithm), LONG_SECRET.encode(), digest))

    @pytest.mark.parametrize("algorithm", ["RS512", "PS256"])
    def test_every_algorithm_that_is_named(self, app_of: AppOf, private_keys: Keys, algorithm: str) -> None:
        app = app_of(public_key=pem(private_keys["RSA"]), algorithms=("RS512", "PS256"))
        assert_accepted(app, token(key=private_keys["RSA"], algorithm=algorithm))

    @pytest.mark.parametrize("audience", [AUDIENCE, [AUDIENCE], ["another", AUDIENCE]], ids=repr)
    def test_the_issuer_and_the_audience_that_are_expected(self, strict: Flask, audience: object) -> None:
        assert_accepted(strict, token(iss=ISSUER, aud=audience))


class TestRefusedAuthorization:
    """Authorization headers that are no bearer token."""

    @pytest.mark.parametrize(
        "authorization",
        [
            "Bearer",
            "Bearer ",
            "Bearer a=b",
            "Bearer .",
            "Bearer ..",
            "Bearer a.b.c",
            "Bearer a.b",
            "Bearer e30.e30.e30",
            "Bearer e30.e30.",
            "Bearer W10.W10.W10",
            "Bearer bnVsbA.bnVsbA.bnVsbA",
            "Bearer eyJhbGciOiJIUzI1NiJ9.e30.AA",
            "Bearer \xe9.\xe9.\xe9",
            "Bearer \xff\xfe",
            "Bearer: a.b.c",
            "Bearer " + "a" * 10_000,
        ],
        ids=range(16),
    )
    def test_what_is_no_token_is_refused(self, plain: Flask, authorization: str) -> None:
        assert_unauthorized(plain, authorization, Refusal.MALFORMED, Refusal.ALGORITHM, Refusal.SIGNATURE)

    @pytest.mark.parametrize(
        "form",
        [
            "Bearer{}",
            "Bearer\t{}",
            'Bearer "{}"',
            "Bearer token={}",
            "Bearer {}=",
            "Bearer {}.",
            "Bearer {}.e30",
            "Bearer .{}",
            "Bearer {}\xe9",
            "Bearer {0} {0}",
            "Bearer {0},Bearer {0}",
            "Bearer {0}, Bearer {0}",
        ],
    )
    def test_a_good_token_in_a_bad_header_is_refused(self, plain: Flask, form: str) -> None:
        assert_unauthorized(plain, form.format(token()), Refusal.MALFORMED)

    @pytest.mark.parametrize("form", ["", "{}", "Token {}", "Basic {}", "Digest username={}", "null", " Bearer {}"])
    def test_another_scheme_is_no_bearer_token(self, plain: Flask, form: str) -> None:
        response = plain.test_client().get(PATH, headers={"Authorization": form.format(token())})
        assert (response.status_code, response.get_json()) == (401, {"error": "Unauthorized"})
        assert response.headers["WWW-Authenticate"] == "Bearer"

    def test_two_headers_are_refused(self, plain: Flask) -> None:
        headers = [("Authorization", f"Bearer {token()}"), ("Authorization", f"Bearer {token()}")]
        with leaving_no_trace(plain):
            response = plain.test_client().get(PATH, headers=headers)
        assert (response.status_code, response.get_json()) == (401, {"error": "Unauthorized"})
        assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'

    def test_a_token_in_the_query_string_is_refused(self, plain: Flask) -> None:
        with leaving_no_trace(plain):
            response = plain.test_client().get(PATH, query_string={"access_token": token()})
        assert (response.status_code, response.get_json()) == (401, {"error": "Unauthorized"})
        assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'

    def test_a_token_in_the_query_string_beside_a_good_one_is_an_unknown_parameter(self, plain: Flask) -> None:
        response = ask(plain, f"Bearer {token()}", f"{PATH}?access_token={token('bob')}")
        message = "Unknown query parameter: access_token"
        assert (response.status_code, response.get_json()) == (400, {"error": message})

    @pytest.mark.parametrize("name", ["token", "authorization", "jwt"])
    def test_a_token_in_another_query_parameter_is_not_seen(self, plain: Flask, name: str) -> None:
        with leaving_no_trace(plain):
            response = plain.test_client().get(PATH, query_string={name: token()})
        assert (response.status_code, response.get_json()) == (401, {"error": "Unauthorized"})
        assert response.headers["WWW-Authenticate"] == "Bearer"

    def test_a_token_in_a_cookie_is_not_seen(self, plain: Flask) -> None:
        client = plain.test_client()
        client.set_cookie("access_token", token())
        with leaving_no_trace(plain):
            response = client.get(PATH)
        assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer")


class TestRefusedSignature:
    """Tokens that the key did not sign, or not in the way that is expected."""

    @pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", " none", "HS256 ", "hs256"])
    def test_an_algorithm_that_is_none_of_ours(self, plain: Flask, algorithm: str) -> None:
        signed = handmade(payload(), header(algorithm=algorithm))
        assert_refused(plain, signed, Refusal.ALGORITHM)
        assert_refused(plain, signed.rpartition(".")[0] + ".", Refusal.MALFORMED)

    @pytest.mark.parametrize(
        "head", ['{"typ": "JWT"}', '{"alg": null}', '{"alg": ["HS256"]}', '{"alg": {"HS256": 1}}', '{"alg": 256}']
    )
    def test_an_algorithm_that_is_no_name(self, plain: Flask, head: str) -> None:
        assert_refused(plain, handmade(payload(), head), Refusal.ALGORITHM)

    def test_another_secret(self, plain: Flask) -> None:
        assert_refused(plain, token(key=SECRET + "."), Refusal.SIGNATURE)

    @pytest.mark.parametrize("part", [0, 1, 2])
    def test_a_change_after_signing(self, plain: Flask, part: int) -> None:
        parts = token().split(".")
        others = token("bob", headers={"kid": "x"}).split(".")
        parts[part] = others[part]
        assert_refused(plain, ".".join(parts), Refusal.SIGNATURE)

    @pytest.mark.parametrize("kind", ["RSA", "P-256", "Ed25519"])
    @pytest.mark.parametrize("form", ["pem", "stripped pem", "pkcs1 pem", "der", "base64 der", "one line", "raw"])
    def test_an_hmac_keyed_with_the_public_key(self, app_of: AppOf, private_keys: Keys, kind: str, form: str) -> None:
        text = pem(private_keys[kind])
        der = private_keys[kind].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        keys = {
            "pem": text.encode(),
            "stripped pem": text.strip().encode(),
            "pkcs1 pem": pem(private_keys["RSA"], is_pkcs1=True).encode(),
            "der": der,
            "base64 der": base64.b64encode(der),
            "one line": text.replace("\n", "\\n").encode(),
            "raw": der[-32:],
        }
        app = app_of(public_key=text)
        for algorithm, digest in (("HS256", "sha256"), ("HS384", "sha384"), ("HS512", "sha512")):
            assert_refused(app, handmade(payload(), header(algorithm=algorithm), keys[form], digest), Refusal.ALGORITHM)

    @pytest.mark.parametrize(("algorithm", "digest"), [("HS384", "sha384"), ("HS512", "sha512")])
    def test_another_hmac_than_the_usual_one(self, plain: Flask, algorithm: str, digest: str) -> None:
        assert_refused(plain, handmade(payload(), header(algorithm=algorithm), digest=digest), Refusal.ALGORITHM)

    def test_the_usual_hmac_where_another_is_named(self, app_of: AppOf) -> None:
        app = app_of(secret=LONG_SECRET, algorithms=("HS512",))
        assert_refused(app, handmade(payload(), key=LONG_SECRET.encode()), Refusal.ALGORITHM)

    @pytest.mark.parametrize("algorithm", ["RS384", "RS512", "PS256", "PS384", "PS512"])
    def test_another_algorithm_of_the_family_than_the_one_named(
        self, app_of: AppOf, private_keys: Keys, algorithm: str
    ) -> None:
        app = app_of(public_key=pem(private_keys["RSA"]), algorithms=("RS256",))
        assert_refused(app, token(key=private_keys["RSA"], algorithm=algorithm), Refusal.ALGORITHM)

    @pytest.mark.parametrize(("kind", "algorithm"), FITTING)
    def test_another_key_of_the_same_kind_or_of_another(
        self, app_of: AppOf, private_keys: Keys, kind: str, algorithm: str
    ) -> None:
        app = app_of(public_key=pem(ec.generate_private_key(ec.SECP256R1())))
        assert_refused(
            app,
            token(key=private_keys[kind], algorithm=algorithm),
            Refusal.SIGNATURE if algorithm == "ES256" else Refusal.ALGORITHM,
        )

    def test_a_key_that_the_token_brings_along(self, app_of: AppOf, private_keys: Keys) -> None:
        app = app_of(public_key=pem(private_keys["P-256"]))
        stranger = ec.generate_private_key(ec.SECP256R1())
        numbers = stranger.public_key().public_numbers()
        jwk = {
            "kty": "EC",
            "crv": "P-256",
            "x": base64url(numbers.x.to_bytes(32, "big")),
            "y": base64url(numbers.y.to_bytes(32, "big")),
        }
        assert_refused(app, token(key=stranger, algorithm="ES256", headers={"jwk": jwk}), Refusal.MALFORMED)


class TestRefusedHeader:
    """Tokens that are well signed, under a header that asks for something else."""

    @pytest.mark.parametrize(
        "members",
        [
            '"crit": ["exp"], "exp": 1',
            '"crit": ["x"], "x": 1',
            '"crit": ["x"]',
            '"crit": []',
            '"crit": "x"',
            '"crit": null',
            '"crit": [1]',
            '"crit": ["b64"], "b64": true',
            '"crit": ["b64"], "b64": false',
            '"b64": true',
            '"b64": false',
            '"b64": null',
        ],
    )
    def test_an_extension(self, plain: Flask, members: str) -> None:
        assert_refused(plain, handmade(payload(), header(members)), Refusal.MALFORMED)

    @pytest.mark.parametrize("value", ['"https://evil.example"', "null", '["AA"]', '{"kty": "oct", "k": "AA"}'])
    @pytest.mark.parametrize("name", ["jku", "jwk", "x5u", "x5c"])
    def test_a_key_of_its_own_choice(self, plain: Flask, name: str, value: str) -> None:
        assert_refused(plain, handmade(payload(), header(f'"{name}": {value}')), Refusal.MALFORMED)

    def test_a_payload_that_is_not_encoded(self, plain: Flask) -> None:
        signed = base64url(header('"b64": false, "crit": ["b64"]')) + "."
        signature = base64url(hmac.digest(SECRET.encode(), signed.encode(), "sha256"))
        assert_refused(plain, f"{signed}.{signature}", Refusal.MALFORMED)

    @pytest.mark.parametrize(
        "kind",
        [
            '"JOSE"',
            '"dpop+jwt"',
            '"secevent+jwt"',
            '"logout+jwt"',
            '"JWE"',
            '"jwt "',
            '""',
            "5",
            "true",
            '["JWT"]',
            "{}",
        ],
    )
    def test_another_type_of_token(self, plain: Flask, kind: str) -> None:
        assert_refused(plain, handmade(payload(), header(f'"typ": {kind}')), Refusal.TYPE)

    @pytest.mark.parametrize("kid", ["5", "null", "true", '["a"]', "{}"])
    def test_a_key_id_that_is_no_string(self, plain: Flask, kid: str) -> None:
        assert_refused(plain, handmade(payload(), header(f'"kid": {kid}')), Refusal.MALFORMED)

    @pytest.mark.parametrize(
        "head",
        [
            "",
            "x",
            "null",
            "[]",
            '"HS256"',
            '["alg", "HS256"]',
            '{"alg": "HS256"',
            '{"alg": "HS256"} {}',
            b"\xff",
            b'{"alg": "HS256", "x": "\xff"}',
            '{"alg": "HS256", "x": ' + "1" * 5000 + "}",
            '{"alg": "HS256", "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
            '{"x":' * 100_000 + '{"alg": "HS256"}' + "}" * 100_000,
        ],
        ids=range(13),
    )
    def test_a_header_that_is_no_json_object_of_sane_size(self, plain: Flask, head: str | bytes) -> None:
        assert_refused(plain, handmade(payload(), head), Refusal.MALFORMED)


class TestRefusedClaims:
    """Tokens that are well signed, with claims that do not hold."""

    @pytest.mark.parametrize(
        "body",
        [
            "",
            "x",
            "null",
            "[]",
            '"alice"',
            '["sub", "exp"]',
            "{}",
            b"\xff",
            payload() + "{}",
            payload()[:-1],
            payload(x="1" * 5000),
            payload(exp="1" * 5000),
            payload(x="[" * 100_000 + "]" * 100_000),
            payload(x='{"x":' * 100_000 + "1" + "}" * 100_000),
        ],
        ids=range(14),
    )
    def test_a_payload_that_is_no_json_object_of_sane_size(self, plain: Flask, body: str | bytes) -> None:
        assert_refused(plain, handmade(body), Refusal.MALFORMED)

    @pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
    @pytest.mark.parametrize(
        "value",
        [
            "null",
            "true",
            "false",
            '"1"',
            '"99999999999"',
            '"2099-01-01T00:00:00Z"',
            '""',
            "[99999999999]",
            "[]",
            "{}",
            "NaN",
            "Infinity",
            "-Infinity",
            "1e400",
            "-1",
            "-99999999999",
            pytest.param("1" + "0" * 400, id="10**400"),
            pytest.param("-1" + "0" * 400, id="-10**400"),
        ],
    )
    def test_a_date_that_is_none(self, plain: Flask, claim: str, value: str) -> None:
        # PyJWT makes a number of some of these first.
        late = Refusal.EXPIRED if claim == "exp" else Refusal.NOT_YET_VALID
        assert_refused(plain, handmade(payload(**{claim: value})), Refusal.MALFORMED, late)

    def test_no_end(self, plain: Flask) -> None:
        assert_refused(plain, handmade(payload(exp="")), Refusal.MALFORMED)

    @pytest.mark.parametrize("ago", [31, 3600])
    def test_an_end_that_is_past(self, plain: Flask, ago: int) -> None:
        assert_refused(plain, token(exp=int(time.time()) - ago), Refusal.EXPIRED)

    @pytest.mark.parametrize("claim", ["nbf", "iat"])
    @pytest.mark.parametrize("ahead", [40, 3600])
    def test_a_beginning_in_the_future(self, plain: Flask, claim: str, ahead: int) -> None:
        assert_refused(
            plain, token(exp=int(time.time()) + 9999, **{claim: int(time.time()) + ahead}), Refusal.NOT_YET_VALID
        )

    @pytest.mark.parametrize(
        "subject",
        [
            "",
            "null",
            "5",
            "true",
            "1.5",
            '["alice"]',
            '{"alice": 1}',
            '""',
            '"."',
            '".."',
            '"a/b"',
            r'"alice\u0000"',
            r'"\u000aalice"',
            r'"alice\u007f"',
            r'"alice\u0085"',
            r'"\ud800"',
            r'"alice\udc00"',
            r'"\ufffd"',
            pytest.param('"' + "a" * 256 + '"', id="256"),
            pytest.param('"' + "\U0001f600" * 256 + '"', id="256 beyond the BMP"),
        ],
    )
    def test_a_subject_that_cannot_be_a_user(self, plain: Flask, subject: str) -> None:
        assert_refused(plain, handmade(payload(sub=subject)), Refusal.SUBJECT)

    @pytest.mark.parametrize("audience", ['"todo"', '["todo"]', '""', "[]", "null", "0", "false", "{}"])
    def test_an_audience_where_none_is_expected(self, plain: Flask, audience: str) -> None:
        assert_refused(plain, handmade(payload(aud=audience)), Refusal.AUDIENCE_UNEXPECTED)

    @pytest.mark.parametrize(
        "audience",
        [
            "",
            "null",
            '""',
            "[]",
            "5",
            "true",
            '"another"',
            '"TODO"',
            '"todo "',
            '"tod"',
            '"todos"',
            '["another"]',
            '["todo", 5]',
            '[["todo"]]',
            '{"todo": true}',
        ],
    )
    def test_an_audience_other_than_the_one_expected(self, strict: Flask, audience: str) -> None:
        is_missing = audience in ("", "null", '""', "[]")
        assert_refused(
            strict,
            handmade(payload(iss=json.dumps(ISSUER), aud=audience)),
            Refusal.AUDIENCE_MISSING if is_missing else Refusal.AUDIENCE_WRONG,
        )

    @pytest.mark.parametrize(
        "issuer",
        [
            "",
            "null",
            '""',
            "5",
            f'["{ISSUER}"]',
            f'{{"{ISSUER}": 1}}',
            f'"{ISSUER}/"',
            f'"{ISSUER.upper()}"',
            '"https://"',
            '"https://evil.example"',
        ],
    )
    def test_an_issuer_other_than_the_one_expected(self, strict: Flask, issuer: str) -> None:
        assert_refused(strict, handmade(payload(iss=issuer, aud=json.dumps(AUDIENCE))), Refusal.ISSUER)


class TestNotSetUp:
    """Keys that stop the start."""

    @pytest.fixture
    def refusal(self, database: URL) -> Callable[..., str]:
        """Says with which line a start with those JwtSettings ends."""

        def start(**changes: Any) -> str:
            with pytest.raises(ConfigurationError) as caught:
                create_app(settings(database, jwt=JwtSettings(**changes)))
            assert len(str(caught.value).splitlines()) == 1
            return str(caught.value)

        return start

    @pytest.mark.parametrize("kind", ["RSA", "P-256", "Ed25519"])
    def test_a_secret_that_is_a_public_key(self, refusal: Callable[..., str], private_keys: Keys, kind: str) -> None:
        assert refusal(secret=pem(private_keys[kind])).startswith("JWT_SECRET ")

    def test_a_secret_that_is_a_public_key_of_ssh(self, refusal: Callable[..., str], private_keys: Keys) -> None:
        ssh = private_keys["RSA"].public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        assert refusal(secret=ssh).startswith("JWT_SECRET ")

    @pytest.mark.parametrize(
        "public_key",
        [
            "",
            "x",
            "-----BEGIN PUBLIC KEY-----",
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "\xe9",
            "\udcff",
        ],
        ids=ascii,
    )
    def test_a_public_key_that_is_garbage(self, refusal: Callable[..., str], public_key: str) -> None:
        assert refusal(public_key=public_key) == "JWT_PUBLIC_KEY is not a public key in PEM"

    @pytest.mark.parametrize("kind", ["RSA", "P-256", "Ed25519"])
    def test_a_public_key_that_is_a_private_key(
        self, refusal: Callable[..., str], private_keys: Keys, kind: str
    ) -> None:
        private = private_keys[kind].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        assert refusal(public_key=private) == "JWT_PUBLIC_KEY is not a public key in PEM"

    def test_a_public_key_that_is_a_secret(self, refusal: Callable[..., str]) -> None:
        assert refusal(public_key=SECRET) == "JWT_PUBLIC_KEY is not a public key in PEM"

    def test_a_public_key_of_a_kind_that_nobody_knows(self, refusal: Callable[..., str]) -> None:
        # A SubjectPublicKeyInfo (RFC 5280 section 4.1) whose algorithm is 1.2.3.4.
        text = base64.b64encode(bytes.fromhex("300e 3007 06032a0304 0500 0303 00ffff"))
        key = f"-----BEGIN PUBLIC KEY-----\n{text.decode()}\n-----END PUBLIC KEY-----\n"
        assert refusal(public_key=key) == "JWT_PUBLIC_KEY is not a public key in PEM"

    @pytest.mark.parametrize("kind", ["RSA 1024", "DSA", "secp256k1", "X25519"])
    def test_a_public_key_that_is_weak_or_of_another_kind(
        self, refusal: Callable[..., str], private_keys: Keys, kind: str
    ) -> None:
        assert refusal(public_key=pem(private_keys[kind])).startswith("JWT_PUBLIC_KEY is of no kind ")

    @pytest.mark.parametrize(
        ("kind", "algorithms"),
        [
            ("RSA", ("ES256",)),
            ("RSA", ("EdDSA",)),
            ("RSA", ("HS256",)),
            ("P-256", ("RS256", "PS256")),
            ("P-256", ("ES384", "ES512")),
            ("P-521", ("ES256",)),
            ("Ed25519", ("ES256",)),
        ],
        ids=repr,
    )
    def test_an_algorithm_that_does_not_fit_the_public_key(
        self, refusal: Callable[..., str], private_keys: Keys, kind: str, algorithms: tuple[str, ...]
    ) -> None:
        message = refusal(public_key=pem(private_keys[kind]), algorithms=algorithms)
        assert message.startswith("JWT_PUBLIC_KEY is of no kind that JWT_ALGORITHMS")
