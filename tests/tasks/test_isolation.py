"""Each layer by itself keeps the tasks of users apart."""

import pytest
from flask import Flask

from tests.support import Caller, acting_for
from todo.db.statements import Statement
from todo.db.versions import Expected
from todo.errors import OwnershipViolated
from todo.tasks import queries, service

pytestmark = pytest.mark.sql


def test_the_queries_alone_keep_users_apart(app: Flask, alice: Caller, bob: Caller) -> None:
    """The database lets them see and change the rows of alice."""
    task = alice.create()
    bob.create()
    expected = Expected(wanted=[1])
    with acting_for(app, "alice"):
        assert queries.find_task("bob", task["id"]) is None
        assert queries.update_task("bob", task["id"], {"title": "stolen"}) is None
        assert queries.update_task("bob", task["id"], {"title": "stolen"}, expected) is None
        assert queries.toggle_task("bob", task["id"]) is None
        assert queries.toggle_task("bob", task["id"], expected) is None
        assert queries.delete_task("bob", task["id"]) is None
        assert queries.delete_task("bob", task["id"], expected) is None
        assert "alice" not in {
            row.user_id
            for row in queries.list_tasks("bob", status=None, q=None, before=None, limit=10, size=1024 * 1024)
        }
    assert alice("GET").get_json() == [task]


def test_the_service_alone_keeps_users_apart(app: Flask, alice: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """The statements return the rows of another user; the service does not hand them on."""
    task = alice.create()
    execute = Statement.all
    monkeypatch.setattr(Statement, "all", lambda self, **named: execute(self, **named | {"user_id": "alice"}))
    with acting_for(app, "alice"):
        for steal in (
            lambda: service.list_tasks("bob"),
            lambda: service.get_task("bob", task["id"]),
            lambda: service.update_task("bob", task["id"], {"title": "x"}),
            lambda: service.complete_task("bob", task["id"]),
            lambda: service.delete_task("bob", task["id"]),
        ):
            with pytest.raises(OwnershipViolated):
                steal()
