"""Apps for the tests of identity, each made once in a module."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from flask import Flask, jsonify
from flask.typing import ResponseReturnValue

from config import JwtSettings
from tests.identity.issuer import Issuer, running_issuer
from tests.support import close, settings
from todo import create_app
from todo.identity import current_identity


@pytest.fixture(scope="module")
def app_of(apps: dict[str, Flask]) -> Iterator[Callable[..., Flask]]:
    """Makes the app of those JwtSettings, with a view that shows the identity."""
    made: list[Flask] = []

    @cache
    def make(**changes: Any) -> Flask:
        url = apps["sqlite"].config["SQLALCHEMY_DATABASE_URI"]
        made.append(with_who(create_app(settings(url, jwt=JwtSettings(**changes)))))
        return made[-1]

    yield make
    for app in made:
        close(app)


def with_who(app: Flask) -> Flask:
    """The app, with a view that shows the identity."""

    @app.get("/api/<user_id>/who")
    def who() -> ResponseReturnValue:
        identity = current_identity()
        return jsonify(user_id=identity.user_id, email=identity.email, claims=dict(identity.claims))

    return app


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """An issuer without keys."""
    with running_issuer() as issuer:
        yield issuer
