"""TLS 1.3 and nothing older, for HTTP/1.1 and HTTP/2."""

import socket
import ssl

import httpx
import pytest

from tests.platforms import Platform


def context(platform: Platform, newest: ssl.TLSVersion, *protocols: str) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(platform.home / "secrets" / "edge" / "tls.crt"))
    made.maximum_version = newest
    made.set_alpn_protocols(list(protocols))
    return made


def handshake(platform: Platform, tls: ssl.SSLContext, name: str = "localhost") -> ssl.SSLSocket:
    connection = socket.create_connection(("127.0.0.1", platform.settings.port(8443)), timeout=10)
    return tls.wrap_socket(connection, server_hostname=name)


@pytest.mark.parametrize("protocol", ["h2", "http/1.1"])
@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_a_client_that_knows_tls_1_3_chooses_its_protocol(platform: Platform, protocol: str, name: str) -> None:
    with handshake(platform, context(platform, ssl.TLSVersion.TLSv1_3, protocol), name) as connection:
        assert connection.version() == "TLSv1.3"
        assert connection.selected_alpn_protocol() == protocol


def test_http_2_is_preferred(platform: Platform) -> None:
    with handshake(platform, context(platform, ssl.TLSVersion.TLSv1_3, "http/1.1", "h2")) as connection:
        assert connection.selected_alpn_protocol() == "h2"


def test_an_older_client_is_refused(platform: Platform) -> None:
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
        handshake(platform, context(platform, ssl.TLSVersion.TLSv1_2, "http/1.1"))


async def test_https_serves_what_http_serves(platform: Platform) -> None:
    tls = context(platform, ssl.TLSVersion.TLSv1_3, "http/1.1")
    async with httpx.AsyncClient(base_url=platform.https_url, verify=tls) as client:
        assert (await client.get("/api/v1/platform/health")).json()["ready"] is True
        assert (await client.get("/nothing")).status_code == 404
