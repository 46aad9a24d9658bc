"""Django's settings: an API and nothing else, so no middleware, no sessions and no accounts."""

import os

from psycopg2.extensions import parse_dsn

_dsn = parse_dsn(os.environ["DATABASE_URL"])

SECRET_KEY = JWT_SECRET = os.environ["JWT_SECRET"]
ALLOWED_HOSTS = ["127.0.0.1"]
INSTALLED_APPS = ["rest_framework", "tasks"]
MIDDLEWARE: list[str] = []
ROOT_URLCONF = "tasks.urls"
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _dsn["dbname"],
        "USER": _dsn["user"],
        "PASSWORD": _dsn.get("password", ""),
        "HOST": _dsn["host"],
        "PORT": _dsn.get("port", ""),
        "OPTIONS": {"sslmode": _dsn.get("sslmode", "prefer")},
        # Connections are kept, one for each thread.
        "CONN_MAX_AGE": None,
    }
}
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["tasks.authentication.BearerAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["tasks.authentication.IsOwnerOfPath"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "EXCEPTION_HANDLER": "tasks.views.error",
    "DATETIME_FORMAT": "%Y-%m-%dT%H:%M:%S.%fZ",
    "UNAUTHENTICATED_USER": None,
}
