"""Alembic's entry: moves our tables, and only ours, on the connection it is handed."""

from alembic import context

from storage.connection import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()
