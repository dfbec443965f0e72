"""Keys of the API, the log of what was changed through it, and webhooks with their deliveries."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def text(name: str, **rest: bool) -> sa.Column:
    return sa.Column(name, sa.Text, nullable=False, **rest)


def optional(name: str, kind: type = sa.Text) -> sa.Column:
    return sa.Column(name, kind)


def number(name: str, **rest: str) -> sa.Column:
    return sa.Column(name, sa.Integer, nullable=False, **rest)


def make(name: str, *columns: sa.Column) -> None:
    op.create_table(name, sa.Column("id", sa.Integer, primary_key=True), *columns, sqlite_autoincrement=True)


def upgrade() -> None:
    make("api_keys", text("key_id", unique=True), text("name"), text("role"), text("scopes"), text("hash"), text("created_at"),
         optional("expires_at"), optional("last_used_at"), optional("revoked_at"))
    make("audit_log", text("actor"), text("action"), text("target"), text("content"), text("made_at"),
         text("previous", unique=True), text("hash", unique=True))
    make("webhooks", text("url"), text("events"), text("secret"), optional("description"),
         sa.Column("is_active", sa.Boolean, server_default=sa.true(), nullable=False), text("created_at"), text("updated_at"))
    make("webhook_deliveries", number("webhook_id"), text("event_id"), text("event"), text("payload"), text("status"),
         number("attempts", server_default="0"), optional("next_at"), optional("response_status", sa.Integer), optional("error"),
         text("created_at"), text("updated_at"))
    op.create_index("idx_webhook_deliveries_due", "webhook_deliveries", ["status", "next_at"])
    op.create_index("idx_webhook_deliveries_event", "webhook_deliveries", ["webhook_id", "event_id"], unique=True)


def downgrade() -> None:
    for table in ("webhook_deliveries", "webhooks", "audit_log", "api_keys"):
        op.drop_table(table)
