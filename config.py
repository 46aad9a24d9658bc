"""The environment, read once into typed settings.

Pure: a mapping goes in, a value or a ConfigurationError comes out. Opens nothing, logs nothing, knows no Flask.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from limits import RateLimitItem, parse_many
from psycopg2 import ProgrammingError
from psycopg2.extensions import make_dsn
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

DEVELOPMENT = "development"
JWT = "jwt"

#: The algorithms of RFC 7518, RFC 8037 and RFC 9864 that are accepted, by the kind of key that they need.
ALGORITHM_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "HMAC": ("HS256", "HS384", "HS512"),
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "EdDSA": ("EdDSA", "Ed25519", "Ed448"),
}
MINIMUM_SECRET_BYTES = 32

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
LOG_FORMATS = ("text", "json")
ON_OR_OFF = ("on", "off")
#: What a URL consists of (RFC 3986), without a fragment.
URL_CHARACTERS = re.compile('[!"$-~]+')
#: Scheme, host and port of an origin (RFC 6454 section 6.2), as browsers and the shells of apps write them.
ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([A-Za-z0-9._-]+|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?")
DEFAULT_PORTS = {"http": "80", "https": "443"}
#: A header's name (RFC 9110 section 5.6.2), without "*": with credentials it is no wildcard.
HEADER_NAME = re.compile(r"[!#$%&'+.^_`|~0-9A-Za-z-]+")
#: What a scraper's token consists of (RFC 9110 section 11.4: no white space).
METRICS_TOKEN = re.compile("[!-~]{16,}")
#: A path that is the same percent-encoded and decoded: gunicorn compares it with the path of the request as sent.
SCRIPT_NAME = re.compile("(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
#: What the service's own paths begin with. Under such a name, a path with the prefix would look like one without it.
OWN_PATHS = ("api", "docs", "health", "metrics", "openapi.json")
DEFAULT_THREADS = 8
LARGEST_NUMBER = 1000
LARGEST_PORT = 65535
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
    cors_headers: tuple[str, ...] = ()
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
    metrics_process: str | None = None
    script_name: str = ""
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
            # todo/web/request_log.py says better, within a request.
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
        cors_headers = self._cors_headers()
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
        # For `make run` and gunicorn, which read it by themselves and do not name it when it is wrong.
        self._number("PORT", most=LARGEST_PORT)
        self._check_gunicorn()
        script_name = self._script_name()
        if self._faults:
            raise ConfigurationError("; ".join(self._faults))
        return Settings(
            database_url=database_url,
            identity_provider=identity_provider,
            jwt=jwt,
            cors_origins=cors_origins,
            cors_headers=cors_headers,
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
            metrics_process=self._environ.get("TODO_METRICS_PROCESS"),
            script_name=script_name or "",
            is_flask_command=is_flask_command,
        )

    def _text(self, name: str, *, is_block: bool = False) -> str | None:
        """The value; white space around it is a fault, unless it is a block of lines."""
        value = self._environ.get(name)
        if value is not None and not value.strip():
            self._faults.append(f"{name} is set but empty")
            return None
        if value is None or is_block:
            return value
        if value != value.strip():
            self._faults.append(f"{name} must not begin or end with white space")
        return value.strip()

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
            url = _with_hosts(value)
        except (ArgumentError, ValueError):
            self._faults.append("DATABASE_URL is not a database URL")
            return url
        if url.drivername in ("postgres", "postgresql", "postgresql+psycopg2"):
            if "@" in value.partition("@")[2] or ("@" in value) != (url.username is not None):
                # A part of the password would be taken for the host, and be in the log.
                self._faults.append("DATABASE_URL must have one @, before the host: elsewhere write %40, and %2F for /")
                return url
            # SQLAlchemy knows no postgres://, and takes postgresql:// for another driver.
            url = url.set(drivername="postgresql+psycopg2")
            if not _is_known_to_libpq(url):
                self._faults.append("DATABASE_URL has a parameter that PostgreSQL's client library does not know")
            elif not _are_ports_fit(url):
                self._faults.append(
                    "DATABASE_URL must name several hosts like postgresql://USER@HOST1:5432,HOST2:5432/DATABASE, "
                    f"with ports from 1 to {LARGEST_PORT}"
                )
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
        secret, jwks_url = self._text("JWT_SECRET"), self._text("JWT_JWKS_URL")
        public_key = self._text("JWT_PUBLIC_KEY", is_block=True)
        if [secret, public_key, jwks_url].count(None) != 2:
            self._faults.append(
                "IDENTITY_PROVIDER=jwt needs exactly one of JWT_SECRET, JWT_PUBLIC_KEY and JWT_JWKS_URL"
            )
        if secret is not None and len(secret.encode(errors="surrogateescape")) < MINIMUM_SECRET_BYTES:
            self._faults.append(f"JWT_SECRET must be at least {MINIMUM_SECRET_BYTES} bytes long")
        if jwks_url is not None:
            self._check_jwks_url(jwks_url)
        return JwtSettings(
            secret=secret,
            public_key=public_key,
            jwks_url=jwks_url,
            algorithms=self._algorithms(is_symmetric=secret is not None),
            issuer=self._text("JWT_ISSUER"),
            audience=self._text("JWT_AUDIENCE"),
        )

    def _check_jwks_url(self, value: str) -> None:
        if not _is_http_url(value):
            self._faults.append("JWT_JWKS_URL must be an http:// or https:// URL")
        elif "@" in value:
            # In the path too: a password may hold a slash.
            self._faults.append("JWT_JWKS_URL must not have a user or a password; elsewhere write @ as %40")
        elif not URL_CHARACTERS.fullmatch(value):
            self._faults.append("JWT_JWKS_URL must have no white space, no fragment (#) and no character beyond ASCII")

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
            self._faults.append(
                "CORS_ORIGINS must be origins like https://app.example.com or app://localhost, separated by commas"
            )
        return tuple(origins)

    def _cors_headers(self) -> tuple[str, ...]:
        value = self._text("CORS_HEADERS")
        if value is None:
            return ()
        names = [name.strip() for name in value.split(",")]
        if not all(map(HEADER_NAME.fullmatch, names)):
            self._faults.append("CORS_HEADERS must be names of headers like X-Trace-Id, separated by commas; no *")
        return tuple(names)

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

    def _check_gunicorn(self) -> None:
        """Refuse a gunicorn that has not read gunicorn.conf.py, hence has other limits, and believes other headers."""
        is_gunicorn = self._environ.get("SERVER_SOFTWARE", "").startswith("gunicorn/")
        if is_gunicorn and "TODO_GUNICORN_CONF" not in self._environ:
            self._faults.append(
                "gunicorn has not read gunicorn.conf.py: start it in the project folder, or name the file with --config"
            )

    def _script_name(self) -> str | None:
        value = self._text("SCRIPT_NAME")
        if value is not None and not SCRIPT_NAME.fullmatch(value):
            self._faults.append("SCRIPT_NAME must be a path like /todo: letters, digits, - . _ ~, and no / at its end")
        elif value is not None and value.split("/")[1] in OWN_PATHS:
            self._faults.append(f"SCRIPT_NAME must not begin with a path of the service: /{', /'.join(OWN_PATHS)}")
        return value

    def _number(self, name: str, *, least: int = 1, most: int = LARGEST_NUMBER) -> int | None:
        value = self._text(name)
        if value is None:
            return None
        if re.fullmatch("0|[1-9][0-9]{0,7}", value) and least <= int(value) <= most:
            return int(value)
        self._faults.append(f"{name} must be a number from {least} to {most}")
        return None


def _with_hosts(value: str) -> URL:
    """The URL; several hosts, as libpq writes them, stand in its query, since SQLAlchemy reads one host and port.

    Raises ArgumentError or ValueError where it is none.
    """
    # With an @ further on, what looks like hosts is a part of a password.
    several = re.fullmatch(r"(postgres[^:]*://(?:[^/?#]*@)?)([^/?#@]*,[^/?#@]*)([^@]*)", value, re.DOTALL)
    if several is None:
        return make_url(value)
    before, hosts, after = several.groups()
    pairs = [re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]*)(?::([0-9]*))?", host) for host in hosts.split(",")]
    if None in pairs:
        raise ValueError(hosts)
    names = [unquote(pair[1].strip("[]")) for pair in pairs if pair]
    ports = [pair[2] or "" for pair in pairs if pair]
    address = {"host": ",".join(names)} | ({"port": ",".join(ports)} if any(ports) else {})
    return make_url(before + after).update_query_dict(address)


def _is_http_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_redis_url(value: str) -> bool:
    """Whether that is all: what stood in a query string would go before the time limits of todo/web/rate_limits.py."""
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


def _are_ports_fit(url: URL) -> bool:
    """Whether SQLAlchemy can tell libpq which host has which port, and each is one."""
    try:
        _, parameters = url.get_dialect()().create_connect_args(url)
    except (ArgumentError, ValueError):
        return False
    ports = [port for port in str(parameters.get("port", "")).split(",") if port]
    return all(1 <= int(port) <= LARGEST_PORT for port in ports)


def _is_origin(value: str) -> bool:
    """Whether the value is what a client sends as Origin (RFC 6454 section 6.2); `null` is the origin of many."""
    match = ORIGIN.fullmatch(value)
    if match is None:
        return False
    scheme, host, port = match.groups()
    if scheme in DEFAULT_PORTS:
        # Of these schemes alone browsers write the host in lower case, and leave the default port out.
        return _is_http_url(value) and host == host.lower() and port != DEFAULT_PORTS[scheme]
    return port is None or int(port) < 2**16
