"""One builder makes every service: `nexus serve <id>…` runs any of them from its spec.

Services that share a process share its event loop, its Redis connection, signals and token cache; each has its
own port, its own database role and its own health.
"""

import asyncio
import contextlib
import gc
import importlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import grpc
import redis.asyncio
import redis.asyncio.retry
import redis.backoff
import redis.exceptions
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from opentelemetry import trace

from nexus.identity.token_mgr.v1.token_mgr_pb2 import GetJwksRequest
from nexus.identity.token_mgr.v1.token_mgr_pb2_grpc import TokenServiceStub
from nexus.platform.backend_api.v1.api_keys_pb2_grpc import ApiKeyServiceStub
from services.chassis import contract, logs, telemetry
from services.chassis.api_keys import ApiKeyVerifier
from services.chassis.clients import Clients
from services.chassis.config import Settings, load_service_config
from services.chassis.context import RequestContext
from services.chassis.database import Database
from services.chassis.errors import Fault
from services.chassis.events import Events, handler_name
from services.chassis.idempotency import Once
from services.chassis.mail import Mailer
from services.chassis.peers import PeerIdentifier
from services.chassis.pipeline import Guards, Handler, Load, bind
from services.chassis.rates import RateLimiter
from services.chassis.root_keys import root_key_file
from services.chassis.sealing import Sealer
from services.chassis.service import Service
from services.chassis.signals import Signals
from services.chassis.spec import ServiceSpec, callers_of, discover
from services.chassis.streams import OpenStreams
from services.chassis.tenants import TenantDirectory
from services.chassis.tokens import KeySource, TokenVerifier

MAX_METADATA_BYTES = 64 * 1024
"""More than the edge lets through, so that the edge is who refuses."""
HEALTH_SECONDS = 1.0
HEALTH_TIMEOUT = 2.0
FORGET_SECONDS = 3600.0

Servicers = list[tuple[Any, ServiceDescriptor]]
"""Servicers, each with the gRPC service that it serves."""

logger = logging.getLogger(__name__)


def main(settings: Settings, specs: Sequence[ServiceSpec]) -> int:
    """Serve until SIGTERM or SIGINT, then drain. The body of `nexus serve`."""
    process = specs[0].id if len(specs) == 1 else specs[0].domain
    logs.configure(settings.log_level, process)
    trace.set_tracer_provider(telemetry.tracer_provider(settings, process))
    asyncio.run(_serve_until_stopped(settings, specs))
    return 0


async def _serve_until_stopped(settings: Settings, specs: Sequence[ServiceSpec]) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    telemetry.serve_metrics(settings)
    try:
        async with serving(settings, specs):
            settle()
            logger.info("serving", extra={"services": [spec.id for spec in specs], "pid": os.getpid()})
            await stopped.wait()
            logger.info("draining")
        logger.info("stopped")
    except Exception:
        logger.critical("cannot serve", exc_info=True)
        # A server of gRPC's that never started can keep the loop from closing; whoever started us must see the end.
        os._exit(1)


