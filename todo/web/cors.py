"""Cross-origin requests from the front ends that CORS_ORIGINS names (WHATWG Fetch); does nothing without."""

import re

from flask import Flask
from flask_cors import CORS

from config import Settings

#: Those of the service, those that HTTP clients add, and those of tracers (W3C Trace Context, W3C Baggage, Sentry).
ALLOWED_HEADERS = (
    *("Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match", "X-Request-ID"),
    *("Cache-Control", "X-Requested-With"),
    *("traceparent", "tracestate", "baggage", "sentry-trace"),
)


def init_app(app: Flask, settings: Settings) -> None:
    """Answer preflights and mark answers, errors among them, for the listed origins alone."""
    if settings.cors_origins:
        CORS(
            app,
            # Patterns rather than names: compared exactly, and answered with `Vary: Origin`, be it only one.
            origins=[re.compile(re.escape(origin) + r"\Z") for origin in settings.cors_origins],
            # A name may hold what flask-cors takes for a pattern: `$`, `^`.
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
