"""HTTP for the whole service: JSON in, JSON out, and every failure as `{"error": …}`. Knows no resource.

The parser, Blueprint and Api here are flask-smorest's with the contract's habits; a feature uses them as they are.
"""

import json
import logging
import traceback
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import wraps
from typing import Any, NoReturn, TypeVar, cast
from urllib.parse import parse_qsl

import flask
import flask_smorest
import msgspec
from flask import Flask, Request, g, jsonify, request, url_for
from flask.json.provider import DefaultJSONProvider
from marshmallow import Schema, ValidationError, fields
from webargs.core import is_json
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import BadHost, ClientDisconnected, HTTPException, LengthRequired, UnsupportedMediaType
from werkzeug.routing.exceptions import WebsocketMismatch

from todo.db.failures import DATABASE_ERRORS, describe, is_outage
from todo.errors import (
    Conflict,
    DatabaseUnfit,
    InvalidCredentials,
    InvalidInput,
    KeyReused,
    NotAsExpected,
    NotAuthenticated,
    NotFound,
    NotOwner,
    OwnershipViolated,
    SearchTooSlow,
    TodoError,
    TooManyAtOnce,
    TooManyRequests,
    Unavailable,
)
from todo.web.conditions import expected_of, revalidated
from todo.web.openapi import SchemaPlugin
from todo.web.schemas import Output

logger = logging.getLogger(__name__)

BODY_LIMIT = 1024 * 1024
MESSAGE_LIMIT = 2000
#: How many errors, each of which rose from the next, are written of.
LONGEST_CHAIN = 10
RETRY_AFTER = {"Retry-After": "1"}

View = TypeVar("View", bound=Callable[..., Any])

#: The answer to each expected failure: its status, and the headers that HTTP asks for beside it (RFC 6750 section 3
#: for the challenge).
FAILURES: Mapping[type[TodoError], tuple[int, Mapping[str, str]]] = {
    InvalidInput: (400, {}),
    NotAuthenticated: (401, {"WWW-Authenticate": "Bearer"}),
    InvalidCredentials: (401, {"WWW-Authenticate": 'Bearer error="invalid_token"'}),
    NotOwner: (403, {}),
    NotFound: (404, {}),
    Conflict: (409, {}),
    NotAsExpected: (412, {}),
    KeyReused: (422, {}),
    # Its headers are those of every limited answer (todo/web/rate_limits.py).
    TooManyRequests: (429, {}),
    TooManyAtOnce: (429, RETRY_AFTER),
    SearchTooSlow: (422, {}),
    Unavailable: (503, RETRY_AFTER),
}

#: What keeps a browser from making anything of an answer but JSON for the script that asked (OWASP REST Security Cheat
#: Sheet): no guessing at types, no reading across origins without CORS. And nothing is to be loaded or framed, and
#: nothing kept, unless the answer says so itself. Strict-Transport-Security belongs to whoever ends TLS.
SECURITY_HEADERS = [
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
]
NOTHING_LOADED = [("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")]
NOT_KEPT = [("Cache-Control", "no-store")]

#: What is said of a failure that Werkzeug found, by status.
MESSAGES: Mapping[int, str] = {
    400: "Bad request",
    401: NotAuthenticated.message,
    403: NotOwner.message,
    404: "Unknown route",
    405: "Method not allowed",
    411: "Content-Length is required: a chunked body is not accepted",
    413: "Request body must be 1 MiB or less",
    415: "Content-Type must be application/json",
    500: "Internal server error",
    503: Unavailable.message,
}

#: What is said of a bad request that Werkzeug found before any view.
BAD_REQUESTS: Mapping[type[HTTPException], str] = {
    BadHost: "Invalid Host header",
    ClientDisconnected: "Request body is shorter than its Content-Length",
    WebsocketMismatch: "WebSocket is not spoken here",
}


class Response(flask.Response):
    """Flask's, with SECURITY_HEADERS: put there at the very end, where it costs a tenth of what after_request does."""

    def get_wsgi_response(self, environ: Any) -> Any:
        """What the server is given: body, status and headers."""
        body, status, headers = super().get_wsgi_response(environ)
        said = {name.lower() for name, _ in headers}
        headers = headers + SECURITY_HEADERS
        if "content-security-policy" not in said:
            headers += NOTHING_LOADED
        if "cache-control" not in said:
            headers += NOT_KEPT
        return body, status, headers


