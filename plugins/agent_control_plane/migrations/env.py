"""How Alembic runs the revisions: on the connection, and in the transaction, that it is given."""

from alembic import context
from sqlalchemy import Connection

from agent_control_plane.schema import VERSION_TABLE
from agent_control_plane.tables import metadata

connection: Connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, version_table=VERSION_TABLE)
context.run_migrations()
