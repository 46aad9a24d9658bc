"""Who is calling. A provider answers, the hook asks before every request, and nothing behind it knows where from."""

from todo.identity.hook import current_identity, init_app, known_identity
from todo.identity.identity import Identity, InvalidIdentity, Provider

__all__ = ["Identity", "InvalidIdentity", "Provider", "current_identity", "init_app", "known_identity"]
