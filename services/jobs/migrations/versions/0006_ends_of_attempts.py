"""How attempts end: those that failed count, those that were lost have a time limit"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute("ALTER TABLE jobs RENAME COLUMN lost_drivers TO failed_attempts")
    op.add_column("jobs", sa.Column("lost_since", sa.Float(), nullable=True))
    op.add_column("jobs", sa.Column("attempt_end", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "attempt_end")
    op.drop_column("jobs", "lost_since")
    op.execute("ALTER TABLE jobs RENAME COLUMN failed_attempts TO lost_drivers")
