"""What there is and how it does, read off the contracts and the services' own health; and API keys."""

import asyncio
import hmac
import json
import time
from functools import cached_property, partial

import asyncpg
from google.api.httpbody_pb2 import HttpBody
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.exceptions import RedisError

from edge import openapi, reference
from nexus.identity.user_auth.v1.faults import UserDisabled, UserNotFound
from nexus.identity.user_auth.v1.user_auth_pb2 import ResolveUserRequest
from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub
from nexus.modules.puabo_os.v1.modules_pb2 import ResolveEntitlementsRequest
from nexus.modules.puabo_os.v1.modules_pb2_grpc import ModuleServiceStub
from nexus.platform.backend_api.v1 import api_keys_pb2
from nexus.platform.backend_api.v1 import backend_api_pb2 as pb
from nexus.platform.backend_api.v1.events_pb2 import ApiKeyEnded
from nexus.platform.backend_api.v1.faults import ApiKeyExpired, ApiKeyInvalid, ApiKeyNotFound, ExpiryPast, NotReady
from nexus.type.v1.faults import DependencyUnavailable
from services.chassis import contract
from services.chassis.api_keys import REVOCATION_SECONDS
from services.chassis.clock import moment, now, timestamp
from services.chassis.context import RequestContext, acting_for
from services.chassis.errors import Fault
from services.chassis.ids import hash_secret, new_id
from services.chassis.paging import Pager
from services.chassis.quotas import Quotas
from services.chassis.service import Service
from services.chassis.spec import discover
from services.platform.backend_api import api_keys
from services.platform.backend_api.spec import Config
from services.platform.backend_api.store import ApiKeyStore

_HEALTH_FRESH_SECONDS = 0.5
_HEALTH_TIMEOUT = 1.5
_UNREACHABLE = "UNREACHABLE"


class PlatformService:
    def __init__(self, service: Service) -> None:
        self._settings = service.settings
        self._pager = Pager(service.sealer)
        self._health_stubs = {
            service_id: service.clients.infrastructure(health_pb2_grpc.HealthStub, service_id)
            for service_id in discover()
        }
        self._health: list[pb.ServiceHealth] = []
        self._health_read = float("-inf")
        self._reading = asyncio.Lock()

    async def GetHealth(self, request: pb.GetHealthRequest, call: RequestContext) -> pb.GetHealthResponse:
        services = await self._services_health()
        return pb.GetHealthResponse(services=services, ready=not _unready(services))

    async def CheckReadiness(
        self, request: pb.CheckReadinessRequest, call: RequestContext
    ) -> pb.CheckReadinessResponse:
        unready = _unready(await self._services_health())
        if unready:
            raise NotReady(services=", ".join(unready), retry_after=1)
        return pb.CheckReadinessResponse()

    async def ListRoutes(self, request: pb.ListRoutesRequest, call: RequestContext) -> pb.ListRoutesResponse:
        cursor = self._pager.cursor(request, call)
        routes = [route for route in self._routes if request.service_id in ("", route.service_id)]
        start = int(cursor or 0)
        end = start + self._pager.size(request)
        more = self._pager.token(request, call, str(end)) if end < len(routes) else ""
        return pb.ListRoutesResponse(routes=routes[start:end], next_page_token=more)

    async def GetOpenApi(self, request: pb.GetOpenApiRequest, call: RequestContext) -> HttpBody:
        return self._openapi

    async def GetReference(self, request: pb.GetReferenceRequest, call: RequestContext) -> HttpBody:
        return self._reference

    @cached_property
    def _routes(self) -> list[pb.Route]:
        routes = [
            pb.Route(
                http_method=route.verb,
                path=route.path,
                grpc_method=method.full_name,
                service_id=method.service_id,
                access=method.policy.permission or method.access,
                rate_class=method.rate_class,
                recent_proof_seconds=method.policy.recent_proof.seconds,
                two_factors=method.policy.two_factors,
                scope=method.policy.scope,
            )
            for method in contract.methods().values()
            for route in method.routes
        ]
        return sorted(routes, key=lambda route: (route.path, route.http_method))

    @cached_property
    def _openapi(self) -> HttpBody:
        document = openapi.document(server_url=self._settings.public_url)
        return HttpBody(content_type="application/json", data=json.dumps(document).encode())

    @cached_property
    def _reference(self) -> HttpBody:
        page = reference.page(openapi.document(server_url=self._settings.public_url))
        return HttpBody(content_type="text/html; charset=utf-8", data=page.encode())

    async def _services_health(self) -> list[pb.ServiceHealth]:
        """The health of all services; asked for at most twice a second, however many callers ask."""
        async with self._reading:
            if time.monotonic() - self._health_read > _HEALTH_FRESH_SECONDS:
                statuses = await asyncio.gather(*map(self._status, self._health_stubs))
                self._health = [
                    pb.ServiceHealth(service_id=service_id, status=status)
                    for service_id, status in zip(self._health_stubs, statuses, strict=True)
                ]
                self._health_read = time.monotonic()
            return self._health

    async def _status(self, service_id: str) -> str:
        try:
            answer = await self._health_stubs[service_id].Check(
                health_pb2.HealthCheckRequest(), timeout=_HEALTH_TIMEOUT
            )
        except Fault:
            return _UNREACHABLE
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def _unready(services: list[pb.ServiceHealth]) -> list[str]:
    return [service.service_id for service in services if service.status != "SERVING"]


