"""The environment becomes settings, or one line that says why not."""

from collections.abc import Mapping

import pytest
from limits import parse_many
from sqlalchemy import make_url

from config import (
    ALGORITHM_FAMILIES,
    LOG_LEVELS,
    ConfigurationError,
    JwtSettings,
    Settings,
    load_settings,
    logging_config,
)

SECRET = "x" * 32
POSTGRESQL = "postgresql://todo:secret@db.example/todo?sslmode=require&channel_binding=require"
GOOD = {"DATABASE_URL": POSTGRESQL, "IDENTITY_PROVIDER": "development"}
JWT = GOOD | {"IDENTITY_PROVIDER": "jwt"}
#: A good value of each variable that people set, with a key set.
FULL = JWT | {
    "JWT_JWKS_URL": "https://auth.example/api/auth/jwks",
    "JWT_ALGORITHMS": "RS256, PS256",
    "JWT_ISSUER": "https://auth.example",
    "JWT_AUDIENCE": "todo",
    "CORS_ORIGINS": "https://app.example, http://localhost:3000,http://[::1]:3000",
    "CORS_HEADERS": "X-Trace-Id, x.client+1",
    "API_DOCS": "off",
    "LOG_LEVEL": "DEBUG",
    "LOG_FORMAT": "json",
    "WEB_THREADS": "16",
    "WEB_CONCURRENCY": "3",
    "RATE_LIMIT": "9 per 366 day; 10/second;9 per 366 day",
    "RATE_LIMIT_STORAGE": "rediss://todo:secret@redis.example:6380/1",
    "TRUSTED_PROXIES": "2",
    "MAX_TASKS_PER_USER": "1000000",
    "METRICS_TOKEN": "!bcdefghijklmno~",
    "PROMETHEUS_MULTIPROC_DIR": "/tmp/figures",
    "TODO_METRICS_PROCESS": "2",
    "SCRIPT_NAME": "/apps/todo-2.0",
    "PORT": "65535",
}


def test_everything_can_be_set() -> None:
    assert load_settings(FULL) == Settings(
        database_url=make_url(POSTGRESQL).set(drivername="postgresql+psycopg2"),
        identity_provider="jwt",
        jwt=JwtSettings(
            jwks_url="https://auth.example/api/auth/jwks",
            algorithms=("RS256", "PS256"),
            issuer="https://auth.example",
            audience="todo",
        ),
        cors_origins=("https://app.example", "http://localhost:3000", "http://[::1]:3000"),
        cors_headers=("X-Trace-Id", "x.client+1"),
        is_docs_on=False,
        log_level="DEBUG",
        log_format="json",
        threads=16,
        workers=3,
        rate_limits=tuple(parse_many("10 per second; 9 per 366 day")),
        rate_limit_storage="rediss://todo:secret@redis.example:6380/1",
        trusted_proxies=2,
        max_tasks=1_000_000,
        port=65535,
        metrics_token="!bcdefghijklmno~",
        metrics_folder="/tmp/figures",
        metrics_process="2",
        script_name="/apps/todo-2.0",
    )


def test_the_defaults_are_quiet_and_closed() -> None:
    settings = load_settings(GOOD)
    assert settings == Settings(database_url=settings.database_url, identity_provider="development")
    assert (settings.cors_origins, settings.log_level, settings.log_format, settings.threads) == ((), "INFO", "text", 8)
    assert (settings.rate_limits, settings.trusted_proxies, settings.max_tasks) == ((), 0, None)
    assert (settings.is_docs_on, settings.is_flask_command, settings.metrics_token) == (True, False, None)
    assert load_settings(GOOD | {"CORS_ORIGINS": ""}).cors_origins == ()


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_every_spelling_of_postgresql_means_psycopg2_and_keeps_the_query(scheme: str) -> None:
    url = load_settings(GOOD | {"DATABASE_URL": POSTGRESQL.replace("postgresql", scheme)}).database_url
    assert url.drivername == "postgresql+psycopg2"
    assert (url.username, url.password, url.host, url.database) == ("todo", "secret", "db.example", "todo")
    assert url.query == {"sslmode": "require", "channel_binding": "require"}
    assert load_settings(GOOD | {"DATABASE_URL": f"{scheme}://%2Fvar%2Frun/db"}).database_url.host == "/var/run"


def test_under_the_flask_command_the_database_may_be_left_out() -> None:
    settings = load_settings({"IDENTITY_PROVIDER": "development", "FLASK_RUN_FROM_CLI": "true"})
    assert (str(settings.database_url), settings.is_flask_command) == ("sqlite:///todo.db", True)
    assert settings.is_database_default
    named = {"IDENTITY_PROVIDER": "development", "FLASK_RUN_FROM_CLI": "true", "DATABASE_URL": "sqlite:///todo.db"}
    assert not load_settings(named).is_database_default


