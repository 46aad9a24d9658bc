"""Secrets that appear in no log, in no message about a setting, and in no answer where they do not belong.

Every secret contains the canary. Of the live services the access log is on, LOG_LEVEL is DEBUG, and all that can fail
does.
"""

import base64
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL

from config import ConfigurationError, load_settings
from tests.identity.test_jwks import Issuer, body
from tests.live import Server, free_port, gunicorn, running
from tests.support import (
    PATIENCE,
    close,
    migrated_app,
    postgresql_database,
    postgresql_server,
    sql,
    sqlite_database,
    token,
)
from todo import create_app

CANARY = "kanarienvogel"
SECRET = f"{CANARY}-secret-of-32-bytes-or-more"
PASSWORD = f"{CANARY}-password"
NEW_TASK = {"title": f"{CANARY} title", "description": f"{CANARY} description"}
MOST_TALKATIVE = {"LOG_LEVEL": "DEBUG", "GUNICORN_CMD_ARGS": "--access-logfile -", "JWT_SECRET": SECRET}


def traces(text: str, *tokens: str) -> list[str]:
    """The lines in which the canary shows: as it is, in base64 from whatever place, or as a part of a token."""
    signs = {CANARY, *(part for bearer_token in tokens for part in bearer_token.split("."))}
    for shift in range(3):
        # Without the letters at both ends, which contain bits of the neighbours.
        signs.add(base64.b64encode(b" " * shift + CANARY.encode()).decode()[4:-4])
    return [line for line in text.splitlines() if any(sign in line for sign in signs)]


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """An issuer."""
    issuer = Issuer()
    yield issuer
    issuer.close()


@pytest.fixture(scope="module")
def own_server(server: URL) -> Iterator[URL]:
    """A server whose rules may be changed; that of the other tests has its folder, and is older."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TEST_DATABASE_URL", raising=False)
        with postgresql_server() as url:
            yield url


@pytest.fixture
def database(own_server: URL) -> Iterator[URL]:
    """A migrated database of the test's own, for which the server asks for a password."""
    with postgresql_database(own_server) as url:
        close(migrated_app(url))
        sql(url, f"ALTER ROLE {url.username} PASSWORD '{PASSWORD}'")
        ((rules,),) = sql(own_server, "SHOW hba_file")
        rule = f"local {url.database} {url.username} scram-sha-256\n"
        Path(rules).write_text(rule + Path(rules).read_text())
        sql(own_server, "SELECT pg_reload_conf()")
        yield url.set(password=PASSWORD)


class Talk:
    """Calls to a live service, and all that it answers where the canary has no business."""

    def __init__(self, live: Server) -> None:
        self.live = live
        self.answers = ""
        self.tokens = [token("alice", key=SECRET), token("bob", key=SECRET), token("alice", key=f"{SECRET}!")]
        self.alice, self.bob, self.forged = (f"Bearer {bearer_token}" for bearer_token in self.tokens)

    def call(
        self, method: str, path: str, authorization: str | None = None, *, content: str | None = None, **more: str
    ) -> tuple[int, str]:
        """The status of the answer, and the answer whole, headers included."""
        connection = self.live.connect()
        headers = {"Authorization": authorization or self.alice, "Content-Type": "application/json"}
        headers |= {"Idempotency-Key": f"{CANARY}-{time.monotonic_ns()}", "Referer": f"http://x/?{CANARY}"}
        headers |= {"User-Agent": CANARY, "Cookie": f"session={CANARY}", "X-Api-Key": CANARY}
        # Not what an id looks like.
        headers |= {"X-Request-ID": f'{CANARY} "{CANARY}"'}
        connection.request(method, path, content, headers | more)
        response = connection.getresponse()
        text = f"{response.headers}{response.read().decode()}"
        connection.close()
        return response.status, text

    def expect(self, status: int, *question: Any, **options: Any) -> None:
        """Ask that; the answer is of that status, and the canary is not in it."""
        found, text = self.call(*question, **options)
        assert found == status, text
        self.answers += text


