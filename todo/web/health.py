"""Whether the process lives, and whether it can do its work: for load balancers, which have no identity."""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol

from flask import Flask, current_app
from flask.views import MethodView
from marshmallow import fields
from marshmallow.validate import OneOf

from todo.web.blueprint import Blueprint
from todo.web.schemas import Output

logger = logging.getLogger(__name__)

blp = Blueprint("health", __name__, url_prefix="/health", description="For load balancers; no identity needed.")


class Readiness(Protocol):
    """What the check of a database that can be used returns."""

    @property
    def row_level_security(self) -> str:
        """Whether the database itself separates users."""

    @property
    def warnings(self) -> Sequence[str]:
        """Sentences for the operator."""


def init_app(app: Flask, check: Callable[[], Readiness]) -> None:
    """Let /health/ready use that check, which raises a failure if the database cannot be used."""
    app.extensions["check_database"] = check


class HealthSchema(Output):
    """The body of a good answer."""

    status = fields.String(
        required=True, validate=OneOf(["ok"]), metadata={"component": "HealthStatus", "examples": ["ok"]}
    )


class LivenessSchema(HealthSchema):
    """The body of a good answer of the process."""

    version = fields.String(
        required=True,
        metadata={"description": "The version of the service, as in this document.", "examples": ["1.1.0"]},
    )


class ReadinessSchema(HealthSchema):
    """The body of a good answer about the database."""

    row_level_security = fields.String(
        required=True,
        validate=OneOf(["enforced", "bypassed", "none"]),
        metadata={
            "description": "Whether the database itself keeps users apart: not where its role bypasses the policies "
            "(a superuser, BYPASSRLS), a table has none or one that lets everybody in, and not on SQLite.",
            "examples": ["enforced"],
        },
    )


@blp.route("/live")
class Live(MethodView):
    """Does the process answer? Asks no database."""

    @blp.doc(operationId="checkLive", security=[])
    @blp.no_query
    @blp.response(200, LivenessSchema, example={"status": "ok", "version": "1.1.0"})
    @blp.fails_with(400)
    def get(self) -> dict[str, str]:
        """Check that the process lives

        Asks no database: a process that fails here wants to be started anew.
        """
        return {"status": "ok", "version": current_app.config["API_VERSION"]}


@blp.route("/ready")
class Ready(MethodView):
    """Can the service do its work?"""

    @blp.doc(operationId="checkReady", security=[])
    @blp.no_query
    @blp.response(200, ReadinessSchema, example={"status": "ok", "row_level_security": "enforced"})
    @blp.fails_with(400, 429, 500, 503)
    def get(self) -> dict[str, str]:
        """Check that the database answers and has what the service needs

        Tables, columns, rights, functions, policies and encoding are tried. A process that fails here wants no requests
        for now: its database is away, or lacks one of them.
        """
        readiness: Readiness = current_app.extensions["check_database"]()
        for warning in readiness.warnings:
            _warn(warning)
        return {"status": "ok", "row_level_security": readiness.row_level_security}


@cache
def _warn(warning: str) -> None:
    # Once in the life of a process: load balancers ask every few seconds.
    logger.warning(warning)
