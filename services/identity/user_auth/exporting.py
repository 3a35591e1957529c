"""What the platform keeps about a user, gathered from the services that keep it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from nexus.identity.auth_service.v1.auth_service_pb2 import ListUserFactorsRequest
from nexus.identity.auth_service.v1.auth_service_pb2_grpc import AuthServiceStub
from nexus.identity.auth_service_v2.v1.clients_pb2 import ListUserConsentsRequest
from nexus.identity.auth_service_v2.v1.clients_pb2_grpc import ClientServiceStub
from nexus.identity.session_mgr.v1.session_mgr_pb2 import ListUserSessionsRequest
from nexus.identity.session_mgr.v1.session_mgr_pb2_grpc import SessionServiceStub
from nexus.identity.user_auth.v1 import user_auth_pb2 as pb
from nexus.modules.puabo_os.v1.settings_pb2 import SETTING_LEVEL_USER, ResolveSettingsRequest
from nexus.modules.puabo_os.v1.settings_pb2_grpc import SettingServiceStub
from nexus.platform.backend_api.v1.api_keys_pb2 import ListUserApiKeysRequest
from nexus.platform.backend_api.v1.api_keys_pb2_grpc import ApiKeyServiceStub
from services.chassis.clients import Clients
from services.chassis.clock import now, timestamp

_PAGE = 1_000


class Exporter:
    """Asks all of them at once."""

    def __init__(self, clients: Clients) -> None:
        self._sessions = clients.stub(SessionServiceStub)
        self._factors = clients.stub(AuthServiceStub)
        self._consents = clients.stub(ClientServiceStub)
        self._api_keys = clients.stub(ApiKeyServiceStub)
        self._settings = clients.stub(SettingServiceStub)

    async def export(self, user: pb.User, identities: list[pb.LinkedIdentity]) -> pb.UserExport:
        """Raises DependencyUnavailable rather than leaving something out."""
        user_id = user.user_id
        sessions, factors, consents, api_keys, settings = await asyncio.gather(
            self._sessions.ListUserSessions(ListUserSessionsRequest(user_id=user_id, include_ended=True)),
            self._factors.ListUserFactors(ListUserFactorsRequest(user_id=user_id)),
            _pages(self._consents.ListUserConsents, ListUserConsentsRequest(user_id=user_id, page_size=_PAGE)),
            _pages(self._api_keys.ListUserApiKeys, ListUserApiKeysRequest(user_id=user_id, page_size=_PAGE)),
            self._settings.ResolveSettings(ResolveSettingsRequest(user_id=user_id)),
        )
        return pb.UserExport(
            user=user,
            identities=identities,
            sessions=sessions.sessions,
            export_time=timestamp(now()),
            factors=factors.factors,
            consents=[consent for page in consents for consent in page.consents],
            api_keys=[key for page in api_keys for key in page.api_keys],
            settings=[setting for setting in settings.settings if setting.source == SETTING_LEVEL_USER],
        )


async def _pages(method: Callable[[Any], Awaitable[Any]], request: Any) -> list[Any]:
    """All pages of a list."""
    pages = [await method(request)]
    while pages[-1].next_page_token:
        request.page_token = pages[-1].next_page_token
        pages.append(await method(request))
    return pages
