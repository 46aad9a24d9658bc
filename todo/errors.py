"""Every failure that a caller is told of: its status, message and headers, and what the OpenAPI document says of it.

The only list of failures. A message is one sentence that may leave the service: it names no database object and nobody
else's rows. Imports nothing of the package.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import ClassVar


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
    #: A custom provider returned no identity.
    NO_IDENTITY = "no identity"
    #: A custom provider refused the credentials without a reason.
    REFUSED_BY_PROVIDER = "refused by provider"


class TodoError(Exception):
    """A failure that ends the request. `message` is for the caller, `detail` for the log alone.

    A subclass that sets `component` describes its status in the OpenAPI document.
    """

    status: ClassVar[int]
    #: Headers that HTTP requires beside the status.
    headers: ClassVar[Mapping[str, str]] = {}
    #: In the OpenAPI document: the name, what it means, an example of the message if not `message` itself, and the
    #: headers, each with whether every such response has it.
    component: ClassVar[str] = ""
    description: ClassVar[str] = ""
    example: ClassVar[str] = ""
    documented_headers: ClassVar[Mapping[str, bool]] = {}

    message = ""

    def __init__(self, message: str | None = None, *, detail: str | None = None) -> None:
        super().__init__(message or self.message)
        self.message = message or self.message
        self.detail: str | None = detail


class InvalidInput(TodoError):
    """The query string, path, headers or body of the request is invalid; nothing was written."""

    status = 400
    message = "Bad request"
    component = "BadRequest"
    description = "The request is at fault; nothing was written."
    example = "Title is required"


class NotAuthenticated(TodoError):
    """The request has no credentials. The caller is told `Unauthorized` alone; `reason` is for the log."""

    status = 401
    message = "Unauthorized"
    # RFC 6750 section 3.
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}
    component = "Unauthorized"
    description = "No identity, or one that does not hold."
    documented_headers: ClassVar[Mapping[str, bool]] = {"WWW-Authenticate": True}
    reason = Refusal.NO_IDENTITY

    def __init__(self, message: str | None = None, *, reason: Refusal | None = None) -> None:
        super().__init__(message)
        self.reason = Refusal(self.reason if reason is None else reason)


class InvalidCredentials(NotAuthenticated):
    """The request has credentials, and they are not valid."""

    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
    reason = Refusal.REFUSED_BY_PROVIDER


class NotOwner(TodoError):
    """The path names another user than the caller, whether or not that user exists."""

    status = 403
    message = "Forbidden"
    component = "Forbidden"
    description = "The path's user is not the one who asks."


class NotFound(TodoError):
    """The resource does not exist, or belongs to another user: the two must look alike."""

    status = 404
    message = "Unknown route"


class TaskNotFound(NotFound):
    """The user has no task of that id."""

    message = "Task not found"
    description = "The user has no task of that id."


class MethodNotAllowed(TodoError):
    """The route does not take that method."""

    status = 405
    message = "Method not allowed"


class Conflict(TodoError):
    """The request conflicts with what the user already has; nothing was written, and the user can resolve it."""

    status = 409
    component = "Conflict"
    description = "The user has as much as is allowed, or has such a thing already; nothing was written."
    example = "A user may have 1000 tasks at most: delete some first"


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


class LengthRequired(TodoError):
    """The body is chunked: its length, and whether all of it arrived, is known too late."""

    status = 411
    message = "Content-Length is required: a chunked body is not accepted"
    component = "LengthRequired"
    description = "The body is chunked."


class NotAsExpected(TodoError):
    """The resource exists, but is not in the version that the change was meant for; nothing was changed."""

    status = 412
    message = "Precondition failed: the resource has been changed since, get it again"
    component = "PreconditionFailed"
    description = "It is there, but not as `If-Match` expects."


class ContentTooLarge(TodoError):
    """The body is larger than the limit (todo/web/app.py)."""

    status = 413
    message = "Request body must be 1 MiB or less"
    component = "ContentTooLarge"
    description = "The body is larger than 1 MiB."


class UnsupportedMediaType(TodoError):
    """The body is not declared as JSON."""

    status = 415
    message = "Content-Type must be application/json"
    component = "UnsupportedMediaType"
    description = "The body is not declared as JSON."


class KeyReused(TodoError):
    """The idempotency key was used before, for another request; nothing was written."""

    status = 422
    message = "Idempotency-Key was used before, for another request"
    component = "UnprocessableContent"
    description = "The request is well-formed, but the key was used for another one, or the search takes too long."


class SearchTooSlow(TodoError):
    """The search took longer than a search may. A narrower search may succeed, the same one will not."""

    status = 422
    message = "The search takes too long: narrow it by status, or search for something else"
    description = "The search took too long."


class TooManyRequests(TodoError):
    """The caller sent more requests than RATE_LIMIT allows. todo/web/rate_limits.py adds the headers."""

    status = 429
    message = "Too many requests"
    component = "TooManyRequests"
    description = (
        "More requests, or slow ones at once, than one caller may have. `RateLimit-…`: where they are counted."
    )
    documented_headers: ClassVar[Mapping[str, bool]] = {
        "Retry-After": True,
        "RateLimit-Limit": False,
        "RateLimit-Remaining": False,
        "RateLimit-Reset": False,
    }


class TooManyAtOnce(TooManyRequests):
    """The caller's slow requests take as many of the service's threads as one caller may take."""

    message = "Too many slow requests at once: wait for those that are running"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}


class InternalError(TodoError):
    """A fault of the service. The caller learns nothing of it; the log has `detail` and where it happened."""

    status = 500
    message = "Internal server error"
    component = "InternalServerError"
    description = "A fault of the service."


class OwnershipViolated(InternalError):
    """A query returned a row of another owner, which must never reach a client."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail=detail)


class Unavailable(TodoError):
    """Something outside the service is unavailable; the same request may succeed later."""

    status = 503
    message = "Service unavailable"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}
    component = "ServiceUnavailable"
    description = "Something outside the service is away. A write may have been carried out all the same."
    documented_headers: ClassVar[Mapping[str, bool]] = {"Retry-After": True}


class DatabaseUnfit(Unavailable):
    """The database lacks something that the service needs. `detail` names it, and the command that adds it."""

    def __init__(self, message: str, detail: str) -> None:
        super().__init__(message)
        self.detail: str = detail


def by_status() -> Mapping[int, type[TodoError]]:
    """The failure that stands for each status: the first one of it."""
    found: dict[int, type[TodoError]] = {}
    for failure in _subclasses(TodoError):
        found.setdefault(failure.status, failure)
    return found


def _subclasses(failure: type[TodoError]) -> Iterator[type[TodoError]]:
    for kind in failure.__subclasses__():
        yield kind
        yield from _subclasses(kind)
