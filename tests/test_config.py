"""The environment becomes settings, or one line that says why not."""

import subprocess
import sys
from collections.abc import Mapping

import pytest

from config import ConfigurationError, JwtSettings, load_settings, logging_config
from tests.support import ROOT

SECRET = "x" * 32
POSTGRESQL = "postgresql://todo:secret@db.example/todo?sslmode=require&channel_binding=require"
GOOD = {"DATABASE_URL": POSTGRESQL, "IDENTITY_PROVIDER": "development"}
JWT = GOOD | {"IDENTITY_PROVIDER": "jwt"}


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_every_spelling_of_postgresql_means_psycopg2_and_keeps_the_query(scheme: str) -> None:
    url = load_settings(GOOD | {"DATABASE_URL": POSTGRESQL.replace("postgresql", scheme)}).database_url
    assert url.drivername == "postgresql+psycopg2"
    assert (url.username, url.password, url.host, url.database) == ("todo", "secret", "db.example", "todo")
    assert url.query == {"sslmode": "require", "channel_binding": "require"}


@pytest.mark.parametrize("value", ["sqlite:///todo.db", "sqlite:////var/lib/todo.db"])
def test_sqlite_is_taken_when_named(value: str) -> None:
    assert str(load_settings(GOOD | {"DATABASE_URL": value}).database_url) == value


def test_under_the_flask_command_the_database_may_be_left_out() -> None:
    environ = {"IDENTITY_PROVIDER": "development", "FLASK_RUN_FROM_CLI": "true"}
    assert str(load_settings(environ).database_url) == "sqlite:///todo.db"


def test_the_defaults_are_quiet_and_closed() -> None:
    settings = load_settings(GOOD)
    assert (settings.cors_origins, settings.log_level, settings.log_format, settings.threads) == ((), "INFO", "text", 8)
    assert settings.cors_headers == ()
    assert settings.is_docs_on
    assert (settings.rate_limits, settings.rate_limit_storage, settings.trusted_proxies) == ((), None, 0)
    assert settings.max_tasks is None
    assert not settings.is_flask_command
    assert settings.metrics_token is None


def test_everything_can_be_set() -> None:
    settings = load_settings(
        JWT
        | {
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
            "RATE_LIMIT": "600 per minute; 10/second;600 per minute",
            "RATE_LIMIT_STORAGE": "rediss://todo:secret@redis.example:6380/1",
            "TRUSTED_PROXIES": "2",
            "MAX_TASKS_PER_USER": "1000000",
            "METRICS_TOKEN": "!bcdefghijklmno~",
            "PROMETHEUS_MULTIPROC_DIR": "/tmp/figures",
            "SCRIPT_NAME": "/apps/todo-2.0",
        }
    )
    assert settings.jwt == JwtSettings(
        jwks_url="https://auth.example/api/auth/jwks",
        algorithms=("RS256", "PS256"),
        issuer="https://auth.example",
        audience="todo",
    )
    assert settings.cors_origins == ("https://app.example", "http://localhost:3000", "http://[::1]:3000")
    assert settings.cors_headers == ("X-Trace-Id", "x.client+1")
    assert not settings.is_docs_on
    assert (settings.log_level, settings.log_format) == ("DEBUG", "json")
    assert (settings.threads, settings.workers) == (16, 3)
    assert [str(limit) for limit in settings.rate_limits] == ["10 per 1 second", "600 per 1 minute"]
    assert settings.rate_limit_storage == "rediss://todo:secret@redis.example:6380/1"
    assert settings.trusted_proxies == 2
    assert settings.max_tasks == 1_000_000
    assert (settings.metrics_token, settings.metrics_folder) == ("!bcdefghijklmno~", "/tmp/figures")
    assert settings.script_name == "/apps/todo-2.0"


