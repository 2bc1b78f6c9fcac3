"""Engines belong to an architecture and take weights in turn

Engines of the release before were made for one checkpoint and cannot take other weights: their rows get a key that none
asks for, and are removed when they have been idle long enough.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    for name in ("key", "weights"):
        op.add_column("engines", sa.Column(name, sa.String(255), nullable=False, server_default=""))
    op.add_column("engines", sa.Column("num_cpus", sa.Integer(), nullable=False, server_default="1"))
    op.create_index("ix_engines_key", "engines", ["key"])


def downgrade() -> None:
    op.drop_index("ix_engines_key", "engines")
    for name in ("num_cpus", "weights", "key"):
        op.drop_column("engines", name)
