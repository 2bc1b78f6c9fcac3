"""Engines stay between jobs"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    left = op.get_bind().execute(sa.text("SELECT app FROM engines")).scalars().all()
    op.drop_table("engines")
    engines = op.create_table(
        "engines",
        sa.Column("app", sa.String(length=255), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=255), nullable=False),
        sa.Column("num_replicas", sa.Integer(), nullable=False),
        sa.Column("use_gpu", sa.Boolean(), nullable=False),
        sa.Column("used_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("app"),
    )
    # Applications of the release before are not used any more, only deleted.
    row = {"state": "leaving", "num_replicas": 1, "use_gpu": False, "used_at": 0.0}
    op.bulk_insert(engines, [{"app": app, "label": app} | row for app in left])
    op.create_table(
        "engine_users",
        sa.Column("app", sa.String(length=255), nullable=False),
        sa.Column("job_id", sa.String(length=255), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["app"], ["engines.app"]),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"]),
        sa.PrimaryKeyConstraint("app", "job_id", "attempt"),
    )


def downgrade() -> None:
    op.drop_table("engine_users")
    op.drop_table("engines")
    op.create_table(
        "engines",
        sa.Column("app", sa.String(length=255), nullable=False),
        sa.Column("job_id", sa.String(length=255), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"]),
        sa.PrimaryKeyConstraint("app"),
    )
    with op.batch_alter_table("engines", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_engines_job_id"), ["job_id"], unique=False)
