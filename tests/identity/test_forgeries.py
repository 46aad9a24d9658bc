"""Tokens that are refused: under a secret, a public key and a key set, and beside a token that is remembered.

Each is a 401 for the reason in its table, and leaves no trace: no database connection, and no line in the log with a
part of it.
"""

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from unittest import mock

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flask import Flask

from config import JwtSettings
from tests.identity.issuer import Issuer, body, join_fetches, jwk, running_issuer
from tests.identity.tokens import (
    HMACS,
    STRICT,
    STRICT_CLAIMS,
    ask,
    assert_accepted,
    assert_refused,
    assert_unauthorized,
    base64url,
    handmade,
    key,
    members,
    no_database_connection,
    payload,
    pem,
)
from tests.support import SECRET
from todo.identity import jwks
from todo.identity import jwt as provider_module
from todo.refusals import Refusal

KID = "a"


@dataclass(frozen=True)
class Signer:
    """Signs whatever it is given, with a key that is trusted."""

    algorithm: str
    key: Any

    def __call__(self, body: str | bytes = payload(), head: str | bytes | None = None, **parameters: str) -> str:
        """A token of that payload, under a good header with these parameters in raw JSON, or under that header."""
        signed = f"{base64url(self.header(**parameters) if head is None else head)}.{base64url(body)}"
        signature = jwt.get_algorithm_by_name(self.algorithm).sign(signed.encode(), self.key)
        return f"{signed}.{base64url(signature)}"

    def header(self, **parameters: str) -> str:
        """A good header with these parameters in raw JSON; an empty one is left out."""
        return members(**{"alg": f'"{self.algorithm}"', "kid": f'"{KID}"'} | parameters)


Forge = Callable[[Signer], str]
Rows = dict[str, Forge]


def headers(**values: str) -> Rows:
    """Signed well, with each of these values of a header parameter; raw JSON, separated by spaces."""
    return {f"{name} {text}": _header(name, text) for name, texts in values.items() for text in texts.split()}


def claims(**values: str) -> Rows:
    """Signed well, with each of these values of a claim; raw JSON, separated by spaces."""
    return {f"{name} {text[:40]}": _claim(name, text) for name, texts in values.items() for text in texts.split()}


def _header(name: str, text: str) -> Forge:
    return lambda signer: signer(**{name: text})


def _claim(name: str, text: str) -> Forge:
    return lambda signer: signer(payload(**{name: text}))


def payloads(*bodies: str | bytes) -> Rows:
    """Signed well, with each of these payloads."""
    return {f"payload {repr(text)[:40]}": lambda signer, text=text: signer(text) for text in bodies}


def heads(*texts: str | bytes) -> Rows:
    """Signed well, under each of these headers; "alg" is a good algorithm in it."""
    return {f"header {repr(text)[:40]}": lambda signer, text=text: signer(head=_headed(text, signer)) for text in texts}


def _headed(text: str | bytes, signer: Signer) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return raw.replace(b"GOOD", signer.algorithm.encode())


def with_signature(change: Callable[[bytes], bytes]) -> Forge:
    """Signed well, and the signature changed."""

    def forge(signer: Signer) -> str:
        signed, _, signature = signer().rpartition(".")
        return f"{signed}.{base64url(change(base64.urlsafe_b64decode(signature + '==')))}"

    return forge


def with_part_of_another(part: int) -> Forge:
    """Signed well, and a part changed for that of another token that is signed well."""

    def forge(signer: Signer) -> str:
        parts, others = signer().split("."), signer(payload(sub='"bob"'), x='"y"').split(".")
        return ".".join([*parts[:part], others[part], *parts[part + 1 :]])

    return forge


def unsigned(**parameters: str) -> Forge:
    """A good payload, and no signature."""
    return lambda signer: f"{base64url(signer.header(**parameters))}.{base64url(payload())}."


def nested(begin: str, end: str) -> str:
    """JSON that is nested too deeply."""
    return begin * 100_000 + "1" + end * 100_000


