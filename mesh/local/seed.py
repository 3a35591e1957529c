"""The demo tenant: enough to sign in and look around. Running it again changes nothing."""

from dataclasses import dataclass
from datetime import timedelta

import asyncpg

from nexus.identity.token_mgr.v1.token_mgr_pb2 import IssueTokensRequest
from nexus.identity.token_mgr.v1.token_mgr_pb2_grpc import TokenServiceStub
from nexus.identity.user_auth.v1.user_auth_pb2 import ProvisionUserRequest
from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub
from nexus.modules.puabo_os.v1.modules_pb2 import EnableModuleRequest, ListModulesRequest
from nexus.modules.puabo_os.v1.modules_pb2_grpc import ModuleServiceStub
from services.chassis.clients import Clients
from services.chassis.clock import now, timestamp
from services.chassis.config import Settings
from services.chassis.context import OPERATOR, OPERATOR_USER
from services.chassis.ids import new_id
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
        await _switch_everything_on(clients, demo.tenant)
    finally:
        await clients.stop()
    return demo


async def _switch_everything_on(clients: Clients, tenant_id: str) -> None:
    """As the operator, whom token-mgr gives a token because the mesh proves who asks."""
    issued = await clients.stub(TokenServiceStub).IssueTokens(
        IssueTokensRequest(
            user_id=OPERATOR_USER,
            session_id=new_id(),
            permissions=["modules.manage"],
            session_expire_time=timestamp(now() + timedelta(minutes=1)),
        ),
        timeout=10.0,
        metadata=(("x-nexus-tenant", tenant_id),),
    )
    metadata = (("authorization", f"Bearer {issued.tokens.access_token}"),)
    modules = clients.stub(ModuleServiceStub)
    listed = await modules.ListModules(ListModulesRequest(), timeout=10.0, metadata=metadata)
    for module in listed.modules:
        if module.in_plan and not module.enabled:
            await modules.EnableModule(EnableModuleRequest(module_id=module.module_id), timeout=10.0, metadata=metadata)