class JsonProvider(DefaultJSONProvider):
    """Flask's JSON, but that msgspec writes the answers, rows among them, at a fraction of the cost."""

    sort_keys = False

    def response(self, *args: Any, **kwargs: Any) -> Response:
        """What jsonify returns."""
        value = self._prepare_response_obj(args, kwargs)
        try:
            body = msgspec.json.encode(value) + b"\n"
        except UnicodeEncodeError:
            # An error that names what UTF-8 cannot express: the standard library escapes it.
            return cast(Response, super().response(*args, **kwargs))
        return Response(body, mimetype="application/json")


class App(Flask):
    """Flask for views that are ordinary functions, with this service's JSON."""

    json_provider_class = JsonProvider
    response_class = Response

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """The function as it is: Flask would look whether it is async, once for each decorator of each call."""
        return func


def init_app(app: Flask) -> None:
    """Answer every failure in JSON, and accept both spellings of a path, with and without the trailing slash."""
    app.config["MAX_CONTENT_LENGTH"] = BODY_LIMIT
    app.url_map.strict_slashes = False
    # A redirect to single slashes would be HTML, and browsers refuse redirects on preflighted calls.
    app.url_map.merge_slashes = False
    app.register_error_handler(TodoError, answer_failure)
    for kind in DATABASE_ERRORS:
        app.register_error_handler(kind, _answer_database_error)
    app.register_error_handler(OwnershipViolated, _answer_violation)
    app.register_error_handler(Exception, _answer_fault)


def next_link(endpoint: str, user_id: str, query: Mapping[str, Any], cursor: str | None) -> dict[str, str]:
    """The `Link` header to the next page (RFC 8288) under the same query; none where there is no cursor.

    Relative to the origin: nothing of it comes from the Host header.
    """
    if cursor is None:
        return {}
    return {"Link": f'<{url_for(endpoint, **{**query, "user_id": user_id, "cursor": cursor})}>; rel="next"'}


def replayed(is_replayed: bool) -> dict[str, str]:
    """The header that tells a repeated answer from the first."""
    return {"Idempotency-Replayed": "true"} if is_replayed else {}


def _error(status: int, message: str, headers: Mapping[str, str]) -> Response:
    response = cast(Response, jsonify(error=message))
    response.status_code = status
    response.headers.update(headers)
    return response


def _sentence(message: str) -> str:
    # It names what the caller sent, which may be a mebibyte of names.
    return message if len(message) <= MESSAGE_LIMIT else f"{message[:MESSAGE_LIMIT]}…"


def answer_failure(failure: TodoError) -> Response:
    """The answer to an expected failure."""
    status, headers = next(FAILURES[kind] for kind in type(failure).mro() if kind in FAILURES)
    if isinstance(failure, NotAuthenticated):
        # For the request's line in the log.
        g.refusal = failure.reason
    if isinstance(failure, DatabaseUnfit):
        logger.warning("%s %s: %s", request.method, request.url_rule, failure.detail)
    elif status == 503:
        # Of the cause the class alone: an identity provider's message may quote the token.
        cause = f" ({type(failure.__cause__).__name__})" if failure.__cause__ else ""
        logger.warning("%s %s: %s%s", request.method, request.url_rule, failure.message, cause)
    return _error(status, _sentence(failure.message), headers)


def _answer_database_error(error: Exception) -> Response:
    if is_outage(error):
        logger.warning("%s %s: %s", request.method, request.url_rule, describe(error))
        return _error(503, MESSAGES[503], RETRY_AFTER)
    logger.error("%s %s: %s\n%s", request.method, request.url_rule, describe(error), _trace(error))
    return _error(500, MESSAGES[500], {})


def _answer_violation(violation: OwnershipViolated) -> Response:
    logger.critical("%s %s: OWNERSHIP VIOLATED: %s", request.method, request.url_rule, violation)
    return _error(500, MESSAGES[500], {})


def _answer_fault(error: Exception) -> Response:
    logger.error("%s %s: %s\n%s", request.method, request.url_rule, type(error).__name__, _trace(error))
    return _error(500, MESSAGES[500], {})


def _trace(error: BaseException) -> str:
    """Where an error rose, and where those that it rose from: each line of the code, and none of the messages.

    They quote what the user wrote, and an identity provider's may quote the token.
    """
    steps: list[str] = []
    step: BaseException | None = error
    while step is not None and len(steps) < LONGEST_CHAIN:
        steps.append(f"{''.join(traceback.format_tb(step.__traceback__))}{type(step).__name__}")
        step = step.__cause__ or (None if step.__suppress_context__ else step.__context__)
    return "\nrose from\n".join(steps)