R = Refusal
#: What PyJWT makes a number of before it looks at its kind may seem a date that is past, or in the future.
DATES = 'null true false "1" "4102444800" "2099-01-01T00:00:00Z" "" [4102444800] [] {} NaN Infinity -Infinity 1e400 -1 '
DATES += " ".join(["-4102444800", "253402300800", "1" + "0" * 400, "-1" + "0" * 400])
KEYS = '"http://127.0.0.1:9/keys" null ["AA"] {"kty":"oct","k":"AA"}'

#: The tokens that are refused alike under every kind of key, by the reasons that may be given.
ROWS: Mapping[tuple[Refusal, ...], Rows] = {
    (R.ALGORITHM,): {
        **headers(alg=r'"none" "None" "NONE" "nOnE" "" "\u0020none" "none\u0020" "none\u0000" "n\u006fne"'),
        **headers(alg=r'"hs256" "HS256\u0020" null true 0 256 [] ["none"] ["HS256"] {} {"HS256":1}'),
        "no alg": _header("alg", ""),
    },
    (R.SIGNATURE, R.ALGORITHM): {
        "an empty HMAC key": lambda signer: handmade(head=signer.header(alg='"HS256"'), by=b""),
    },
    (R.SIGNATURE,): {
        "a signature of zeros": with_signature(lambda signature: bytes(len(signature))),
        "a signature of ones": with_signature(lambda signature: b"\xff" * len(signature)),
        "a signature that is too short": with_signature(lambda signature: signature[:-1]),
        "a signature that is too long": with_signature(lambda signature: signature + b"\0"),
        "a signature with one bit changed": with_signature(lambda it: it[:-1] + bytes([it[-1] ^ 1])),
        **{f"part {part} of another token": with_part_of_another(part) for part in range(3)},
    },
    (R.MALFORMED,): {
        "no signature": unsigned(),
        **{f"alg {name}, unsigned": unsigned(alg=name) for name in ('"none"', '"nOnE"', "", "null", '["none"]')},
        **headers(jku=KEYS, jwk=KEYS, x5u=KEYS, x5c=KEYS),
        **headers(crit='["exp"] ["x"] [] "x" "exp" null [1]', b64="true false null", kid='5 null true ["a"] {} 1.5'),
        "crit of what is there": lambda signer: signer(crit='["x"]', x="1"),
        "b64 that is critical": lambda signer: signer(b64="false", crit='["b64"]'),
        "b64 of a payload that is detached": lambda signer: signer("", b64="false", crit='["b64"]'),
        **heads("", "x", "null", "[]", '"GOOD"', '["alg", "GOOD"]', '{"alg": "GOOD"', '{"alg": "GOOD"} {}', b"\xff"),
        **heads(b'{"alg": "GOOD", "x": "\xff"}', f'{{"alg": "GOOD", "x": {"1" * 5000}}}'),
        **heads(f'{{"alg": "GOOD", "x": {nested("[", "]")}}}'),
        **payloads("", "x", "null", "[]", '"alice"', '["sub", "exp"]', "{}", b'{"sub": "\xff"}', payload() + "{}"),
        **payloads(payload()[:-1], payload(x="1" * 5000), payload(exp="1" * 5000), payload(x=nested('{"x":', "}"))),
        "payload that is a token": lambda signer: signer(signer()),
        "no exp": _claim("exp", ""),
    },
    (R.TYPE,): headers(
        typ=r'"JOSE" "dpop+jwt" "secevent+jwt" "logout+jwt" "JWE" "id_token" "jwt\u0020" "" 5 true ["JWT"] {}'
    ),
    (R.EXPIRED,): claims(exp="0 1"),
    (R.MALFORMED, R.EXPIRED): claims(exp=DATES),
    (R.NOT_YET_VALID,): claims(nbf="4102444700", iat="4102444700"),
    (R.MALFORMED, R.NOT_YET_VALID): claims(nbf=DATES, iat=DATES),
    (R.AUDIENCE_UNEXPECTED,): claims(aud='"todo" ["todo"] "" [] null 0 false {}'),
    (R.SUBJECT,): {
        "no sub": _claim("sub", ""),
        **claims(sub=r'null 5 true 1.5 ["alice"] {"alice":1} "" "." ".." "a/b" "../alice" "\ufffd"'),
        **claims(sub=r'"alice\u0000" "\u000aalice" "alice\u007f" "alice\u0085" "\ud800" "alice\udc00"'),
        "sub of 256": _claim("sub", f'"{"a" * 256}"'),
        "sub of 256 beyond the BMP": _claim("sub", json.dumps("\U0001f600" * 256)),
    },
}

