"""Several instances of a service: all serve, and none is missed while it restarts, hangs, or gets a new certificate."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from edge.layout import inbound_socket
from services.chassis.peers import VERSION_HEADER
from tests.chaos.mesh import H2Load, Load, Proxy, gained, nexus, percentile, restart, send, when
from tests.mesh.local.wire import identity_of, shake_hands
from tests.platforms import PASSWORD, Platform, Tenant

pytestmark = pytest.mark.xdist_group("chaos")

REPLICAS = {"user-auth": 3, "auth-service": 2, "session-mgr": 2, "token-mgr": 2}
INSTANCES = {"user-auth": "identity", "user-auth.1": "user-auth.1", "user-auth.2": "user-auth.2"}
"""Of user-auth, each with the process it runs in."""
FROM_AUTH = "auth-service/user-auth"
"""The mesh's upstream for the calls that auth-service makes of user-auth."""
CANARY = "user-auth.canary"
TO_CANARY = {VERSION_HEADER: "canary"}


@pytest.fixture(scope="module")
def replicated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    many_sessions = {"NEXUS_SESSION_MGR_MAX_SESSIONS_PER_USER": "100000"}
    platform = Platform(tmp_path_factory.mktemp("replicated") / "home", variables=many_sessions)
    replicas = [part for service, count in REPLICAS.items() for part in ("--replicas", f"{service}={count}")]
    platform.up("--only", "identity", *replicas, "--canary", "user-auth")
    yield platform
    platform.down()


@pytest.fixture(scope="module")
def mesh(replicated: Platform) -> Proxy:
    return Proxy(replicated, "mesh")


@pytest.fixture(scope="module")
async def client(replicated: Platform) -> AsyncIterator["Client"]:
    tenant = await replicated.new_tenant()
    async with httpx.AsyncClient(base_url=replicated.http_url, timeout=20) as http:
        yield Client(http, tenant, (await tenant.sign_in()).headers, await tenant.provision())


class Client:
    """Calls through the edge, auth-service and user-auth."""

    def __init__(self, http: httpx.AsyncClient, tenant: Tenant, signed_in: dict[str, str], email: str) -> None:
        self._http = http
        self._tenant = tenant
        self.signed_in = signed_in
        self._email = email

    async def me(self) -> httpx.Response:
        return await self._http.get("/api/v1/auth/me", headers=self.signed_in)

    async def me_at_the_canary(self) -> httpx.Response:
        return await self._http.get("/api/v1/auth/me", headers={**self.signed_in, **TO_CANARY})

    async def resend_at_the_canary(self) -> httpx.Response:
        """A method of user-auth itself."""
        path, headers = "/api/v1/auth/resend-verification", {**self._tenant.headers, **TO_CANARY}
        return await self._http.post(path, headers=headers, json={"email": "nobody@example.com"})

    async def login(self) -> httpx.Response:
        """A mutation that may not be repeated."""
        credentials = {"email": self._email, "password": PASSWORD}
        return await self._http.post("/api/v1/auth/login", headers=self._tenant.headers, json=credentials)


async def test_every_instance_is_well_and_serves(replicated: Platform, mesh: Proxy, client: Client) -> None:
    edge = Proxy(replicated, "edge")
    before = mesh.calls(FROM_AUTH), edge.calls("auth-service")
    assert set(before[0]) == set(INSTANCES)

    def all_have_served() -> bool:
        gains = gained(before[0], mesh.calls(FROM_AUTH)), gained(before[1], edge.calls("auth-service"))
        return min(each for gain in gains for each in gain.values()) > 0

    async with asyncio.timeout(60):  # one that has just started comes into the round with its next health check
        while not all_have_served():
            for _ in range(20):
                assert (await client.me()).status_code == 200
    assert all(instance.healthy for instance in mesh.instances(FROM_AUTH).values())


async def test_a_rolling_restart_drops_no_call(
    replicated: Platform, mesh: Proxy, client: Client, subtests: pytest.Subtests
) -> None:
    """Not even one that may not be repeated. The first instance shares its process with those of all its domain."""
    async with Load(client.me, client.login, clients=2) as load, me_by_h2load(replicated, client) as by_h2load:
        for name in INSTANCES.values():
            await restart(replicated, name)
            await when(lambda: all(instance.healthy for instance in mesh.instances(FROM_AUTH).values()))
        await load.more(20)
    assert load.failures == []
    assert_nothing_failed(by_h2load, subtests)