class ApiErrorSchema(Output):
    """The body of every error. Its name is not Error, since that would hide JavaScript's own in generated clients."""

    error = fields.String(required=True, metadata={"description": "One sentence on what went wrong."})


def error_response(description: str, example: str) -> dict[str, Any]:
    """What flask-smorest's alt_response takes to document an error."""
    return {"description": description, "schema": ApiErrorSchema, "example": {"error": example}}


def header(description: str, example: str, *, required: bool = True) -> dict[str, Any]:
    """An OpenAPI header object, of a header that every such answer bears where it is required."""
    return {"description": description, "required": required, "schema": {"type": "string"}, "example": example}


#: What a header of a request may hold that names entity tags. The example is one of the schema, since documentation in
#: the browser fills the parameter's own in, and sends it.
ENTITY_TAGS = {"schema": {"type": "string", "examples": ['"1-1"']}}
ETAG = {"ETag": header("The entity tag, for `If-Match` and `If-None-Match` (RFC 9110 section 8.8.3).", '"1-1"')}

#: The errors of the OpenAPI document, by status: name, description, example and headers of the component.
ERROR_RESPONSES: Mapping[int, tuple[str, str, str, Mapping[str, Any]]] = {
    400: ("BadRequest", "The request is at fault; nothing was written.", "Title is required", {}),
    401: (
        "Unauthorized",
        "No identity, or one that does not hold.",
        MESSAGES[401],
        {"WWW-Authenticate": header("The challenge of RFC 6750.", "Bearer")},
    ),
    403: ("Forbidden", "The path's user is not the one who asks.", MESSAGES[403], {}),
    409: (
        "Conflict",
        "The user has as much as is allowed, or has such a thing already; nothing was written.",
        "A user may have 1000 tasks at most: delete some first",
        {},
    ),
    411: ("LengthRequired", "The body is chunked.", MESSAGES[411], {}),
    412: ("PreconditionFailed", "It is there, but not as `If-Match` expects.", NotAsExpected.message, {}),
    413: ("ContentTooLarge", "The body is larger than 1 MiB.", MESSAGES[413], {}),
    415: ("UnsupportedMediaType", "The body is not declared as JSON.", MESSAGES[415], {}),
    422: (
        "UnprocessableContent",
        "The request is well-formed, but the key was used for another one, or the search takes too long.",
        KeyReused.message,
        {},
    ),
    429: (
        "TooManyRequests",
        "More requests, or slow ones at once, than one caller may have. `RateLimit-…`: where they are counted.",
        TooManyRequests.message,
        {
            "Retry-After": header("Seconds to wait before the next try.", "30"),
            "RateLimit-Limit": header("Requests that a window of time allows.", "600", required=False),
            "RateLimit-Remaining": header("Requests that are left in this window.", "0", required=False),
            "RateLimit-Reset": header("Seconds until the next window begins.", "30", required=False),
        },
    ),
    500: ("InternalServerError", "A fault of the service.", MESSAGES[500], {}),
    503: (
        "ServiceUnavailable",
        "Something outside the service is away. A write may have been carried out all the same.",
        MESSAGES[503],
        {"Retry-After": header("Seconds to wait before the next try.", RETRY_AFTER["Retry-After"])},
    ),
}


class Api(flask_smorest.Api):
    """flask-smorest's Api with this service's errors: their body, their headers, and their place in the document."""

    ERROR_SCHEMA = ApiErrorSchema
    # Each call documents what it really gives.
    DEFAULT_ERROR_RESPONSE_NAME = None

    def init_app(self, app: Flask, *, spec_kwargs: Mapping[str, Any] | None = None) -> None:
        """As flask-smorest's, with the bearer scheme and the error responses in the document."""
        super().init_app(app, spec_kwargs={"marshmallow_plugin": SchemaPlugin(), **(spec_kwargs or {})})
        self.spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"})
        for name, description, example, headers in ERROR_RESPONSES.values():
            content = {"application/json": {"schema": ApiErrorSchema, "example": {"error": example}}}
            self.spec.components.response(name, {"description": description, "content": content, "headers": headers})
        # Of flask-smorest's pagination, which this service does not use.
        del self.spec.components.schemas["PaginationMetadata"]

    def _openapi_json(self) -> Response:
        # flask-smorest's, with the path that the service is mounted at: WSGI says it with each request.
        document = {**self.spec.to_dict(), "servers": [{"url": request.script_root or "/"}]}
        return Response(flask.json.dumps(document, indent=2, sort_keys=False), mimetype="application/json")

    def handle_http_exception(self, error: HTTPException) -> Response:
        """The answer to a failure that Werkzeug or Flask found, with the headers that belong to it (Allow, say)."""
        status = error.code or 500
        headers = {name: value for name, value in error.get_headers() if name != "Content-Type"}
        if status == 401:
            headers.setdefault("WWW-Authenticate", "Bearer")
        if status == 503:
            headers |= RETRY_AFTER
        return _error(status, BAD_REQUESTS.get(type(error)) or MESSAGES.get(status, error.name), headers)


