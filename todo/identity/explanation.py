"""Why a token is refused, for the operator who has it: what was expected, and what the token has.

Verifies nothing. Not for the log, because it quotes claims of the token; it never quotes the signature.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from time import time
from typing import Any

import jwt

from config import JwtSettings
from todo.errors import InvalidCredentials
from todo.identity.jwt import LATEST, LEEWAY, JwtProvider
from todo.refusals import Refusal

#: How many characters of a value are shown, and how many key ids.
LONGEST_VALUE, MOST_IDS = 200, 10

#: The header parameters, or the claims, that each reason is about.
_HEADER = {Refusal.TYPE: ["typ"], Refusal.ALGORITHM: ["alg"], Refusal.UNKNOWN_KEY: ["kid"]}
_HEADER |= {Refusal.SIGNATURE: ["alg", "kid"]}
_CLAIMS = {Refusal.EXPIRED: ["exp"], Refusal.NOT_YET_VALID: ["nbf", "iat"], Refusal.ISSUER: ["iss"]}
_CLAIMS |= {Refusal.AUDIENCE_MISSING: ["aud"], Refusal.AUDIENCE_WRONG: ["aud"], Refusal.AUDIENCE_UNEXPECTED: ["aud"]}
_CLAIMS |= {Refusal.SUBJECT: ["sub"]}
_DATES = ("exp", "nbf", "iat")


def explain(refusal: InvalidCredentials, token: str, settings: JwtSettings, provider: JwtProvider) -> str:
    """The reason, what was expected and what the token has, in one line of ASCII. May raise Unavailable."""
    reason = refusal.reason
    if reason is Refusal.MISSING:
        return f"{reason}: there is nothing to check"
    if reason is Refusal.MALFORMED:
        fault = refusal.__cause__ or "a token is three parts of base64url with dots between, in one line"
        return f"{reason}: {ascii(str(fault))[1:-1][:LONGEST_VALUE]}"
    if reason in _HEADER:
        names, members = _HEADER[reason], jwt.get_unverified_header(token)
    else:
        names, members = _CLAIMS[reason], jwt.decode(token, options={"verify_signature": False})
    found = " and ".join(_member(name, members) for name in names)
    if reason is Refusal.SIGNATURE:
        found = f"another, with {found}"
    return f"{reason}: expected {_expected(reason, token, settings, provider)}, the token has {found}"


def instant(seconds: float) -> str:
    """A NumericDate (RFC 7519 section 2) in the format of RFC 3339."""
    return f"{datetime.fromtimestamp(int(seconds), UTC):%Y-%m-%dT%H:%M:%SZ}"


def quoted(value: object) -> str:
    """A value of the token as JSON in ASCII, cut off if it is long."""
    text = json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _member(name: str, members: dict[str, Any]) -> str:
    if name not in members:
        return f"no {name}"
    value = members[name]
    if name in _DATES and type(value) in (int, float) and 0 <= value <= LATEST:
        return f"{name} {value} ({instant(value)})"
    return f"{name} {quoted(value)}"


def _expected(reason: Refusal, token: str, settings: JwtSettings, provider: JwtProvider) -> str:
    audience = f"aud {quoted(settings.audience)} (JWT_AUDIENCE)"
    expectations: dict[Refusal, Callable[[], str]] = {
        Refusal.TYPE: lambda: "typ JWT, at+jwt or none",
        Refusal.ALGORITHM: lambda: f"alg {' or '.join(provider.algorithms_for(token))}",
        Refusal.UNKNOWN_KEY: lambda: _expected_id(provider),
        Refusal.SIGNATURE: lambda: f"one by {_signer(settings)}",
        Refusal.EXPIRED: lambda: f"exp after {instant(time() - LEEWAY)}",
        Refusal.NOT_YET_VALID: lambda: f"nbf and iat up to {instant(time() + LEEWAY)}",
        Refusal.ISSUER: lambda: f"iss {quoted(settings.issuer)} (JWT_ISSUER)",
        Refusal.AUDIENCE_MISSING: lambda: audience,
        Refusal.AUDIENCE_WRONG: lambda: audience,
        Refusal.AUDIENCE_UNEXPECTED: lambda: "no aud, since JWT_AUDIENCE is not set",
        Refusal.SUBJECT: lambda: "a sub of 1 to 255 characters, no '/', no control characters, not . or ..",
    }
    return expectations[reason]()


def _expected_id(provider: JwtProvider) -> str:
    ids = provider.key_ids()
    if not ids:
        return "a key in the set of JWT_JWKS_URL, which has no usable one"
    shown = " or ".join(map(quoted, ids[:MOST_IDS]))
    return f"kid {shown}{' or another' if len(ids) > MOST_IDS else ''} (JWT_JWKS_URL)"


def _signer(settings: JwtSettings) -> str:
    if settings.jwks_url is not None:
        return "that key of JWT_JWKS_URL"
    if settings.secret is None:
        return "JWT_PUBLIC_KEY"
    return "JWT_SECRET" if settings.previous_secret is None else "JWT_SECRET or JWT_SECRET_PREVIOUS"
