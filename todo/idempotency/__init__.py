"""Idempotency keys: a create that is sent twice runs once (draft-ietf-httpapi-idempotency-key-header).

Not a feature: features that create things share it, as they share identity and ownership.
"""
