"""Idempotency keys: a create that is sent twice is carried out once (draft-ietf-httpapi-idempotency-key-header).

No feature of its own: shared by those that let things be created, like identity and ownership.
"""