def settle() -> None:
    """Spare the collector from walking, again and again, what start-up made and the process keeps."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@contextlib.asynccontextmanager
async def serving(settings: Settings, specs: Sequence[ServiceSpec]) -> AsyncIterator[dict[str, "RunningService"]]:
    """The services, up; by id. On leaving, calls in progress get their time to finish."""
    async with contextlib.AsyncExitStack() as stack:
        client = _redis(settings)
        stack.push_async_callback(client.aclose)
        signals = Signals(client)
        await signals.start()
        stack.push_async_callback(signals.stop)
        running = {}
        for spec in specs:
            service = _service(settings, spec, client, signals)
            await service.database.start()
            stack.push_async_callback(service.database.stop)
            stack.push_async_callback(service.clients.stop)
            running[spec.id] = RunningService(service)
        started: list[RunningService] = []  # only these: gRPC waits for ever to stop what never started
        try:
            for server in running.values():
                await server.start()
                started.append(server)
            yield running
        finally:
            await _stop(started)


async def _stop(servers: Sequence["RunningService"]) -> None:
    """Stop callers before those they call, so that calls in progress find everything they need to finish."""
    remaining = list(servers)
    while remaining:
        called = {callee for server in remaining for callee in server.service.spec.calls}
        first = [server for server in remaining if server.service.spec.id not in called] or remaining
        await asyncio.gather(*(server.stop() for server in first))
        remaining = [server for server in remaining if server not in first]


def _redis(settings: Settings) -> "redis.asyncio.Redis":
    assert settings.redis_url is not None, "NEXUS_REDIS_URL is not set"
    return redis.asyncio.Redis.from_url(
        settings.redis_url.get_secret_value(),
        socket_timeout=3.0,
        socket_connect_timeout=2.0,
        health_check_interval=15,
        max_connections=settings.max_concurrent_calls,  # the client's own limit would refuse calls that we have let in
        retry=redis.asyncio.retry.Retry(redis.backoff.NoBackoff(), 1),
    )


def _service(settings: Settings, spec: ServiceSpec, client: "redis.asyncio.Redis", signals: Signals) -> Service:
    database = Database(settings, spec)
    return Service(
        spec=spec,
        settings=settings,
        config=load_service_config(spec.config, spec.id, service_ids=discover()),
        database=database,
        redis=client,
        events=Events(spec.id, database, client),
        clients=Clients(settings, spec.id, frozenset(spec.may_call)),
        signals=signals,
        sealer=Sealer(root_key_file(settings), spec.id),
        mailer=Mailer(settings),
    )


class RunningService:
    """One service with its gRPC server."""

    def __init__(
        self, service: Service, servicers: Servicers | None = None, key_source: KeySource | None = None
    ) -> None:
        """`servicers` and `key_source` stand in for the contract's and token-mgr's, in tests and benchmarks."""
        self.service = service
        spec, settings = service.spec, service.settings
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_metadata_size", MAX_METADATA_BYTES),
                ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
                # A proxy asks a silent stream whether it lives; gRPC would take that for an attack and hang up.
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a port to share
            ],
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        once = Once(service.database, service.sealer)
        load = Load(settings.max_concurrent_calls)
        telemetry.CALLS_IN_PROGRESS.labels(spec.id).set_function(lambda: load.calls)
        tenants = TenantDirectory(service.database, service.signals)
        self._guards = Guards(
            peers=PeerIdentifier(settings),
            callers=callers_of(spec.id),
            verifier=TokenVerifier(settings, service.signals, key_source or self._keys),
            api_keys=ApiKeyVerifier(
                service.redis, service.signals, service.clients.infrastructure(ApiKeyServiceStub, "backend-api")
            ),
            limiter=RateLimiter(settings),
            tenants=tenants,
            streams=OpenStreams(service.signals, tenants),
            once=once,
            tracer=telemetry.CallTracer(trace.get_tracer_provider(), settings.trace_ratio),
            load=load,
            platform_tenant=settings.platform_tenant,
            default_timeout=settings.default_timeout,
        )
        self._servicers = servicers or _servicers(service)
        self._names = [descriptor.full_name for _, descriptor in self._servicers]
        self._add_reflection()
        service.every(FORGET_SECONDS, once.forget_old)
        service.every(FORGET_SECONDS, service.events.forget_handled)
        _subscribe(service)
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the ports. Health says NOT_SERVING until the database and the broker have answered."""
        spec, settings = self.service.spec, self.service.settings
        for servicer, descriptor in self._servicers:
            self._add(servicer, descriptor)
        for name in ("", *self._names):
            await self._health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        # For who asks only whether to restart the process: a database that is away is no reason.
        await self._health.set("live", health_pb2.HealthCheckResponse.SERVING)
        settings.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = f"{spec.id}.{settings.instance}" if settings.instance else spec.id
        path = settings.run_dir / f"{name}.sock"
        path.unlink(missing_ok=True)
        self._server.add_insecure_port(f"unix:{path}")
        if not (settings.strict or settings.instance):
            self._server.add_insecure_port(f"{settings.host}:{settings.port(spec.port)}")
        await self._server.start()
        self.service.start_jobs()
        self.service.events.start()
        self._watching = asyncio.create_task(self._watch_dependencies(), name=f"{spec.id} health")

    async def stop(self) -> None:
        """Tell the load balancers, refuse new calls, let the others finish."""
        if self._watching is not None:
            self._watching.cancel()
        await self._health.enter_graceful_shutdown()
        await self.service.stop_jobs()
        await self._server.stop(self.service.settings.drain_timeout)
        await self.service.events.stop()

    def _add(self, servicer: Any, descriptor: ServiceDescriptor) -> None:
        handlers = {}
        for method in contract.methods_of(descriptor):
            handler = bind(method, self._guards, _unify(method, getattr(servicer, method.name)))
            handlers[method.name] = _rpc_handler(method, handler)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(descriptor.full_name, handlers),))

    def _add_reflection(self) -> None:
        if self.service.spec.reflects_platform:
            external = {method.path[1:].partition("/")[0] for method in contract.methods().values() if method.external}
            reflection.enable_server_reflection(sorted(external), self._server, pool=contract.pool())
        else:
            reflection.enable_server_reflection([*self._names, health.SERVICE_NAME], self._server)

    async def _keys(self) -> Any:
        stub = self.service.clients.infrastructure(TokenServiceStub, "token-mgr")
        return MessageToDict(await stub.GetJwks(GetJwksRequest(), timeout=2.0))

    async def _watch_dependencies(self) -> None:
        """Keep health true to the database and the broker."""
        service = self.service
        checks = {"database": lambda: service.database.fetchval("SELECT 1"), "broker": service.redis.ping}
        was_up = dict.fromkeys(checks, False)
        while True:
            for name, check in checks.items():
                up = await _answers(check)
                telemetry.DEPENDENCY_UP.labels(service.spec.id, name).set(up)
                if up != was_up[name]:
                    logger.log(
                        logging.INFO if up else logging.WARNING,
                        "dependency %s",
                        "up" if up else "down",
                        extra={"service": service.spec.id, "dependency": name},
                    )
                was_up[name] = up
            status = (
                health_pb2.HealthCheckResponse.SERVING
                if all(was_up.values()) and service.signals.up_to_date
                else health_pb2.HealthCheckResponse.NOT_SERVING
            )
            for name in ("", *self._names):
                await self._health.set(name, status)
            await asyncio.sleep(HEALTH_SECONDS if status == health_pb2.HealthCheckResponse.SERVING else 0.1)