class ApiKeyService:
    def __init__(self, service: Service) -> None:
        self._config: Config = service.config
        self._signals = service.signals
        self._database = service.database
        self._events = service.events
        self._store = ApiKeyStore(service.database)
        self._quotas = Quotas(service.clients, service.database)
        self._pager = Pager(service.sealer)
        self._users = service.clients.stub(UserServiceStub)
        self._modules = service.clients.stub(ModuleServiceStub)

    async def CreateApiKey(
        self, request: api_keys_pb2.CreateApiKeyRequest, call: RequestContext
    ) -> api_keys_pb2.CreateApiKeyResponse:
        api_keys.require_held(request.scopes, call.user)
        expires = moment(request.expire_time) if request.HasField("expire_time") else None
        if expires is not None and expires <= now():
            raise ExpiryPast()
        prefix, secret = api_keys.new_key()
        key_id = new_id()
        async with self._database.transaction():
            await self._quotas.take(api_keys.QUOTA, key_id, await self._store.count())
            row = await self._store.insert(
                key_id=key_id,
                prefix=prefix,
                secret_hash=hash_secret(secret),
                title=request.title,
                user_id=call.user.user_id,
                scopes=sorted(request.scopes),
                rate=_rate(request.rate or api_keys_pb2.API_KEY_RATE_STANDARD),
                expires=expires,
                most=self._config.api_keys_per_tenant,
            )
        return api_keys_pb2.CreateApiKeyResponse(api_key=_api_key(row), secret=secret)

    async def ListApiKeys(
        self, request: api_keys_pb2.ListApiKeysRequest, call: RequestContext
    ) -> api_keys_pb2.ListApiKeysResponse:
        listing = partial(self._store.page, include_ended=request.include_ended)
        rows, more = await self._pager.page(request, call, listing, by="key_id")
        return api_keys_pb2.ListApiKeysResponse(api_keys=map(_api_key, rows), next_page_token=more)

    async def ListUserApiKeys(
        self, request: api_keys_pb2.ListUserApiKeysRequest, call: RequestContext
    ) -> api_keys_pb2.ListUserApiKeysResponse:
        listing = partial(self._store.page, include_ended=True, user_id=request.user_id)
        rows, more = await self._pager.page(request, call, listing, by="key_id")
        return api_keys_pb2.ListUserApiKeysResponse(api_keys=map(_api_key, rows), next_page_token=more)

    async def RevokeApiKey(
        self, request: api_keys_pb2.RevokeApiKeyRequest, call: RequestContext
    ) -> api_keys_pb2.RevokeApiKeyResponse:
        async with self._database.transaction():
            row = await self._store.revoke(request.key_id)
            if row is None:
                raise ApiKeyNotFound(key_id=request.key_id)
            if row["newly"]:
                await self._events.publish(ApiKeyEnded(key_id=request.key_id), request.key_id)
        try:
            # For the services that remember it, a key is a session of its own.
            await self._signals.end_sessions([request.key_id], time.time() + REVOCATION_SECONDS)
        except (RedisError, OSError) as error:
            raise DependencyUnavailable(dependency="broker", retry_after=1) from error
        return api_keys_pb2.RevokeApiKeyResponse(api_key=_api_key(row))

    async def VerifyApiKey(
        self, request: api_keys_pb2.VerifyApiKeyRequest, call: RequestContext
    ) -> api_keys_pb2.VerifyApiKeyResponse:
        prefix = api_keys.prefix_of(request.secret)
        row = await self._store.by_prefix(prefix) if prefix else None
        if row is None or not hmac.compare_digest(row["secret_hash"], hash_secret(request.secret)):
            raise ApiKeyInvalid()
        if row["revoke_time"] is not None:
            raise ApiKeyInvalid()
        if row["expire_time"] is not None and row["expire_time"] <= now():
            raise ApiKeyExpired()
        with acting_for(row["tenant_id"]):
            try:
                user = await self._users.ResolveUser(ResolveUserRequest(user_id=row["user_id"], access_only=True))
            except (UserNotFound, UserDisabled):
                raise ApiKeyInvalid() from None
            held = api_keys.effective(row["scopes"], user.permissions)
            entitled = await self._modules.ResolveEntitlements(ResolveEntitlementsRequest(held_permissions=held))
            await self._store.note_use(row["key_id"])
        return api_keys_pb2.VerifyApiKeyResponse(
            key_id=row["key_id"],
            tenant_id=row["tenant_id"],
            user_id=row["user_id"],
            permissions=entitled.permissions,
            scopes=row["scopes"],
            expire_time=timestamp(row["expire_time"]) if row["expire_time"] else None,
            calls_per_minute=getattr(self._config, f"api_key_rate_{row['rate']}"),
        )


def _rate(rate: api_keys_pb2.ApiKeyRate.ValueType) -> str:
    return api_keys_pb2.ApiKeyRate.Name(rate).removeprefix("API_KEY_RATE_").lower()


def _api_key(row: asyncpg.Record) -> api_keys_pb2.ApiKey:
    return api_keys_pb2.ApiKey(
        key_id=row["key_id"],
        prefix=row["prefix"],
        title=row["title"],
        user_id=row["user_id"],
        scopes=row["scopes"],
        rate=api_keys_pb2.ApiKeyRate.Value(f"API_KEY_RATE_{row['rate'].upper()}"),
        **{
            name: timestamp(row[name])
            for name in ("create_time", "expire_time", "last_used_time", "revoke_time")
            if row[name] is not None
        },
    )