#: The claims that are refused where STRICT is expected.
STRICT_ROWS: Mapping[Refusal, Mapping[str, tuple[str, ...]]] = {
    R.AUDIENCE_MISSING: {"aud": ("", "null", '""', "[]")},
    R.AUDIENCE_WRONG: {
        "aud": (
            *('"another"', '"TODO"', '"todo "', '"tod"', '"todos"', '["another"]', "5", "true"),
            *('["todo", 5]', '[["todo"]]', '{"todo": true}'),
        )
    },
    R.ISSUER: {
        "iss": (
            *("", "null", '""', "5", '["ISSUER"]', '{"ISSUER": 1}', '"ISSUER/"', '"ISSUER.evil.example"'),
            *('"HTTPS://ISSUER.EXAMPLE"', '"https://"', '"https://evil.example"'),
        )
    },
}

#: Each way of naming the key, and who signs for it.
SIGNERS = {
    "secret": Signer("HS256", SECRET.encode()),
    "public key": Signer("RS256", key("RSA")),
    "key set": Signer("ES256", key()),
}
by_kind = pytest.mark.parametrize("kind", SIGNERS)
Trusting = Callable[..., Flask]


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    """An issuer whose set has an EC key, an RSA key that names its algorithm, and a symmetric one."""
    with running_issuer() as issuer:
        symmetric = {"kty": "oct", "kid": "oct", "k": base64url(SECRET)}
        issuer.serve(jwk(key(), KID), jwk(key("RSA"), "rsa", alg="RS256"), symmetric)
        yield issuer


@pytest.fixture(scope="module")
def trusting(app_of: Trusting, issuer: Issuer) -> Trusting:
    """Makes the app that trusts a kind of key; strict: and expects an issuer and an audience."""
    settings: dict[str, dict[str, Any]] = {
        "secret": {"secret": SECRET},
        "public key": {"public_key": pem(key("RSA")), "algorithms": ("RS256",)},
        "key set": {"jwks_url": issuer.url},
    }
    return lambda kind, *, strict=False: app_of(**settings[kind], **STRICT if strict else {})


def assert_refused_beside(good: str, app: Flask, forged: str, *reasons: Refusal) -> None:
    """Refused, while a good token of the same signer is remembered, and again when it was refused before."""
    assert_accepted(app, good)
    assert_refused(app, forged, *reasons)
    assert_refused(app, forged, *reasons)
    assert_accepted(app, good)


@by_kind
@pytest.mark.parametrize(
    ("reasons", "forge"),
    [pytest.param(reasons, forge, id=name) for reasons, rows in ROWS.items() for name, forge in rows.items()],
)
def test_a_forged_token_is_refused(trusting: Trusting, kind: str, reasons: tuple[Refusal, ...], forge: Forge) -> None:
    signer = SIGNERS[kind]
    assert_refused_beside(signer(), trusting(kind), forge(signer), *reasons)


@by_kind
@pytest.mark.parametrize(
    ("reason", "name", "value"),
    [(reason, name, text) for reason, row in STRICT_ROWS.items() for name, texts in row.items() for text in texts],
)
def test_another_issuer_or_audience_is_refused(
    trusting: Trusting, kind: str, reason: Refusal, name: str, value: str
) -> None:
    signer = SIGNERS[kind]
    forged = signer(payload(**STRICT_CLAIMS | {name: value.replace("ISSUER", STRICT["issuer"])}))
    assert_refused_beside(signer(payload(**STRICT_CLAIMS)), trusting(kind, strict=True), forged, reason)


