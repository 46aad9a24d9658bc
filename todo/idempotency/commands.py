"""The command that forgets old keys: everybody's, so that it is a matter of operations and of no request."""

import click
from flask import Blueprint
from sqlalchemy import text

from todo.commands import BATCH, on_database
from todo.extensions import db

#: Hours for which a key is kept at least. On PostgreSQL the policy of the table holds that too (migration 0004).
KEPT_FOR = 24

blp = Blueprint("idempotency-keys", __name__, cli_group="idempotency-keys")
blp.cli.help = "Keep the table of idempotency keys small"

# In short transactions, so that no create waits long for a key's place.
PRUNE = """
    DELETE FROM idempotency_keys WHERE (user_id, key) IN (
        SELECT user_id, key FROM idempotency_keys WHERE created_at < {before} LIMIT :batch
    )
"""
BEFORE = {
    "postgresql": "now() - make_interval(hours => :hours)",
    "sqlite": "(strftime('%s', 'now') - :hours * 3600) * 1000000",
}


@blp.cli.command("prune")
@click.option(
    "--older-than", "hours", type=click.IntRange(min=KEPT_FOR), default=KEPT_FOR, show_default=True, metavar="HOURS"
)
@on_database
def prune(hours: int) -> None:
    """Forget idempotency keys that are older than so many hours"""
    statement = text(PRUNE.format(before=BEFORE[db.engine.dialect.name]))
    pruned, latest = 0, BATCH
    while latest == BATCH:
        latest = db.session.connection().execute(statement, {"hours": hours, "batch": BATCH}).rowcount
        pruned += latest
    click.echo(f"Forgot {pruned} idempotency keys")
