"""`flask token`: mint a token for development, or check whether a token would be accepted and, if not, why.

Tokens for production come from the issuer alone.
"""

import re
import sys
from time import time
from typing import Any

import click
import jwt
from flask import Flask
from flask.cli import AppGroup

from config import Settings
from todo.errors import InvalidCredentials, Unavailable
from todo.identity.explanation import explain, instant, quoted
from todo.identity.identity import Identity, InvalidIdentity
from todo.identity.jwt import JwtProvider
from todo.identity.keys import secret_key
from todo.refusals import Refusal

A_YEAR = 365 * 24 * 60


class UserId(click.ParamType[str]):
    """An argument that is a valid user id."""

    name = "user_id"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the user id unchanged. Fails if it is not valid."""
        try:
            return Identity(value).user_id
        except InvalidIdentity:
            self.fail("a user id has 1 to 255 characters, no '/', no control characters, not . or ..")


class TokenGroup(AppGroup):
    """The subcommands. `flask token USER_ID` is short for `flask token mint USER_ID`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert `mint` if the arguments name no subcommand."""
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = ["mint", *args]
        return super().parse_args(ctx, args)


class Undecided(click.ClickException):
    """The command cannot tell whether the token would be accepted."""

    exit_code = 2


def init_app(app: Flask, settings: Settings) -> None:
    """Add `flask token`. It signs and verifies with the settings of the service."""
    group = TokenGroup("token", help="Mint a token (flask token USER_ID), or check one")
    app.cli.add_command(group)

    @group.command("mint")
    @click.argument("user_id", type=UserId())
    @click.option("--email", help="The email claim")
    @click.option("--minutes", type=click.IntRange(1, A_YEAR), default=60, show_default=True, help="Its lifetime")
    def mint(user_id: str, email: str | None, minutes: int) -> None:
        """Mint a development token, signed with JWT_SECRET"""
        if settings.jwt is None:
            raise click.ClickException(
                f"IDENTITY_PROVIDER={settings.identity_provider} takes no tokens of this service. Use the settings of "
                "the running service: IDENTITY_PROVIDER=jwt JWT_SECRET=... flask token USER_ID"
            )
        if settings.jwt.secret is None:
            raise click.ClickException("without JWT_SECRET there is nothing to sign with: ask the issuer for a token")
        if email is not None and Identity(user_id, email).email is None:
            raise click.BadParameter("the service would not store it: 1 to 320 characters", param_hint="--email")
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

    @group.command("check")
    def check() -> None:
        """Check whether the token on stdin would be accepted and, if not, why

        Status 0: accepted; 1: refused; 2: undecided. The token comes from stdin, since arguments appear in the list of
        processes and in the history of the shell: flask token check < file
        """
        if settings.jwt is None:
            raise Undecided(
                f"IDENTITY_PROVIDER={settings.identity_provider} takes no tokens of this service. Use the settings of "
                "the running service: IDENTITY_PROVIDER=jwt, and its JWT_..."
            )
        token = re.sub(r"^bearer(\s+|$)", "", sys.stdin.read().strip(), flags=re.IGNORECASE)
        provider = JwtProvider(settings.jwt)
        try:
            if not token:
                raise InvalidCredentials(reason=Refusal.MISSING)
            identity = provider.identify(f"Bearer {token}")
        except InvalidCredentials as refusal:
            click.echo(f"Refused: {explain(refusal, token, settings.jwt, provider)}")
            sys.exit(1)
        except Unavailable as error:
            raise Undecided("the key set of JWT_JWKS_URL cannot be fetched") from error
        click.echo(f"Accepted: user {quoted(identity.user_id)}, until {instant(identity.claims['exp'])}")
