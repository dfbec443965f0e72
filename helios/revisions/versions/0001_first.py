"""The ten tables that Helios began with."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def text(name: str) -> sa.Column:
    return sa.Column(name, sa.Text, nullable=False)


def optional(name: str, kind: type = sa.Text) -> sa.Column:
    return sa.Column(name, kind)


def upgrade() -> None:
    op.create_table(
        "models",
        sa.Column("name", sa.Text, primary_key=True),
        text("file_path"),
        text("architecture"),
        text("version"),
        optional("metadata"),
        sa.Column("is_active", sa.Boolean, server_default=sa.true(), nullable=False),
        text("created_at"),
        text("updated_at"),
    )
    op.create_table(
        "training_sessions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("job_id", sa.Text, nullable=False, unique=True),
        text("model_name"),
        text("status"),
        text("start_time"),
        optional("end_time"),
        sa.Column("progress", sa.Integer, server_default="0", nullable=False),
        optional("config"),
        optional("error_message"),
        optional("log_summary"),
        text("created_at"),
        text("updated_at"),
        sqlite_autoincrement=True,
    )
    op.create_index("idx_training_sessions_status", "training_sessions", ["status"])
    op.create_table(
        "training_logs",
        sa.Column("id", sa.Integer, primary_key=True),
        text("job_id"),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("loss", sa.Float, nullable=False),
        optional("metrics"),
        text("timestamp"),
        sa.ForeignKeyConstraint(["job_id"], ["training_sessions.job_id"]),
        sqlite_autoincrement=True,
    )
    op.create_index("idx_training_logs_job_id", "training_logs", ["job_id"])
    op.create_table(
        "enhanced_journal",
        sa.Column("id", sa.Integer, primary_key=True),
        text("model_name"),
        text("session_id"),
        text("event_type"),
        text("event_data"),
        optional("confidence_score", sa.Float),
        optional("success_metric", sa.Float),
        optional("context_hash"),
        text("timestamp"),
        sa.Column("archived", sa.Boolean, server_default=sa.false(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("idx_enhanced_journal_model", "enhanced_journal", ["model_name"])
    op.create_table(
        "knowledge_fragments",
        sa.Column("id", sa.Integer, primary_key=True),
        text("model_name"),
        text("fragment_type"),
        text("content"),
        sa.Column("relevance_score", sa.Float, nullable=False),
        sa.Column("usage_count", sa.Integer, server_default="0", nullable=False),
        text("created_at"),
        optional("last_accessed"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "performance_metrics",
        sa.Column("id", sa.Integer, primary_key=True),
        text("model_name"),
        text("metric_name"),
        sa.Column("metric_value", sa.Float, nullable=False),
        optional("context"),
        text("timestamp"),
        sqlite_autoincrement=True,
    )
    op.create_index("idx_performance_metrics_timestamp", "performance_metrics", ["timestamp"])
    op.create_table(
        "predictions",
        sa.Column("id", sa.Integer, primary_key=True),
        text("model_name"),
        text("prediction_data"),
        sa.Column("confidence", sa.Float, nullable=False),
        optional("draw_date"),
        text("created_at"),
        optional("outcome"),
        optional("outcome_at"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "context_storage",
        sa.Column("id", sa.Integer, primary_key=True),
        text("context_type"),
        text("context_key"),
        text("context_data"),
        text("created_at"),
        text("updated_at"),
        optional("expires_at"),
        sa.UniqueConstraint("context_type", "context_key"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "system_events",
        sa.Column("id", sa.Integer, primary_key=True),
        text("event_type"),
        optional("event_data"),
        text("level"),
        text("timestamp"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "memory_operations",
        sa.Column("id", sa.Integer, primary_key=True),
        text("operation"),
        sa.Column("items_affected", sa.Integer, nullable=False),
        optional("details"),
        text("timestamp"),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    for table in ("memory_operations", "system_events", "context_storage", "predictions", "performance_metrics",
                  "knowledge_fragments", "enhanced_journal", "training_logs", "training_sessions", "models"):
        op.drop_table(table)
