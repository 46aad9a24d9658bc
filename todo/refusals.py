"""The reasons of a 401, for the log (docs/refused-tokens.md)."""

from enum import StrEnum


class Refusal(StrEnum):
    """Why a request got a 401, for the log only. Contains no value from the request."""

    MISSING = "no token"
    MALFORMED = "malformed"
    TYPE = "token type"
    ALGORITHM = "algorithm"
    UNKNOWN_KEY = "unknown key"
    SIGNATURE = "signature"
    EXPIRED = "expired"
    NOT_YET_VALID = "not yet valid"
    ISSUER = "issuer"
    AUDIENCE_MISSING = "audience missing"
    AUDIENCE_WRONG = "audience wrong"
    AUDIENCE_UNEXPECTED = "audience unexpected"
    SUBJECT = "subject"
    METRICS = "metrics token"
    #: A custom provider returned no identity.
    NO_IDENTITY = "no identity"
    #: A custom provider refused the credentials without a reason.
    REFUSED_BY_PROVIDER = "refused by provider"