#: Good values of a variable that become the setting as they are.
TAKEN = {
    "DATABASE_URL": [
        *("sqlite:///todo.db", "sqlite:////var/lib/todo.db"),
        *(f"postgresql+psycopg2://db/todo?sslmode={mode}" for mode in ("disable", "allow", "verify-ca", "verify-full")),
    ],
    "RATE_LIMIT_STORAGE": ["redis://localhost", "redis://[::1]:6379/", "rediss://:secret@redis.example/0"],
    "IDENTITY_PROVIDER": ["package.module:callable", "module:object.method", "m:c"],
    "CORS_ORIGINS": [
        *("capacitor://localhost", "ionic://localhost", "tauri://localhost", "http://tauri.localhost", "app://-"),
        *("app://obsidian.md", "wails://wails.localhost:34115", "wails://wails.localhost:65535"),
        *("web+todo.2://localhost", "moz-extension://0a1b2c3d-0000-4000-8000-0123456789ab"),
        # Of such schemes the host keeps its case.
        "safari-web-extension://0A1B2C3D-0000-4000-8000-0123456789AB",
    ],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in TAKEN.items() for value in values])
def test_a_good_value_is_taken_as_it_is(name: str, value: str) -> None:
    taken = getattr(load_settings(GOOD | {name: value}), name.lower())
    assert taken == (value,) if name == "CORS_ORIGINS" else str(taken) == value


@pytest.mark.parametrize("environ", [{"PORT": "1"}, {"PORT": "65535"}, {"SERVER_SOFTWARE": "another"}], ids=str)
def test_what_only_others_read_may_be_there(environ: Mapping[str, str]) -> None:
    load_settings(GOOD | environ)


@pytest.mark.parametrize(
    ("log_level", "quiet"), [("DEBUG", "WARNING"), ("WARNING", "WARNING"), ("ERROR", "ERROR"), ("CRITICAL", "CRITICAL")]
)
def test_libraries_log_nothing_below_a_warning_nor_below_the_level(log_level: str, quiet: str) -> None:
    loggers = logging_config(load_settings(GOOD | {"LOG_LEVEL": log_level}))["loggers"]
    assert loggers["werkzeug"] == loggers["alembic.runtime.plugins"] == {"level": quiet}


def test_a_public_key_may_end_with_a_line_end() -> None:
    assert load_settings(JWT | {"JWT_PUBLIC_KEY": "-----BEGIN\n"}).jwt == JwtSettings(public_key="-----BEGIN\n")


def fault(environ: Mapping[str, str]) -> str:
    """The line that refuses that environment."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings(environ)
    return str(caught.value)


class Reading(dict[str, str]):
    """An environment that notes which variables are read."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(environ)
        self.names: set[str] = set()

    def get(self, name: str, default: str | None = None) -> str | None:  # type: ignore[override]
        """The value; the name is noted."""
        self.names.add(name)
        return super().get(name, default)


def read_variables() -> set[str]:
    """The variables that people set: all that are read, but those of Flask and gunicorn."""
    environ = Reading(FULL)
    load_settings(environ)
    return environ.names - {"FLASK_RUN_FROM_CLI", "SERVER_SOFTWARE", "PROMETHEUS_MULTIPROC_DIR", "TODO_METRICS_PROCESS"}


@pytest.mark.parametrize("name", sorted(read_variables() - {"CORS_ORIGINS"}))
def test_an_empty_value_is_a_fault(name: str) -> None:
    for value in ("", " "):
        assert f"{name} is set but empty" in fault(FULL | {name: value}).split("; ")


@pytest.mark.parametrize("space", [" ", "\n", "\r\n", "\t", "\u00a0"], ids=ascii)
@pytest.mark.parametrize("name", sorted(read_variables() - {"CORS_ORIGINS", "JWT_PUBLIC_KEY"}))
def test_white_space_around_a_value_is_the_one_fault(name: str, space: str) -> None:
    good = FULL
    if name.startswith("JWT_SECRET"):
        good = JWT | {"JWT_SECRET": SECRET, name: SECRET}
    for value in (f"{good.get(name)}{space}", f"{space}{good.get(name)}"):
        assert fault(good | {name: value}) == f"{name} must not begin or end with white space"


