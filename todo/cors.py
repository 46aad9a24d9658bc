"""Cross-origin requests from the front ends that CORS_ORIGINS names (WHATWG Fetch); does nothing without."""

import re

from flask import Flask
from flask_cors import CORS

from config import Settings


def init_app(app: Flask, settings: Settings) -> None:
    """Answer preflights and mark answers, errors among them, for the listed origins alone."""
    if settings.cors_origins:
        CORS(
            app,
            # Patterns rather than names: compared exactly, and answered with `Vary: Origin`, be it only one.
            origins=[re.compile(re.escape(origin) + r"\Z") for origin in settings.cors_origins],
            supports_credentials=True,
            always_send=False,
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match"],
            expose_headers=[
                *["ETag", "Idempotency-Replayed", "Link", "Location"],
                *["RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset", "Retry-After", "X-Request-ID"],
            ],
            max_age=600,
        )