api = Api()


class Parser(FlaskParser):
    """Reads bodies and query strings, strictly, and says in one sentence what is wrong with them."""

    DEFAULT_VALIDATION_STATUS = 400
    # Each schema decides for itself.
    DEFAULT_UNKNOWN_BY_LOCATION: dict[str, str | None] = {}  # noqa: RUF012

    def parse(self, argmap: Any, req: Request | None = None, *, location: str | None = None, **options: Any) -> Any:
        """As webargs' parse; where the schema's body is optional and absent, {} without a look at the schema."""
        if location == "json" and getattr(argmap, "is_body_optional", False) and not _read_body(req or request):
            return {}
        return super().parse(argmap, req, location=location, **options)

    def load_json(self, req: Request, schema: Schema) -> dict[str, Any]:
        """The body, a JSON object in UTF-8 (RFC 8259). Raises InvalidInput, or HTTPException for 411, 413 and 415."""
        body = _read_body(req)
        if not body:
            raise InvalidInput("Request body is required")
        if not is_json(req.mimetype):
            raise UnsupportedMediaType
        value = _load(body)
        if not isinstance(value, dict):
            raise InvalidInput("Request body must be a JSON object")
        return value

    def load_querystring(self, req: Request, schema: Schema) -> dict[str, str]:
        """The query parameters. Raises InvalidInput for one that is given twice, or is not UTF-8."""
        try:
            pairs = parse_qsl(req.query_string.decode(), keep_blank_values=True, errors="strict")
        except UnicodeDecodeError as error:
            raise InvalidInput("Query string must be UTF-8") from error
        return _unique(pairs, "Query parameter given twice: {}")

    def handle_error(self, error: ValidationError, req: Request, schema: Schema, **_: Any) -> NoReturn:
        """Raise InvalidInput with the messages of the schema, an Input (todo/web/schemas.py)."""
        # webargs puts them under their location.
        (messages,) = cast("dict[str, list[str]]", error.messages).values()
        raise InvalidInput("; ".join(messages)) from error


def _read_body(req: Request) -> bytes:
    if "Transfer-Encoding" in req.headers:
        # How long a chunked body is, and whether all of it came, shows too late to trust.
        raise LengthRequired
    if not req.content_length and req.environ.get("SERVER_PROTOCOL", "").startswith("HTTP/1"):
        # Without either header there is no body (RFC 9112 section 6.3); HTTP/2 may send one all the same.
        return b""
    body = req.get_data()
    if len(body) != (req.content_length or 0):
        # The client went away in the middle; what came may be valid JSON all the same.
        raise InvalidInput("Request body is shorter than its Content-Length")
    return body