AT_FAULT = "DATABASE_URL must have one @, before the host: elsewhere write %40, and %2F for /"
LIBPQ_FAULT = "DATABASE_URL has a parameter that PostgreSQL's client library does not know"
DATABASE_FAULT = "DATABASE_URL must begin with postgresql:// or postgres://, or be sqlite:///FILE"
PROVIDER_FAULT = "IDENTITY_PROVIDER must be jwt, package.module:callable or development"
JWKS_URL_FAULT = "JWT_JWKS_URL must be an http:// or https:// URL"
JWKS_USER_FAULT = "JWT_JWKS_URL must not have a user or a password; elsewhere write @ as %40"
JWKS_CHARACTERS_FAULT = "JWT_JWKS_URL must have no white space, no fragment (#) and no character beyond ASCII"
CORS_FAULT = "CORS_ORIGINS must be origins like https://app.example.com or app://localhost, separated by commas"
HEADERS_FAULT = "CORS_HEADERS must be names of headers like X-Trace-Id, separated by commas; no *"
LIMIT_FAULT = "RATE_LIMIT must be like 600 per minute, for at most a year; several are separated by ;"
STORAGE_FAULT = "RATE_LIMIT_STORAGE must be redis://HOST or rediss://HOST, with :PORT and /NUMBER or without"
METRICS_FAULT = "METRICS_TOKEN must be at least 16 printable ASCII characters, without spaces"
PREFIX_FAULT = "SCRIPT_NAME must be a path like /todo: letters, digits, - . _ ~, and no / at its end"
OWN_PATH_FAULT = "SCRIPT_NAME must not begin with a path of the service: /api, /docs, /health, /metrics, /openapi.json"
KEY_FAULT = "IDENTITY_PROVIDER=jwt needs exactly one of JWT_SECRET, JWT_PUBLIC_KEY and JWT_JWKS_URL"
UNREAD_FAULT = "gunicorn has not read gunicorn.conf.py: start it in the project folder, or name the file with --config"
CHOICES_FAULTS = {
    name: f"{name} must be one of {', '.join(choices)}"
    for name, choices in (("API_DOCS", ("on", "off")), ("LOG_LEVEL", LOG_LEVELS), ("LOG_FORMAT", ("text", "json")))
}

#: The bad values of a variable, by the line that refuses them.
BAD_VALUES = {
    AT_FAULT: [
        *("postgresql://todo:pass@word@db/todo", "postgresql://todo:pass@wo/rd@db/todo"),
        *("postgresql://todo:pass@wo?rd@db/todo", "postgresql://to/do:password@db/todo"),
        *("postgresql://todo:password@db/to@do", "postgresql://db/todo?user=todo@db"),
    ],
    LIBPQ_FAULT: ["postgresql://db/todo?colour=red", "postgresql://db/todo?sslmode=perhaps"],
    DATABASE_FAULT: [
        *("mysql://db/todo", "postgresql+psycopg://db/todo", "sqlite://", "sqlite:///:memory:"),
        "sqlite:///file::memory:?uri=true",
    ],
    "DATABASE_URL is not a database URL": [
        *("nonsense", "postgresql://todo:a@b:c@db:5432/todo", "postgresql://db:port/todo"),
    ],
    PROVIDER_FAULT: ["JWT", "module", "module:", "mod ule:f()"],
    JWKS_URL_FAULT: ["file:///etc/jwks", "http://[::1/jwks", "http:///jwks", "http://x:0/jwks"],
    JWKS_USER_FAULT: ["https://user:secret@auth.example/jwks", "https://auth.example/user:pass/word@auth.example/jwks"],
    JWKS_CHARACTERS_FAULT: [
        *("https://auth.example/the keys", "https://auth.example/\tkeys", "https://auth.example/keys\n#x"),
        *("https://auth.example/jwks#secret", "https://auth.exämple/jwks"),
    ],
    CORS_FAULT: [
        *("*", "null", "https://*.example.com", "https://app$example", "https://app example", "app.example"),
        *("https://app.example/", "https://App.example", "https://user@app.example", "https://app.example:port"),
        *("https://app.example:443", "http://app.example:80", "https://bücher.example", "https://[::1"),
        *("https://app.example:0443", "Capacitor://localhost", "capacitor://localhost/", "capacitor://*"),
        *("capacitor://", "capacitor:localhost", "capacitor://localhost:65536", "1app://localhost", "file://"),
    ],
    HEADERS_FAULT: ["*", "X-*", "X-One,", "X-One X-Two", "X-One: 1", "X-Ünicode"],
    LIMIT_FAULT: [
        *("600", "600 per fortnight", "0 per minute", "5 per 0 minute", "5/0minute", "-1 per minute", "٣ per minute"),
        *("600 per minute;", "1 per 367 day", f"{'9' * 5000} per minute"),
    ],
    STORAGE_FAULT: [
        *("memory://", "redis://", "REDIS://redis.example", "redis://:secret@redis.example:port", "redis://[::1"),
        *("redis://:sec#ret@redis.example", "redis://redis.example/todo", "redis://redis .example"),
        *("redis://redis.example?socket_timeout=60", "redis://redis.example:0"),
    ],
    METRICS_FAULT: ["x" * 15, f"{'x' * 16} x", f"{'x' * 16}\nx", f"{'x' * 16}é"],
    PREFIX_FAULT: ["/", "todo", "/todo/", "//todo", "/a//b", "/..", "/.x", "/to do", "/t%6fdo", "/tödo", "/x?y"],
    OWN_PATH_FAULT: ["/api", "/docs/todo", "/openapi.json"],
    **{fault: ["yes", "debug", "TEXT"] for fault in CHOICES_FAULTS.values()},
}
#: The variables that are numbers, and from where to where they go.
NUMBERS = {
    "WEB_THREADS": (1, 1000),
    "WEB_CONCURRENCY": (1, 1000),
    "TRUSTED_PROXIES": (0, 1000),
    "MAX_TASKS_PER_USER": (1, 1_000_000),
    "PORT": (1, 65535),
}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [(message.split()[0], value, message) for message, values in BAD_VALUES.items() for value in values],
    ids=lambda value: ascii(value)[:40],
)
def test_a_bad_value_is_named_in_one_line(name: str, value: str, message: str) -> None:
    assert fault((FULL if name.startswith("JWT_") else GOOD) | {name: value}) == message


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_has_two_ends_and_one_way_of_writing(name: str) -> None:
    least, most = NUMBERS[name]
    for value in (least, most):
        load_settings(GOOD | {name: f"{value}"})
    for bad in (f"{least - 1}", f"{most + 1}", f"{most}0", "-1", "01", "1e1", "٣", "one", "1_0", "9" * 5000):
        assert fault(GOOD | {name: bad}) == f"{name} must be a number from {least} to {most}"


