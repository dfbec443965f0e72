"""The revisions of the tables, for Alembic; helios.migrations runs them."""
