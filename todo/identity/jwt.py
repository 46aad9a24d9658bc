"""The identity provider for bearer tokens: verifies, and believes nothing before that (RFC 7519, RFC 8725)."""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from time import time
from typing import Any

import jwt
from flask import Request
from jwt.exceptions import InvalidSubjectError

from config import JwtSettings
from todo.errors import InvalidCredentials, NotAuthenticated, Refusal
from todo.identity.identity import Identity, InvalidIdentity
from todo.identity.jwks import KeySet
from todo.identity.keys import (
    VerificationKey,
    asymmetric_algorithms,
    public_key,
    register_algorithms,
    secret_key,
)

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
_FAULTS = (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, LookupError, RecursionError)

#: What PyJWT's refusals mean; any other is a malformed token.
_REASONS: Mapping[type[Exception], Refusal] = {
    jwt.InvalidAlgorithmError: Refusal.ALGORITHM,
    jwt.InvalidSignatureError: Refusal.SIGNATURE,
    jwt.ExpiredSignatureError: Refusal.EXPIRED,
    jwt.ImmatureSignatureError: Refusal.NOT_YET_VALID,
    jwt.InvalidIssuerError: Refusal.ISSUER,
    jwt.InvalidAudienceError: Refusal.AUDIENCE_WRONG,
    InvalidSubjectError: Refusal.SUBJECT,
}
#: What the lack of a claim means; without exp a token is malformed.
_REASONS_MISSING: Mapping[str, Refusal] = {
    "sub": Refusal.SUBJECT,
    "iss": Refusal.ISSUER,
    "aud": Refusal.AUDIENCE_MISSING,
}


class JwtProvider:
    """Identities from `Authorization: Bearer` (RFC 6750 section 2.1); the token's `sub` is the user."""

    def __init__(self, settings: JwtSettings) -> None:
        """Raises ConfigurationError for a key that cannot be used."""
        register_algorithms()
        self.key_set: KeySet | None = None
        if settings.jwks_url is not None:
            self._algorithms = asymmetric_algorithms(settings.algorithms)
            self.key_set = KeySet(settings.jwks_url, settings.algorithms)
            self._find_key = _in_set(self.key_set, self._algorithms)
        else:
            key = (
                public_key(settings.public_key or "", settings.algorithms)
                if settings.secret is None
                else secret_key(settings.secret, settings.algorithms)
            )
            self._algorithms = key.algorithms
            self._find_key = lambda _token: key
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

    def __call__(self, request: Request) -> Identity:
        """Who the token says is calling.

        Raises NotAuthenticated without a token, InvalidCredentials for one that is not valid, and Unavailable where the
        keys cannot be fetched.
        """
        authorization = request.headers.get("Authorization", "")
        if not authorization.lower().startswith("bearer"):
            if "access_token" in request.args:
                # RFC 6750 section 2.3: in the query string, which every log on its way shows, it is not taken.
                raise InvalidCredentials(reason=Refusal.MISSING)
            # None, or of a scheme that is not ours: a bare challenge (RFC 6750 section 3.1).
            raise NotAuthenticated(reason=Refusal.MISSING)
        return self.identify(authorization)

    def identify(self, authorization: str) -> Identity:
        """The user of `Bearer TOKEN`. Raises InvalidCredentials or Unavailable."""
        # Two Authorization headers arrive as one, joined by a comma, and match nothing.
        match = _BEARER.fullmatch(authorization)
        if match is None:
            raise InvalidCredentials(reason=Refusal.MALFORMED)
        token = match[1]
        try:
            identity = self._verified(token, self._find_key(token))
        except InvalidIdentity as error:
            raise InvalidCredentials(reason=Refusal.SUBJECT) from error
        except _FAULTS as error:
            raise InvalidCredentials(reason=_reason(error)) from error
        if int(identity.claims["exp"]) <= time() - LEEWAY:
            raise InvalidCredentials(reason=Refusal.EXPIRED)
        return identity

    def algorithms_for(self, token: str) -> tuple[str, ...]:
        """What the `alg` of that token may be. Raises Unavailable."""
        try:
            return self._find_key(token).algorithms
        except InvalidCredentials:
            return self._algorithms

    def key_ids(self) -> list[str]:
        """The ids of the usable keys in the key set, where there is one."""
        return [] if self.key_set is None else self.key_set.ids()

    def _verify(self, token: str, key: VerificationKey) -> Identity:
        # First of all: what is no token for this service is called so, whoever signed it.
        _check_header(jwt.get_unverified_header(token))
        claims = jwt.decode(
            token,
            key.key,
            algorithms=key.algorithms,
            audience=self._audience,
            issuer=self._issuer,
            leeway=LEEWAY,
            # PyJWT lets an empty audience pass where none is expected.
            options={"require": self._required, "verify_aud": self._audience is not None},
        )
        for name in ("exp", "nbf", "iat"):
            # bool is an int to Python.
            if name in claims and (type(claims[name]) not in (int, float) or not 0 <= claims[name] <= LATEST):
                raise ValueError(f"{name} is not a date, in seconds since 1970")
        if self._audience is None and "aud" in claims:
            raise InvalidCredentials(reason=Refusal.AUDIENCE_UNEXPECTED)
        return Identity(claims["sub"], claims.get("email"), claims)


def _reason(error: Exception) -> Refusal:
    if isinstance(error, jwt.MissingRequiredClaimError):
        return _REASONS_MISSING.get(error.claim, Refusal.MALFORMED)
    return next((reason for kind, reason in _REASONS.items() if isinstance(error, kind)), Refusal.MALFORMED)


def _in_set(keys: KeySet, algorithms: tuple[str, ...]) -> Callable[[str], VerificationKey]:
    """What finds the key for a token in the set. For a token of another kind nothing is fetched."""

    def find(token: str) -> VerificationKey:
        header = jwt.get_unverified_header(token)
        _check_header(header)
        try:
            return keys.find(header.get("kid"))
        except InvalidCredentials as refusal:
            if header.get("alg") not in algorithms:
                # No key of the set could verify it: that says more than which one is unknown.
                raise InvalidCredentials(reason=Refusal.ALGORITHM) from refusal
            raise

    return find


def _check_header(header: Mapping[str, Any]) -> None:
    """Refuse tokens of another kind, and those that say themselves with what, or how, they are to be verified."""
    kind = header.get("typ")
    if (kind.lower() if isinstance(kind, str) else kind) not in TOKEN_TYPES:
        raise InvalidCredentials(reason=Refusal.TYPE)
    for name in REFUSED_PARAMETERS:
        if name in header:
            raise ValueError(f"{name} is not accepted in the header of a token")
