"""What a platform that traces every call tells its collector."""

import httpx
import pytest

from tests.chaos.collector import Collector
from tests.chaos.conftest import Hurt
from tests.identity.test_no_secret_in_clear import through_every_flow
from tests.platforms import eventually

pytestmark = pytest.mark.xdist_group("chaos")

LAST = {
    "nexus.identity.auth_service.v1.AuthService/VerifyMfa",
    "nexus.identity.auth_service_v2.v1.ClientService/CreateProvider",
    "nexus.identity.auth_service_v2.v1.OidcService/Token",
    "nexus.identity.session_mgr.v1.SessionService/GetSession",
    "nexus.identity.token_mgr.v1.TokenService/ExchangeToken",
    "nexus.identity.user_auth.v1.UserService/ProvisionUser",
    "nexus.platform.backend_api.v1.ApiKeyService/VerifyApiKey",
    "nexus.platform.key_service.v1.KeyService/Decrypt",
    "nexus.platform.pv_keys.v1.PrivateKeyService/Sign",
}
"""What the flows call last, of each service."""


async def test_no_trace_of_any_flow_has_a_secret(hurt: Hurt, edge: httpx.AsyncClient, collector: Collector) -> None:
    collector.requests.clear()
    canaries = await through_every_flow(hurt.platform)
    eventually(lambda: {f"/{name}" for name in LAST} <= {f"/{name.lstrip('/')}" for name in collector.names()})
    told = b"".join(request.SerializeToString() for request in collector.requests)
    assert not canaries.found_in("a trace", told)
