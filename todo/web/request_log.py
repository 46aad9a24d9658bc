"""One log line for each request, and the request id. The answer and all log lines of a request have the id.

Must not log the content of a request. It repeats nothing that the sender wrote, except a well-formed request id.
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
from todo.web.app import route_of_request

logger = logging.getLogger(__name__)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

#: Matches UUIDs, base64 and the ids of tracers. Does not match two headers, which arrive joined by a comma.
_WELL_FORMED_ID = re.compile("[A-Za-z0-9._:+/=-]{1,128}")

Listener = Callable[[int, float], None]

_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def init_app(app: Flask) -> None:
    """Give each request an id, return it in X-Request-ID, and log each request at INFO."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(_add_request_id)
    listeners: list[Listener] = [_log]
    app.extensions["answer_listeners"] = listeners
    answer = app.wsgi_app

    # Wraps the whole application: the answer to every request, however it ends, starts here.
    def observed(environ: Any, start_response: Any) -> Any:
        started = perf_counter()
        request_id = environ.get("HTTP_X_REQUEST_ID")
        if request_id is None or not _WELL_FORMED_ID.fullmatch(request_id):
            request_id = token_hex(16)
        outer = _request_id.set(request_id)

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            seconds = perf_counter() - started
            for tell in listeners:
                tell(int(status[:3]), seconds)
            headers.append(("X-Request-ID", request_id))
            return start_response(status, headers, *rest)

        try:
            return answer(environ, start)
        finally:
            _request_id.reset(outer)

    app.wsgi_app = observed  # type: ignore[method-assign]  # as Flask's documentation does


def current_request_id() -> str | None:
    """Return the id of the current request: 1 to 128 of A-Z a-z 0-9 . _ : + / = -. None outside of a request."""
    return _request_id.get()


def on_answer(app: Flask, tell: Listener) -> None:
    """Call `tell` when an answer starts, within its request: with the status, and the seconds that it took."""
    listeners: list[Listener] = app.extensions["answer_listeners"]
    listeners.append(tell)


def method_and_route() -> tuple[str, str | None]:
    """Return the method of this request (one of METHODS, or "other"), and its URL rule, or None if no rule matches."""
    method = request.method
    return method if method in METHODS else "other", route_of_request()


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
        # Quoted and in ASCII: a user id may contain spaces, line separators and marks that reverse the text direction.
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


def _add_request_id(record: logging.LogRecord) -> bool:
    """Add the id of the current request to the record. A logging filter that drops nothing."""
    if (request_id := _request_id.get()) is not None:
        record.request_id = request_id
    return True