async def _answers(check: Any) -> bool:
    try:
        async with asyncio.timeout(HEALTH_TIMEOUT):
            await check()
    except (Fault, redis.exceptions.RedisError, OSError, TimeoutError):
        return False
    return True


def _servicers(service: Service) -> Servicers:
    """The servicers of a service: for each gRPC service in its contract, the class of that name in `servicer.py`."""
    spec = service.spec
    stub_modules = sorted(
        file.name for file in contract.image().file if file.package == spec.proto_package and file.service
    )
    implementation = importlib.import_module(f"{spec.module}.servicer")
    found = []
    for file in stub_modules:
        module = importlib.import_module(file.removesuffix(".proto").replace("/", ".") + "_pb2")
        for descriptor in module.DESCRIPTOR.services_by_name.values():
            servicer = getattr(implementation, descriptor.name, None)
            if servicer is None:
                raise contract.ContractError(f"{spec.module}.servicer has no class {descriptor.name}")
            found.append((servicer(service), descriptor))
    if not found:
        raise contract.ContractError(f"{spec.id}: no gRPC service in the package {spec.proto_package}")
    return found


def _subscribe(service: Service) -> None:
    """Bind the events that the spec names to the methods of `Subscribers`."""
    spec = service.spec
    if spec.subscribes:
        subscribers = importlib.import_module(f"{spec.module}.subscribers").Subscribers(service)
        for event_type in spec.subscribes:
            service.events.subscribe(event_type, getattr(subscribers, handler_name(event_type)))


def _unify(method: contract.Method, behaviour: Any) -> Handler:
    """A servicer's method as a handler: one that streams its answers writes them to the call."""
    if not method.descriptor.server_streaming:
        return behaviour

    async def write_all(request: Any, call: RequestContext) -> None:
        async for answer in behaviour(request, call):
            await call.rpc.write(answer)

    return write_all


def _parsed(kind: type[Message], data: bytes) -> Message | bytes:
    """The request, or the bytes themselves if they are none: gRPC would answer UNKNOWN, the pipeline says why."""
    try:
        return kind.FromString(data)
    except DecodeError:
        return data


def _rpc_handler(method: contract.Method, handler: Handler) -> "grpc.RpcMethodHandler":
    kind = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[method.descriptor.client_streaming, method.descriptor.server_streaming]
    return kind(
        handler,
        request_deserializer=partial(_parsed, method.input),
        response_serializer=method.output.SerializeToString,
    )
