"""The rules for an idempotency key. Imports only marshmallow: knows no database and no HTTP."""

from marshmallow import fields, validate

KEY_LIMIT = 255

INVALID_KEY = f"Idempotency-Key must be 1 to {KEY_LIMIT} printable ASCII characters"


def idempotency_key_field() -> fields.String:
    """Return the field for the key of a create."""
    return fields.String(validate=validate.Regexp(rf"[\x20-\x7e]{{1,{KEY_LIMIT}}}\Z", error=INVALID_KEY))
