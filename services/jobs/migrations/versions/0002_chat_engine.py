"""The chat engine and the requests it is answering"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "chat_engine",
        sa.Column("place", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("app", sa.String(length=255), nullable=False),
        sa.Column("model", sa.String(length=1024), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=255), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("used_at", sa.Double(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("place"),
    )
    op.create_table(
        "chat_requests",
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("app", sa.String(length=255), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("chat_requests", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_chat_requests_app"), ["app"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("chat_requests", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_chat_requests_app"))

    op.drop_table("chat_requests")
    op.drop_table("chat_engine")