def _load(body: bytes) -> Any:
    try:
        return json.loads(
            body.decode(),
            object_pairs_hook=lambda pairs: _unique(pairs, "Key given twice: {}"),
            parse_constant=_refuse_constant,
        )
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput("Request body is not valid JSON") from error
    except ValueError as error:
        # Python's bound on the digits of an integer.
        raise InvalidInput("Request body has a number that is too long") from error
    except RecursionError as error:
        raise InvalidInput("Request body is nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]], message: str) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for name, value in pairs:
        if name in unique:
            raise InvalidInput(message.format(name))
        unique[name] = value
    return unique


def _refuse_constant(name: str) -> NoReturn:
    # NaN and Infinity, which Python reads and JSON does not know.
    raise InvalidInput("Request body is not valid JSON")


class Blueprint(flask_smorest.Blueprint):
    """flask-smorest's Blueprint with this service's parser, and decorators that cost a request only what they do."""

    ARGUMENTS_PARSER = Parser()

    @staticmethod
    def doc(**documented: Any) -> Callable[[View], View]:
        """As flask-smorest's."""
        return _unwrapped(flask_smorest.Blueprint.doc(**documented))

    def alt_response(self, *args: Any, **options: Any) -> Callable[[View], View]:
        """As flask-smorest's."""
        return _unwrapped(super().alt_response(*args, **options))

    def path_argument(self, name: str, field: fields.Field[Any]) -> Callable[[View], View]:
        """Hand the view an argument of its path as the field loads it; the route documents it. Raises InvalidInput."""

        def decorate(view: View) -> View:
            @wraps(view)
            def with_argument(*args: Any, **arguments: Any) -> Any:
                arguments[name] = _load_value(field, arguments[name])
                return view(*args, **arguments)

            return cast(View, with_argument)

        return decorate

    def header_argument(
        self, name: str, field: fields.Field[Any], argument: str, documented: Mapping[str, Any]
    ) -> Callable[[View], View]:
        """Hand the view a header as the field loads it, None where there is none. Raises InvalidInput."""

        def decorate(view: View) -> View:
            @wraps(view)
            def with_header(*args: Any, **arguments: Any) -> Any:
                value = request.headers.get(name)
                arguments[argument] = None if value is None else _load_value(field, value)
                return view(*args, **arguments)

            _document_header(with_header, name, documented)
            return cast(View, with_header)

        return decorate

    def no_query(self, schema: Schema) -> Callable[[View], View]:
        """Refuse query parameters in the words of the schema, which has no fields."""

        def decorate(view: View) -> View:
            @wraps(view)
            def without_query(*args: Any, **arguments: Any) -> Any:
                if request.query_string:
                    self.ARGUMENTS_PARSER.parse(schema, location="query")
                return view(*args, **arguments)

            return cast(View, without_query)

        return decorate

    def conditional_get(self, view: View) -> View:
        """Answer 304 where If-None-Match names the answer's entity tag (todo/web/conditions.py)."""

        @wraps(view)
        def with_condition(*args: Any, **arguments: Any) -> Any:
            return revalidated(view(*args, **arguments))

        description = "Entity tags that the caller has: 304 where one still holds."
        _document_header(with_condition, "If-None-Match", {"description": description, **ENTITY_TAGS})
        not_modified = self.alt_response(304, description="What the caller has still holds.", headers=ETAG)
        return not_modified(cast(View, with_condition))

    def conditional_change(self, row_id: str) -> Callable[[View], View]:
        """Hand the view, as `expected`, what the request expects of the row whose id is that argument of the path."""

        def decorate(view: View) -> View:
            @wraps(view)
            def with_condition(*args: Any, **arguments: Any) -> Any:
                return view(*args, expected=expected_of(arguments[row_id]), **arguments)

            description = "Entity tags, one of which must still hold: 412 otherwise."
            _document_header(with_condition, "If-Match", {"description": description, **ENTITY_TAGS})
            return self.fails_with(412)(cast(View, with_condition))

        return decorate

    def fails_with(self, *statuses: int) -> Callable[[View], View]:
        """Document the errors that a view can give. Purely documentation: errors themselves rise as exceptions."""

        def decorate(view: View) -> View:
            for status in reversed(statuses):
                view = self.alt_response(status, ERROR_RESPONSES[status][0])(view)
            return view

        return decorate


def _load_value(field: fields.Field[Any], value: str) -> Any:
    """What the field makes of the value. Raises InvalidInput in its words."""
    try:
        return field.deserialize(value)
    except ValidationError as error:
        raise InvalidInput(error.messages[0]) from error


def _document_header(view: Any, name: str, documented: Mapping[str, Any]) -> None:
    """Document a header that the view's request may bear, as flask-smorest keeps what it documents."""
    view._apidoc = deepcopy(getattr(view, "_apidoc", {}))
    parameter = {"in": "header", "name": name, **documented}
    view._apidoc.setdefault("arguments", {}).setdefault("parameters", []).append(parameter)


def _unwrapped(decorate: Callable[[Any], Any]) -> Callable[[View], View]:
    """A decorator of flask-smorest's that only documents, without the wrapper that it leaves around each view."""

    def document(view: View) -> View:
        view._apidoc = decorate(view)._apidoc  # type: ignore[attr-defined]
        return view

    return document
