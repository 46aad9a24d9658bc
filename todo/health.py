"""Whether the process lives, and whether it can do its work: for load balancers, which have no identity."""

import logging
from functools import cache

from flask.views import MethodView
from marshmallow import RAISE, Schema, fields
from marshmallow.validate import OneOf
from sqlalchemy import inspect, text

from todo.errors import SchemaMissing
from todo.extensions import db
from todo.http import Blueprint

logger = logging.getLogger(__name__)

ROW_LEVEL_SECURITY = ("enforced", "bypassed", "none")

blp = Blueprint("health", __name__, url_prefix="/health", description="For load balancers; no identity needed.")


class HealthSchema(Schema):
    """The body of a good answer."""

    class Meta:
        unknown = RAISE

    status = fields.String(required=True, validate=OneOf(["ok"]), metadata={"examples": ["ok"]})


class ReadinessSchema(HealthSchema):
    """The body of a good answer about the database."""

    row_level_security = fields.String(
        required=True,
        validate=OneOf(ROW_LEVEL_SECURITY),
        metadata={
            "description": "Whether the database itself keeps users apart: not where its role bypasses the policies "
            "(a superuser, BYPASSRLS) or a table has none, and not on SQLite.",
            "examples": ["enforced"],
        },
    )


@blp.route("/live")
class Live(MethodView):
    """Does the process answer? Asks no database."""

    @blp.doc(operationId="checkLive", security=[])
    @blp.response(200, HealthSchema, example={"status": "ok"})
    def get(self) -> dict[str, str]:
        """Check that the process lives

        Asks no database: a process that fails here wants to be started anew.
        """
        return {"status": "ok"}


@blp.route("/ready")
class Ready(MethodView):
    """Can the service do its work?"""

    @blp.doc(operationId="checkReady", security=[])
    @blp.response(200, ReadinessSchema, example={"status": "ok", "row_level_security": "enforced"})
    @blp.fails_with(429, 500, 503)
    def get(self) -> dict[str, str]:
        """Check that the database answers and has its tables

        A process that fails here wants no requests for now: its database is away, or has no tables yet.
        """
        row_level_security = check_database()
        if row_level_security == "bypassed":
            _warn_of_bypass()
        return {"status": "ok", "row_level_security": row_level_security}


def check_database() -> str:
    """One of ROW_LEVEL_SECURITY.

    Raises SQLAlchemyError where the database does not answer, SchemaMissing where it has not all the tables.
    """
    connection = db.session.connection()
    connection.execute(text("SELECT 1"))
    if not set(db.metadata.tables) <= set(inspect(connection).get_table_names()):
        raise SchemaMissing
    if connection.dialect.name == "sqlite":
        return "none"
    owned = [name for name, table in db.metadata.tables.items() if "user_id" in table.columns]
    are_enforced = text("SELECT bool_and(row_security_active(name)) FROM unnest(:owned) AS name")
    return "enforced" if connection.scalar(are_enforced, {"owned": owned}) else "bypassed"


@cache
def _warn_of_bypass() -> None:
    # Once in the life of a process: load balancers ask every few seconds.
    logger.warning(
        "row-level security is bypassed: the database role is a superuser or has BYPASSRLS, or a table has no policy. "
        "The queries and the service still keep users apart, the database itself does not"
    )
