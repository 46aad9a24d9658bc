"""Cross-origin requests from the front ends in CORS_ORIGINS (WHATWG Fetch). Does nothing if that is not set."""

import re

from flask import Flask
from flask_cors import CORS

from config import Settings

#: Headers of the service, of HTTP clients, and of tracers (W3C Trace Context, W3C Baggage, Sentry).
ALLOWED_HEADERS = (
    *("Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match", "X-Request-ID"),
    *("Cache-Control", "X-Requested-With"),
    *("traceparent", "tracestate", "baggage", "sentry-trace"),
)


def init_app(app: Flask, settings: Settings) -> None:
    """Answer preflights, and add CORS headers to answers (also to errors), only for the listed origins."""
    if settings.cors_origins:
        CORS(
            app,
            # Patterns, not names: flask-cors compares these exactly, and adds `Vary: Origin` even for a single one.
            origins=[re.compile(re.escape(origin) + r"\Z") for origin in settings.cors_origins],
            # A name may contain `$` or `^`, which flask-cors would read as a pattern.
            allow_headers=[
                re.compile(re.escape(name) + r"\Z", re.IGNORECASE)
                for name in (*ALLOWED_HEADERS, *settings.cors_headers)
            ],
            supports_credentials=True,
            always_send=False,
            expose_headers=[
                *["ETag", "Idempotency-Replayed", "Link", "Location"],
                *["RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset", "Retry-After", "X-Request-ID"],
            ],
            max_age=600,
        )
