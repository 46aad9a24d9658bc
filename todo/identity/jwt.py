"""The identity provider for bearer tokens: uses no claim before the token is verified (RFC 7519, RFC 8725)."""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from time import time
from typing import Any

import jwt
from flask import Request
from jwt.exceptions import InvalidSubjectError

from config import JwtSettings
from todo.errors import InvalidCredentials, NotAuthenticated
from todo.identity.identity import Identity, InvalidIdentity
from todo.identity.jwks import KeySet
from todo.identity.keys import (
    VerificationKey,
    asymmetric_algorithms,
    public_key,
    register_algorithms,
    secret_key,
)
from todo.refusals import Refusal

#: Seconds by which the clocks of issuer and service may differ.
LEEWAY = 30
#: How many verified tokens a worker caches; the longest is 8 KiB.
REMEMBERED_TOKENS = 1024
#: The last second of the year 9999, the largest NumericDate (RFC 7519 section 2) that is accepted.
LATEST = 253402300799
#: The `typ` of tokens that identify a caller: none, a plain JWT, an access token (RFC 9068 section 2.1).
TOKEN_TYPES = (None, "jwt", "at+jwt", "application/jwt", "application/at+jwt")

# The scheme has any letter case (RFC 9110 section 11.1); a token is three parts of base64url (RFC 7515).
_BEARER = re.compile(r"bearer +([\w-]+\.[\w-]+\.[\w-]+)", re.ASCII | re.IGNORECASE)

#: Header parameters that name or contain a key (RFC 7515 section 4.1), or ask for more than a plain signature.
REFUSED_PARAMETERS = ("jku", "jwk", "x5u", "x5c", "crit", "b64")

# What PyJWT, json and claims of unexpected types can raise for a forged token.
_FAULTS = (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, LookupError, RecursionError)

#: The reason for each exception of PyJWT; any other means a malformed token.
_REASONS: Mapping[type[Exception], Refusal] = {
    jwt.InvalidAlgorithmError: Refusal.ALGORITHM,
    jwt.InvalidSignatureError: Refusal.SIGNATURE,
    jwt.ExpiredSignatureError: Refusal.EXPIRED,
    jwt.ImmatureSignatureError: Refusal.NOT_YET_VALID,
    jwt.InvalidIssuerError: Refusal.ISSUER,
    jwt.InvalidAudienceError: Refusal.AUDIENCE_WRONG,
    InvalidSubjectError: Refusal.SUBJECT,
}
#: The reason for each missing claim; without exp a token is malformed.
_REASONS_MISSING: Mapping[str, Refusal] = {
    "sub": Refusal.SUBJECT,
    "iss": Refusal.ISSUER,
    "aud": Refusal.AUDIENCE_MISSING,
}


FindKey = Callable[[str], VerificationKey]
#: The token, and the key that did not sign it. Returns None if there is no other.
FindOtherKey = Callable[[str, VerificationKey], VerificationKey | None]


