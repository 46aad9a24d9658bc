"""The list of what is refused, row by row: under a secret, a public key and a key set, and beside a remembered token.

Each row is 401 and leaves no trace: no database connection, and no line in the log that could show it.
"""

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flask import Flask

from config import JwtSettings
from tests.identity.test_jwks import Issuer, join_fetches, jwk
from tests.identity.test_jwt import (
    ISSUER,
    assert_accepted,
    assert_refused,
    assert_unauthorized,
    base64url,
    handmade,
    leaving_no_trace,
    payload,
    pem,
)
from tests.support import SECRET, close, settings
from todo import create_app
from todo.errors import Refusal
from todo.identity import jwks
from todo.identity import jwt as provider_module

KID = "a"
HMACS = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}


@dataclass(frozen=True)
class Signer:
    """Signs, as the issuer that is trusted, whatever it is given."""

    algorithm: str
    key: Any

    def __call__(self, body: str | bytes = payload(), head: str | bytes | None = None, **parameters: str) -> str:
        """A token of that payload, under a good header and these parameters in raw JSON, or under that header."""
        signed = f"{base64url(self.header(**parameters) if head is None else head)}.{base64url(body)}"
        signature = jwt.get_algorithm_by_name(self.algorithm).sign(signed.encode(), self.key)
        return f"{signed}.{base64url(signature)}"

    def header(self, **parameters: str) -> str:
        """A good header, but for these parameters in raw JSON; an empty one is left out."""
        members = {"alg": f'"{self.algorithm}"', "kid": f'"{KID}"'} | parameters
        return "{" + ", ".join(f'"{name}": {value}' for name, value in members.items() if value) + "}"


Forge = Callable[[Signer], str]


def unsigned(**parameters: str) -> Forge:
    """A good payload with no signature at all."""
    return lambda signer: f"{base64url(signer.header(**parameters))}.{base64url(payload())}."


def under(**parameters: str) -> Forge:
    """Signed well, under a header with these parameters."""
    return lambda signer: signer(**parameters)


def claiming(**members: str) -> Forge:
    """Signed well, with these claims."""
    return lambda signer: signer(payload(**members))


def saying(body: str | bytes) -> Forge:
    """Signed well, with that payload."""
    return lambda signer: signer(body)


def with_signature(change: Callable[[bytes], bytes]) -> Forge:
    """Signed well, and the signature changed."""

    def forge(signer: Signer) -> str:
        signed, _, signature = signer().rpartition(".")
        return f"{signed}.{base64url(change(base64.urlsafe_b64decode(signature + '==')))}"

    return forge


NONES = ("none", "None", "NONE", "nOnE", "", " none", "none ", "none\\u0000", "n\\u006fne")
DATES = {
    "null": "null",
    "true": "true",
    "a string": '"4102444800"',
    "an empty string": '""',
    "a list": "[4102444800]",
    "an object": "{}",
    "NaN": "NaN",
    "Infinity": "Infinity",
    "1e400": "1e400",
    "10^400": "1" + "0" * 400,
    "5000 digits": "1" * 5000,
    "negative": "-1",
}

