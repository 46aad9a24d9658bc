"""Apps for the tests of identity, each made once in a module, and a key set on a clock of the tests."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from threading import Event
from typing import Any

import pytest
from flask import Flask, jsonify
from flask.typing import ResponseReturnValue

from config import JwtSettings
from tests.identity.issuer import Issuer, after, body, jwk, key_set
from tests.identity.tokens import key
from tests.support import PATIENCE, close, settings
from todo import create_app
from todo.errors import InvalidCredentials, Unavailable
from todo.identity import current_identity, jwks
from todo.identity.jwks import KeySet
from todo.identity.keys import VerificationKey


class Keys:
    """The issuer's keys on a clock that the test moves, and what the issuer serves."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer, self.now, self.go = issuer, 0.0, Event()
        self.set = KeySet(issuer.url, (), clock=lambda: self.now)

    @property
    def requests(self) -> int:
        """How often the set was fetched."""
        return self.issuer.requests

    def serve(self, **keys: Any) -> None:
        """Answer with these keys by their ids from now on."""
        self.issuer.serve(*(jwk(private_key, kid) for kid, private_key in keys.items()))

    def serve_slowly(self, **keys: Any) -> None:
        """Answer with these keys once `go` is set."""
        self.issuer.answer = after(self.go, key_set(*(jwk(private_key, kid) for kid, private_key in keys.items())))

    def fail(self) -> None:
        """Answer with 500 from now on."""
        self.issuer.answer = body("", 500)

    def find(self, kid: str | None) -> Any:
        """The key of that id, which then verifies a token."""
        key = self.set.find(kid)
        self.set.refresh_if_old()
        return key.key.public_numbers()

    def assert_found(self, *kids: str | None, is_key: Any) -> None:
        for kid in kids:
            assert self.find(kid) == is_key.public_key().public_numbers()

    def assert_unknown(self, *kids: str | None) -> None:
        for kid in kids:
            with pytest.raises(InvalidCredentials):
                self.set.find(kid)

    def assert_unavailable(self, *kids: str | None) -> None:
        for kid in kids:
            with pytest.raises(Unavailable):
                self.set.find(kid)

    def assert_forged(self, *tokens: str) -> None:
        """Tokens that the key "a" did not sign."""
        assert [self.set.find_newer("a", self.set.find("a")) for _ in tokens] == [None] * len(tokens)

    def assert_all_wait_for_fetch(self, number: int) -> None:
        """All callers wait for that fetch, which brings key() as "a" once `go` is set."""
        with ThreadPoolExecutor(20) as pool:
            waiting = [pool.submit(self.set.find, "a") for _ in range(20)]
            self.issuer.wait_for(number)
            self.go.set()
            self.assert_found_by(*waiting, is_key=key())
        assert self.requests == number

    def assert_found_by(self, *callers: Future[VerificationKey], is_key: Any) -> None:
        for caller in callers:
            assert caller.result().key.public_numbers() == is_key.public_key().public_numbers()


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


@pytest.fixture(autouse=True)
def patient_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give fetches more than their two seconds: a busy machine may stand still for longer."""
    monkeypatch.setattr(jwks, "TIMEOUT", PATIENCE)


@pytest.fixture
def keys(issuer: Issuer) -> Keys:
    """The issuer's keys, of which nothing is known yet."""
    return Keys(issuer)


@pytest.fixture
def warm(keys: Keys) -> Keys:
    """The issuer's keys, fetched at 0 with one key in them."""
    keys.serve(a=key())
    assert keys.requests == 0
    keys.assert_found("a", is_key=key())
    assert keys.requests == 1
    return keys
