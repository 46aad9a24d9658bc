"""The Flask class of this service: JSON responses, security headers, and every failure as `{"error": …}`."""

import logging
import traceback
from collections.abc import Callable, Mapping
from typing import Any, cast

import flask
import msgspec
from flask import Flask, g, jsonify, request
from flask.json.provider import DefaultJSONProvider
from werkzeug.exceptions import BadHost, ClientDisconnected, HTTPException
from werkzeug.routing import BaseConverter
from werkzeug.routing.exceptions import WebsocketMismatch

from todo.errors import InternalError, NotAuthenticated, OwnershipViolated, TodoError
from todo.web.statuses import by_status

logger = logging.getLogger(__name__)

#: The name of RowIdConverter in paths, and the path of a change feed below that of the rows.
ROW_ID, FEED = "row_id", "changes"
#: Bytes of a request body.
BODY_LIMIT = 1024 * 1024
#: Characters of an error message. It may quote names that the caller sent, up to 1 MiB of them.
MESSAGE_LIMIT = 2000
#: How many errors of a chain of causes are logged.
LONGEST_CHAIN = 10

#: The headers that the OWASP REST Security Cheat Sheet asks for: no MIME sniffing, no cross-origin reads without CORS,
#: nothing loaded, framed or stored unless the response allows it. Strict-Transport-Security is the task of the proxy
#: that terminates TLS.
SECURITY_HEADERS = [
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
]
NOTHING_LOADED = [("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")]
NOT_STORED = [("Cache-Control", "no-store")]

#: Messages for the bad requests that Werkzeug finds before any view runs.
BAD_REQUESTS: Mapping[type[HTTPException], str] = {
    BadHost: "Invalid Host header",
    ClientDisconnected: "Request body is shorter than its Content-Length",
    WebsocketMismatch: "WebSocket is not supported",
}
#: Statuses whose message in errors.py is too specific for a failure that Werkzeug raises.
SPECIFIC = frozenset({409, 412, 422, 429})


class Response(flask.Response):
    """Flask's response with the security headers. Adding them here costs a tenth of an after_request hook."""

    def get_wsgi_response(self, environ: Any) -> Any:
        """Return body, status and headers for the server."""
        body, status, headers = super().get_wsgi_response(environ)
        present = {name.lower() for name, _ in headers}
        headers = headers + SECURITY_HEADERS
        if "content-security-policy" not in present:
            headers += NOTHING_LOADED
        if "cache-control" not in present:
            headers += NOT_STORED
        return body, status, headers


class JsonProvider(DefaultJSONProvider):
    """Flask's JSON provider with msgspec as the encoder: it encodes row structs, and is much faster."""

    sort_keys = False

    def response(self, *args: Any, **kwargs: Any) -> Response:
        """Return the response of jsonify()."""
        value = self._prepare_response_obj(args, kwargs)
        try:
            body = msgspec.json.encode(value) + b"\n"
        except UnicodeEncodeError:
            # The message names a lone surrogate, which UTF-8 cannot express. The standard library escapes it.
            return cast(Response, super().response(*args, **kwargs))
        return Response(body, mimetype="application/json")


class RowIdConverter(BaseConverter):
    """An id in a path: anything but the name of the change feed, whose other methods would else match here."""

    part_isolating = True
    regex = f"(?!{FEED}$)[^/]+"


class App(Flask):
    """Flask with this service's JSON and responses, for views that are not async."""

    json_provider_class = JsonProvider
    response_class = Response

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function as it is. Flask would check for async once per decorator and call."""
        return func


def init_app(app: Flask) -> None:
    """Answer every failure in JSON. Accept each path with or without a trailing slash."""
    app.config["MAX_CONTENT_LENGTH"] = BODY_LIMIT
    app.url_map.converters[ROW_ID] = RowIdConverter
    app.url_map.strict_slashes = False
    # Else Flask redirects paths with double slashes, in HTML. Browsers refuse redirects of preflighted calls.
    app.url_map.merge_slashes = False
    app.register_error_handler(TodoError, answer_failure)
    app.register_error_handler(Exception, _answer_fault)


def translate(app: Flask, kinds: tuple[type[Exception], ...], as_failure: Callable[[Exception], TodoError]) -> None:
    """Answer exceptions of these kinds with the failure that as_failure() returns for them."""
    for kind in kinds:
        app.register_error_handler(kind, lambda error: answer_failure(as_failure(error), error))


def route_of_request() -> str | None:
    """Return the URL rule of this request, without its converters, or None if no rule matches."""
    rule = request.url_rule
    return None if rule is None else rule.rule.replace(f"<{ROW_ID}:", "<")


def answer_failure(failure: TodoError, error: BaseException | None = None) -> Response:
    """Return the response for a failure, and log what the operator must know.

    error: the exception that the failure stands for, if it is not the failure's `__cause__`.
    """
    cause = error or failure.__cause__
    if isinstance(failure, NotAuthenticated):
        # For the request's line in the log (todo/web/request_log.py).
        g.refusal = failure.reason
    if isinstance(failure, OwnershipViolated):
        _log(logging.CRITICAL, f"OWNERSHIP VIOLATED: {failure.detail}")
    elif failure.status == InternalError.status:
        _log(logging.ERROR, f"{failure.detail}\n{_trace(cause)}")
    elif failure.status == 503:
        # Only the class of the cause: the message of an identity provider may quote the token.
        _log(logging.WARNING, failure.detail or failure.message + (f" ({type(cause).__name__})" if cause else ""))
    message = failure.message
    return error_response(
        failure.status, message if len(message) <= MESSAGE_LIMIT else f"{message[:MESSAGE_LIMIT]}…", failure.headers
    )


def answer_http_exception(error: HTTPException) -> Response:
    """Return the response for a failure that Werkzeug or Flask raised, with its headers, for example Allow."""
    status = error.code or InternalError.status
    headers = {name: value for name, value in error.get_headers() if name != "Content-Type"}
    failure = None if status in SPECIFIC else by_status().get(status)
    message = BAD_REQUESTS.get(type(error)) or (failure.message if failure else error.name)
    return error_response(status, message, {**(failure.headers if failure else {}), **headers})


def error_response(status: int, message: str, headers: Mapping[str, str]) -> Response:
    """Return the response of an error: `{"error": message}` with the status and the headers."""
    response = cast(Response, jsonify(error=message))
    response.status_code = status
    response.headers.update(headers)
    return response


def _answer_fault(error: Exception) -> Response:
    return answer_failure(InternalError(detail=type(error).__name__), error)


def _log(level: int, message: str) -> None:
    logger.log(level, "%s %s: %s", request.method, route_of_request(), message)


def _trace(error: BaseException | None) -> str:
    """Return where an error and its causes were raised: lines of code, without messages.

    A message may quote what the user wrote, and an identity provider's may quote the token.
    """
    steps: list[str] = []
    while error is not None and len(steps) < LONGEST_CHAIN:
        steps.append(f"{''.join(traceback.format_tb(error.__traceback__))}{type(error).__name__}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\nrose from\n".join(steps)
