from datetime import timedelta

from pydantic import BaseModel

from services.chassis.spec import ServiceSpec


class Config(BaseModel):
    refresh_lifetime: timedelta = timedelta(days=30)
    refresh_grace: timedelta = timedelta(seconds=10)
    """How long an exchanged refresh token is still taken, for clients that refresh in parallel."""
    id_token_lifetime: timedelta = timedelta(minutes=10)
    """How long a client may take to read an ID token."""
    key_propagation: timedelta = timedelta(seconds=30)
    """How long a key is published before it may sign: longer than any verifier caches the key set."""
    key_lifetime: timedelta = timedelta(days=30)
    """How long a key signs before the next one does."""


SERVICE = ServiceSpec(
    id="token-mgr",
    port=3005,
    calls=["key-service", "puabo-os"],
    subscribes=["nexus.identity.user_auth.v1.UserErased"],
    config=Config,
)