@pytest.mark.parametrize(
    "origin",
    [
        *["capacitor://localhost", "ionic://localhost", "tauri://localhost", "http://tauri.localhost"],
        *["app://-", "app://obsidian.md", "wails://wails.localhost:34115", "web+todo.2://localhost"],
        "chrome-extension://cjpalhdlnbpafiamejdnhcphjbkeiagm",
        "moz-extension://0a1b2c3d-0000-4000-8000-0123456789ab",
        # Of such schemes the host keeps its case.
        "safari-web-extension://0A1B2C3D-0000-4000-8000-0123456789AB",
    ],
)
def test_an_origin_may_have_any_scheme(origin: str) -> None:
    assert load_settings(GOOD | {"CORS_ORIGINS": origin}).cors_origins == (origin,)


@pytest.mark.parametrize("value", ["redis://localhost", "redis://[::1]:6379/", "rediss://:secret@redis.example/0"])
def test_redis_is_taken_by_its_address(value: str) -> None:
    assert load_settings(GOOD | {"RATE_LIMIT_STORAGE": value}).rate_limit_storage == value


@pytest.mark.parametrize("environ", [{"PORT": "1"}, {"PORT": "65535"}, {"SERVER_SOFTWARE": "another"}], ids=str)
def test_what_only_others_read_may_be_there(environ: Mapping[str, str]) -> None:
    load_settings(GOOD | environ)


def test_there_may_be_no_proxy() -> None:
    assert load_settings(GOOD | {"TRUSTED_PROXIES": "0"}).trusted_proxies == 0


@pytest.mark.parametrize(
    ("log_level", "quiet"), [("DEBUG", "WARNING"), ("WARNING", "WARNING"), ("ERROR", "ERROR"), ("CRITICAL", "CRITICAL")]
)
def test_what_is_talkative_is_kept_quiet_but_never_louder_than_the_rest(log_level: str, quiet: str) -> None:
    loggers = logging_config(load_settings(GOOD | {"LOG_LEVEL": log_level}))["loggers"]
    assert loggers["werkzeug"] == loggers["alembic.runtime.plugins"] == {"level": quiet}


@pytest.mark.parametrize("name", ["package.module:callable", "module:object.method", "m:c"])
def test_a_provider_of_ones_own_is_named_by_module_and_callable(name: str) -> None:
    assert load_settings(GOOD | {"IDENTITY_PROVIDER": name}).identity_provider == name