KNOWN_ALGORITHMS = ", ".join(sorted(name for names in ALGORITHM_FAMILIES.values() for name in names))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JWT_SECRET": SECRET, "JWT_PUBLIC_KEY": "x"}, KEY_FAULT),
        ({}, KEY_FAULT),
        ({"JWT_SECRET": ""}, f"JWT_SECRET is set but empty; {KEY_FAULT}"),
        ({"JWT_SECRET": "x" * 31}, "JWT_SECRET must be at least 32 bytes long"),
        ({"JWT_SECRET": SECRET, "JWT_SECRET_PREVIOUS": "x" * 31}, "JWT_SECRET_PREVIOUS must be at least 32 bytes long"),
        ({"JWT_PUBLIC_KEY": "x", "JWT_SECRET_PREVIOUS": SECRET}, "JWT_SECRET_PREVIOUS needs JWT_SECRET"),
        (
            {"JWT_SECRET": SECRET, "JWT_ALGORITHMS": "none"},
            f"JWT_ALGORITHMS may name {KNOWN_ALGORITHMS}, separated by commas",
        ),
        (
            {"JWT_SECRET": SECRET, "JWT_ALGORITHMS": "HS256,RS256"},
            "JWT_ALGORITHMS must not mix families of algorithms",
        ),
        ({"JWT_SECRET": SECRET, "JWT_ALGORITHMS": "RS256"}, "JWT_ALGORITHMS does not fit the kind of key"),
        ({"JWT_PUBLIC_KEY": "x", "JWT_ALGORITHMS": "HS256"}, "JWT_ALGORITHMS does not fit the kind of key"),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_a_key_and_its_algorithms_must_fit(changes: Mapping[str, str], message: str) -> None:
    assert fault(JWT | changes) == message


def test_a_gunicorn_without_its_settings_is_refused() -> None:
    assert fault(GOOD | {"SERVER_SOFTWARE": "gunicorn/27.0.1"}) == UNREAD_FAULT
    load_settings(GOOD | {"SERVER_SOFTWARE": "gunicorn/27.0.1", "TODO_GUNICORN_CONF": "1"})


def test_what_is_missing_is_named_and_all_faults_at_once() -> None:
    assert fault({"LOG_LEVEL": ""}) == (
        "IDENTITY_PROVIDER is not set: jwt, package.module:callable or development; "
        "DATABASE_URL is not set: name a PostgreSQL database, or sqlite:///FILE; LOG_LEVEL is set but empty"
    )
