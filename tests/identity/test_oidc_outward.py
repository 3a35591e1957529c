"""What a tenant's administrator, or a provider's metadata, names is called on the public internet or not at all."""

import gzip
import ipaddress
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import httpx2
import pytest
from pydantic import ValidationError

from services.identity.auth_service_v2.outward import LOOPBACK, MAX_BODY, OutwardTransport, is_allowed
from services.identity.auth_service_v2.spec import Config
from tests.identity.oidc import Browser, issuer, register, relying_party
from tests.platforms import Platform, Tenant


class Stranger:
    """A server that says what it is told to, and remembers who asked."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.asked: list[dict[str, str]] = []
        stranger = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stranger.asked.append({name.lower(): value for name, value in self.headers.items()})
                content, headers = stranger.answers.get(self.path, (b"{}", {}))
                self.send_response(200)
                for name, value in {"content-length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def says(self, path: str, content: bytes, **headers: str) -> None:
        self.answers[path] = content, headers


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    one = Stranger()
    thread = threading.Thread(target=one.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield one
    one.server.shutdown()
    one.server.server_close()
    thread.join()


INSIDE = """
127.0.0.1 10.0.0.1 172.16.0.1 192.168.0.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1
::1 :: fe80::1 fd00::1 ff02::1 ::ffff:10.0.0.1 64:ff9b::a00:1 2002:a00:1::
"""


@pytest.mark.parametrize("address", INSIDE.split())
def test_an_address_inside_is_not_allowed_in_whatever_notation(address: str) -> None:
    assert not is_allowed(ipaddress.ip_address(address), ())


def test_public_addresses_are_allowed_and_those_of_a_listed_network() -> None:
    company = Config(upstream_networks="10.20.0.0/16, fd00:1::/32").networks
    for address in ("8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "10.20.3.4", "fd00:1::5", "::ffff:10.20.3.4"):
        assert is_allowed(ipaddress.ip_address(address), company), address
    assert not is_allowed(ipaddress.ip_address("10.21.0.1"), company)
    with pytest.raises(ValidationError):
        Config(upstream_networks="10.20.0.1/16")


async def get(url: str, *, development: bool = False) -> httpx2.Response:
    transport = OutwardTransport(LOOPBACK if development else ())
    async with httpx2.AsyncClient(transport=transport, timeout=5) as client:
        return await client.get(url)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "0"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_no_name_of_this_machine_is_called(stranger: Stranger, host: str, scheme: str) -> None:
    with pytest.raises(httpx2.TransportError):
        await get(f"{scheme}://{host}:{stranger.server.server_port}/")
    assert not stranger.asked


async def test_in_development_a_server_on_this_machine_is_called_by_its_name(stranger: Stranger) -> None:
    port = stranger.server.server_port
    stranger.says("/", b'{"answer": 42}')
    assert (await get(f"http://localhost:{port}/", development=True)).json() == {"answer": 42}
    assert stranger.asked[0]["host"] == f"localhost:{port}"


async def test_an_answer_is_read_up_to_a_size_packed_or_not(stranger: Stranger) -> None:
    stranger.says("/most", b" " * MAX_BODY)
    assert len((await get(f"{stranger.url}/most", development=True)).content) == MAX_BODY
    stranger.says("/more", b" " * (MAX_BODY + 1))
    stranger.says("/bomb", gzip.compress(b" " * (MAX_BODY + 1)), **{"content-encoding": "gzip"})
    for path in ("/more", "/bomb"):
        with pytest.raises(httpx2.ReadError):
            await get(stranger.url + path, development=True)


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({"padding": "x" * MAX_BODY}, "does not answer"),
        ({"authorization_endpoint": "http://example.com/authorize"}, "where you should not go"),
        ({"authorization_endpoint": "https://10.0.0.1/authorize"}, "where you should not go"),
        ({"authorization_endpoint": "javascript:alert(1)"}, "where you should not go"),
        ({"authorization_endpoint": 7}, "where you should not go"),
        ({}, "where you should not go"),
    ],
    ids=["huge", "http", "inside", "script", "a number", "none"],
)
async def test_a_user_is_not_sent_where_a_strangers_metadata_say(
    platform: Platform, tenant: Tenant, http: httpx.AsyncClient, stranger: Stranger, metadata: dict[str, Any], told: str
) -> None:
    document = json.dumps({"issuer": stranger.url, **metadata}).encode()
    stranger.says("/.well-known/openid-configuration", document)
    owner, client = await tenant.sign_in("owner"), await register(tenant, http)
    provider = {"providerId": "stranger", "title": "Stranger", "issuer": stranger.url, "clientId": "x"}
    answer = await http.post("/api/v1/sign-in-providers", headers=owner.headers, json={"provider": provider})
    assert answer.status_code == 200, answer.text
    async with Browser(platform) as browser, relying_party(tenant, client) as authlib:
        url, _ = authlib.create_authorization_url(f"{issuer(tenant)}/oauth2/authorize", code_verifier="v" * 43)
        page = await browser.follow_link(await browser.get(url), "Stranger")
    assert told in page.text
    assert stranger.asked