def succeed(talk: Talk) -> int:
    """Every call, as the owner; the id of a task that is left."""
    status, made = talk.call("POST", "/api/alice/tasks", content=json.dumps(NEW_TASK))
    assert (status, CANARY in made) == (201, True)
    task = f"/api/alice/tasks/{json.loads(made.partition(chr(123))[2].join('{ '))['id']}"
    for method, path, content in (
        ("GET", task, None),
        ("GET", f"/api/alice/tasks?q={CANARY}&limit=1", None),
        ("PUT", task, json.dumps(NEW_TASK)),
        ("PATCH", f"{task}/complete", None),
    ):
        status, text = talk.call(method, path, content=content)
        assert (status, CANARY in text) == (200, True), text
    talk.expect(204, "DELETE", task)
    talk.expect(200, "GET", "/health/ready")
    status, made = talk.call("POST", "/api/alice/tasks", content=json.dumps(NEW_TASK))
    return int(json.loads(made.partition(chr(123))[2].join("{ "))["id"])


def be_refused(talk: Talk, task_id: int) -> None:
    """Every kind of refusal, gunicorn's own among them."""
    task = f"/api/alice/tasks/{task_id}"
    for status, *question in (
        (401, "GET", f"/api/alice/tasks?access_token={talk.tokens[0]}", "Basic a2FuYXJpZW52b2dlbA=="),
        (401, "GET", "/api/alice/tasks", talk.forged),
        (401, "GET", "/api/alice/tasks", f"{talk.alice}, {talk.alice}"),
        (401, "GET", "/api/alice/tasks", f"Bearer {CANARY}"),
        (401, "GET", "/api/alice/tasks", f"{CANARY} {CANARY}"),
        (403, "GET", task, talk.bob),
        (404, "GET", task.replace("alice", "bob"), talk.bob),
        (404, "GET", f"/nowhere?{CANARY}"),
        (405, "BREW", f"/api/alice/tasks?{CANARY}"),
        (400, "GET", f"/api/alice/tasks?limit={CANARY}"),
        (400, "GET", f"/api/alice/tasks?status={CANARY}"),
        (400, "GET", f"/api/alice/tasks?cursor={CANARY}"),
        (400, "GET", "/api/alice/tasks/x"),
    ):
        talk.expect(status, *question)
    for status, content in (
        (400, CANARY),
        (400, f'["{CANARY}"]'),
        (400, f'{{"title": "{CANARY}", "description": {{"{CANARY}": 1}}}}'),
        (400, f'{{"title": ["{CANARY}"]}}'),
        (400, f'{{"title": "{CANARY}\\u0000"}}'),
        (400, f'{{"title": "{CANARY}\\ud800"}}'),
        (400, json.dumps({"title": CANARY * 20})),
        (400, f'{{"title": "{CANARY}", "title": "{CANARY}"}}'),
        (413, CANARY * 100_000),
    ):
        talk.expect(status, "POST", "/api/alice/tasks", content=content)
        if status == 400:
            talk.expect(status, "PUT", task, content=content)
    talk.expect(415, "POST", "/api/alice/tasks", content=CANARY, **{"Content-Type": f"text/{CANARY}"})
    # What names a thing that the caller sent may be told to that caller, not to the log.
    assert talk.call("POST", "/api/alice/tasks", content=f'{{"{CANARY}": 1}}')[0] == 400
    assert talk.call("GET", f"/api/alice/tasks?{CANARY}=1")[0] == 400
    assert talk.call("GET", f"/api/alice/tasks?access_token={talk.tokens[0]}")[0] == 400
    for lines in (
        f"GET /api/alice/tasks?access_token={talk.tokens[0]}",
        f"GET http://[/?access_token={talk.tokens[0]} HTTP/1.1",
        f"GET /{'x' * 9000}?{CANARY} HTTP/1.1",
        f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization {talk.alice}",
        f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization : {talk.alice}",
        f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: {talk.alice}\0",
        f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer\r\n {talk.tokens[0]}",
        f"GET / HTTP/1.1\r\n {talk.tokens[0]}: x",
        f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {CANARY * 1000}",
        f"POST / HTTP/1.1\r\nHost: x\r\nExpect: {CANARY}",
        f"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {CANARY}",
        f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {CANARY}",
        f"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{CANARY}",
        f"\x16\x03\x01{CANARY}",
    ):
        # gunicorn quotes these, if at all, to the one who said it.
        assert talk.live.raw(f"{lines}\r\n\r\n".encode("latin-1"), then_close=True)[:10] != b"HTTP/1.1 2"
    # A body that never ends, of somebody who goes away.
    head = f"POST /api/alice/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: {talk.alice}\r\nContent-Type: application/json"
    talk.live.raw(f'{head}\r\nContent-Length: 999\r\n\r\n{{"title": "{CANARY}'.encode(), then_close=True)


