"""Who is calling, by a bearer token, and whether the path is theirs."""

from types import SimpleNamespace
from typing import Any

import jwt
from django.conf import settings
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import BasePermission
from rest_framework.request import Request


class BearerAuthentication(BaseAuthentication):
    def authenticate(self, request: Request) -> tuple[SimpleNamespace, dict[str, Any]] | None:
        scheme, _, token = get_authorization_header(request).decode("latin-1").partition(" ")
        if scheme.lower() != "bearer":
            return None
        try:
            claims = jwt.decode(token, settings.JWT_SECRET, algorithms=["HS256"], options={"require": ["exp", "sub"]})
        except jwt.InvalidTokenError as error:
            raise AuthenticationFailed from error
        return SimpleNamespace(id=claims["sub"], is_authenticated=True), claims

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class IsOwnerOfPath(BasePermission):
    def has_permission(self, request: Request, view: Any) -> bool:
        return request.user is not None and request.user.id == view.kwargs["user_id"]