@by_kind
@pytest.mark.parametrize(
    "form",
    [
        *("Bearer{}", "Bearer\t{}", 'Bearer "{}"', "Bearer token={}", "Bearer {}=", "Bearer {}.", "Bearer {}.e30"),
        *("Bearer .{}", "Bearer {}\xe9", "Bearer {0} {0}", "Bearer {0},Bearer {0}", "Bearer {0}, Bearer {0}", "Bearer"),
    ],
)
def test_a_remembered_token_in_a_bad_header_is_refused(trusting: Trusting, kind: str, form: str) -> None:
    app, good = trusting(kind), SIGNERS[kind]()
    assert_accepted(app, good)
    assert_unauthorized(app, R.MALFORMED, headers={"Authorization": form.format(good)})
    assert_unauthorized(app, R.MALFORMED, headers={"Authorization": form.format(good.replace(".", ". ", 1))})


@by_kind
def test_a_remembered_token_in_the_query_string_is_refused(trusting: Trusting, kind: str) -> None:
    app, good = trusting(kind), SIGNERS[kind]()
    assert_accepted(app, good)
    assert_unauthorized(app, R.MISSING, query_string={"access_token": good})


def forms_of(private_key: Any) -> dict[str, bytes]:
    """What a forger may take for the secret: each way of writing the public key."""
    public_key = private_key.public_key()
    der = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    found = jwk(private_key)
    return {
        "PEM": pem(private_key).encode(),
        "PEM without its last line end": pem(private_key).strip().encode(),
        "DER": der,
        "the JWK": json.dumps(found).encode(),
    }


@pytest.mark.parametrize("alg", HMACS)
@pytest.mark.parametrize("kind", ["public key", "key set"])
@pytest.mark.parametrize("form", forms_of(key("RSA")))
def test_an_hmac_keyed_with_the_public_key_is_refused(trusting: Trusting, kind: str, form: str, alg: str) -> None:
    signer = SIGNERS[kind]
    forged = handmade(head=signer.header(alg=f'"{alg}"'), by=forms_of(signer.key)[form], alg=alg)
    assert_refused_beside(signer(), trusting(kind), forged, R.ALGORITHM)


@pytest.mark.parametrize("alg", HMACS)
def test_a_symmetric_key_of_the_set_verifies_nothing(trusting: Trusting, alg: str) -> None:
    head = f'{{"alg": "{alg}", "kid": "oct"}}'
    assert_refused(trusting("key set"), handmade(head=head, alg=alg), R.ALGORITHM)


@pytest.mark.parametrize("kid", [KID, "rsa", "oct"])
@pytest.mark.parametrize(("algorithm", "stranger"), [("ES256", "P-256"), ("RS256", "RSA"), ("EdDSA", "Ed25519")])
def test_a_strangers_key_under_every_id_of_the_set_is_refused(
    trusting: Trusting, kid: str, algorithm: str, stranger: str
) -> None:
    assert_refused(trusting("key set"), Signer(algorithm, key(stranger, "stranger"))(kid=f'"{kid}"'))


PATHS = ["/dev/null", "../../../../../../dev/null", "file:///dev/null", "..\\..\\nul", "a/../a", "./a", "a%00", "a\0"]
PATHS += ["a ", "A", "x' UNION SELECT 'secret' --", "$(id)", "\ud800", "k" * 5000]


@pytest.mark.parametrize("kid", PATHS, ids=range(len(PATHS)))
def test_a_key_id_that_is_a_path_or_worse_is_refused_and_nothing_is_fetched_from_there(
    trusting: Trusting, issuer: Issuer, kid: str
) -> None:
    app = trusting("key set")
    assert_accepted(app, SIGNERS["key set"]())
    assert_refused(app, SIGNERS["key set"](kid=json.dumps(kid)), R.UNKNOWN_KEY)
    assert_refused(app, handmade(head=json.dumps({"alg": "HS256", "kid": kid}), by=b""), R.ALGORITHM)
    join_fetches()
    assert issuer.paths == {"/keys"}