def suffer(talk: Talk, database: URL, task_id: int) -> None:
    """Whatever the database can do to a request."""
    new_task = json.dumps(NEW_TASK)
    calls = (("GET", f"/api/alice/tasks?q={CANARY}", None), ("POST", "/api/alice/tasks", new_task))
    calls += (("PUT", f"/api/alice/tasks/{task_id}", new_task),)

    def all_are(status: int, chosen: Any = calls) -> None:
        for method, path, content in chosen:
            talk.expect(status, method, path, content=content)

    # PostgreSQL quotes the whole row.
    sql(database, f"ALTER TABLE tasks ADD CONSTRAINT mute CHECK (title NOT LIKE '{CANARY}%') NOT VALID")
    all_are(500, calls[1:])
    sql(database, "ALTER TABLE tasks DROP CONSTRAINT mute")
    # A trigger of somebody else's, with a code of its own, quotes it too.
    raising = "'BEGIN RAISE EXCEPTION ''no %'', NEW.title USING ERRCODE = ''ZZ001''; END'"
    sql(database, f"CREATE FUNCTION mute() RETURNS trigger LANGUAGE plpgsql AS {raising}")
    sql(database, "CREATE TRIGGER mute BEFORE INSERT OR UPDATE ON tasks FOR EACH ROW EXECUTE FUNCTION mute()")
    all_are(500, calls[1:])
    sql(database, "DROP TRIGGER mute ON tasks")
    # It quotes the value.
    sql(database, "ALTER TABLE tasks ADD CONSTRAINT number CHECK (title::integer > 0) NOT VALID")
    all_are(500, calls[1:])
    sql(database, "ALTER TABLE tasks DROP CONSTRAINT number")
    sql(database, "ALTER TABLE tasks RENAME TO elsewhere")
    all_are(500)
    talk.expect(503, "GET", "/health/ready")
    sql(database, "ALTER TABLE elsewhere RENAME TO tasks")
    assert talk.call("GET", "/api/alice/tasks")[0] == 200
    sql(database, f"ALTER ROLE {database.username} PASSWORD 'another'")
    another = database.set(password="another")
    sql(
        another,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    all_are(503)
    talk.expect(503, "GET", "/health/ready")
    sql(another, f"ALTER ROLE {database.username} PASSWORD '{PASSWORD}'")
    assert talk.call("GET", "/api/alice/tasks")[0] == 200


def assert_silent(talk: Talk, log: Path, *expected: str) -> None:
    """The canary is nowhere, and what should be in the log is."""
    text = log.read_text()
    assert traces(text, *talk.tokens) == []
    assert traces(talk.answers, *talk.tokens) == []
    for line in expected:
        assert line in text


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_secret_is_logged_whatever_becomes_of_a_request(database: URL, tmp_path: Path, log_format: str) -> None:
    log = tmp_path / "log"
    with gunicorn(database, log, ready="/health/live", LOG_FORMAT=log_format, **MOST_TALKATIVE) as live:
        talk = Talk(live)
        task_id = succeed(talk)
        be_refused(talk, task_id)
        suffer(talk, database, task_id)
    assert_silent(
        talk,
        log,
        # gunicorn's line, and the service's own.
        '"GET /api/alice/tasks HTTP/1.1" 401 ',
        "request_log: GET /api/<user_id>/tasks 401 " if log_format == "text" else '"logger": "todo.web.request_log"',
        "request_log: other - 405 " if log_format == "text" else '"method": "other", "route": null, "status": 405',
        "CheckViolation 23514",
        "InvalidTextRepresentation 22P02",
        "UndefinedTable 42P01",
        "password authentication failed",
    )


def test_no_secret_is_logged_where_the_database_is_away(tmp_path: Path) -> None:
    log = tmp_path / "log"
    url = URL.create("postgresql+psycopg2", "todo", PASSWORD, "127.0.0.1", free_port(), "todo")
    with gunicorn(url, log, ready="/health/live", **MOST_TALKATIVE) as live:
        talk = Talk(live)
        talk.expect(503, "GET", "/health/ready")
        talk.expect(503, "POST", "/api/alice/tasks", content=json.dumps(NEW_TASK))
    assert_silent(talk, log, "Connection refused")


def test_no_secret_is_logged_where_the_key_set_is_none(tmp_path: Path, issuer: Issuer) -> None:
    log = tmp_path / "log"
    issuer.answer = body(f"<title>{CANARY}</title>", content_type="text/html")
    port = free_port()
    environ = {"PATH": os.environ["PATH"], "DATABASE_URL": "sqlite:////nowhere/todo.db", "IDENTITY_PROVIDER": "jwt"}
    environ |= {**MOST_TALKATIVE, "JWT_JWKS_URL": f"{issuer.url}?key={CANARY}"}
    del environ["JWT_SECRET"]
    command = [sys.executable, "-m", "gunicorn", "wsgi:app", "--bind", f"127.0.0.1:{port}"]
    with running(command, port, environ, log, ready="/health/live") as live:
        talk = Talk(live)
        talk.expect(503, "GET", f"/api/alice/tasks?q={CANARY}")
    assert_silent(talk, log, "JWT_JWKS_URL: the key set cannot be fetched: JSONDecodeError")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda handler: handler.wfile.write(f"{CANARY}\r\n\r\n".encode()), "BadStatusLine"),
        (lambda handler: handler.send_error(404, CANARY, CANARY), "the answer has the status 404"),
        (body(json.dumps({"keys": CANARY})), "its keys are not an array"),
        (body(json.dumps({CANARY: []})), "KeyError"),
    ],
    ids=["no HTTP", "404", "no list", "no keys"],
)
def test_a_key_set_that_cannot_be_fetched_is_in_the_log_from_the_start_without_its_url(
    tmp_path: Path, issuer: Issuer, answer: Any, reason: str
) -> None:
    log, port = tmp_path / "log", free_port()
    issuer.answer = answer
    environ = {"PATH": os.environ["PATH"], "IDENTITY_PROVIDER": "jwt", "JWT_JWKS_URL": f"{issuer.url}?key={CANARY}"}
    environ |= {"DATABASE_URL": f"sqlite:///{tmp_path}/todo.db", "WEB_CONCURRENCY": "2"}
    command = [sys.executable, "-m", "gunicorn", "wsgi:app", "--bind", f"127.0.0.1:{port}"]
    line = f"WARNING todo.identity.jwks: JWT_JWKS_URL: the key set cannot be fetched: {reason}"
    with running(command, port, environ, log, ready="/health/live"):
        deadline = time.monotonic() + PATIENCE
        # Each worker, and nobody has sent a token.
        while log.read_text().count(line) < 2:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
    assert issuer.requests == 2
    assert traces(log.read_text()) == []


