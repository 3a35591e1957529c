"""The discovery service of the local mesh: hands the proxies their secrets, and new ones before those expire.

Envoy's secret discovery protocol (SDS, state of the world). A proxy says on a stream which secrets it wants; it gets
them at once, and again whenever they are renewed. It goes on with what it has while nobody answers.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

import betterproto2
import grpc.aio
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import Secret
from envoy_data_plane.envoy.service.discovery.v3 import DiscoveryResponse
from envoy_data_plane.google.protobuf import Any

SERVICE = "envoy.service.secret.v3.SecretDiscoveryService"
_SECRET_TYPE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"


@dataclass(eq=False, repr=False)
class SecretsRequest(betterproto2.Message):
    """`envoy.service.discovery.v3.DiscoveryRequest` without the rest. A proxy introduces itself on each stream, with
    all its extensions: to read that fifty times takes longer than the proxy takes to start."""

    resource_names: list[str] = betterproto2.field(3, betterproto2.TYPE_STRING, repeated=True)  # noqa: RUF009


class Discovery:
    """Serves secrets on a unix socket."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._secrets: dict[str, Secret] = {}
        self._version = 0
        self._changed = asyncio.Condition()
        self._server = grpc.aio.server()
        stream = grpc.stream_stream_rpc_method_handler(
            self._stream, request_deserializer=SecretsRequest.parse, response_serializer=bytes
        )
        handlers = {"StreamSecrets": stream}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def start(self) -> None:
        self._socket.unlink(missing_ok=True)
        self._server.add_insecure_port(f"unix:{self._socket}")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def put(self, secrets: Iterable[Secret]) -> None:
        """These are the secrets from now on; every proxy gets those it asked for."""
        async with self._changed:
            self._secrets = {secret.name: secret for secret in secrets}
            self._version += 1
            self._changed.notify_all()

    async def _stream(
        self, requests: AsyncIterator[SecretsRequest], context: "grpc.aio.ServicerContext"
    ) -> AsyncIterator[DiscoveryResponse]:
        wanted: tuple[str, ...] = ()
        reading = asyncio.create_task(_next(requests))
        nonces = itertools.count(1)
        sent = 0
        try:
            while True:
                renewed = asyncio.create_task(self._newer_than(sent))
                await asyncio.wait({reading, renewed}, return_when=asyncio.FIRST_COMPLETED)
                renewed.cancel()
                asked = False
                if reading.done():
                    request = reading.result()
                    if request is None:
                        return
                    names = tuple(sorted(request.resource_names))
                    # The same names again only acknowledge what was sent.
                    asked = names != wanted
                    wanted = names if asked else wanted
                    reading = asyncio.create_task(_next(requests))
                if wanted and (asked or self._version > sent):
                    sent = self._version
                    yield self._response(wanted, str(next(nonces)))
        finally:
            reading.cancel()

    async def _newer_than(self, version: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._version > version)

    def _response(self, names: Iterable[str], nonce: str) -> DiscoveryResponse:
        found = [self._secrets[name] for name in names if name in self._secrets]
        return DiscoveryResponse(
            version_info=str(self._version),
            type_url=_SECRET_TYPE,
            nonce=nonce,
            resources=[Any.pack(secret) for secret in found],
        )


async def _next(requests: AsyncIterator[SecretsRequest]) -> SecretsRequest | None:
    with contextlib.suppress(StopAsyncIteration):
        return await anext(requests)
    return None
