"""The tables of hubs from before versions were written down. Nothing to do: they are there.

Revision ID: 0001
"""

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing: a database without tables is made as it is now."""
