"""What Alembic runs: the revisions, on the connection and in the transaction of helios.migrations."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], version_table="helios_schema",
                  transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