def test_a_set_that_nobody_can_fetch_keeps_no_worker_from_its_start(tmp_path: Path, issuer: Issuer) -> None:
    log, port, enough = tmp_path / "log", free_port(), Event()
    issuer.answer = lambda _handler: cast(None, enough.wait(20))
    with sqlite_database() as url:
        close(migrated_app(url))
        environ = {"PATH": os.environ["PATH"], "IDENTITY_PROVIDER": "jwt", "JWT_JWKS_URL": issuer.url}
        environ |= {"DATABASE_URL": str(url), "WEB_CONCURRENCY": "1"}
        command = [sys.executable, "-m", "gunicorn", "wsgi:app", "--bind", f"127.0.0.1:{port}"]
        with running(command, port, environ, log) as live:
            assert live.request("GET", "/health/ready")[0] == 200
            issuer.wait_for(1)
            enough.set()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_secret_of_a_provider_of_ones_own_is_logged(tmp_path: Path, log_format: str) -> None:
    """Whose errors quote the token and the URL where they asked."""
    (tmp_path / "canary_provider.py").write_text(
        "from todo.errors import InvalidCredentials, Unavailable\n"
        "def identify(request):\n"
        "    token = request.headers['Authorization']\n"
        "    try:\n"
        "        raise OSError(f'https://issuer.example/introspect?token={token}')\n"
        "    except OSError as error:\n"
        "        if request.method == 'GET': raise Unavailable from error\n"
        "        if request.method == 'PUT': raise Unavailable(str(error)) from error\n"
        "        if request.method == 'POST': raise InvalidCredentials(str(error)) from error\n"
        "        raise\n"
    )
    log, port = tmp_path / "log", free_port()
    environ = {"PATH": os.environ["PATH"], "DATABASE_URL": "sqlite:////nowhere/todo.db", "PYTHONPATH": str(tmp_path)}
    environ |= {**MOST_TALKATIVE, "IDENTITY_PROVIDER": "canary_provider:identify", "LOG_FORMAT": log_format}
    command = [sys.executable, "-m", "gunicorn", "wsgi:app", "--bind", f"127.0.0.1:{port}"]
    with running(command, port, environ, log, ready="/health/live") as live:
        talk = Talk(live)
        talk.expect(503, "GET", "/api/alice/tasks", f"Bearer {CANARY}")
        talk.expect(503, "PUT", "/api/alice/tasks/1", f"Bearer {CANARY}")
        talk.expect(401, "POST", "/api/alice/tasks", f"Bearer {CANARY}")
        talk.expect(500, "DELETE", "/api/alice/tasks/1", f"Bearer {CANARY}")
    assert_silent(talk, log, "Service unavailable (OSError)", "refused by provider")


