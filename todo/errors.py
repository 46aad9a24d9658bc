"""What can go wrong, as plain exceptions. Knows no Flask and no status codes: todo/web/app.py turns these into answers.

A message is one sentence for the caller, fit to leave the service: nothing of the database, nobody else's data.
"""

from enum import StrEnum


class Refusal(StrEnum):
    """Why a request is a 401, for the log alone (docs/refused-tokens.md): never a value of the request."""

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
    #: A provider of one's own names nobody.
    NO_IDENTITY = "no identity"
    #: A provider of one's own refuses the credentials, and says no more.
    REFUSED_BY_PROVIDER = "refused by provider"


class TodoError(Exception):
    """An expected failure; `message` is what the caller is told."""

    message = ""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.message)
        self.message = message or self.message


class InvalidInput(TodoError):
    """The request's query string, path or body is at fault; nothing was written."""


class NotAuthenticated(TodoError):
    """The request has no credentials. Its reason is for the log; the caller is told `Unauthorized` alone."""

    message = "Unauthorized"
    reason = Refusal.NO_IDENTITY

    def __init__(self, message: str | None = None, *, reason: Refusal | None = None) -> None:
        super().__init__(message)
        self.reason = Refusal(self.reason if reason is None else reason)


class InvalidCredentials(NotAuthenticated):
    """The request has credentials, and they are not valid."""

    reason = Refusal.REFUSED_BY_PROVIDER


class NotOwner(TodoError):
    """The path names another user than the one who asks, whether or not that user exists."""

    message = "Forbidden"


class NotFound(TodoError):
    """The resource does not exist, or belongs to somebody else: the two must look alike."""


class TaskNotFound(NotFound):
    """The user has no task of that id."""

    message = "Task not found"


class NotAsExpected(TodoError):
    """The resource is there, but in another version than the change was meant for; nothing was changed."""

    message = "Precondition failed: the resource has been changed since, get it again"


class Conflict(TodoError):
    """The request is in conflict with what the user already has; nothing was written, and the user can resolve it."""


class LimitReached(Conflict):
    """The user has as many rows of that name as a user may have; nothing was written."""

    def __init__(self, limit: int | None, name: str) -> None:
        super().__init__(f"A user may have {limit} {name} at most: delete some first")


class KeyLimitReached(Conflict):
    """The user has used as many idempotency keys as a user may use in a day; nothing was written."""

    def __init__(self, limit: int | None) -> None:
        super().__init__(
            f"A user may use {limit} idempotency keys a day at most: send the request later, or without one"
        )


class KeyReused(TodoError):
    """The idempotency key was used before, for something else; nothing was written."""

    message = "Idempotency-Key was used before, for another request"


class TooManyRequests(TodoError):
    """The caller has asked more often than RATE_LIMIT allows; nothing else of the request was looked at."""

    message = "Too many requests"


class TooManyAtOnce(TooManyRequests):
    """The caller's slow requests hold as many of the service's places as one caller may; nothing was looked at."""

    message = "Too many slow requests at once: wait for those that are running"


class SearchTooSlow(TodoError):
    """The search took longer than one may: the same search would do so again, a narrower one may not."""

    message = "The search takes too long: narrow it by status, or search for something else"


class Unavailable(TodoError):
    """Something outside the service is away; the same request may succeed in a while."""

    message = "Service unavailable"


class DatabaseUnfit(Unavailable):
    """The database lacks what the service needs. `detail`, for the log alone, names it and the way back."""

    def __init__(self, message: str, detail: str) -> None:
        super().__init__(message)
        self.detail = detail


class OwnershipViolated(Exception):
    """The query layer handed out a row of another owner: a fault of ours, which must never reach a client."""
