"""Health checks: does the process run, and can it do its work? For load balancers, which have no identity."""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol

from flask import Flask, current_app
from flask.views import MethodView
from marshmallow import fields
from marshmallow.validate import OneOf

from todo.web.blueprint import Blueprint
from todo.web.places import place_of_address
from todo.web.schemas import Output, example_of

logger = logging.getLogger(__name__)

blp = Blueprint("health", __name__, url_prefix="/health", description="Health checks, without authentication.")

#: For examples. No migration of this project has this number, so that it stays an example.
REVISION = "9001"


class Readiness(Protocol):
    """The result of checking a usable database."""

    @property
    def row_level_security(self) -> str:
        """Whether the database itself keeps users apart: enforced, bypassed or none."""

    @property
    def warnings(self) -> Sequence[str]:
        """Sentences for the operator."""

    @property
    def revision(self) -> str | None:
        """The revision of the database's tables, if it is known."""

    @property
    def revision_wanted(self) -> str | None:
        """The revision that the code was written for, if it is known."""


def init_app(app: Flask, check: Callable[[], Readiness]) -> None:
    """Let /health/ready call `check`, which raises a failure if the database cannot be used."""
    app.extensions["check_database"] = check


class HealthSchema(Output):
    """The body of a 200."""

    status = fields.String(
        required=True, validate=OneOf(["ok"]), metadata={"component": "HealthStatus", "examples": ["ok"]}
    )


class LivenessSchema(HealthSchema):
    """The body of a 200 from /health/live."""

    version = fields.String(
        required=True,
        metadata={"description": "The version of the service and of this document.", "examples": ["1.2.0"]},
    )


class ReadinessSchema(HealthSchema):
    """The body of a 200 from /health/ready."""

    row_level_security = fields.String(
        required=True,
        validate=OneOf(["enforced", "bypassed", "none"]),
        metadata={
            "description": "Whether the database itself keeps users apart. `enforced`: its row-level security applies "
            "to the service. `bypassed`: it does not, because the role is a superuser or has BYPASSRLS, or a table has "
            "no policy or one that shows every row. `none`: the database is SQLite.",
            "examples": ["enforced"],
        },
    )
    schema_revision = fields.String(
        required=True,
        allow_none=True,
        metadata={
            "description": "The last migration that the database has run. `null`: it is not known.",
            "examples": [REVISION],
        },
    )
    schema_revision_wanted = fields.String(
        required=True,
        allow_none=True,
        metadata={
            "description": "The newest migration that the service knows. Other than `schema_revision` for a while in "
            "each deploy. `null`: the service has no migrations beside it.",
            "examples": [REVISION],
        },
    )


@blp.route("/live")
class Live(MethodView):
    """Does the process run?"""

    @blp.doc(operationId="checkLive", security=[])
    @blp.no_query
    @blp.response(200, LivenessSchema, example=example_of(LivenessSchema))
    @blp.fails_with(400)
    def get(self) -> dict[str, str]:
        """Check that the process runs

        Does not use the database. Restart a process that fails this check.
        """
        return {"status": "ok", "version": current_app.config["API_VERSION"]}


@blp.route("/ready")
class Ready(MethodView):
    """Can the service do its work?"""

    @blp.doc(operationId="checkReady", security=[])
    @blp.no_query
    @blp.response(200, ReadinessSchema, example=example_of(ReadinessSchema))
    @blp.fails_with(400, 429, 500, 503)
    def get(self) -> dict[str, str | None]:
        """Check that the database answers and has what the service needs

        Tries tables, columns, rights, functions, policies and encoding. Send no requests to a process that fails this
        check: its database is unavailable, or lacks one of these.
        """
        with place_of_address():
            readiness: Readiness = current_app.extensions["check_database"]()
        for warning in readiness.warnings:
            _warn(warning)
        return {
            "status": "ok",
            "row_level_security": readiness.row_level_security,
            "schema_revision": readiness.revision,
            "schema_revision_wanted": readiness.revision_wanted,
        }


@cache
def _warn(warning: str) -> None:
    # Once per process (the cache): load balancers ask every few seconds.
    logger.warning(warning)
