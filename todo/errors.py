"""The failures that a caller can get: status, message, headers, and description in the OpenAPI document.

The only list of failures. A message is one sentence that the caller sees. It must not name a database object, or a row
of another user.
"""

from collections.abc import Mapping
from math import ceil
from typing import ClassVar

from todo.refusals import Refusal


class TodoError(Exception):
    """A failure that ends the request. `message` is for the caller, `detail` only for the log.

    A subclass that sets `component` describes its status in the OpenAPI document.
    """

    status: ClassVar[int]
    #: Headers that HTTP requires with this status.
    headers: Mapping[str, str] = {}
    #: For the OpenAPI document: the name of the component, its description, an example of the message (empty:
    #: `message`), and the headers that only some of the responses have, each with an example.
    component: ClassVar[str] = ""
    description: ClassVar[str] = ""
    example: ClassVar[str] = ""
    extra_headers: Mapping[str, str] = {}

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
    description = "The path, query, headers or body of the request is invalid. Nothing was written."
    example = "Title is required"


class NotAuthenticated(TodoError):
    """The request has no credentials. The caller sees only `Unauthorized`; `reason` is for the log."""

    status = 401
    message = "Unauthorized"
    # RFC 6750 section 3.
    headers: Mapping[str, str] = {"WWW-Authenticate": "Bearer"}
    component = "Unauthorized"
    description = "The request has no valid credentials."
    reason = Refusal.NO_IDENTITY

    def __init__(self, message: str | None = None, *, reason: Refusal | None = None) -> None:
        super().__init__(message)
        self.reason = Refusal(self.reason if reason is None else reason)


class InvalidCredentials(NotAuthenticated):
    """The request has credentials, and they are not valid."""

    headers: Mapping[str, str] = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
    reason = Refusal.REFUSED_BY_PROVIDER


class NotOwner(TodoError):
    """The user in the path is not the caller, whether or not that user exists."""

    status = 403
    message = "Forbidden"
    component = "Forbidden"
    description = "The user in the path is not the caller."


class NotFound(TodoError):
    """The resource does not exist, or belongs to another user. The two answers must be identical."""

    status = 404
    message = "Unknown route"


class TaskNotFound(NotFound):
    """The user has no task with this id."""

    message = "Task not found"
    description = "The user has no task with this id."


class MethodNotAllowed(TodoError):
    """The route does not have this method."""

    status = 405
    message = "Method not allowed"


class Conflict(TodoError):
    """The request conflicts with what the user already has. Nothing was written. The user can resolve the conflict."""

    status = 409
    component = "Conflict"
    description = "The user has reached a limit, or already has a row with the same unique value. Nothing was written."
    example = "A user may have 1000 tasks at most: delete some first"


class LimitReached(Conflict):
    """The user already has the most rows that a user may have. Nothing was written."""

    def __init__(self, limit: int | None, name: str) -> None:
        super().__init__(f"A user may have {limit} {name} at most: delete some first")


class KeyLimitReached(Conflict):
    """The user has used all idempotency keys that a user may use in a day. Nothing was written."""

    def __init__(self, limit: int | None) -> None:
        at_most = f"A user may use {limit} idempotency keys a day at most"
        super().__init__(f"{at_most}: send the request later, or without one")


class SyncTokenGone(TodoError):
    """The token of a sync is of a state from which the service can no longer tell what was deleted."""

    status = 410
    message = "Sync token is no longer valid: start again without it"
    component = "Gone"
    description = "The token in `since` is no longer valid: start the sync again without it."


class LengthRequired(TodoError):
    """The body is chunked. Its length is unknown, so the service cannot tell whether all of it has arrived."""

    status = 411
    message = "Content-Length is required: a chunked body is not accepted"
    component = "LengthRequired"
    description = "The body is chunked: it has no `Content-Length`."


class NotAsExpected(TodoError):
    """The resource exists, but its state is not one that the request expects. Nothing was changed."""

    status = 412
    message = "Precondition failed: the resource has been changed since, get it again"
    component = "PreconditionFailed"
    description = "The row exists, but `If-Match` does not name its current state. Nothing was changed."


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
    """The idempotency key was used before, for another request. Nothing was written."""

    status = 422
    message = "Idempotency-Key was used before, for another request"
    component = "UnprocessableContent"
    description = "The `Idempotency-Key` was used before, for another request. Nothing was written."


class SearchTooSlow(TodoError):
    """The search exceeded its time limit. A narrower search may succeed, the same one will not."""

    status = 422
    message = "The search takes too long: narrow it by status, or search for something else"
    description = "The search took too long. A narrower search may succeed."


class TooManyRequests(TodoError):
    """The caller sent more requests than RATE_LIMIT allows. todo/web/rate_limits.py knows how long to wait."""

    status = 429
    message = "Too many requests"
    headers: Mapping[str, str] = {"Retry-After": "1"}
    component = "TooManyRequests"
    description = (
        "The caller sent too many requests, or too many slow ones at once. The `RateLimit-…` headers are present if "
        "the service has a rate limit."
    )
    extra_headers: Mapping[str, str] = {"RateLimit-Limit": "600", "RateLimit-Remaining": "0", "RateLimit-Reset": "30"}


class TooManyAtOnce(TooManyRequests):
    """The caller's slow requests already hold, or have held, the most threads that one caller may hold.

    seconds: when the next one may run at the earliest.
    """

    message = "Too many slow requests at once: wait for those that are running"

    def __init__(self, seconds: float, message: str | None = None) -> None:
        super().__init__(message)
        self.headers = {"Retry-After": str(max(1, ceil(seconds)))}


class InternalError(TodoError):
    """A fault in the service. The caller gets no details. The log has `detail`, and where it happened."""

    status = 500
    message = "Internal server error"
    component = "InternalServerError"
    description = "A fault in the service. Its log has the details."


class OwnershipViolated(InternalError):
    """A query returned a row of another user, which must never reach a client."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail=detail)


class Unavailable(TodoError):
    """Something outside the service is unavailable; the same request may succeed later."""

    status = 503
    message = "Service unavailable"
    headers: Mapping[str, str] = {"Retry-After": "1"}
    component = "ServiceUnavailable"
    description = "The database, or another service, is unavailable. A write may still have been carried out."


class DatabaseUnfit(Unavailable):
    """The database lacks something that the service needs. `detail` names it, and the command that adds it."""
