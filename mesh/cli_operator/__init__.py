"""`nexus tenant`, `nexus user`, `nexus client`, `nexus key` and `nexus root-key`: what those who run the platform do
with tenants, their users, OAuth clients and API keys, and with the platform's own root key.

Each command is a call or two of the contracts' own methods. Those for users are made with a token for the operator,
good for a minute and for the permissions that the command needs; token-mgr issues it because the mesh proves that
the operator asks.
"""

from mesh.cli_operator.api_keys import key
from mesh.cli_operator.clients import client
from mesh.cli_operator.root_keys import root_key
from mesh.cli_operator.tenants import tenant
from mesh.cli_operator.users import user

__all__ = ["client", "key", "root_key", "tenant", "user"]