class TestRemembered:
    """Tokens that were accepted before, and are no longer good."""

    @pytest.fixture
    def now(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """The clock of the key sets that are made."""
        now = [0.0]
        monkeypatch.setattr(provider_module, "KeySet", lambda *known: jwks.KeySet(*known, clock=lambda: now[0]))
        return now

    @pytest.fixture
    def app(self, app_of: Trusting, now: list[float], issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> Flask:
        """An app that trusts the issuer's set, on that clock, and remembers a token."""
        # Undone at the end, whatever the test makes the issuer answer.
        monkeypatch.setattr(issuer, "answer", issuer.answer)
        app: Flask = app_of.__wrapped__(jwks_url=issuer.url)  # type: ignore[attr-defined]
        assert_accepted(app, SIGNERS["key set"]())
        return app

    @pytest.fixture
    def verified(self, monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
        """How often a signature was verified."""
        spy = mock.Mock(wraps=jwt.decode)
        monkeypatch.setattr(jwt, "decode", spy)
        return spy

    @by_kind
    @pytest.mark.parametrize("exp", ["4102444799", "4102444799.5"])
    def test_one_that_expires_is_refused(
        self, trusting: Trusting, kind: str, exp: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        good = SIGNERS[kind](payload(exp=exp))
        assert_accepted(trusting(kind), good)
        monkeypatch.setattr(provider_module, "time", lambda: 4102444799 + 29.999)
        assert_accepted(trusting(kind), good)
        monkeypatch.setattr(provider_module, "time", lambda: 4102444799 + 30)
        assert_refused(trusting(kind), good, R.EXPIRED)

    @pytest.mark.parametrize(
        "served",
        [
            [jwk(key("P-256", "stranger"), KID)],
            [jwk(key("P-256", "stranger"), "another")],
            [jwk(key(), KID, use="enc")],
            [],
        ],
        ids=["another key of the same id", "another key of another id", "the key for another use", "none"],
    )
    def test_one_whose_key_is_withdrawn_is_refused_once_that_is_known(
        self, app: Flask, issuer: Issuer, now: list[float], served: list[dict[str, Any]]
    ) -> None:
        good = SIGNERS["key set"]()
        issuer.serve(*served)
        now[0] = jwks.LIFETIME
        assert_accepted(app, good)
        join_fetches()
        assert_refused(app, good, R.UNKNOWN_KEY, R.SIGNATURE)

    def test_one_is_accepted_for_an_hour_without_the_issuer_and_no_longer(
        self, app: Flask, issuer: Issuer, now: list[float]
    ) -> None:
        good = SIGNERS["key set"]()
        issuer.answer = body("", 500)
        now[0] = jwks.LIFETIME + jwks.GRACE - 0.001
        assert_accepted(app, good)
        join_fetches()
        now[0] = jwks.LIFETIME + jwks.GRACE
        with no_database_connection(app):
            response = ask(app, f"Bearer {good}")
        assert (response.status_code, response.get_json()) == (503, {"error": "Service unavailable"})
        assert response.headers["Retry-After"] == "1"

    def test_a_good_token_is_verified_once_and_a_bad_one_each_time(self, app_of: Trusting, verified: mock.Mock) -> None:
        app, good = app_of(secret=SECRET), handmade(payload(x="1"))
        for _ in range(3):
            assert_accepted(app, good)
        assert verified.call_count == 1
        for bad in (handmade(payload(exp="1")), handmade(payload(sub='""'))):
            assert_refused(app, bad)
            assert_refused(app, bad)
        assert verified.call_count == 5

    def test_only_so_many_are_remembered(self, verified: mock.Mock) -> None:
        provider = provider_module.JwtProvider(JwtSettings(secret=SECRET))
        tokens = [handmade(payload(x=f"{number}")) for number in range(provider_module.REMEMBERED_TOKENS + 1)]
        for signed in (*tokens, tokens[-1], tokens[1], tokens[0]):
            provider.identify(f"Bearer {signed}")
        assert verified.call_count == provider_module.REMEMBERED_TOKENS + 2
