"""The settings: the environment as typed values, or one line that names every fault.

Opens nothing, logs nothing, and imports neither Flask nor `todo`: gunicorn.conf.py loads this one file again at each
HUP, and needs the log's configuration before there is an app (docs/decisions/settings.md).
"""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from traceback import extract_tb
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from limits import RateLimitItem, parse_many
from marshmallow import EXCLUDE, Schema, ValidationError
from marshmallow.fields import Raw
from marshmallow.validate import OneOf, Regexp
from psycopg2 import ProgrammingError
from psycopg2.extensions import make_dsn
from pythonjsonlogger.json import JsonFormatter
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

DEVELOPMENT, JWT = "development", "jwt"
PROVIDERS = "jwt, package.module:callable or development"
#: The accepted algorithms of RFC 7518, RFC 8037 and RFC 9864, by the kind of key that they need.
ALGORITHM_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "HMAC": ("HS256", "HS384", "HS512"),
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "EdDSA": ("EdDSA", "Ed25519", "Ed448"),
}
FAMILIES = {name: family for family, names in ALGORITHM_FAMILIES.items() for name in names}
#: How the service's own paths begin. A SCRIPT_NAME must not begin so: paths with and without it would look alike.
OWN_PATHS = ("api", "docs", "health", "metrics", "openapi.json")
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
LARGEST_PORT = 65535
#: Threads of a gunicorn worker beside its WEB_THREADS, each of which has a database connection. They answer what needs
#: no database, /health/live and /metrics, while all connections wait for a database that is silent.
SPARE_THREADS = 2
LONGEST_WINDOW = 366 * 24 * 60 * 60
#: Scheme, host and port of an origin (RFC 6454 section 6.2), as browsers and app shells send them.
ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([A-Za-z0-9._-]+|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?")
DEFAULT_PORTS = {"http": "80", "https": "443"}
#: The name of a header (RFC 9110 section 5.6.2) without "*", which is no wildcard in calls with credentials.
HEADER_NAME = re.compile(r"[!#$%&'+.^_`|~0-9A-Za-z-]+")


class ConfigurationError(Exception):
    """The service must not start. The message is the one line that says why."""


#: Returns the value of a variable, converted or as it is. Raises ValidationError with the words after the name.
Step = Callable[[Any], Any]


def _rule(is_met: Callable[[Any], object], refusal: str) -> Step:
    """Return a step that returns the value unchanged if it meets the rule, else raises ValidationError(refusal)."""

    def step(value: Any) -> Any:
        if not is_met(value):
            raise ValidationError(refusal)
        return value

    return step


def _number(least: int, most: int) -> Step:
    def step(value: str) -> int:
        # int() alone would accept a sign, underscores, and digits of every script.
        if not re.fullmatch("0|[1-9][0-9]{0,7}", value) or not least <= int(value) <= most:
            raise ValidationError(f"must be a number from {least} to {most}")
        return int(value)

    return step


def _one_of(*choices: str) -> Step:
    return OneOf(choices, error="must be one of {choices}")


def _names(is_name: Callable[[str], object], refusal: str) -> Step:
    every = _rule(lambda names: all(map(is_name, names)), refusal)
    return lambda value: every(tuple(name.strip() for name in value.split(",")))


def _is_provider(value: str) -> bool:
    module, colon, attribute = value.partition(":")
    is_callable = bool(colon) and all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")])
    return value in (DEVELOPMENT, JWT) or is_callable


def _database_url(value: str) -> URL:
    try:
        url = _with_hosts(value)
    except (ArgumentError, ValueError) as error:
        raise ValidationError("is not a database URL") from error
    if url.drivername == "sqlite" and url.database and ":memory:" not in url.database:
        return url
    if url.drivername not in ("postgres", "postgresql", "postgresql+psycopg2"):
        raise ValidationError("must begin with postgresql:// or postgres://, or be sqlite:///FILE")
    if "@" in value.partition("@")[2] or ("@" in value) != (url.username is not None):
        # A part of the password would become the host, and appear in the log.
        raise ValidationError("must have one @, before the host: elsewhere write %40, and %2F for /")
    # SQLAlchemy does not know postgres://, and takes postgresql:// for another driver.
    url = url.set(drivername="postgresql+psycopg2")
    try:
        make_dsn(**{name: str(parameter) for name, parameter in url.query.items()})
        # libpq itself checks this value only when it connects.
        SSL_MODES.index(url.query.get("sslmode", "prefer"))
    except (ProgrammingError, TypeError, ValueError) as error:
        raise ValidationError("has a parameter that PostgreSQL's client library does not know") from error
    try:
        # Whether SQLAlchemy can match ports to hosts.
        _, parameters = url.get_dialect()().create_connect_args(url)
        [_number(1, LARGEST_PORT)(port) for port in str(parameters.get("port", "")).split(",") if port]
    except (ArgumentError, ValueError, ValidationError) as error:
        raise ValidationError(
            "must name several hosts like postgresql://USER@HOST1:5432,HOST2:5432/DATABASE, "
            f"with ports from 1 to {LARGEST_PORT}"
        ) from error
    return url


def _with_hosts(value: str) -> URL:
    """The URL, with its host decoded as libpq does it: SQLAlchemy does not, and the folder of a socket has slashes.

    Several hosts, written for libpq, move into its query: SQLAlchemy reads one host and one port.

    Raises ArgumentError or ValueError if the value is not a URL.
    """
    # With another @ after them, what looks like hosts is a part of the password.
    several = re.fullmatch(r"(postgres[^:]*://(?:[^/?#]*@)?)([^/?#@]*,[^/?#@]*)([^@]*)", value, re.DOTALL)
    if several is None:
        url = make_url(value)
        return url.set(host=unquote(url.host)) if url.host else url
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
    # Nothing but an address: parameters would override the time limits of todo/web/rate_limits.py.
    scheme, _, rest = value.partition("://")
    is_plain = scheme in ("redis", "rediss") and re.fullmatch(r"[^/?#\s]+(/[0-9]{0,5})?", rest)
    return bool(is_plain) and _is_http_url(f"http://{rest}")


def _is_origin(value: str) -> bool:
    """Whether a client can send the value as Origin (RFC 6454 section 6.2). Not `null`, which stands for many."""
    match = ORIGIN.fullmatch(value)
    if match is None:
        return False
    scheme, host, port = match.groups()
    if scheme in DEFAULT_PORTS:
        # Only for these schemes do browsers write the host in lower case and omit the default port.
        return _is_http_url(value) and host == host.lower() and port != DEFAULT_PORTS[scheme]
    return port is None or int(port) <= LARGEST_PORT


def _is_no_own_path(path: str) -> bool:
    return path.split("/")[1] not in OWN_PATHS


def _rate_limits(value: str) -> tuple[RateLimitItem, ...]:
    try:
        # parse_many() reads a period of 0 minutes as one minute.
        limits = set() if re.search(r"(per|/)\s*0", value) else set(parse_many(value))
    except ValueError:
        limits = set()
    if not limits or not all(limit.amount and limit.get_expiry() <= LONGEST_WINDOW for limit in limits):
        raise ValidationError("must be like 600 per minute, for at most a year; several are separated by ;")
    return tuple(sorted(limits, key=RateLimitItem.get_expiry))


FILLED = (_rule(str.strip, "is set but empty"),)
TEXT = (*FILLED, _rule(lambda value: value == value.strip(), "must not begin or end with white space"))


def _setting(name: str, default: Any, *steps: Step, missing: str = "", first: tuple[Step, ...] = TEXT) -> Any:
    """A field of Settings: its variable, the default, and the steps that a value takes before it is accepted.

    Without a default, `missing` is the refusal. An empty value is no default: it may have been lost on its way.
    """
    reader = Raw(
        data_key=name, required=bool(missing), error_messages={"required": missing}, post_load=[*first, *steps]
    )
    return field(default=default, metadata={"reader": reader})


LONG_ENOUGH = _rule(lambda value: len(value.encode(errors="surrogateescape")) >= 32, "must be at least 32 bytes long")


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtSettings:
    """How bearer tokens are verified. Exactly one of secret, public_key and jwks_url is set.

    algorithms: those that JWT_ALGORITHMS names, all of one family; empty if it is not set.
    """

    secret: str | None = _setting("JWT_SECRET", None, LONG_ENOUGH)
    #: A secret whose tokens are still accepted, while it is replaced.
    previous_secret: str | None = _setting("JWT_SECRET_PREVIOUS", None, LONG_ENOUGH)
    public_key: str | None = _setting("JWT_PUBLIC_KEY", None, first=FILLED)
    jwks_url: str | None = _setting(
        "JWT_JWKS_URL",
        None,
        _rule(_is_http_url, "must be an http:// or https:// URL"),
        # Nor in the path: a password may contain a slash.
        _rule(lambda value: "@" not in value, "must not have a user or a password; elsewhere write @ as %40"),
        Regexp(r'[!"$-~]+\Z', error="must have no white space, no fragment (#) and no character beyond ASCII"),
    )
    algorithms: tuple[str, ...] = _setting(
        "JWT_ALGORITHMS",
        (),
        _names(FAMILIES.__contains__, f"may name {', '.join(sorted(FAMILIES))}, separated by commas"),
        _rule(lambda names: len({FAMILIES[name] for name in names}) == 1, "must not mix families of algorithms"),
    )
    issuer: str | None = _setting("JWT_ISSUER", None)
    audience: str | None = _setting("JWT_AUDIENCE", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that the environment decides. docs/settings.md has a row for each that an operator sets."""

    identity_provider: str = _setting(
        "IDENTITY_PROVIDER", MISSING, _rule(_is_provider, f"must be {PROVIDERS}"), missing=f"is not set: {PROVIDERS}"
    )
    database_url: URL = _setting(  # noqa: RUF009 (this is a field)
        "DATABASE_URL", MISSING, _database_url, missing="is not set: name a PostgreSQL database, or sqlite:///FILE"
    )
    jwt: JwtSettings | None = None
    cors_origins: tuple[str, ...] = _setting(
        "CORS_ORIGINS",
        (),
        _names(
            lambda value: not value or _is_origin(value),
            "must be origins like https://app.example.com or app://localhost, separated by commas",
        ),
        lambda origins: tuple(filter(None, origins)),
        # An empty value names no origin.
        first=(),
    )
    cors_headers: tuple[str, ...] = _setting(
        "CORS_HEADERS",
        (),
        _names(HEADER_NAME.fullmatch, "must be names of headers like X-Trace-Id, separated by commas; no *"),
    )
    is_docs_on: bool = _setting("API_DOCS", True, _one_of("on", "off"), "on".__eq__)
    log_level: str = _setting("LOG_LEVEL", "INFO", _one_of(*LOG_LEVELS))
    log_format: str = _setting("LOG_FORMAT", "text", _one_of("text", "json"))
    threads: int = _setting("WEB_THREADS", 8, _number(1, 1000))
    workers: int | None = _setting("WEB_CONCURRENCY", None, _number(1, 1000))
    rate_limits: tuple[RateLimitItem, ...] = _setting("RATE_LIMIT", (), _rate_limits)
    rate_limit_storage: str | None = _setting(
        "RATE_LIMIT_STORAGE",
        None,
        _rule(_is_redis_url, "must be redis://HOST or rediss://HOST, with :PORT and /NUMBER or without"),
    )
    trusted_proxies: int = _setting("TRUSTED_PROXIES", 0, _number(0, 1000))
    max_tasks: int | None = _setting("MAX_TASKS_PER_USER", None, _number(1, 1_000_000))
    metrics_token: str | None = _setting(
        "METRICS_TOKEN",
        None,
        Regexp(r"[!-~]{16,}\Z", error="must be at least 16 printable ASCII characters, without spaces"),
    )
    #: gunicorn.conf.py sets these two, to add up the figures of all workers. prometheus_client reads the first itself.
    metrics_folder: str | None = _setting("PROMETHEUS_MULTIPROC_DIR", None, first=())
    metrics_process: str | None = _setting("TODO_METRICS_PROCESS", None, first=())
    #: gunicorn and `make run` read this themselves, and do not name the variable if its value is bad.
    port: int | None = _setting("PORT", None, _number(1, LARGEST_PORT))
    script_name: str = _setting(
        "SCRIPT_NAME",
        "",
        # The same percent-encoded and decoded: gunicorn compares it with the path of the request as sent.
        Regexp(
            r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+\Z",
            error="must be a path like /todo: letters, digits, - . _ ~, and no / at its end",
        ),
        _rule(_is_no_own_path, f"must not begin with a path of the service: /{', /'.join(OWN_PATHS)}"),
    )
    #: Whether DATABASE_URL is not set, so that the `flask` command uses a file in the instance folder.
    is_database_default: bool = False
    #: Flask's command line sets this variable for its own process; nothing else does.
    is_flask_command: bool = _setting("FLASK_RUN_FROM_CLI", False, "true".__eq__, first=())


def load_settings(environ: Mapping[str, str]) -> Settings:
    """The settings that the environment describes.

    Raises ConfigurationError with every fault, in one line. It quotes no value: it may be a secret.
    """
    is_database_default = environ.get("FLASK_RUN_FROM_CLI") == "true" and "DATABASE_URL" not in environ
    if is_database_default:
        # In the instance folder (Flask-SQLAlchemy).
        environ = {"DATABASE_URL": "sqlite:///todo.db", **environ}
    values, faults = _read(Settings, environ)
    values["is_database_default"] = is_database_default
    if environ.get("IDENTITY_PROVIDER", "").strip() == JWT:
        jwt_values, jwt_faults = _read(JwtSettings, environ)
        faults += jwt_faults
        keys = [name for name in ("JWT_SECRET", "JWT_PUBLIC_KEY", "JWT_JWKS_URL") if environ.get(name, "").strip()]
        if len(keys) != 1:
            faults.append("IDENTITY_PROVIDER=jwt needs exactly one of JWT_SECRET, JWT_PUBLIC_KEY and JWT_JWKS_URL")
        if "previous_secret" in jwt_values and "JWT_SECRET" not in keys:
            faults.append("JWT_SECRET_PREVIOUS needs JWT_SECRET")
        is_symmetric = {FAMILIES[name] == "HMAC" for name in jwt_values.get("algorithms", ())}
        if is_symmetric not in (set(), {"JWT_SECRET" in keys}):
            faults.append("JWT_ALGORITHMS does not fit the kind of key")
        values["jwt"] = JwtSettings(**jwt_values)
    if environ.get("SERVER_SOFTWARE", "").startswith("gunicorn/") and "TODO_GUNICORN_CONF" not in environ:
        # Its limits would be others, and it would trust other headers.
        faults.append(
            "gunicorn has not read gunicorn.conf.py: start it in the project folder, or name the file with --config"
        )
    if faults:
        raise ConfigurationError("; ".join(faults))
    return Settings(**values)


def _read(kind: type, environ: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The good values of those fields, and the faults of the others."""
    readers = {setting.name: setting.metadata["reader"] for setting in fields(kind) if setting.metadata}
    try:
        return Schema.from_dict(readers)().load(environ, unknown=EXCLUDE), []
    except ValidationError as error:
        faults = [f"{name} {fault}" for name, faults in error.messages_dict.items() for fault in faults]
        return cast("dict[str, Any]", error.valid_data), faults


#: The lines of LOG_FORMAT=json. docs/monitoring.md has their fields.
JSON_LINES: Mapping[str, Any] = {
    "fmt": "%(levelname)s %(name)s %(message)s",
    # RFC 3339, in UTC.
    "timestamp": "time",
    "rename_fields": {"levelname": "level", "name": "logger"},
}


def refusal(message: str, environ: Mapping[str, str]) -> str:
    """The line on stderr that says why the service does not start, in the format of the log."""
    if environ.get("LOG_FORMAT") != "json":
        return f"todo: {message}"
    record = logging.makeLogRecord({"name": "todo", "levelname": "CRITICAL", "msg": message})
    return JsonFormatter(**JSON_LINES).format(record)


def kind_and_place(error: BaseException) -> str:
    """The kind and place of an error in code that is not ours. Not its message, which may quote a secret."""
    kind = type(error).__name__
    if isinstance(error, ModuleNotFoundError):
        return f"{kind}: No module named {error.name!r}"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{kind} in {error.filename}, line {error.lineno}"
    frame = extract_tb(error.__traceback__)[-1]
    return f"{kind} in {frame.filename}, line {frame.lineno}"


def logging_config(settings: Settings) -> dict[str, Any]:
    """The logging.config dictionary of the service and of gunicorn: everything goes to stderr."""
    formatters = {
        "text": {
            "()": "logging.Formatter",
            "fmt": "%(asctime)s [%(request_id)s] %(levelname)s %(name)s: %(message)s",
            # Outside a request; within one, todo/web/request_log.py sets it.
            "defaults": {"request_id": "-"},
        },
        "json": {"()": JsonFormatter, **JSON_LINES},
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
            # It logs six lines at each start of `flask db`.
            "alembic.runtime.plugins": quiet,
            # It logs the query of each request. Its line with the address is lost too: `make run` prints that itself.
            "werkzeug": quiet,
        },
    }
