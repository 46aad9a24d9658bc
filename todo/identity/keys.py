"""Verification keys, each with the algorithms that it may be used with. Fetches nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from config import ALGORITHM_FAMILIES, ConfigurationError

SMALLEST_RSA_KEY = 2048
#: The algorithms that fit each kind of asymmetric key. EdDSA has two names for each curve: the one of RFC 8037, and the
#: one of the curve (RFC 9864).
_ALGORITHMS: Mapping[str, tuple[str, ...]] = {
    "RSA": ALGORITHM_FAMILIES["RSA"],
    "secp256r1": ("ES256",),
    "secp384r1": ("ES384",),
    "secp521r1": ("ES512",),
    "Ed25519": ("EdDSA", "Ed25519"),
    "Ed448": ("EdDSA", "Ed448"),
}


class UnusableKey(Exception):
    """A key of a key set cannot be used. The message says why, and quotes nothing of the key."""


@dataclass(frozen=True, slots=True, eq=False)
class VerificationKey:
    """A key and the algorithms that it may be used with, all of one family (RFC 8725 section 3.1)."""

    key: Any
    algorithms: tuple[str, ...]


def register_algorithms() -> None:
    """Register the algorithm names of RFC 9864 with PyJWT, if it lacks them."""
    for name in ("Ed25519", "Ed448"):
        try:
            jwt.get_algorithm_by_name(name)
        except NotImplementedError:
            jwt.register_algorithm(name, jwt.get_algorithm_by_name("EdDSA"))


def asymmetric_algorithms(algorithms: tuple[str, ...]) -> tuple[str, ...]:
    """Return every `alg` that a token may have with a key set. algorithms: if not empty, only these."""
    return tuple(dict.fromkeys(name for names in _ALGORITHMS.values() for name in _narrowed(names, algorithms)))


def secret_key(secret: str, algorithms: tuple[str, ...], name: str = "JWT_SECRET") -> VerificationKey:
    """Return the key of a secret, for the algorithms or else HS256. name: of its variable.

    Raises ConfigurationError if it is no secret.
    """
    # Python represents bytes of the environment that are not UTF-8 as surrogates.
    key = secret.encode(errors="surrogateescape")
    try:
        jwt.get_algorithm_by_name("HS256").prepare_key(key)
    except jwt.InvalidKeyError as error:
        raise ConfigurationError(f"{name} is a key of another kind, or a certificate: it is no secret") from error
    return VerificationKey(key, algorithms or ("HS256",))


def public_key(pem: str, algorithms: tuple[str, ...]) -> VerificationKey:
    """Return the key of JWT_PUBLIC_KEY, for those algorithms that fit. Raises ConfigurationError if none fits."""
    try:
        # Some tools cannot put line ends into a variable; there they are written as \n.
        key = load_pem_public_key(pem.replace("\\n", "\n").encode())
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError("JWT_PUBLIC_KEY is not a public key in PEM") from error
    fitting = _narrowed(_ALGORITHMS.get(_kind(key), ()), algorithms)
    if not fitting:
        raise ConfigurationError("JWT_PUBLIC_KEY is of no kind that JWT_ALGORITHMS, or this service, knows")
    return VerificationKey(key, fitting)


def jwk_key(jwk: object, algorithms: tuple[str, ...]) -> VerificationKey:
    """The key of a JWK (RFC 7517). Raises UnusableKey, also for a symmetric key: a key set is public."""
    try:
        return _jwk_key(jwk, algorithms)
    except UnusableKey:
        raise
    except Exception as error:  # Any error of the libraries: the other keys must stay usable.
        raise UnusableKey("it is malformed, or its curve is not known") from error


def _jwk_key(jwk: Any, algorithms: tuple[str, ...]) -> VerificationKey:
    if jwk.get("use", "sig") != "sig":
        raise UnusableKey("its use is not sig")
    if "verify" not in jwk.get("key_ops", ["verify"]):
        raise UnusableKey("its key_ops do not have verify")
    family = {"RSA": "RS256", "EC": None, "OKP": "EdDSA"}
    if jwk.get("kty") not in family:
        raise UnusableKey("its kty is not RSA, EC or OKP")
    # Without the alg: PyJWT does not know every name. It needs one for Ed448.
    key = jwt.PyJWK({name: value for name, value in jwk.items() if name != "alg"}, family[jwk["kty"]]).key
    fitting = _ALGORITHMS.get(_kind(key))
    if fitting is None:
        raise UnusableKey("it is a private key, an RSA key below 2048 bits, or on a curve that is not accepted")
    named = jwk.get("alg")
    if named is not None and named not in fitting:
        raise UnusableKey("its alg is not one for such a key")
    if named is not None and _kind(key) == "RSA":
        fitting = (named,)
    fitting = _narrowed(fitting, algorithms)
    if not fitting:
        raise UnusableKey("JWT_ALGORITHMS does not name its algorithm")
    return VerificationKey(key, fitting)


def _narrowed(names: tuple[str, ...], algorithms: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names that are among the algorithms, or all if that is empty. The two names of EdDSA count as one."""
    if "EdDSA" in names:
        return names if not algorithms or set(names) & set(algorithms) else ()
    return tuple(name for name in names if not algorithms or name in algorithms)


def _kind(key: object) -> str:
    """The kind in _ALGORITHMS, or another word for a weak, private or unknown key."""
    if isinstance(key, rsa.RSAPublicKey):
        return "RSA" if key.key_size >= SMALLEST_RSA_KEY else "weak"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.curve.name
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "Ed25519"
    return "Ed448" if isinstance(key, ed448.Ed448PublicKey) else "unknown"
