"""`flask token check`: whether the token on stdin would be accepted, and why not."""

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from sqlalchemy import URL

from config import JwtSettings
from tests.identity.issuer import Issuer, body, jwk
from tests.identity.tokens import ISSUER, STRICT, handmade, key, payload, pem, signed_by
from tests.support import ROOT, SECRET, Make, token
from todo.refusals import Refusal

Check = Callable[..., Result]


@pytest.fixture
def check(make: Make, database: URL) -> Check:
    """Runs the command with those JwtSettings, SECRET being the key if none is named."""

    def run(text: str, **changes: Any) -> Result:
        app = make(database, jwt=JwtSettings(**(changes if changes.keys() & KEYS else {"secret": SECRET} | changes)))
        return app.test_cli_runner().invoke(args=["token", "check"], input=text)

    return run


KEYS = {"secret", "public_key", "jwks_url"}


@pytest.fixture
def issuer(issuer: Issuer) -> Issuer:
    """An issuer with two keys."""
    issuer.serve(jwk(key(), "a"), jwk(key("RSA"), "b", alg="RS256"))
    return issuer


THREE_PARTS = "a token is three parts of base64url with dots between, in one line"
SUBJECT = "expected a sub of 1 to 255 characters, no '/', no control characters, not . or .."


def assert_refused(result: Result, line: str) -> None:
    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout == f"Refused: {line}\n"


@pytest.mark.parametrize("form", ["{}", "{}\n", "  {}\r\n", "Bearer {}", "bearer  {}\n"])
def test_a_good_token_is_accepted(check: Check, form: str) -> None:
    result = check(form.format(token("jos\xe9", exp=4102444800)))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == 'Accepted: user "jos\\u00e9", until 2100-01-01T00:00:00Z\n'


@pytest.mark.parametrize(
    ("text", "line"),
    [
        *((text, "no token: there is nothing to check") for text in ("", "Bearer \n")),
        *((text, f"malformed: {THREE_PARTS}") for text in ("a.b", f"{token()} {token()}")),
        ("a.b.c", "malformed: Invalid header padding"),
        (token(exp=None), 'malformed: Token is missing the "exp" claim'),
        (handmade(payload(exp='"4102444800"')), "malformed: exp is not a date, in seconds since 1970"),
        (handmade(head='{"alg": "HS256", "jku": "x"}'), "malformed: jku is not accepted in the header of a token"),
        (
            handmade(head=r'{"alg": "HS256", "crit": ["\u001b[31m"]}'),
            r"malformed: Unsupported critical extension: \x1b[31m",
        ),
        (token(headers={"typ": "x"}), 'token type: expected typ JWT, at+jwt or none, the token has typ "x"'),
        (handmade(head='{"alg": "none"}'), 'algorithm: expected alg HS256, the token has alg "none"'),
        (
            token(key=f"{SECRET}!"),
            'signature: expected one by JWT_SECRET, the token has another, with alg "HS256" and no kid',
        ),
        (token(aud="x"), 'audience unexpected: expected no aud, since JWT_AUDIENCE is not set, the token has aud "x"'),
        (token("a/b"), f'subject: {SUBJECT}, the token has sub "a/b"'),
    ],
)
def test_the_reason_is_said_with_what_was_expected_beside_what_came(check: Check, text: str, line: str) -> None:
    assert_refused(check(text), line)


@pytest.mark.parametrize(
    ("claims", "line"),
    [
        ({"iss": f"{ISSUER}/"}, f'issuer: expected iss "{ISSUER}" (JWT_ISSUER), the token has iss "{ISSUER}/"'),
        ({"iss": None}, f'issuer: expected iss "{ISSUER}" (JWT_ISSUER), the token has no iss'),
        ({"aud": None}, 'audience missing: expected aud "todo" (JWT_AUDIENCE), the token has no aud'),
        ({"aud": ["x", "y"]}, 'audience wrong: expected aud "todo" (JWT_AUDIENCE), the token has aud ["x", "y"]'),
    ],
)
def test_an_issuer_and_an_audience_that_are_expected_are_named(
    check: Check, claims: dict[str, object], line: str
) -> None:
    assert_refused(check(token(**{"iss": ISSUER, "aud": "todo"} | claims), **STRICT), line)


def test_dates_are_told_beside_the_clock(check: Check) -> None:
    result = check(token(exp=1000000000))
    assert result.stdout.startswith(f"Refused: expired: expected exp after {time.gmtime().tm_year}-")
    assert result.stdout.endswith("Z, the token has exp 1000000000 (2001-09-09T01:46:40Z)\n")
    result = check(token(nbf=4102444800, exp=4102444900, iat=0))
    assert result.stdout.startswith("Refused: not yet valid: expected nbf and iat up to 20")
    assert result.stdout.endswith(
        "the token has nbf 4102444800 (2100-01-01T00:00:00Z) and iat 0 (1970-01-01T00:00:00Z)\n"
    )
    assert "the token has exp -1\n" in check(token(exp=-1)).stdout