async def test_certificates_are_renewed_without_dropping_a_call(
    replicated: Platform, mesh: Proxy, client: Client, subtests: pytest.Subtests
) -> None:
    def served() -> dict[str, int]:
        operator = identity_of(replicated.settings, "operator")
        return {
            name: shake_hands(inbound_socket(replicated.settings, name), operator).serial_number
            for name in (*INSTANCES, CANARY, "auth-service", "session-mgr", "token-mgr")
        }

    proxies = [mesh, Proxy(replicated, "edge")]
    before, held = served(), [proxy.serials() for proxy in proxies]
    async with Load(client.me, client.login) as load, me_by_h2load(replicated, client) as by_h2load:
        for _ in range(2):
            nexus(replicated, "certificates", "renew")
            await load.more(50)
        after = await when(lambda: not set(before.values()) & set((new := served()).values()) and new)
        await load.more(50)
    assert load.failures == []
    assert_nothing_failed(by_h2load, subtests)
    assert after.keys() == before.keys()
    for proxy, old in zip(proxies, held, strict=True):
        assert proxy.serials() - old, "it holds new certificates"


async def test_a_hung_instance_is_left_out_and_comes_back(replicated: Platform, mesh: Proxy, client: Client) -> None:
    clients = 4
    async with Load(client.me, clients=clients) as load:
        usual = percentile(0.99, await load.more(100))
        send(replicated, "user-auth.1", signal.SIGSTOP)
        try:
            await when(lambda: not mesh.instances(FROM_AUTH)["user-auth.1"].healthy)
            missed_out = mesh.calls(FROM_AUTH)["user-auth.1"]
            later = await load.more(200)
        finally:
            send(replicated, "user-auth.1", signal.SIGCONT)
        assert [call.failure for call in later if call.failure] == []
        assert percentile(0.99, later) < 5 * usual + 0.5
        assert mesh.calls(FROM_AUTH)["user-auth.1"] == missed_out
        await when(lambda: mesh.instances(FROM_AUTH)["user-auth.1"].healthy)
        await when(lambda: mesh.calls(FROM_AUTH)["user-auth.1"] > missed_out)
    assert len(load.failures) <= clients, "only those that it had taken when it hung"


async def test_who_asks_for_the_canary_meets_nobody_else(replicated: Platform, mesh: Proxy, client: Client) -> None:
    """At the edge, and behind a service that calls on."""
    edge, upstreams = Proxy(replicated, "edge"), (FROM_AUTH, f"auth-service/{CANARY}")
    before = mesh.calls(*upstreams), edge.calls("user-auth", CANARY)
    for _ in range(10):
        assert (await client.me_at_the_canary()).status_code == 200
        assert (await client.resend_at_the_canary()).status_code == 200
    for old, new in zip(before, (mesh.calls(*upstreams), edge.calls("user-auth", CANARY)), strict=True):
        assert gained(old, new) == {**dict.fromkeys(INSTANCES, 0), CANARY: 10}


async def test_the_canary_gets_its_share(replicated: Platform, mesh: Proxy, client: Client) -> None:
    nexus(replicated, "traffic", "set", "--to", "user-auth", "--canary", "30")
    assert 60 < await at_the_canary(mesh, client, calls=300) < 120
    nexus(replicated, "traffic", "clear")
    assert await at_the_canary(mesh, client, calls=30) == 0


async def test_the_canary_gets_copies(replicated: Platform, mesh: Proxy, client: Client) -> None:
    nexus(replicated, "traffic", "set", "--to", "user-auth", "--mirror", "100")
    before = sum(mesh.calls(FROM_AUTH).values())
    assert await at_the_canary(mesh, client, calls=20) == 20
    assert sum(mesh.calls(FROM_AUTH).values()) - before == 20, "the others serve as before"
    nexus(replicated, "traffic", "clear")
    assert await at_the_canary(mesh, client, calls=20) == 0


def test_traffic_to_a_service_without_a_canary_cannot_be_divided(replicated: Platform) -> None:
    refused = replicated.nexus("traffic", "set", "--to", "auth-service", "--canary", "10", check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "Error: auth-service runs no canary: start with `nexus up --canary auth-service`.\n"


def me_by_h2load(platform: Platform, client: Client) -> H2Load:
    return H2Load(f"{platform.http_url}/api/v1/auth/me", client.signed_in)


def assert_nothing_failed(load: H2Load, subtests: pytest.Subtests) -> None:
    with subtests.test("for h2load"):
        if not load.installed:
            pytest.skip("h2load is not installed: it comes with Debian's nghttp2-client")
        assert load.failures == {}
        assert load.ended["2xx"] == load.ended["succeeded"] > 20


async def at_the_canary(mesh: Proxy, client: Client, calls: int) -> int:
    """How many of so many calls the canary was sent."""
    before = mesh.calls(f"auth-service/{CANARY}")
    for _ in range(calls):
        assert (await client.me()).status_code == 200
    return gained(before, mesh.calls(f"auth-service/{CANARY}"))[CANARY]
