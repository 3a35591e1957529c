"""The demo tenant: enough to sign in and look around. Running it again changes nothing."""

from dataclasses import dataclass

import asyncpg

from nexus.identity.user_auth.v1.user_auth_pb2 import ProvisionUserRequest
from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub
from services.chassis.clients import Clients
from services.chassis.config import Settings
from services.chassis.context import OPERATOR
from services.chassis.tenants import create_tenant


@dataclass(frozen=True)
class DemoCredentials:
    tenant: str = "demo"
    email: str = "owner@demo.example"
    password: str = "demo-password"


async def seed(settings: Settings) -> DemoCredentials:
    """Create the demo tenant and its owner. Only in development: the password is public."""
    demo = DemoCredentials()
    if settings.environment != "development":
        raise RuntimeError("the demo tenant is for development only")
    assert settings.database_url is not None
    connection = await asyncpg.connect(settings.database_url.get_secret_value())
    try:
        await create_tenant(connection, demo.tenant, "Demo")
    finally:
        await connection.close()
    clients = Clients(settings, OPERATOR, None)
    try:
        await clients.stub(UserServiceStub).ProvisionUser(
            ProvisionUserRequest(email=demo.email, password=demo.password, display_name="Demo Owner", roles=["owner"]),
            timeout=10.0,
            metadata=(("x-nexus-tenant", demo.tenant),),
        )
    finally:
        await clients.stop()
    return demo