UNKNOWN = "unknown key: expected"


@pytest.mark.parametrize(
    ("kid", "line"),
    [
        ("c", f'{UNKNOWN} kid "a" or "b" (JWT_JWKS_URL), the token has kid "c"'),
        (None, f'{UNKNOWN} kid "a" or "b" (JWT_JWKS_URL), the token has no kid'),
        ("b", 'algorithm: expected alg RS256, the token has alg "ES256"'),
    ],
)
def test_the_keys_of_the_set_are_named(check: Check, issuer: Issuer, kid: str | None, line: str) -> None:
    assert_refused(check(signed_by(key(), kid), jwks_url=issuer.url), line)
    assert check(signed_by(key(), "a"), jwks_url=issuer.url).exit_code == 0


@pytest.mark.parametrize("served", [10, 11])
def test_of_many_keys_some_are_named(check: Check, issuer: Issuer, served: int) -> None:
    issuer.serve(*(jwk(key(), f"{number}") for number in range(served)))
    shown = " or ".join([*(f'"{number}"' for number in range(10)), *["another"] * (served - 10)])
    line = f'{UNKNOWN} kid {shown} (JWT_JWKS_URL), the token has kid "{"x" * 199}...'
    assert_refused(check(signed_by(key(), "x" * 300), jwks_url=issuer.url), line)


def test_a_shared_secret_where_a_key_set_is_expected_is_told_by_its_algorithm(check: Check, issuer: Issuer) -> None:
    line = 'algorithm: expected alg ES256 or ES384, the token has alg "HS256"'
    result = check(token(headers={"kid": "theirs"}), jwks_url=issuer.url, algorithms=("ES256", "ES384"))
    assert_refused(result, line)


def test_a_set_without_a_usable_key_is_named(check: Check, issuer: Issuer) -> None:
    issuer.serve()
    line = f"{UNKNOWN} a key in the set of JWT_JWKS_URL, which has no usable one, the token has no kid"
    assert_refused(check(signed_by(key()), jwks_url=issuer.url), line)


def test_both_secrets_are_named(check: Check) -> None:
    line = "signature: expected one by JWT_SECRET or JWT_SECRET_PREVIOUS, the token has another"
    assert_refused(check(token(key=f"{SECRET}!"), previous_secret=SECRET * 2), f'{line}, with alg "HS256" and no kid')


@pytest.mark.parametrize("kind", ["public_key", "jwks_url"])
def test_a_signature_by_another_key_is_told(check: Check, issuer: Issuer, kind: str) -> None:
    signed = signed_by(key("P-256", "stranger"), "a")
    changes = {"public_key": pem(key())} if kind == "public_key" else {"jwks_url": issuer.url}
    name = "JWT_PUBLIC_KEY" if kind == "public_key" else "that key of JWT_JWKS_URL"
    result = check(signed, **changes)
    assert_refused(result, f'signature: expected one by {name}, the token has another, with alg "ES256" and kid "a"')
    assert signed.rpartition(".")[2] not in result.output


def test_a_key_set_that_cannot_be_fetched_decides_nothing(check: Check, issuer: Issuer) -> None:
    issuer.answer = body("", 500)
    result = check(signed_by(key()), jwks_url=issuer.url)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == "Error: the key set of JWT_JWKS_URL cannot be fetched"


def test_a_provider_that_takes_no_tokens_decides_nothing(make: Make, database: URL) -> None:
    app = make(database, identity_provider="development", jwt=None)
    result = app.test_cli_runner().invoke(args=["token", "check"], input=token())
    assert (result.exit_code, result.stdout) == (2, "")
    assert "IDENTITY_PROVIDER=development takes no tokens of this service" in result.stderr


@pytest.mark.parametrize(
    "arguments", [["mint", "check"], ["mint", "mint"], ["--", "check"], ["--minutes", "5", "check"]]
)
def test_a_user_may_be_called_like_a_command(make: Make, database: URL, arguments: list[str]) -> None:
    app: Flask = make(database)
    minted = app.test_cli_runner().invoke(args=["token", *arguments]).stdout
    claims = json.loads(app.test_cli_runner().invoke(args=["token", "check"], input=minted).stdout.split()[2][:-1])
    assert claims == arguments[-1]


def test_every_reason_is_documented_and_no_other() -> None:
    page = (ROOT / "docs/refused-tokens.md").read_text()
    first_cells = re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE)
    assert {reason for cell in first_cells for reason in re.findall("`(.*?)`", cell)} == set(Refusal)
