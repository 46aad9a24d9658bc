"""The hook before every request: identifies the caller, and checks that the path is the caller's. Uses no database."""

import logging
from collections.abc import Callable, Collection
from importlib import import_module
from operator import attrgetter
from typing import cast

from flask import Flask, Request, g, request
from werkzeug.exceptions import Unauthorized

from config import DEVELOPMENT, JWT, ConfigurationError, Settings, kind_and_place
from todo.errors import InvalidCredentials, NotAuthenticated, NotOwner, Unavailable
from todo.identity.development import identify_by_path
from todo.identity.identity import Identity, InvalidIdentity, Provider
from todo.identity.jwks import KeySet
from todo.identity.jwt import JwtProvider
from todo.refusals import Refusal

logger = logging.getLogger(__name__)


def init_app(
    app: Flask, settings: Settings, *, public: Collection[str], on_identified: Callable[[str], None]
) -> KeySet | None:
    """Ask the configured provider before every request, except to the public endpoints (Flask's names of them).

    on_identified is called with the user id, once the path is known to be that user's. Returns the key set, if tokens
    are verified with one. Raises ConfigurationError if the provider cannot be loaded, or its settings are not usable.
    """
    provider = _provider(settings)
    key_set = provider.key_set if isinstance(provider, JwtProvider) else None
    # gunicorn.conf.py calls this in each new worker: a key set that cannot be fetched is logged before the first token.
    app.extensions["fetch_keys"] = key_set.fetch_early if key_set is not None else lambda: None

    def authenticate() -> None:
        # The request itself: each look at the proxy costs six calls.
        current: Request = request._get_current_object()  # type: ignore[attr-defined]
        endpoint = current.endpoint
        # An unknown route has no endpoint, and a preflight has no credentials. Neither answer depends on a user.
        if endpoint is None or endpoint in public or current.method == "OPTIONS":
            return
        identity = g.identity = _identify(provider, current)
        # Removed from the view's arguments: from here on only the identity says who the owner is.
        owner = (current.view_args or {}).pop("user_id", identity.user_id)
        if owner != identity.user_id:
            raise NotOwner
        on_identified(identity.user_id)

    app.before_request(authenticate)
    return key_set


def current_identity() -> Identity:
    """The caller of this request. Raises AttributeError on a public endpoint, where the caller is not identified."""
    return cast(Identity, g.identity)


def known_identity() -> Identity | None:
    """The caller of this request, even if it was refused after that; None if the caller was not identified."""
    return cast("Identity | None", g.get("identity"))


def _identify(provider: Provider, request: Request) -> Identity:
    try:
        identity = provider(request)
    except InvalidIdentity as error:
        raise InvalidCredentials(reason=Refusal.SUBJECT) from error
    except (NotAuthenticated, Unavailable) as failure:
        # The message of a custom provider may quote the token: the caller gets the standard one.
        failure.message = type(failure).message
        raise
    except Unauthorized as error:
        # From Flask's abort(401), which a custom provider may call.
        raise NotAuthenticated from error
    if identity is None:
        raise NotAuthenticated
    if not isinstance(identity, Identity):
        raise TypeError(f"the identity provider returned {type(identity).__name__}, not Identity or None")
    return identity


def _provider(settings: Settings) -> Provider:
    if settings.identity_provider == DEVELOPMENT:
        if not settings.is_flask_command:
            logger.warning("IDENTITY_PROVIDER=development: no authentication, the user in the path is trusted")
        return identify_by_path
    if settings.identity_provider == JWT:
        if settings.jwt is None:
            raise ConfigurationError("IDENTITY_PROVIDER=jwt without its settings")
        return JwtProvider(settings.jwt)
    return _imported_provider(settings.identity_provider)


def _imported_provider(name: str) -> Provider:
    module, _, attribute = name.partition(":")
    try:
        imported = import_module(module)
    except (Exception, SystemExit) as error:
        # Whatever happens during the import, the start ends with one line.
        raise ConfigurationError(f"IDENTITY_PROVIDER={name} cannot be loaded: {kind_and_place(error)}") from error
    try:
        provider = attrgetter(attribute)(imported)
    except AttributeError as error:
        raise ConfigurationError(f"IDENTITY_PROVIDER={name} cannot be loaded: {module} has no {attribute}") from error
    if not callable(provider):
        raise ConfigurationError(f"IDENTITY_PROVIDER={name} is not callable")
    return cast(Provider, provider)
