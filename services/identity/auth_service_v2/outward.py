"""Calls to where a tenant says: to the public internet by https, and never to what is inside (CWE-918).

An administrator of a tenant names an issuer, and its metadata name further endpoints. All of them are strangers' words.
"""

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Sequence
from urllib.parse import urlsplit

import httpx2

from services.chassis.service import Service
from services.identity.auth_service_v2 import clients
from services.identity.auth_service_v2.spec import Config, Network

MAX_BODY = 1 << 20
"""Bytes. Metadata, key sets and tokens have some ten thousand."""
LOOPBACK = tuple(map(ipaddress.ip_network, ("127.0.0.0/8", "::1/128")))
"""Where development's own servers are, which speak http too."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""RFC 6052: an IPv4 address in its last 32 bits."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def reachable(service: Service) -> tuple[Network, ...]:
    """The networks, beside the public ones, where upstream providers may be."""
    config: Config = service.config
    development = service.settings.environment == "development"
    return config.networks + (LOOPBACK if development else ())


def trust_problem(url: str, allowed: Sequence[Network], *, query: bool = False) -> str | None:
    """Why a URL cannot be a provider's, as far as it can be seen from the URL (OpenID Connect Discovery 1.0, section
    3: https, and an issuer has no query); None if it can."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return "it is not a URL"
    on_this_machine = parts.scheme == "http" and LOOPBACK[0] in allowed and clients.is_loopback(host)
    if parts.scheme != "https" and not on_this_machine:
        return "it must be https"
    if not host or ("?" in url and not query) or "#" in url or parts.username is not None:
        return "it must be a host and a path, nothing more"
    try:
        public = is_allowed(ipaddress.ip_address(host), allowed)
    except ValueError:
        public = True  # a name: its addresses are looked at when it is called
    return None if public else "it is not on the public internet"


def is_allowed(address: Address, allowed: Sequence[Network]) -> bool:
    """Whether an address is public, or in one of these networks."""
    if isinstance(address, ipaddress.IPv6Address):
        within = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None
        address = address.ipv4_mapped or address.sixtofour or within or address
    return (address.is_global and not address.is_multicast) or any(address in network for network in allowed)


class OutwardTransport(httpx2.AsyncBaseTransport):
    """Connects to addresses that are allowed, by https, and reads bodies up to a size.

    The address is the one that was looked at: a name that resolves to another a moment later changes nothing. Raises
    httpx2.TransportError for all that it does not do.
    """

    def __init__(self, allowed: Sequence[Network] = ()) -> None:
        self._allowed = allowed
        # No connection serves two names: its certificate was checked for one.
        self._transport = httpx2.AsyncHTTPTransport(
            limits=httpx2.Limits(max_connections=10, max_keepalive_connections=0)
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        addresses = await self._addresses(request)
        request.headers["accept-encoding"] = "identity"  # what is packed has no size yet
        for position, address in enumerate(addresses, 1):
            pinned = httpx2.Request(
                request.method,
                request.url.copy_with(host=str(address)),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": request.url.host},
            )
            try:
                return _capped(await self._transport.handle_async_request(pinned), request)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                if position == len(addresses):
                    raise
        raise AssertionError("there is at least one address")

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def _addresses(self, request: httpx2.Request) -> list[Address]:
        """Where the request's host is, every one of them allowed."""
        url = request.url
        port = url.port or {"https": 443}.get(url.scheme, 80)
        try:
            found = await asyncio.get_running_loop().getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
            addresses = [ipaddress.ip_address(entry[4][0]) for entry in found]
        except (OSError, UnicodeError, ValueError) as error:
            raise httpx2.ConnectError(f"{url.host} is not known", request=request) from error
        if not all(is_allowed(address, self._allowed) for address in addresses):
            raise httpx2.ConnectError(f"{url.host} is not on the public internet", request=request)
        unencrypted = url.scheme != "https"
        if unencrypted and not (LOOPBACK[0] in self._allowed and all(address.is_loopback for address in addresses)):
            raise httpx2.UnsupportedProtocol(f"{url.scheme} is not https", request=request)
        return addresses


def _capped(response: httpx2.Response, request: httpx2.Request) -> httpx2.Response:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise httpx2.ReadError("the answer is packed, which was not asked for", request=request)
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _Capped(response.stream, request)
    return response


class _Capped(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, request: httpx2.Request) -> None:
        self._stream = stream
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        async for part in self._stream:
            read += len(part)
            if read > MAX_BODY:
                raise httpx2.ReadError(f"the answer has more than {MAX_BODY} bytes", request=self._request)
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()
