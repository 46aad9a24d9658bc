"""A key set as its issuer publishes it (RFC 7517): the usable keys, and why others are left out. Fetches nothing."""

import json
import logging
from collections.abc import Mapping
from typing import NamedTuple

from todo.identity.keys import UnusableKey, VerificationKey, jwk_key

logger = logging.getLogger(__name__)

#: How many unusable keys the log names, and how many characters of each id.
MOST_NAMED, LONGEST_ID = 20, 100


class NotAKeySet(ValueError):
    """The response is not a key set. The message quotes nothing of it."""


class PublishedKeys(NamedTuple):
    """The usable keys by id, their JWKs, and the name and fault of each key that is left out."""

    keys: Mapping[str | int, VerificationKey]
    contents: frozenset[str]
    left_out: tuple[tuple[str, str], ...]

    def log(self) -> None:
        """Log which keys are left out, and why."""
        for name, fault in self.left_out[:MOST_NAMED]:
            logger.info("JWT_JWKS_URL: the key %s of the set is left out: %s", name, fault)
        if len(self.left_out) > MOST_NAMED:
            logger.info("JWT_JWKS_URL: %d more keys of the set are left out", len(self.left_out) - MOST_NAMED)
        if not self.keys:
            logger.warning("JWT_JWKS_URL: the key set has no usable key: every token is refused")


def read_key_set(text: bytes, algorithms: tuple[str, ...]) -> PublishedKeys:
    """Read the set. Raises ValueError, TypeError, KeyError or RecursionError if it is none."""
    jwks = json.loads(text)["keys"]
    if not isinstance(jwks, list):
        raise NotAKeySet("its keys are not an array")
    keys: dict[str | int, VerificationKey] = {}
    contents: set[str] = set()
    left_out: list[tuple[str, str]] = []
    for place, jwk in enumerate(jwks):
        kid = jwk.get("kid") if isinstance(jwk, dict) else None
        name = json.dumps(kid[:LONGEST_ID]) if isinstance(kid, str) else f"number {place + 1}, without an id"
        try:
            key = jwk_key(jwk, algorithms)
        except UnusableKey as error:
            left_out.append((name, str(error)))
            continue
        # A key without an id can be the only key of a set, but not be found by an id: its position replaces it.
        key_id = kid if isinstance(kid, str) else place
        if key_id in keys:
            left_out.append((name, "a later key of the set has the same id"))
        keys[key_id] = key
        contents.add(json.dumps(jwk, sort_keys=True))
    return PublishedKeys(keys, frozenset(contents), tuple(left_out))