class JwtProvider:
    """Identifies callers by `Authorization: Bearer` (RFC 6750 section 2.1). The token's `sub` is the user."""

    def __init__(self, settings: JwtSettings) -> None:
        """Raises ConfigurationError if the key cannot be used. Fetches nothing."""
        register_algorithms()
        self.key_set: KeySet | None = None
        if settings.jwks_url is not None:
            self._algorithms = asymmetric_algorithms(settings.algorithms)
            self.key_set = KeySet(settings.jwks_url, settings.algorithms)
            self._find_key, self._find_other_key = _in_set(self.key_set, self._algorithms)
        else:
            key = (
                public_key(settings.public_key or "", settings.algorithms)
                if settings.secret is None
                else secret_key(settings.secret, settings.algorithms)
            )
            self._algorithms = key.algorithms
            previous = (
                None
                if settings.previous_secret is None
                else secret_key(settings.previous_secret, settings.algorithms, "JWT_SECRET_PREVIOUS")
            )
            self._find_key = lambda _token: key
            # While the secret is replaced.
            self._find_other_key = lambda _token, _key: previous
        self._issuer = settings.issuer
        self._audience = settings.audience
        self._required = ["exp", "sub"]
        if settings.issuer is not None:
            self._required.append("iss")
        if settings.audience is not None:
            self._required.append("aud")
        # A caller sends the same token until it expires, and a valid signature stays valid. A cache entry says that
        # this key signed this token. Whether the key is still in use, and the token unexpired, is checked each time.
        self._verified = lru_cache(REMEMBERED_TOKENS)(self._verify)

    def __call__(self, request: Request) -> Identity:
        """The caller that the request's token names.

        Raises NotAuthenticated without a token, InvalidCredentials if it is not valid, and Unavailable if the keys
        cannot be fetched.
        """
        authorization = request.headers.get("Authorization", "")
        if not authorization.lower().startswith("bearer"):
            if "access_token" in request.args:
                # RFC 6750 section 2.3: not accepted in the query string, which appears in logs on the way.
                raise InvalidCredentials(reason=Refusal.MISSING)
            # No credentials, or another scheme: the challenge has no error code (RFC 6750 section 3.1).
            raise NotAuthenticated(reason=Refusal.MISSING)
        return self.identify(authorization)

    def identify(self, authorization: str) -> Identity:
        """The caller that `Bearer TOKEN` names. Raises InvalidCredentials or Unavailable."""
        # Two Authorization headers arrive as one, joined by a comma, and do not match.
        match = _BEARER.fullmatch(authorization)
        if match is None:
            raise InvalidCredentials(reason=Refusal.MALFORMED)
        token = match[1]
        try:
            identity = self._identified(token)
        except InvalidIdentity as error:
            raise InvalidCredentials(reason=Refusal.SUBJECT) from error
        except _FAULTS as error:
            raise InvalidCredentials(reason=_reason(error)) from error
        if int(identity.claims["exp"]) <= time() - LEEWAY:
            raise InvalidCredentials(reason=Refusal.EXPIRED)
        return identity

    def _identified(self, token: str) -> Identity:
        key = self._find_key(token)
        try:
            identity = self._verified(token, key)
        except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError):
            other = self._find_other_key(token, key)
            if other is None:
                raise
            identity = self._verified(token, other)
        if self.key_set is not None:
            self.key_set.refresh_if_old()
        return identity

    def algorithms_for(self, token: str) -> tuple[str, ...]:
        """The algorithms that the `alg` of this token may name. Raises Unavailable."""
        try:
            return self._find_key(token).algorithms
        except InvalidCredentials:
            return self._algorithms

    def key_ids(self) -> list[str]:
        """The ids of the usable keys in the key set; none without a key set."""
        return [] if self.key_set is None else self.key_set.ids()

    def _verify(self, token: str, key: VerificationKey) -> Identity:
        # Check the type first: a token of another type gets that reason, even if its signature is invalid.
        _check_header(jwt.get_unverified_header(token))
        claims = jwt.decode(
            token,
            key.key,
            algorithms=key.algorithms,
            audience=self._audience,
            issuer=self._issuer,
            leeway=LEEWAY,
            # PyJWT accepts an empty audience if none is expected.
            options={"require": self._required, "verify_aud": self._audience is not None},
        )
        for name in ("exp", "nbf", "iat"):
            # Not isinstance(): bool is a subclass of int.
            if name in claims and (type(claims[name]) not in (int, float) or not 0 <= claims[name] <= LATEST):
                raise ValueError(f"{name} is not a date, in seconds since 1970")
        if self._audience is None and "aud" in claims:
            raise InvalidCredentials(reason=Refusal.AUDIENCE_UNEXPECTED)
        return Identity(claims["sub"], claims.get("email"), claims)


def _reason(error: Exception) -> Refusal:
    if isinstance(error, jwt.MissingRequiredClaimError):
        return _REASONS_MISSING.get(error.claim, Refusal.MALFORMED)
    return next((reason for kind, reason in _REASONS.items() if isinstance(error, kind)), Refusal.MALFORMED)


def _in_set(keys: KeySet, algorithms: tuple[str, ...]) -> tuple[FindKey, FindOtherKey]:
    """Functions that find a token's key in the set, and the one that has taken its place since.

    They fetch nothing for a token of another kind.
    """

    def find(token: str) -> VerificationKey:
        header = jwt.get_unverified_header(token)
        _check_header(header)
        try:
            return keys.find(header.get("kid"))
        except InvalidCredentials as refusal:
            if header.get("alg") not in algorithms:
                # With this alg no key of the set could verify the token: a better reason than the unknown id.
                raise InvalidCredentials(reason=Refusal.ALGORITHM) from refusal
            raise

    def find_other(token: str, key: VerificationKey) -> VerificationKey | None:
        header = jwt.get_unverified_header(token)
        # An issuer may restart with a new key under the old id, or without ids.
        return keys.find_newer(header.get("kid"), key) if header.get("alg") in algorithms else None

    return find, find_other


def _check_header(header: Mapping[str, Any]) -> None:
    """Refuse tokens of another kind, and those that say which key verifies them, or how."""
    kind = header.get("typ")
    if (kind.lower() if isinstance(kind, str) else kind) not in TOKEN_TYPES:
        raise InvalidCredentials(reason=Refusal.TYPE)
    for name in REFUSED_PARAMETERS:
        if name in header:
            raise ValueError(f"{name} is not accepted in the header of a token")
