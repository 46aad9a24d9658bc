"""What can go wrong, as plain exceptions. Knows no Flask and no status codes: todo/http.py turns these into answers.

A message is one sentence for the caller, fit to leave the service: nothing of the database, nobody else's data.
"""


class TodoError(Exception):
    """An expected failure; `message` is what the caller is told."""

    message = ""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.message)
        self.message = message or self.message


class InvalidInput(TodoError):
    """The request's query string, path or body is at fault; nothing was written."""


class NotAuthenticated(TodoError):
    """Nobody stands behind the request: it carries no credentials."""

    message = "Unauthorized"


class InvalidCredentials(NotAuthenticated):
    """The request carries credentials, and they do not hold."""


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


class Unavailable(TodoError):
    """Something outside the service is away; the same request may succeed in a while."""

    message = "Service unavailable"


class SchemaMissing(Unavailable):
    """The database answers, but its tables are not there."""

    message = "The database has no tables yet: run flask db upgrade"


class OwnershipViolated(Exception):
    """The query layer handed out a row of another owner: a fault of ours, which must never reach a client."""
