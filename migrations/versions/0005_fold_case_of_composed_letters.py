"""Make fold_case ignore composition, and fast for ASCII"""

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

FOLD_CASE = Path(__file__).parents[1] / "fold_case.sql"


def upgrade() -> None:
    """Replace the function. It keeps its name and signature, so that older code can call it."""
    if op.get_context().dialect.name == "postgresql":
        op.execute(FOLD_CASE.read_text())


def downgrade() -> None:
    """Keep the function: the code of 0004 works with it."""
