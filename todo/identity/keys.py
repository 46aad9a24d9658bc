"""What a signature is verified with: a key, and the algorithms that it may be used with. Fetches nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from config import ALGORITHM_FAMILIES, ConfigurationError

SMALLEST_RSA_KEY = 2048
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


@dataclass(frozen=True, slots=True, eq=False)
class VerificationKey:
    """A key and the algorithms that may be used with it, never of two families (RFC 8725 section 3.1)."""

    key: Any
    algorithms: tuple[str, ...]


def secret_key(secret: str, algorithms: tuple[str, ...]) -> VerificationKey:
    """The key of JWT_SECRET: for HS256, unless algorithms says otherwise. Raises ConfigurationError."""
    # Bytes of the environment that are not UTF-8 stand as surrogates in the string.
    key = secret.encode(errors="surrogateescape")
    try:
        jwt.get_algorithm_by_name("HS256").prepare_key(key)
    except jwt.InvalidKeyError as error:
        raise ConfigurationError("JWT_SECRET is a key of another kind, or a certificate: it is no secret") from error
    return VerificationKey(key, algorithms or ("HS256",))


def public_key(pem: str, algorithms: tuple[str, ...]) -> VerificationKey:
    """The key of JWT_PUBLIC_KEY. Raises ConfigurationError."""
    try:
        # Where a variable cannot hold line ends they are written as \n.
        key = load_pem_public_key(pem.replace("\\n", "\n").encode())
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError("JWT_PUBLIC_KEY is not a public key in PEM") from error
    fitting = _fitting(key, algorithms)
    if not fitting:
        raise ConfigurationError("JWT_PUBLIC_KEY is of no kind that JWT_ALGORITHMS, or this service, knows")
    return VerificationKey(key, fitting)


def jwk_key(jwk: Mapping[str, Any], algorithms: tuple[str, ...]) -> VerificationKey | None:
    """The key of a JWK (RFC 7517), or None for one that is not for verifying or not understood.

    A symmetric key is never taken: a key set is public.
    """
    try:
        if jwk.get("use", "sig") != "sig" or "verify" not in jwk.get("key_ops", ["verify"]):
            return None
        key = jwt.PyJWK(dict(jwk)).key
        named = jwk.get("alg")
    except Exception:  # noqa: BLE001 (whatever a malformed key makes the libraries raise, the others must serve)
        return None
    fitting = tuple(name for name in _fitting(key, algorithms) if named in (None, name))
    return VerificationKey(key, fitting) if fitting else None


def _fitting(key: object, algorithms: tuple[str, ...]) -> tuple[str, ...]:
    """The algorithms that fit the key, narrowed to those given; none for a key that is weak, private or unknown."""
    fitting: tuple[str, ...] = ()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= SMALLEST_RSA_KEY:
        fitting = ALGORITHM_FAMILIES["RSA"]
    elif isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        fitting = (_CURVES[key.curve.name],)
    elif isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        fitting = ALGORITHM_FAMILIES["EdDSA"]
    return tuple(name for name in fitting if not algorithms or name in algorithms)
