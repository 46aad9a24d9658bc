"""A token that was verified is remembered, and what is asked of it anew each time."""

import time
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import jwt
import pytest
from flask import Request

from config import JwtSettings
from tests.support import SECRET, token
from todo.errors import InvalidCredentials
from todo.identity import jwt as provider_module
from todo.identity.jwt import LEEWAY, REMEMBERED_TOKENS, JwtProvider


@pytest.fixture
def provider() -> JwtProvider:
    """A provider that knows the secret."""
    return JwtProvider(JwtSettings(secret=SECRET))


@pytest.fixture
def verifications(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """How often a signature was verified."""
    spy = mock.Mock(wraps=jwt.decode)
    monkeypatch.setattr(jwt, "decode", spy)
    return spy


def bearing(bearer_token: str) -> Request:
    """A request with that token."""
    return cast(Request, SimpleNamespace(headers={"Authorization": f"Bearer {bearer_token}"}))


def test_a_token_is_verified_once(provider: JwtProvider, verifications: mock.Mock) -> None:
    request = bearing(token())
    assert provider(request) is provider(request)
    assert verifications.call_count == 1


@pytest.mark.parametrize("late", [0, 0.5])
def test_a_remembered_token_expires(provider: JwtProvider, monkeypatch: pytest.MonkeyPatch, late: float) -> None:
    expiry = int(time.time()) + 5
    request = bearing(token(exp=expiry + late))
    assert provider(request)
    monkeypatch.setattr(provider_module, "time", lambda: expiry + LEEWAY - 0.5)
    assert provider(request)
    monkeypatch.setattr(provider_module, "time", lambda: expiry + LEEWAY)
    with pytest.raises(InvalidCredentials):
        provider(request)


@pytest.mark.parametrize("changes", [{"exp": 1}, {"user_id": ""}])
def test_a_refused_token_is_not_remembered(
    provider: JwtProvider, verifications: mock.Mock, changes: dict[str, Any]
) -> None:
    request = bearing(token(**changes))
    for _ in range(2):
        with pytest.raises(InvalidCredentials):
            provider(request)
    assert verifications.call_count == 2


def test_only_so_many_tokens_are_remembered(provider: JwtProvider, verifications: mock.Mock) -> None:
    first = bearing(token(jti="first"))
    provider(first)
    for number in range(REMEMBERED_TOKENS):
        provider(bearing(token(jti=str(number))))
    provider(first)
    assert verifications.call_count == REMEMBERED_TOKENS + 2