#: Every row that is the same under every kind of key.
ROWS: Mapping[str, Forge] = {
    **{f"alg {name!r}, unsigned": unsigned(alg=f'"{name}"') for name in NONES},
    **{f"alg {name!r}, signed": under(alg=f'"{name}"') for name in NONES},
    **{f"alg {value}, unsigned": unsigned(alg=value) for value in ("", "null", "true", "0", "[]", '["none"]', "{}")},
    "no signature": unsigned(),
    "a signature of nothing but zeros": with_signature(lambda signature: bytes(len(signature))),
    "a signature of nothing but ones": with_signature(lambda signature: b"\xff" * len(signature)),
    "a signature that is cut short": with_signature(lambda signature: signature[:-1]),
    "a signature that is too long": with_signature(lambda signature: signature + b"\0"),
    "a signature with a bit turned over": with_signature(lambda it: it[:-1] + bytes([it[-1] ^ 1])),
    "the signature of another payload": lambda signer: (
        f"{signer().rpartition('.')[0]}.{signer(payload(sub=json.dumps('bob'))).rpartition('.')[2]}"
    ),
    "an empty HMAC key": lambda signer: handmade(payload(), signer.header(alg='"HS256"'), b""),
    "a key of its own by jku": under(jku='"http://127.0.0.1:9/keys"'),
    "a key of its own by x5u": under(x5u='"http://127.0.0.1:9/cert"'),
    "a key of its own in jwk": under(jwk='{"kty": "oct", "k": "AA"}'),
    "a key of its own in x5c": under(x5c='["AA"]'),
    "an unknown crit": under(crit='["x"]', x="1"),
    "a crit of nothing": under(crit="[]"),
    "a crit that is no list": under(crit='"exp"'),
    "b64 false": under(b64="false"),
    "b64 false, which is critical": under(b64="false", crit='["b64"]'),
    "b64 true": under(b64="true"),
    **{f"kid {value}": under(kid=value) for value in ("5", "null", "true", '["a"]', "{}", "1.5")},
    "no exp": claiming(exp=""),
    "exp past": claiming(exp="1"),
    **{f"exp {name}": claiming(exp=value) for name, value in DATES.items()},
    "nbf ahead": claiming(nbf="4102444700"),
    **{f"nbf {name}": claiming(nbf=value) for name, value in DATES.items()},
    "iat ahead": claiming(iat="4102444700"),
    **{f"iat {name}": claiming(iat=value) for name, value in DATES.items()},
    **{f"aud {value}": claiming(aud=value) for value in ('"todo"', '["todo"]', '""', "[]", "null", "0")},
    **{
        f"typ {value}": under(typ=value)
        for value in ('"JOSE"', '"dpop+jwt"', '"logout+jwt"', '"secevent+jwt"', '"id_token"', '""', "5", '["JWT"]')
    },
    "no sub": claiming(sub=""),
    **{f"sub {value}": claiming(sub=value) for value in ("null", "5", "true", '["alice"]', "{}", '""', '"."', '".."')},
    "sub with a path in it": claiming(sub='"../alice"'),
    "sub with NUL": claiming(sub=r'"alice\u0000"'),
    "sub with a line end": claiming(sub=r'"alice\n"'),
    "sub with DEL": claiming(sub=r'"alice\u007f"'),
    "sub with a C1 control": claiming(sub=r'"alice\u0085"'),
    "sub a lone surrogate": claiming(sub=r'"\ud800"'),
    "sub of 256": claiming(sub='"' + "a" * 256 + '"'),
    "a payload that is a list": saying("[]"),
    "a payload that is null": saying("null"),
    "a payload that is not JSON": saying("alice"),
    "a payload that is not UTF-8": saying(b'{"sub": "\xff"}'),
    "a payload that is nested too deeply": saying(payload(x="[" * 100_000 + "]" * 100_000)),
    "a payload that is a token": lambda signer: signer(signer()),
}

#: Rows under an issuer and an audience that are expected.
STRICT_ROWS: Mapping[str, Forge] = {
    "no aud": claiming(iss=f'"{ISSUER}"'),
    "no iss": claiming(aud='"todo"'),
    "aud of another": claiming(iss=f'"{ISSUER}"', aud='"another"'),
    "aud that begins alike": claiming(iss=f'"{ISSUER}"', aud='"todos"'),
    "aud null": claiming(iss=f'"{ISSUER}"', aud="null"),
    "aud empty": claiming(iss=f'"{ISSUER}"', aud="[]"),
    "aud an object": claiming(iss=f'"{ISSUER}"', aud='{"todo": 1}'),
    "iss of another": claiming(iss='"https://evil.example"', aud='"todo"'),
    "iss that begins alike": claiming(iss=f'"{ISSUER}.evil.example"', aud='"todo"'),
    "iss a list": claiming(iss=f'["{ISSUER}"]', aud='"todo"'),
    "iss null": claiming(iss="null", aud='"todo"'),
}

#: What stands behind Bearer, of a token that holds.
HEADERS: Mapping[str, Callable[[str], str]] = {
    "two tokens": lambda good: f"Bearer {good}, Bearer {good}",
    "a=b": lambda _: "Bearer a=b",
    "a parameter": lambda good: f"Bearer token={good}",
    "padding": lambda good: f"Bearer {good}=",
    "a fourth part": lambda good: f"Bearer {good}.e30",
    "a tab": lambda good: f"Bearer\t{good}",
    "white space within": lambda good: f"Bearer {good.replace('.', '. ', 1)}",
    "nothing": lambda _: "Bearer",
}

EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
#: Each way of naming the key, and who signs for it.
SIGNERS = {
    "secret": Signer("HS256", SECRET.encode()),
    "public key": Signer("RS256", RSA_KEY),
    "key set": Signer("ES256", EC_KEY),
}


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    """An issuer whose set has an EC key, an RSA key that names its algorithm, and a symmetric one."""
    issuer = Issuer()
    issuer.serve(
        jwk(EC_KEY, KID), jwk(RSA_KEY, "rsa", alg="RS256"), {"kty": "oct", "kid": "oct", "k": base64url(SECRET)}
    )
    yield issuer
    join_fetches()
    issuer.close()


@pytest.fixture(scope="module")
def key_settings(issuer: Issuer) -> Mapping[str, Mapping[str, Any]]:
    """The JwtSettings of each kind of key."""
    return {
        "secret": {"secret": SECRET},
        "public key": {"public_key": pem(RSA_KEY), "algorithms": ("RS256",)},
        "key set": {"jwks_url": issuer.url},
    }


@pytest.fixture(scope="module")
def trusting(apps: dict[str, Flask], key_settings: Mapping[str, Mapping[str, Any]]) -> Iterator[Callable[..., Flask]]:
    """Makes the app that trusts a kind of key, once; strict: and expects an issuer and an audience."""
    made: dict[tuple[str, bool], Flask] = {}

    def trusting(kind: str, *, strict: bool = False) -> Flask:
        if (kind, strict) not in made:
            expected = {"issuer": ISSUER, "audience": "todo"} if strict else {}
            jwt_settings = JwtSettings(**key_settings[kind], **expected)
            made[kind, strict] = create_app(
                settings(apps["sqlite"].config["SQLALCHEMY_DATABASE_URI"], jwt=jwt_settings)
            )
        return made[kind, strict]

    yield trusting
    for app in made.values():
        close(app)


Trusting = Callable[..., Flask]
by_kind = pytest.mark.parametrize("kind", SIGNERS)


def assert_refused_beside(good: str, app: Flask, forged: str) -> None:
    """Refused, while a good token of the same signer is remembered, and again when it was refused before."""
    assert_accepted(app, good)
    assert_refused(app, forged)
    assert_refused(app, forged)
    assert_accepted(app, good)


@by_kind
@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_the_list_is_refused(trusting: Trusting, kind: str, row: str) -> None:
    signer = SIGNERS[kind]
    assert_refused_beside(signer(), trusting(kind), ROWS[row](signer))


@by_kind
@pytest.mark.parametrize("row", STRICT_ROWS)
def test_another_issuer_or_audience_than_the_expected_is_refused(trusting: Trusting, kind: str, row: str) -> None:
    signer = SIGNERS[kind]
    good = signer(payload(iss=f'"{ISSUER}"', aud='"todo"'))
    assert_refused_beside(good, trusting(kind, strict=True), STRICT_ROWS[row](signer))


@by_kind
@pytest.mark.parametrize("form", HEADERS)
def test_a_remembered_token_in_a_bad_header_is_refused(trusting: Trusting, kind: str, form: str) -> None:
    good = SIGNERS[kind]()
    assert_accepted(trusting(kind), good)
    assert_unauthorized(trusting(kind), HEADERS[form](good))


@by_kind
def test_a_remembered_token_in_the_query_string_is_refused(trusting: Trusting, kind: str) -> None:
    app, good = trusting(kind), SIGNERS[kind]()
    assert_accepted(app, good)
    with leaving_no_trace(app):
        response = app.test_client().get("/api/alice/tasks", query_string={"access_token": good})
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


