"""Requests for entropy scores among the jobs; they leave no model"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("kind", sa.String(length=255), server_default="fine_tuning", nullable=False))
        batch_op.alter_column("fine_tuned_model", existing_type=sa.String(length=512), nullable=True)


def downgrade() -> None:
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.alter_column("fine_tuned_model", existing_type=sa.String(length=512), nullable=False)
        batch_op.drop_column("kind")
