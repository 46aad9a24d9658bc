"""The identity provider for development: no authentication. Never use it with real data."""

from flask import Request

from todo.identity.identity import Identity


def identify_by_path(request: Request) -> Identity | None:
    """Return the user that the path names, unverified. Raises InvalidIdentity if that is not a valid user id."""
    user_id = (request.view_args or {}).get("user_id")
    return None if user_id is None else Identity(user_id)
