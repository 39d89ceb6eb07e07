"""Alembic's entry: migrations run on the connection that the caller hands over."""

from alembic import context

from statewright_worker.storage.schema import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    compare_server_default=True,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
