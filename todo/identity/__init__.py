"""Authentication: a provider identifies the caller, and a hook asks it before every request. Views see the Identity."""

from todo.identity.hook import current_identity, init_app, known_identity
from todo.identity.identity import Identity, InvalidIdentity, Provider

__all__ = ["Identity", "InvalidIdentity", "Provider", "current_identity", "init_app", "known_identity"]
