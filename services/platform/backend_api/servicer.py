"""PlatformService: what there is and how it does, read off the contracts and the services' own health."""

import asyncio
import json
import time
from functools import cached_property

from google.api.httpbody_pb2 import HttpBody
from grpc_health.v1 import health_pb2, health_pb2_grpc

from edge import openapi, reference
from nexus.platform.backend_api.v1 import backend_api_pb2 as pb
from nexus.platform.backend_api.v1.faults import NotReady
from services.chassis import contract
from services.chassis.context import RequestContext
from services.chassis.errors import Fault
from services.chassis.paging import Pager
from services.chassis.service import Service
from services.chassis.spec import discover

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
