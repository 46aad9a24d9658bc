"""The identity provider for bearer tokens: verifies, and believes nothing before that (RFC 7519, RFC 8725)."""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from time import time
from typing import Any

import jwt
from flask import Request

from config import JwtSettings
from todo.errors import InvalidCredentials
from todo.identity.identity import Identity
from todo.identity.jwks import KeySet
from todo.identity.keys import VerificationKey, public_key, secret_key

LEEWAY = 30
#: How many verified tokens a worker remembers; the longest is 8 KiB.
REMEMBERED_TOKENS = 1024
#: The last second of the year 9999; a NumericDate (RFC 7519 section 2) beyond is no date.
LATEST = 253402300799
#: The `typ` of tokens that say who is calling: none, a plain JWT, an access token (RFC 9068 section 2.1).
TOKEN_TYPES = (None, "jwt", "at+jwt", "application/jwt", "application/at+jwt")

# The scheme is named in any letter case (RFC 9110 section 11.1); a token is three parts of base64url (RFC 7515).
_BEARER = re.compile(r"bearer +([\w-]+\.[\w-]+\.[\w-]+)", re.ASCII | re.IGNORECASE)

#: Header parameters that name a key, bring one along (RFC 7515 section 4.1), or ask for more than a plain signature.
REFUSED_PARAMETERS = ("jku", "jwk", "x5u", "x5c", "crit", "b64")

# Whatever PyJWT, json or a claim of an unexpected type can raise on a token that somebody made up.
_MALFORMED = (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, LookupError, RecursionError)


class JwtProvider:
    """Identities from `Authorization: Bearer` (RFC 6750 section 2.1); the token's `sub` is the user."""

    def __init__(self, settings: JwtSettings) -> None:
        """Raises ConfigurationError for a key that cannot be used."""
        self._find_key = _key_source(settings)
        self._issuer = settings.issuer
        self._audience = settings.audience
        self._required = ["exp", "sub"]
        if settings.issuer is not None:
            self._required.append("iss")
        if settings.audience is not None:
            self._required.append("aud")
        # A caller sends the same token until it expires, and a signature that held will hold: what is remembered is
        # that this very key signed it. Whether the key is still good, and the token alive, is asked each time.
        self._verified = lru_cache(REMEMBERED_TOKENS)(self._verify)

    def __call__(self, request: Request) -> Identity | None:
        """Who the token says is calling, or None without a token.

        Raises InvalidCredentials for a token that does not hold, Unavailable where the keys cannot be had, and
        InvalidIdentity for a subject that cannot be a user.
        """
        authorization = request.headers.get("Authorization", "")
        if not authorization.lower().startswith("bearer"):
            if "access_token" in request.args:
                # RFC 6750 section 2.3: in the query string, which every log on its way shows, it is not taken.
                raise InvalidCredentials
            # None, or of a scheme that is not ours: a bare challenge (RFC 6750 section 3.1).
            return None
        # Two Authorization headers arrive as one, joined by a comma, and match nothing.
        match = _BEARER.fullmatch(authorization)
        if match is None:
            raise InvalidCredentials
        try:
            identity = self._verified(match[1], self._find_key(match[1]))
        except _MALFORMED as error:
            raise InvalidCredentials from error
        if int(identity.claims["exp"]) <= time() - LEEWAY:
            raise InvalidCredentials
        return identity

    def _verify(self, token: str, key: VerificationKey) -> Identity:
        verified = jwt.decode_complete(
            token,
            key.key,
            algorithms=key.algorithms,
            audience=self._audience,
            issuer=self._issuer,
            leeway=LEEWAY,
            options={"require": self._required},
        )
        _check_header(verified["header"])
        claims: dict[str, Any] = verified["payload"]
        self._check_claims(claims)
        return Identity(claims["sub"], claims.get("email"), claims)

    def _check_claims(self, claims: Mapping[str, Any]) -> None:
        """What PyJWT lets pass: dates that are no numbers, and an audience where none is expected."""
        for name in ("exp", "nbf", "iat"):
            # bool is an int to Python.
            if name in claims and (type(claims[name]) not in (int, float) or not 0 <= claims[name] <= LATEST):
                raise ValueError(name)
        if self._audience is None and "aud" in claims:
            raise ValueError("aud")


def _key_source(settings: JwtSettings) -> Callable[[str], VerificationKey]:
    """What finds the key for a token."""
    if settings.jwks_url is not None:
        keys = KeySet(settings.jwks_url, settings.algorithms)

        def find_in_set(token: str) -> VerificationKey:
            header = jwt.get_unverified_header(token)
            # Before the set is asked: for a token of another kind nothing is fetched.
            _check_header(header)
            return keys.find(header.get("kid"))

        return find_in_set
    if settings.secret is not None:
        key = secret_key(settings.secret, settings.algorithms)
    else:
        key = public_key(settings.public_key or "", settings.algorithms)
    return lambda _token: key


def _check_header(header: Mapping[str, Any]) -> None:
    """Refuse tokens of another kind, and those that say themselves with what, or how, they are to be verified."""
    kind = header.get("typ")
    if (kind.lower() if isinstance(kind, str) else kind) not in TOKEN_TYPES:
        raise ValueError("typ")
    for name in REFUSED_PARAMETERS:
        if name in header:
            raise ValueError(name)
