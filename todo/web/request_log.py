"""One line in the log for each request, and an id that its answer and every line written meanwhile bear.

Must not say what a request was about: of what its sender wrote it repeats the id alone, where that is sane.
"""

import json
import logging
import re
from collections.abc import Callable
from contextvars import ContextVar
from secrets import token_hex
from time import perf_counter
from typing import Any

from flask import Flask, g, request

from todo.identity import known_identity

logger = logging.getLogger(__name__)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

#: UUIDs, base64 and what tracers make; two headers arrive joined by a comma.
_SANE_ID = re.compile("[A-Za-z0-9._:+/=-]{1,128}")

_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def init_app(app: Flask) -> None:
    """Name each request, answer with the name in X-Request-ID, and write of it at INFO."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(_name_request)
    on_answer(app, _log)
    answer = app.wsgi_app

    def named(environ: Any, start_response: Any) -> Any:
        request_id = environ.get("HTTP_X_REQUEST_ID")
        if request_id is None or not _SANE_ID.fullmatch(request_id):
            request_id = token_hex(16)
        outer = _request_id.set(request_id)

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            headers.append(("X-Request-ID", request_id))
            return start_response(status, headers, *rest)

        try:
            return answer(environ, start)
        finally:
            _request_id.reset(outer)

    app.wsgi_app = named  # type: ignore[method-assign]  # as Flask's documentation does


def on_answer(app: Flask, tell: Callable[[int, float], None]) -> None:
    """Tell of each answer, as it starts and the request is still at hand: its status, and the seconds until then."""
    answer = app.wsgi_app

    # Around the whole application, since whatever becomes of a request, its answer starts here.
    def observed(environ: Any, start_response: Any) -> Any:
        started = perf_counter()

        def start(status: str, *rest: Any) -> Any:
            tell(int(status[:3]), perf_counter() - started)
            return start_response(status, *rest)

        return answer(environ, start)

    app.wsgi_app = observed  # type: ignore[method-assign]  # as Flask's documentation does


def method_and_route() -> tuple[str, str | None]:
    """What the request at hand asks for: a method or "other", and the rule of its URL, None where there is none."""
    method = request.method
    rule = request.url_rule
    return method if method in METHODS else "other", None if rule is None else rule.rule


def _log(status: int, seconds: float) -> None:
    if not logger.isEnabledFor(logging.INFO):
        return
    milliseconds = seconds * 1000
    method, route = method_and_route()
    identity = known_identity()
    user_id = None if identity is None else identity.user_id
    # One of todo/errors.py's Refusal.
    refusal = g.get("refusal")
    logger.info(
        "%s %s %d %.1f ms %s%s",
        method,
        route or "-",
        status,
        milliseconds,
        # Quoted and in ASCII: a user id may hold spaces, line separators and what turns the direction of writing.
        "-" if user_id is None else json.dumps(user_id),
        "" if refusal is None else f" ({refusal})",
        extra={
            "method": method,
            "route": route,
            "status": status,
            "duration_ms": round(milliseconds, 3),
            "user_id": user_id,
        }
        | ({} if refusal is None else {"reason": str(refusal)}),
    )


def _name_request(record: logging.LogRecord) -> bool:
    """A filter that lets everything pass, and gives it the id of the request at hand."""
    if (request_id := _request_id.get()) is not None:
        record.request_id = request_id
    return True
