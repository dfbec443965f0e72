"""Jobs, model versions, and the name by which a log row is known when it is sent twice."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def text(name: str) -> sa.Column:
    return sa.Column(name, sa.Text, nullable=False)


def optional(name: str, kind: type = sa.Text) -> sa.Column:
    return sa.Column(name, kind)


def upgrade() -> None:
    op.add_column("training_logs", optional("entry"))
    op.create_index("idx_training_logs_entry", "training_logs", ["entry"], unique=True)
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("job_id", sa.Text, nullable=False, unique=True),
        text("kind"),
        text("params"),
        text("status"),
        sa.Column("token", sa.Integer, server_default="0", nullable=False),
        optional("host"),
        optional("pid", sa.Integer),
        optional("pid_started", sa.Float),
        optional("heartbeat_at"),
        optional("stop_requested"),
        optional("progress"),
        optional("result"),
        optional("error_message"),
        optional("memory_mb", sa.Float),
        optional("time_s", sa.Float),
        text("created_at"),
        text("queued_at"),
        optional("started_at"),
        optional("ended_at"),
        text("updated_at"),
        sqlite_autoincrement=True,
    )
    op.create_index("idx_jobs_status", "jobs", ["status", "queued_at"])
    op.create_table(
        "job_events",
        sa.Column("id", sa.Integer, primary_key=True),
        text("job_id"),
        text("kind"),
        text("data"),
        text("timestamp"),
        sqlite_autoincrement=True,
    )
    op.create_index("idx_job_events_job_id", "job_events", ["job_id", "id"])
    op.create_table(
        "model_versions",
        sa.Column("id", sa.Integer, primary_key=True),
        text("model_name"),
        sa.Column("version", sa.Integer, nullable=False),
        text("architecture"),
        optional("file_path"),
        optional("sha256"),
        optional("config"),
        optional("data"),
        optional("code_version"),
        optional("parent"),
        optional("metrics"),
        optional("evaluation"),
        optional("about"),
        optional("notes"),
        optional("job_id"),
        text("created_at"),
        text("updated_at"),
        optional("deleted_at"),
        optional("purged_at"),
        sa.UniqueConstraint("model_name", "version"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "model_aliases",
        sa.Column("id", sa.Integer, primary_key=True),
        text("model_name"),
        text("alias"),
        sa.Column("version", sa.Integer, nullable=False),
        text("created_at"),
        text("updated_at"),
        sa.UniqueConstraint("model_name", "alias"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "model_tags",
        sa.Column("id", sa.Integer, primary_key=True),
        text("model_name"),
        sa.Column("version", sa.Integer, nullable=False),
        text("tag"),
        text("created_at"),
        sa.UniqueConstraint("model_name", "version", "tag"),
        sqlite_autoincrement=True,
    )
    # No process of today owns a session that an earlier version left open: it had no job to be found dead by.
    op.execute("""UPDATE training_sessions SET status = 'interrupted', end_time = coalesce(end_time, updated_at),
        error_message = coalesce(error_message, 'still open when the database was brought to revision 0002')
        WHERE status IN ('queued', 'started', 'running')""")


def downgrade() -> None:
    for table in ("model_tags", "model_aliases", "model_versions", "job_events", "jobs"):
        op.drop_table(table)
    op.drop_index("idx_training_logs_entry", "training_logs")
    op.drop_column("training_logs", "entry")