def forms_of(private_key: Any) -> dict[str, bytes]:
    """What a forger may take for the secret: each way of writing the public key."""
    public_key = private_key.public_key()
    der = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    members = jwk(private_key)
    numbers = [members[name] for name in ("n", "x", "y") if name in members]
    return {
        "PEM": pem(private_key).encode(),
        "PEM without its last line end": pem(private_key).strip().encode(),
        "PEM with CRLF": pem(private_key).replace("\n", "\r\n").encode(),
        "DER": der,
        "base64 of the DER": base64.b64encode(der),
        "base64 of the PEM": base64.b64encode(pem(private_key).encode()),
        "the JWK": json.dumps(members).encode(),
        "its numbers": "".join(numbers).encode(),
        "its numbers, decoded": b"".join(base64.urlsafe_b64decode(number + "==") for number in numbers),
        "OpenSSH": public_key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
        "its id": KID.encode(),
    }


@pytest.mark.parametrize("kind", ["public key", "key set"])
@pytest.mark.parametrize("form", forms_of(RSA_KEY))
def test_an_hmac_keyed_with_the_public_key_is_refused(trusting: Trusting, kind: str, form: str) -> None:
    signer = SIGNERS[kind]
    for algorithm, digest in HMACS.items():
        head = signer.header(alg=f'"{algorithm}"')
        assert_refused_beside(signer(), trusting(kind), handmade(payload(), head, forms_of(signer.key)[form], digest))


@pytest.mark.parametrize("algorithm", HMACS)
def test_a_symmetric_key_of_the_set_verifies_nothing(trusting: Trusting, algorithm: str) -> None:
    head = f'{{"alg": "{algorithm}", "kid": "oct"}}'
    assert_refused(trusting("key set"), handmade(payload(), head, SECRET.encode(), HMACS[algorithm]))


@pytest.mark.parametrize("algorithm", ["RS384", "RS512", "PS256", "PS384", "PS512"])
@pytest.mark.parametrize("kind", ["public key", "key set"])
def test_another_algorithm_of_the_family_than_the_keys_is_refused(
    trusting: Trusting, kind: str, algorithm: str
) -> None:
    app = trusting(kind)
    assert_accepted(app, Signer("RS256", RSA_KEY)(kid='"rsa"'))
    assert_refused(app, Signer(algorithm, RSA_KEY)(kid='"rsa"'))


@pytest.mark.parametrize("kid", [KID, "rsa", "oct"])
@pytest.mark.parametrize("name", ["ES256", "RS256", "EdDSA"])
def test_a_strangers_key_under_every_id_of_the_set_is_refused(trusting: Trusting, kid: str, name: str) -> None:
    strangers = {
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    }
    assert_refused(trusting("key set"), Signer(name, strangers[name])(kid=f'"{kid}"'))


ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.mark.parametrize("signature", [(0, 0), (0, 1), (1, 0), (ORDER, ORDER), (ORDER, 1), (1, ORDER)], ids=repr)
def test_an_ecdsa_signature_of_no_sense_is_refused(trusting: Trusting, signature: tuple[int, int]) -> None:
    raw = b"".join(number.to_bytes(32, "big") for number in signature)
    for form in (raw, encode_dss_signature(*signature)):
        assert_refused(trusting("key set"), with_signature(lambda _, form=form: form)(SIGNERS["key set"]))


PATHS = (
    "/dev/null",
    "../../../../../../dev/null",
    "file:///dev/null",
    "..\\..\\nul",
    "a/../a",
    "./a",
    "a%00",
    "a\0",
    "a ",
    "A",
    "x' UNION SELECT 'secret' --",
    "$(id)",
    "\ud800",
    "k" * 5000,
)


@pytest.mark.parametrize("kid", PATHS, ids=range(len(PATHS)))
def test_a_key_id_that_is_a_path_or_worse_is_refused_and_nothing_fetched_from_there(
    trusting: Trusting, issuer: Issuer, kid: str
) -> None:
    app = trusting("key set")
    assert_accepted(app, SIGNERS["key set"]())
    assert_refused(app, SIGNERS["key set"](kid=json.dumps(kid)), Refusal.UNKNOWN_KEY)
    assert_refused(app, handmade(payload(), json.dumps({"alg": "HS256", "kid": kid}), b""), Refusal.ALGORITHM)
    join_fetches()
    assert issuer.paths == {"/keys"}


