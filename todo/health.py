"""Whether the process lives, and whether it can do its work: for load balancers, which have no identity."""

from flask.views import MethodView
from marshmallow import RAISE, Schema, fields
from sqlalchemy import inspect, text

from todo.errors import SchemaMissing
from todo.extensions import db
from todo.http import Blueprint

blp = Blueprint("health", __name__, url_prefix="/health", description="For load balancers; no identity needed.")


class HealthSchema(Schema):
    """The body of a good answer."""

    class Meta:
        unknown = RAISE

    status = fields.String(required=True, metadata={"examples": ["ok"]})


@blp.route("/live")
class Live(MethodView):
    """Does the process answer? Asks no database."""

    @blp.doc(operationId="checkLive", security=[])
    @blp.response(200, HealthSchema, example={"status": "ok"})
    def get(self) -> dict[str, str]:
        """Check that the process lives"""
        return {"status": "ok"}


@blp.route("/ready")
class Ready(MethodView):
    """Can the service do its work?"""

    @blp.doc(operationId="checkReady", security=[])
    @blp.response(200, HealthSchema, example={"status": "ok"})
    @blp.fails_with(500, 503)
    def get(self) -> dict[str, str]:
        """Check that the database answers and has its tables"""
        check_database()
        return {"status": "ok"}


def check_database() -> None:
    """Raises SQLAlchemyError where the database does not answer, SchemaMissing where it has not all the tables."""
    connection = db.session.connection()
    connection.execute(text("SELECT 1"))
    if not set(db.metadata.tables) <= set(inspect(connection).get_table_names()):
        raise SchemaMissing
