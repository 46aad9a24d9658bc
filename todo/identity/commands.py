"""The command that mints a token for developers; of production's tokens the issuer alone is the source."""

from time import time
from typing import Any

import click
import jwt
from flask import Flask

from config import Settings
from todo.identity.identity import Identity, InvalidIdentity
from todo.identity.keys import secret_key

A_YEAR = 365 * 24 * 60


class UserId(click.ParamType[str]):
    """An argument that can be a user id."""

    name = "user_id"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The user id as it is. Fails for one that nobody can have."""
        try:
            return Identity(value).user_id
        except InvalidIdentity:
            self.fail("it cannot be a user id: 1 to 255 characters, no '/', no control characters, not . or ..")


def init_app(app: Flask, settings: Settings) -> None:
    """Add `flask token`, which signs with what the service verifies with."""

    @app.cli.command("token")
    @click.argument("user_id", type=UserId())
    @click.option("--email", help="The email claim")
    @click.option("--minutes", type=click.IntRange(1, A_YEAR), default=60, show_default=True, help="How long it holds")
    def token(user_id: str, email: str | None, minutes: int) -> None:
        """Mint a development token, signed with JWT_SECRET"""
        if settings.jwt is None:
            raise click.ClickException(
                f"IDENTITY_PROVIDER={settings.identity_provider} takes no tokens of this service; set what the running "
                "service has: IDENTITY_PROVIDER=jwt JWT_SECRET=... flask token USER_ID"
            )
        if settings.jwt.secret is None:
            raise click.ClickException("without JWT_SECRET there is nothing to sign with: ask the issuer for a token")
        if email is not None and Identity(user_id, email).email is None:
            raise click.BadParameter("the service would not keep it: 1 to 320 characters", param_hint="--email")
        now = int(time())
        claims: dict[str, Any] = {
            "sub": user_id,
            "email": email,
            "iss": settings.jwt.issuer,
            "aud": settings.jwt.audience,
            "iat": now,
            "exp": now + minutes * 60,
        }
        key = secret_key(settings.jwt.secret, settings.jwt.algorithms)
        named = {name: value for name, value in claims.items() if value is not None}
        click.echo(jwt.encode(named, key.key, key.algorithms[0]))
