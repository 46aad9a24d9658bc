"""Idempotency keys: a create that is sent twice is carried out once (draft-ietf-httpapi-idempotency-key-header)."""