PROVIDER_FAULT = "IDENTITY_PROVIDER must be jwt, package.module:callable or development"
DATABASE_FAULT = "DATABASE_URL must begin with postgresql:// or postgres://, or be sqlite:///FILE"
AT_FAULT = "DATABASE_URL must have one @, before the host: elsewhere write %40, and %2F for /"
LIBPQ_FAULT = "DATABASE_URL has a parameter that PostgreSQL's client library does not know"
KEY_FAULT = "IDENTITY_PROVIDER=jwt needs exactly one of JWT_SECRET, JWT_PUBLIC_KEY and JWT_JWKS_URL"
JWKS_URL_FAULT = "JWT_JWKS_URL must be an http:// or https:// URL"
JWKS_USER_FAULT = "JWT_JWKS_URL must not have a user or a password; elsewhere write @ as %40"
JWKS_CHARACTERS_FAULT = "JWT_JWKS_URL must have no white space, no fragment (#) and no character beyond ASCII"
CORS_FAULT = "CORS_ORIGINS must be origins like https://app.example.com or app://localhost, separated by commas"
HEADERS_FAULT = "CORS_HEADERS must be names of headers like X-Trace-Id, separated by commas; no *"
THREADS_FAULT = "WEB_THREADS must be a number from 1 to 1000"
LIMIT_FAULT = "RATE_LIMIT must be like 600 per minute, for at most a year; several are separated by ;"
STORAGE_FAULT = "RATE_LIMIT_STORAGE must be redis://HOST or rediss://HOST, with :PORT and /NUMBER or without"
PROXIES_FAULT = "TRUSTED_PROXIES must be a number from 0 to 1000"
QUOTA_FAULT = "MAX_TASKS_PER_USER must be a number from 1 to 1000000"
METRICS_FAULT = "METRICS_TOKEN must be at least 16 printable ASCII characters, without spaces"
PORT_FAULT = "PORT must be a number from 1 to 65535"
UNREAD_FAULT = "gunicorn has not read gunicorn.conf.py: start it in the project folder, or name the file with --config"
PREFIX_FAULT = "SCRIPT_NAME must be a path like /todo: letters, digits, - . _ ~, and no / at its end"
OWN_PATH_FAULT = "SCRIPT_NAME must not begin with a path of the service: /api, /docs, /health, /metrics, /openapi.json"
WORKERS_FAULT = "WEB_CONCURRENCY must be a number from 1 to 1000"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SCRIPT_NAME": ""}, "SCRIPT_NAME is set but empty"),
        ({"SCRIPT_NAME": "/todo\n"}, "SCRIPT_NAME must not begin or end with white space"),
        *[
            ({"SCRIPT_NAME": value}, PREFIX_FAULT)
            for value in (
                "/",
                "todo",
                "/todo/",
                "//todo",
                "/a//b",
                "/..",
                "/.x",
                "/to do",
                "/t%6fdo",
                "/tödo",
                "/x?y",
            )
        ],
        *[({"SCRIPT_NAME": value}, OWN_PATH_FAULT) for value in ("/api", "/docs/todo", "/openapi.json")],
        ({"DATABASE_URL": None}, "DATABASE_URL is not set: name a PostgreSQL database, or sqlite:///FILE"),
        ({"DATABASE_URL": ""}, "DATABASE_URL is set but empty"),
        ({"DATABASE_URL": "nonsense"}, "DATABASE_URL is not a database URL"),
        ({"DATABASE_URL": "postgresql://todo:a@b:c@db:5432/todo"}, "DATABASE_URL is not a database URL"),
        ({"DATABASE_URL": "postgresql://db:port/todo"}, "DATABASE_URL is not a database URL"),
        ({"DATABASE_URL": "postgresql://todo:pass@word@db/todo"}, AT_FAULT),
        ({"DATABASE_URL": "postgresql://todo:pass@wo/rd@db/todo"}, AT_FAULT),
        ({"DATABASE_URL": "postgresql://todo:pass@wo?rd@db/todo"}, AT_FAULT),
        ({"DATABASE_URL": "postgresql://to/do:password@db/todo"}, AT_FAULT),
        ({"DATABASE_URL": "postgresql://todo:password@db/to@do"}, AT_FAULT),
        ({"DATABASE_URL": "postgresql://db/todo?user=todo@db"}, AT_FAULT),
        ({"DATABASE_URL": f"{POSTGRESQL}\n"}, "DATABASE_URL must not begin or end with white space"),
        ({"DATABASE_URL": "postgresql://db/todo?colour=red"}, LIBPQ_FAULT),
        ({"DATABASE_URL": "postgresql://db/todo?sslmode=perhaps"}, LIBPQ_FAULT),
        ({"DATABASE_URL": "mysql://db/todo"}, DATABASE_FAULT),
        ({"DATABASE_URL": "postgresql+psycopg://db/todo"}, DATABASE_FAULT),
        ({"DATABASE_URL": "sqlite://"}, DATABASE_FAULT),
        ({"DATABASE_URL": "sqlite:///:memory:"}, DATABASE_FAULT),
        ({"DATABASE_URL": "sqlite:///file::memory:?uri=true"}, DATABASE_FAULT),
        ({"IDENTITY_PROVIDER": None}, "IDENTITY_PROVIDER is not set: jwt, package.module:callable or development"),
        ({"IDENTITY_PROVIDER": ""}, "IDENTITY_PROVIDER is set but empty"),
        ({"IDENTITY_PROVIDER": "JWT"}, PROVIDER_FAULT),
        ({"IDENTITY_PROVIDER": "module"}, PROVIDER_FAULT),
        ({"IDENTITY_PROVIDER": "module:"}, PROVIDER_FAULT),
        ({"IDENTITY_PROVIDER": "mod ule:f()"}, PROVIDER_FAULT),
        ({"IDENTITY_PROVIDER": "jwt"}, KEY_FAULT),
        ({"IDENTITY_PROVIDER": "jwt", "JWT_SECRET": SECRET, "JWT_PUBLIC_KEY": "x"}, KEY_FAULT),
        ({"IDENTITY_PROVIDER": "jwt", "JWT_SECRET": "x" * 31}, "JWT_SECRET must be at least 32 bytes long"),
        ({"IDENTITY_PROVIDER": "jwt", "JWT_SECRET": ""}, f"JWT_SECRET is set but empty; {KEY_FAULT}"),
        (
            {"IDENTITY_PROVIDER": "jwt", "JWT_JWKS_URL": "file:///etc/jwks"},
            "JWT_JWKS_URL must be an http:// or https:// URL",
        ),
        (
            {"IDENTITY_PROVIDER": "jwt", "JWT_JWKS_URL": "http://[::1/jwks"},
            "JWT_JWKS_URL must be an http:// or https:// URL",
        ),
        (
            {"IDENTITY_PROVIDER": "jwt", "JWT_JWKS_URL": "https://user:secret@auth.example/jwks"},
            JWKS_USER_FAULT,
        ),
        (
            {"IDENTITY_PROVIDER": "jwt", "JWT_JWKS_URL": "https://auth.example/user:pass/word@auth.example/jwks"},
            JWKS_USER_FAULT,
        ),
        ({"IDENTITY_PROVIDER": "jwt", "JWT_JWKS_URL": "https://auth.example/the keys"}, JWKS_CHARACTERS_FAULT),
        ({"IDENTITY_PROVIDER": "jwt", "JWT_JWKS_URL": "https://auth.example/\tkeys"}, JWKS_CHARACTERS_FAULT),
        ({"IDENTITY_PROVIDER": "jwt", "JWT_JWKS_URL": "https://auth.example/keys\n#x"}, JWKS_CHARACTERS_FAULT),
        ({"IDENTITY_PROVIDER": "jwt", "JWT_JWKS_URL": "https://auth.example/jwks#secret"}, JWKS_CHARACTERS_FAULT),
        ({"IDENTITY_PROVIDER": "jwt", "JWT_JWKS_URL": "https://auth.exämple/jwks"}, JWKS_CHARACTERS_FAULT),
        ({"IDENTITY_PROVIDER": "jwt", "JWT_SECRET": SECRET, "JWT_ISSUER": ""}, "JWT_ISSUER is set but empty"),
        ({"IDENTITY_PROVIDER": "jwt", "JWT_SECRET": SECRET, "JWT_AUDIENCE": " "}, "JWT_AUDIENCE is set but empty"),
        (
            {"IDENTITY_PROVIDER": "jwt", "JWT_SECRET": SECRET, "JWT_ALGORITHMS": "none"},
            "JWT_ALGORITHMS may name ES256, ES384, ES512, Ed25519, Ed448, EdDSA, HS256, HS384, HS512, PS256, PS384, "
            "PS512, RS256, RS384, RS512, separated by commas",
        ),
        (
            {"IDENTITY_PROVIDER": "jwt", "JWT_SECRET": SECRET, "JWT_ALGORITHMS": "HS256,RS256"},
            "JWT_ALGORITHMS must not mix families of algorithms",
        ),
        (
            {"IDENTITY_PROVIDER": "jwt", "JWT_SECRET": SECRET, "JWT_ALGORITHMS": "RS256"},
            "JWT_ALGORITHMS does not fit the kind of key",
        ),
        (
            {"IDENTITY_PROVIDER": "jwt", "JWT_PUBLIC_KEY": "x", "JWT_ALGORITHMS": "HS256"},
            "JWT_ALGORITHMS does not fit the kind of key",
        ),
        ({"CORS_ORIGINS": "*"}, CORS_FAULT),
        ({"CORS_ORIGINS": "null"}, CORS_FAULT),
        ({"CORS_ORIGINS": "https://*.example.com"}, CORS_FAULT),
        ({"CORS_ORIGINS": "https://app$example"}, CORS_FAULT),
        ({"CORS_ORIGINS": "https://app example"}, CORS_FAULT),
        ({"CORS_ORIGINS": "app.example"}, CORS_FAULT),
        ({"CORS_ORIGINS": "https://app.example/"}, CORS_FAULT),
        ({"CORS_ORIGINS": "https://App.example"}, CORS_FAULT),
        ({"CORS_ORIGINS": "https://user@app.example"}, CORS_FAULT),
        ({"CORS_ORIGINS": "https://app.example:port"}, CORS_FAULT),
        ({"CORS_ORIGINS": "https://app.example:443"}, CORS_FAULT),
        ({"CORS_ORIGINS": "http://app.example:80"}, CORS_FAULT),
        ({"CORS_ORIGINS": "https://bücher.example"}, CORS_FAULT),
        ({"CORS_ORIGINS": "https://[::1"}, CORS_FAULT),
        ({"CORS_ORIGINS": "https://app.example:0443"}, CORS_FAULT),
        ({"CORS_ORIGINS": "Capacitor://localhost"}, CORS_FAULT),
        ({"CORS_ORIGINS": "capacitor://localhost/"}, CORS_FAULT),
        ({"CORS_ORIGINS": "capacitor://*"}, CORS_FAULT),
        ({"CORS_ORIGINS": "capacitor://"}, CORS_FAULT),
        ({"CORS_ORIGINS": "capacitor:localhost"}, CORS_FAULT),
        ({"CORS_ORIGINS": "capacitor://localhost:65536"}, CORS_FAULT),
        ({"CORS_ORIGINS": "1app://localhost"}, CORS_FAULT),
        ({"CORS_ORIGINS": "file://"}, CORS_FAULT),
        ({"CORS_HEADERS": ""}, "CORS_HEADERS is set but empty"),
        ({"CORS_HEADERS": "*"}, HEADERS_FAULT),
        ({"CORS_HEADERS": "X-*"}, HEADERS_FAULT),
        ({"CORS_HEADERS": "X-One,"}, HEADERS_FAULT),
        ({"CORS_HEADERS": "X-One X-Two"}, HEADERS_FAULT),
        ({"CORS_HEADERS": "X-One: 1"}, HEADERS_FAULT),
        ({"CORS_HEADERS": "X-Ünicode"}, HEADERS_FAULT),
        ({"API_DOCS": "yes"}, "API_DOCS must be one of on, off"),
        ({"LOG_LEVEL": "loud"}, "LOG_LEVEL must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL"),
        ({"LOG_FORMAT": "xml"}, "LOG_FORMAT must be one of text, json"),
        ({"WEB_THREADS": "0"}, THREADS_FAULT),
        ({"WEB_THREADS": "1001"}, THREADS_FAULT),
        ({"WEB_THREADS": "٣"}, THREADS_FAULT),
        ({"WEB_THREADS": "-1"}, THREADS_FAULT),
        ({"WEB_CONCURRENCY": "0"}, WORKERS_FAULT),
        ({"RATE_LIMIT": ""}, "RATE_LIMIT is set but empty"),
        ({"RATE_LIMIT": "600"}, LIMIT_FAULT),
        ({"RATE_LIMIT": "600 per fortnight"}, LIMIT_FAULT),
        ({"RATE_LIMIT": "0 per minute"}, LIMIT_FAULT),
        ({"RATE_LIMIT": "5 per 0 minute"}, LIMIT_FAULT),
        ({"RATE_LIMIT": "5/0minute"}, LIMIT_FAULT),
        ({"RATE_LIMIT": "-1 per minute"}, LIMIT_FAULT),
        ({"RATE_LIMIT": "٣ per minute"}, LIMIT_FAULT),
        ({"RATE_LIMIT": "600 per minute;"}, LIMIT_FAULT),
        ({"RATE_LIMIT": "1 per 2 year"}, LIMIT_FAULT),
        ({"RATE_LIMIT": f"{'9' * 5000} per minute"}, LIMIT_FAULT),
        ({"RATE_LIMIT_STORAGE": ""}, "RATE_LIMIT_STORAGE is set but empty"),
        ({"RATE_LIMIT_STORAGE": "memory://"}, STORAGE_FAULT),
        ({"RATE_LIMIT_STORAGE": "redis://"}, STORAGE_FAULT),
        ({"RATE_LIMIT_STORAGE": "REDIS://redis.example"}, STORAGE_FAULT),
        ({"RATE_LIMIT_STORAGE": "redis://:secret@redis.example:port"}, STORAGE_FAULT),
        ({"RATE_LIMIT_STORAGE": "redis://:sec#ret@redis.example"}, STORAGE_FAULT),
        ({"RATE_LIMIT_STORAGE": "redis://[::1"}, STORAGE_FAULT),
        ({"RATE_LIMIT_STORAGE": "redis://redis.example/todo"}, STORAGE_FAULT),
        ({"RATE_LIMIT_STORAGE": "redis://redis.example?socket_timeout=60"}, STORAGE_FAULT),
        ({"RATE_LIMIT_STORAGE": "redis://redis .example"}, STORAGE_FAULT),
        ({"MAX_TASKS_PER_USER": ""}, "MAX_TASKS_PER_USER is set but empty"),
        ({"MAX_TASKS_PER_USER": "0"}, QUOTA_FAULT),
        ({"MAX_TASKS_PER_USER": "1000001"}, QUOTA_FAULT),
        ({"MAX_TASKS_PER_USER": "1e3"}, QUOTA_FAULT),
        ({"TRUSTED_PROXIES": "-1"}, PROXIES_FAULT),
        ({"TRUSTED_PROXIES": "1001"}, PROXIES_FAULT),
        ({"TRUSTED_PROXIES": "01"}, PROXIES_FAULT),
        ({"METRICS_TOKEN": ""}, "METRICS_TOKEN is set but empty"),
        ({"METRICS_TOKEN": "x" * 15}, METRICS_FAULT),
        ({"METRICS_TOKEN": f"{'x' * 16} x"}, METRICS_FAULT),
        ({"METRICS_TOKEN": f"{'x' * 16}\nx"}, METRICS_FAULT),
        ({"METRICS_TOKEN": f"{'x' * 16}é"}, METRICS_FAULT),
        ({"PORT": ""}, "PORT is set but empty"),
        ({"PORT": "0"}, PORT_FAULT),
        ({"PORT": "65536"}, PORT_FAULT),
        ({"PORT": "655350"}, PORT_FAULT),
        ({"PORT": "-1"}, PORT_FAULT),
        ({"PORT": "http"}, PORT_FAULT),
        ({"PORT": "80 "}, "PORT must not begin or end with white space"),
        ({"PORT": "٨٠"}, PORT_FAULT),
        ({"SERVER_SOFTWARE": "gunicorn/27.0.1"}, UNREAD_FAULT),
        (
            {"DATABASE_URL": None, "IDENTITY_PROVIDER": None, "LOG_LEVEL": ""},
            "IDENTITY_PROVIDER is not set: jwt, package.module:callable or development; "
            "DATABASE_URL is not set: name a PostgreSQL database, or sqlite:///FILE; LOG_LEVEL is set but empty",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_a_bad_value_is_named_in_one_line(changes: Mapping[str, str | None], message: str) -> None:
    environ = {name: value for name, value in (GOOD | changes).items() if value is not None}
    with pytest.raises(ConfigurationError) as caught:
        load_settings(environ)
    assert str(caught.value) == message


@pytest.mark.parametrize("space", [" ", "\n", "\r\n", "\t", "\u00a0"], ids=ascii)
@pytest.mark.parametrize(
    "name",
    [
        *("DATABASE_URL", "IDENTITY_PROVIDER", "JWT_SECRET", "JWT_JWKS_URL", "JWT_ISSUER", "JWT_AUDIENCE"),
        *("JWT_ALGORITHMS", "RATE_LIMIT", "RATE_LIMIT_STORAGE", "METRICS_TOKEN", "LOG_LEVEL", "LOG_FORMAT"),
        *("API_DOCS", "WEB_THREADS", "WEB_CONCURRENCY", "TRUSTED_PROXIES"),
    ],
)
def test_white_space_around_a_value_is_the_one_fault(name: str, space: str) -> None:
    key = {"JWT_JWKS_URL": "https://auth.example/jwks"} if name == "JWT_JWKS_URL" else {"JWT_SECRET": SECRET}
    good = JWT | key | {"JWT_ISSUER": "https://auth.example", "JWT_AUDIENCE": "todo", "JWT_ALGORITHMS": "HS256"}
    good |= {"JWT_ALGORITHMS": "RS256"} if name == "JWT_JWKS_URL" else {}
    good |= {"RATE_LIMIT": "1/second", "RATE_LIMIT_STORAGE": "redis://db", "METRICS_TOKEN": "x" * 16}
    good |= {"LOG_LEVEL": "INFO", "LOG_FORMAT": "text", "API_DOCS": "on"}
    good |= {"WEB_THREADS": "1", "WEB_CONCURRENCY": "1", "TRUSTED_PROXIES": "1"}
    load_settings(good)
    for value in (f"{good[name]}{space}", f"{space}{good[name]}"):
        with pytest.raises(ConfigurationError) as caught:
            load_settings(good | {name: value})
        assert str(caught.value) == f"{name} must not begin or end with white space"


def test_a_public_key_may_end_with_a_line_end() -> None:
    jwt = load_settings(JWT | {"JWT_PUBLIC_KEY": "-----BEGIN\n"}).jwt
    assert jwt is not None
    assert jwt.public_key == "-----BEGIN\n"


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "gunicorn", "wsgi:app", "--bind", "127.0.0.1:0"],
        ["-m", "gunicorn", "wsgi:app", "--bind", "127.0.0.1:0", "--config", "/dev/null"],
        ["-m", "flask", "run", "--port", "0"],
        ["-c", "import wsgi"],
    ],
    ids=["gunicorn", "gunicorn without its settings", "flask run", "import"],
)
def test_the_service_refuses_to_start_half_configured(command: list[str]) -> None:
    assert_refused(command, {}, KEY_FAULT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JWT_PUBLIC_KEY": "nonsense"}, "JWT_PUBLIC_KEY is not a public key in PEM"),
        ({"JWT_SECRET": SECRET, "LOG_LEVEL": "loud"}, "LOG_LEVEL must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL"),
    ],
    ids=["a key that is none", "a level that is none"],
)
def test_gunicorn_refuses_to_start_in_one_line(changes: dict[str, str], message: str) -> None:
    assert_refused(["-m", "gunicorn", "wsgi:app", "--bind", "127.0.0.1:0"], changes, message)


def assert_refused(command: list[str], changes: Mapping[str, str], message: str) -> None:
    """Start that, and see it end within seconds, with one line."""
    environ = {"PATH": "/usr/bin:/bin", "IDENTITY_PROVIDER": "jwt", "DATABASE_URL": POSTGRESQL, **changes}
    result = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=20, check=False
    )
    assert result.returncode != 0
    if "/dev/null" in command:
        # gunicorn's own words stand around it, and both workers say it.
        assert f"todo: {message}; {UNREAD_FAULT}" in result.stderr.splitlines()
        assert "Traceback" not in result.stderr
    else:
        assert result.stderr == f"todo: {message}\n"
