"""The environment, read once into typed settings.

Pure: a mapping goes in, a value or a ConfigurationError comes out. Opens nothing, logs nothing, knows no Flask.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from limits import RateLimitItem, parse_many
from psycopg2 import ProgrammingError
from psycopg2.extensions import make_dsn
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

DEVELOPMENT = "development"
JWT = "jwt"

#: The algorithms of RFC 7518 and RFC 8037 that are accepted, by the kind of key that they need.
ALGORITHM_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "HMAC": ("HS256", "HS384", "HS512"),
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "EdDSA": ("EdDSA",),
}
MINIMUM_SECRET_BYTES = 32

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
LOG_FORMATS = ("text", "json")
ON_OR_OFF = ("on", "off")
#: What a scraper's token consists of (RFC 9110 section 11.4: no white space).
METRICS_TOKEN = re.compile("[!-~]{16,}")
DEFAULT_THREADS = 8
LARGEST_NUMBER = 1000
LARGEST_QUOTA = 1_000_000
LONGEST_WINDOW = 366 * 24 * 60 * 60


class ConfigurationError(Exception):
    """The service must not start: the message is the one line that says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtSettings:
    """How bearer tokens are verified. Exactly one of secret, public_key and jwks_url is set.

    algorithms: those that JWT_ALGORITHMS names, all of one family; empty where it is unset.
    """

    secret: str | None = None
    public_key: str | None = None
    jwks_url: str | None = None
    algorithms: tuple[str, ...] = ()
    issuer: str | None = None
    audience: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that the environment decides. README's table of settings has a row for each variable."""

    database_url: URL
    identity_provider: str
    jwt: JwtSettings | None = None
    cors_origins: tuple[str, ...] = ()
    is_docs_on: bool = True
    log_level: str = "INFO"
    log_format: str = "text"
    threads: int = DEFAULT_THREADS
    workers: int | None = None
    rate_limits: tuple[RateLimitItem, ...] = ()
    rate_limit_storage: str | None = None
    trusted_proxies: int = 0
    max_tasks: int | None = None
    metrics_token: str | None = None
    metrics_folder: str | None = None
    is_flask_command: bool = False


def load_settings(environ: Mapping[str, str]) -> Settings:
    """The settings that the environment describes.

    An empty value is refused like any other bad one, so that a variable lost on its way never quietly means the
    default. Raises ConfigurationError with every fault found, in one line.
    """
    return _Reader(environ).settings()


def logging_config(settings: Settings) -> dict[str, Any]:
    """The logging.config dictionary of this service and of the gunicorn that runs it: one stream, stderr."""
    formatters = {
        "text": {
            "()": "logging.Formatter",
            "fmt": "%(asctime)s [%(request_id)s] %(levelname)s %(name)s: %(message)s",
            # todo/requests.py says better, within a request.
            "defaults": {"request_id": "-"},
        },
        "json": {
            "()": "pythonjsonlogger.json.JsonFormatter",
            "fmt": "%(levelname)s %(name)s %(message)s",
            # RFC 3339, in UTC.
            "timestamp": "time",
            "rename_fields": {"levelname": "level", "name": "logger"},
        },
    }
    quiet = {"level": max("WARNING", settings.log_level, key=LOG_LEVELS.index)}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"chosen": formatters[settings.log_format]},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "chosen"}},
        "root": {"level": settings.log_level, "handlers": ["stderr"]},
        "loggers": {
            "gunicorn.error": {"level": settings.log_level, "handlers": [], "propagate": True},
            # Six lines at each start of `flask db`.
            "alembic.runtime.plugins": quiet,
            # The development server's line for each request, which has the query; and with it the one that says where
            # it listens, which `make run` says itself.
            "werkzeug": quiet,
        },
    }