@by_kind
def test_a_key_id_that_is_a_path_does_not_make_a_secret_of_what_stands_there(
    trusting: Trusting, kind: str, tmp_path: Path
) -> None:
    file = tmp_path / "known"
    file.write_text("what a forger knows of the machine, say /proc/version")
    for path in (str(file), f"../../../../../../../..{file}", f"file://{file}"):
        head = f'{{"alg": "HS256", "kid": "{path}"}}'
        assert_refused(trusting(kind), handmade(payload(), head, file.read_bytes()))


@by_kind
@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("name", ["jku", "x5u"])
def test_no_key_is_fetched_from_where_the_token_says(
    trusting: Trusting, issuer: Issuer, kind: str, name: str, *, is_known: bool
) -> None:
    app = trusting(kind)
    assert_accepted(app, SIGNERS[kind]())
    stranger = ec.generate_private_key(ec.SECP256R1())
    kid = KID if is_known else "theirs"
    theirs = Issuer()
    try:
        theirs.serve(jwk(stranger, kid))
        requests = issuer.requests
        assert_refused(app, Signer("ES256", stranger)(kid=f'"{kid}"', **{name: f'"{theirs.url}"'}))
        join_fetches()
        assert (theirs.requests, issuer.requests) == (0, requests)
    finally:
        theirs.close()


class TestRemembered:
    """Tokens that were accepted, and hold no more."""

    @pytest.fixture
    def now(self) -> list[float]:
        """What the clock of the key set shows."""
        return [0.0]

    @pytest.fixture
    def app(
        self, apps: dict[str, Flask], issuer: Issuer, now: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Flask]:
        """An app that trusts the issuer's set, on that clock, and remembers a token."""
        monkeypatch.setattr(provider_module, "KeySet", lambda *known: jwks.KeySet(*known, clock=lambda: now[0]))
        url = apps["sqlite"].config["SQLALCHEMY_DATABASE_URI"]
        app = create_app(settings(url, jwt=JwtSettings(jwks_url=issuer.url)))
        # Undone at the end, whatever the test makes the issuer answer.
        monkeypatch.setattr(issuer, "answer", issuer.answer)
        assert_accepted(app, SIGNERS["key set"]())
        yield app
        join_fetches()
        close(app)

    @by_kind
    def test_one_that_expires_is_refused(self, trusting: Trusting, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        good = SIGNERS[kind](payload(exp="4102444799"))
        assert_accepted(trusting(kind), good)
        monkeypatch.setattr(provider_module, "time", lambda: 4102444799 + provider_module.LEEWAY - 0.001)
        assert_accepted(trusting(kind), good)
        monkeypatch.setattr(provider_module, "time", lambda: 4102444799 + provider_module.LEEWAY)
        assert_refused(trusting(kind), good, Refusal.EXPIRED)

    @pytest.mark.parametrize(
        "served",
        [
            [jwk(ec.generate_private_key(ec.SECP256R1()), KID)],
            [jwk(ec.generate_private_key(ec.SECP256R1()), "another")],
            [jwk(EC_KEY, KID, use="enc")],
            [],
        ],
        ids=["another key of the same id", "another key of another id", "the key, for less", "none"],
    )
    def test_one_whose_key_serves_no_more_is_refused_once_that_is_known(
        self, app: Flask, issuer: Issuer, now: list[float], served: list[dict[str, Any]]
    ) -> None:
        good = SIGNERS["key set"]()
        issuer.serve(*served)
        now[0] = jwks.LIFETIME
        assert_accepted(app, good)
        join_fetches()
        assert_refused(app, good)

    def test_one_outlives_its_issuer_by_an_hour_and_no_longer(
        self, app: Flask, issuer: Issuer, now: list[float]
    ) -> None:
        good = SIGNERS["key set"]()
        issuer.answer = lambda handler: cast(None, handler.send_error(500))
        now[0] = jwks.LIFETIME + jwks.GRACE - 0.001
        assert_accepted(app, good)
        join_fetches()
        now[0] = jwks.LIFETIME + jwks.GRACE
        response = app.test_client().get("/api/alice/tasks", headers={"Authorization": f"Bearer {good}"})
        assert (response.status_code, response.get_json()) == (503, {"error": "Service unavailable"})
        assert response.headers["Retry-After"] == "1"