@pytest.mark.parametrize("shift", range(3))
def test_the_canary_is_recognised(shift: int) -> None:
    encoded = base64.b64encode(b"x" * shift + PASSWORD.encode()).decode()
    for line in (f"password={PASSWORD}", encoded, token(key=SECRET)):
        assert traces(f"nothing\n{line}\nnothing", token(key=SECRET)) == [line]


@given(pieces=st.lists(st.sampled_from([CANARY, "1", *"@:/?#[]%&=+ ,;"]), max_size=8))
def test_no_part_of_a_password_becomes_anything_else(pieces: list[str]) -> None:
    """Whatever characters it has that should have been escaped."""
    environ = GOOD | {"JWT_SECRET": SECRET, "DATABASE_URL": f"postgresql://todo:{''.join(pieces)}{CANARY}@db/todo"}
    said = ""
    try:
        url = load_settings(environ).database_url
    except ConfigurationError as error:
        said = str(error)
    else:
        assert (url.username, url.host, url.port, url.database, url.query) == ("todo", "db", None, "todo", {})
    assert traces(said) == []


GOOD = {"DATABASE_URL": "postgresql://db/todo", "IDENTITY_PROVIDER": "jwt"}


@pytest.mark.parametrize(
    "changes",
    [
        {"DATABASE_URL": f"postgresql://todo:{CANARY}@b:c@db:5432/todo"},
        {"DATABASE_URL": f"postgresql://todo:{CANARY}@db/todo?sslmode={CANARY}"},
        {"DATABASE_URL": f"postgresql://to/do:{CANARY}@db/todo"},
        {"JWT_JWKS_URL": f"https://issuer.example/keys?key= {CANARY}"},
        {"JWT_JWKS_URL": f"https://todo:pass/{CANARY}@issuer.example/keys"},
        {"JWT_SECRET": f"{SECRET}\n"},
        {"RATE_LIMIT_STORAGE": f"redis://todo:pass/{CANARY}@redis.example"},
        {"METRICS_TOKEN": f"{CANARY} {CANARY}"},
        {"DATABASE_URL": f"{CANARY}"},
        {"JWT_SECRET": CANARY},
        {"JWT_SECRET": f"-----BEGIN PUBLIC KEY-----\n{CANARY}\n-----END PUBLIC KEY-----"},
        {"JWT_PUBLIC_KEY": f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----"},
        {"JWT_SECRET": SECRET, "JWT_PUBLIC_KEY": SECRET},
        {"JWT_JWKS_URL": f"https://todo:{CANARY}@issuer.example/keys"},
        {"JWT_SECRET": SECRET, "JWT_ALGORITHMS": CANARY},
    ],
    ids="-".join,
)
def test_a_start_that_is_refused_does_not_say_what_was_set(changes: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        create_app(
            load_settings(
                GOOD | ({} if any(name.startswith("JWT_") for name in changes) else {"JWT_SECRET": SECRET}) | changes
            )
        )
    assert traces(str(caught.value)) == []