class _Reader:
    """Reads variable after variable and collects what is wrong, to name it all at once."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._faults: list[str] = []

    def settings(self) -> Settings:
        # Flask's command line sets this for the process that it starts; nothing else does.
        is_flask_command = self._environ.get("FLASK_RUN_FROM_CLI") == "true"
        identity_provider = self._identity_provider()
        database_url = self._database_url(is_flask_command)
        jwt = self._jwt() if identity_provider == JWT else None
        cors_origins = self._cors_origins()
        is_docs_on = self._one_of("API_DOCS", ON_OR_OFF, "on") == "on"
        log_level = self._one_of("LOG_LEVEL", LOG_LEVELS, "INFO")
        log_format = self._one_of("LOG_FORMAT", LOG_FORMATS, "text")
        threads = self._number("WEB_THREADS")
        workers = self._number("WEB_CONCURRENCY")
        rate_limits = self._rate_limits()
        rate_limit_storage = self._rate_limit_storage()
        trusted_proxies = self._number("TRUSTED_PROXIES", least=0)
        max_tasks = self._number("MAX_TASKS_PER_USER", most=LARGEST_QUOTA)
        metrics_token = self._metrics_token()
        if self._faults:
            raise ConfigurationError("; ".join(self._faults))
        return Settings(
            database_url=database_url,
            identity_provider=identity_provider,
            jwt=jwt,
            cors_origins=cors_origins,
            is_docs_on=is_docs_on,
            log_level=log_level,
            log_format=log_format,
            threads=threads or DEFAULT_THREADS,
            workers=workers,
            rate_limits=rate_limits,
            rate_limit_storage=rate_limit_storage,
            trusted_proxies=trusted_proxies or 0,
            max_tasks=max_tasks,
            metrics_token=metrics_token,
            # prometheus_client reads this too; gunicorn.conf.py sets it, for the workers to add up their figures.
            metrics_folder=self._environ.get("PROMETHEUS_MULTIPROC_DIR"),
            is_flask_command=is_flask_command,
        )

    def _text(self, name: str) -> str | None:
        value = self._environ.get(name)
        if value is not None and not value.strip():
            self._faults.append(f"{name} is set but empty")
            return None
        return value

    def _one_of(self, name: str, choices: tuple[str, ...], default: str) -> str:
        value = self._text(name) or default
        if value not in choices:
            self._faults.append(f"{name} must be one of {', '.join(choices)}")
        return value

    def _database_url(self, is_flask_command: bool) -> URL:
        # A relative SQLite path is relative to the instance folder (Flask-SQLAlchemy).
        url = make_url("sqlite:///todo.db")
        value = self._text("DATABASE_URL")
        if value is None:
            if "DATABASE_URL" not in self._environ and not is_flask_command:
                self._faults.append("DATABASE_URL is not set: name a PostgreSQL database, or sqlite:///FILE")
            return url
        try:
            url = make_url(value)
        except (ArgumentError, ValueError):
            self._faults.append("DATABASE_URL is not a database URL")
            return url
        if value != value.strip():
            self._faults.append("DATABASE_URL must not begin or end with white space")
        if url.drivername in ("postgres", "postgresql", "postgresql+psycopg2"):
            # SQLAlchemy knows no postgres://, and takes postgresql:// for another driver.
            url = url.set(drivername="postgresql+psycopg2")
            if not _is_known_to_libpq(url):
                self._faults.append("DATABASE_URL has a parameter that PostgreSQL's client library does not know")
            return url
        if url.drivername != "sqlite" or not url.database or ":memory:" in url.database:
            self._faults.append("DATABASE_URL must begin with postgresql:// or postgres://, or be sqlite:///FILE")
        return url

    def _identity_provider(self) -> str:
        value = self._text("IDENTITY_PROVIDER")
        if value is None:
            if "IDENTITY_PROVIDER" not in self._environ:
                self._faults.append("IDENTITY_PROVIDER is not set: jwt, package.module:callable or development")
            return ""
        if value not in (DEVELOPMENT, JWT):
            module, colon, attribute = value.partition(":")
            if not colon or not all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")]):
                self._faults.append("IDENTITY_PROVIDER must be jwt, package.module:callable or development")
        return value

    def _jwt(self) -> JwtSettings:
        secret, public_key, jwks_url = map(self._text, ("JWT_SECRET", "JWT_PUBLIC_KEY", "JWT_JWKS_URL"))
        if [secret, public_key, jwks_url].count(None) != 2:
            self._faults.append(
                "IDENTITY_PROVIDER=jwt needs exactly one of JWT_SECRET, JWT_PUBLIC_KEY and JWT_JWKS_URL"
            )
        if secret is not None and len(secret.encode(errors="surrogateescape")) < MINIMUM_SECRET_BYTES:
            self._faults.append(f"JWT_SECRET must be at least {MINIMUM_SECRET_BYTES} bytes long")
        if jwks_url is not None and not _is_http_url(jwks_url):
            self._faults.append("JWT_JWKS_URL must be an http:// or https:// URL")
        elif jwks_url is not None and "@" in urlsplit(jwks_url).netloc:
            # urllib would take the password for a part of the host's name, and say so in the log.
            self._faults.append("JWT_JWKS_URL must not bear a user or a password")
        return JwtSettings(
            secret=secret,
            public_key=public_key,
            jwks_url=jwks_url,
            algorithms=self._algorithms(is_symmetric=secret is not None),
            issuer=self._text("JWT_ISSUER"),
            audience=self._text("JWT_AUDIENCE"),
        )

    def _algorithms(self, *, is_symmetric: bool) -> tuple[str, ...]:
        value = self._text("JWT_ALGORITHMS")
        if value is None:
            return ()
        names = tuple(name.strip() for name in value.split(","))
        families = {family for family, members in ALGORITHM_FAMILIES.items() if set(names) & set(members)}
        known = {name for members in ALGORITHM_FAMILIES.values() for name in members}
        if not set(names) <= known:
            self._faults.append(f"JWT_ALGORITHMS may name {', '.join(sorted(known))}, separated by commas")
        elif len(families) != 1:
            self._faults.append("JWT_ALGORITHMS must not mix families of algorithms")
        elif ("HMAC" in families) != is_symmetric:
            self._faults.append("JWT_ALGORITHMS does not fit the kind of key")
        return names

    def _cors_origins(self) -> tuple[str, ...]:
        # Empty is a list too: the one of no origins.
        origins = [entry.strip() for entry in self._environ.get("CORS_ORIGINS", "").split(",") if entry.strip()]
        if not all(map(_is_origin, origins)):
            self._faults.append("CORS_ORIGINS must be origins like https://app.example.com, separated by commas")
        return tuple(origins)

    def _rate_limits(self) -> tuple[RateLimitItem, ...]:
        value = self._text("RATE_LIMIT")
        if value is None:
            return ()
        try:
            # A period of 0 minutes it would take for one.
            limits = set() if re.search(r"(per|/)\s*0", value) else set(parse_many(value))
        except ValueError:
            limits = set()
        if not limits or not all(limit.amount and limit.get_expiry() <= LONGEST_WINDOW for limit in limits):
            self._faults.append(
                "RATE_LIMIT must be like 600 per minute, for at most a year; several are separated by ;"
            )
        return tuple(sorted(limits, key=RateLimitItem.get_expiry))

    def _rate_limit_storage(self) -> str | None:
        value = self._text("RATE_LIMIT_STORAGE")
        if value is not None and not _is_redis_url(value):
            self._faults.append(
                "RATE_LIMIT_STORAGE must be redis://HOST or rediss://HOST, with :PORT and /NUMBER or without"
            )
        return value

    def _metrics_token(self) -> str | None:
        value = self._text("METRICS_TOKEN")
        if value is not None and not METRICS_TOKEN.fullmatch(value):
            self._faults.append("METRICS_TOKEN must be at least 16 printable ASCII characters, without spaces")
        return value

    def _number(self, name: str, *, least: int = 1, most: int = LARGEST_NUMBER) -> int | None:
        value = self._text(name)
        if value is None:
            return None
        if re.fullmatch("0|[1-9][0-9]{0,7}", value) and least <= int(value) <= most:
            return int(value)
        self._faults.append(f"{name} must be a number from {least} to {most}")
        return None


def _is_http_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_redis_url(value: str) -> bool:
    """Whether that is all: what stood in a query string would go before the time limits of todo/rate_limits.py."""
    try:
        parts = urlsplit(value)
        is_address = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    # The scheme in lower case, as redis-py wants it.
    is_plain = value.startswith(("redis://", "rediss://")) and not re.search(r"[?#\s]", value)
    return is_address and is_plain and bool(re.fullmatch("(/[0-9]{0,5})?", parts.path))


def _is_known_to_libpq(url: URL) -> bool:
    """Whether libpq takes the query string; it looks at the value of sslmode only when it connects."""
    try:
        make_dsn(**{name: str(value) for name, value in url.query.items()})
    except (ProgrammingError, TypeError):
        return False
    return url.query.get("sslmode", "prefer") in SSL_MODES


def _is_origin(value: str) -> bool:
    """Whether the value is what a browser sends as Origin (RFC 6454 section 6.2), lower case and without a path."""
    if not _is_http_url(value):
        return False
    parts = urlsplit(value)
    is_bare = value == f"{parts.scheme}://{parts.netloc}".lower() and "@" not in value and value.isascii()
    # No pattern, for one: `https://*.example.com` would match nothing.
    is_bare = is_bare and bool(re.fullmatch(r"[a-z0-9._-]+|[0-9a-f:.]+", parts.hostname or ""))
    # A browser leaves the default port out.
    return is_bare and parts.port != {"http": 80, "https": 443}[parts.scheme]
