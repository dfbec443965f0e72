"""The ledger of forecasts, goals, decisions and experiments; fragments of knowledge known by their content."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def text(name: str, **rest: bool) -> sa.Column:
    return sa.Column(name, sa.Text, nullable=False, **rest)


def optional(name: str, kind: type = sa.Text) -> sa.Column:
    return sa.Column(name, kind)


def flag(name: str) -> sa.Column:
    return sa.Column(name, sa.Boolean, server_default=sa.false(), nullable=False)


def make(name: str, *columns: sa.Column) -> None:
    op.create_table(name, sa.Column("id", sa.Integer, primary_key=True), *columns, sqlite_autoincrement=True)


def upgrade() -> None:
    make("ledger", text("kind"), text("draw_date"), text("forecaster"), text("version"), text("content"),
         text("made_at"), text("previous", unique=True), text("hash", unique=True))
    op.create_index("idx_ledger_draw_date", "ledger", ["draw_date", "forecaster"])
    make("goals", text("name", unique=True), text("metric"), sa.Column("target", sa.Float, nullable=False),
         optional("deadline"), sa.Column("priority", sa.Integer, nullable=False), optional("model_name"), text("status"),
         optional("details"), text("created_at"), text("updated_at"))
    make("decisions", text("kind"), text("model_name"), text("state"), text("options"), text("choice"),
         sa.Column("confidence", sa.Float, nullable=False), text("rationale"), flag("reversible"), flag("autonomous"),
         text("status"), optional("expected"), optional("outcome"), optional("undo"), text("created_at"),
         text("updated_at"), optional("executed_at"), optional("verified_at"))
    op.create_index("idx_decisions_status", "decisions", ["status"])
    make("experiments", text("name", unique=True), text("kind"), text("config"), text("status"), optional("outcome"),
         text("created_at"), text("updated_at"), optional("ended_at"))
    op.add_column("knowledge_fragments", optional("content_hash"))
    op.create_index("idx_knowledge_fragments_content", "knowledge_fragments",
                    ["model_name", "fragment_type", "content_hash"], unique=True)


def downgrade() -> None:
    op.drop_index("idx_knowledge_fragments_content", "knowledge_fragments")
    op.drop_column("knowledge_fragments", "content_hash")
    for table in ("experiments", "decisions", "goals", "ledger"):
        op.drop_table(table)
