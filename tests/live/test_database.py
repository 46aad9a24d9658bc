"""Connections that fall silent, and waits for a connection of the pool; tests/test_database.py has the rest."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError

from tests.live.wire import wire_to
from tests.support import Caller, Make, silent_database
from tests.test_database import _task, is_unavailable  # noqa: F401 (a fixture)
from todo.db import connections as database
from todo.db import db, pool

pytestmark = [pytest.mark.sql, pytest.mark.usefixtures("_task")]


def test_one_silent_connection_tells_of_the_others(
    make: Make, postgresql: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    with wire_to(postgresql) as (wire, url):
        app = make(url, threads=2)
        alice = Caller(app, "alice")
        with app.app_context(), db.engine.connect(), db.engine.connect():
            wire.forget()
        with monkeypatch.context() as patch:
            patch.setattr(database, "REQUEST_BUDGET", 0.4)
            assert is_unavailable(alice)
        with app.app_context(), db.engine.connect():
            assert not is_unavailable(alice)
        assert wire.connections == 4


def test_the_text_of_an_error_has_no_parameter(app: Flask, url: URL) -> None:
    """Users wrote the parameters, and any library may print an error."""
    # Not an error for which PostgreSQL quotes the line.
    fault = "abs('x', 1)" if url.get_backend_name() == "sqlite" else "1 / 0"
    statement = text(f"SELECT {fault} WHERE :title <> ''")
    with app.app_context(), pytest.raises(DBAPIError) as caught:
        db.session.execute(statement, {"title": "a private title"})
    assert f"SELECT {fault} WHERE" in str(caught.value)
    assert "private" not in str(caught.value)


def test_a_connection_that_was_just_made_is_not_replaced_once_more(
    make: Make, postgresql: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If many are lost at once, SQLAlchemy would give up with an error of its own."""
    alice = Caller(make(postgresql), "alice")
    assert not is_unavailable(alice)
    monkeypatch.setattr(database, "_lost_at", time.monotonic() + 60)
    assert not is_unavailable(alice)


def test_who_waits_for_a_connection_gets_the_first_that_comes_back(make: Make, postgresql: URL) -> None:
    app = make(postgresql, threads=1)
    with ThreadPoolExecutor(1) as threads:
        with app.app_context(), db.engine.connect():
            waiting = threads.submit(is_unavailable, Caller(app, "alice"))
            with pytest.raises(TimeoutError):
                waiting.result(0.1)
        assert not waiting.result()


def test_nobody_waits_for_connections_that_are_being_made_in_vain(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "TIMEOUT", 0.1)
    monkeypatch.setattr(database, "REQUEST_BUDGET", 1.0)
    with silent_database() as (silent, url), ThreadPoolExecutor(1) as threads:
        alice = Caller(make(url, threads=1), "alice")
        connecting = threads.submit(is_unavailable, alice)
        connection, _ = silent.accept()
        assert all(is_unavailable(alice) for _ in range(20))
        assert not connecting.done()
        connection.close()
        assert connecting.result()
        again = threads.submit(is_unavailable, alice)
        silent.accept()[0].close()
        assert again.result()
