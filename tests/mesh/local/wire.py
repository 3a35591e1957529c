"""The local mesh as it is on the wire: calls over one socket, and handshakes with any certificate."""

import asyncio
import base64
import contextlib
import socket
import ssl
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from google.rpc import error_details_pb2, status_pb2
from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection

from mesh.local.identities import Authority
from services.chassis.config import Settings
from services.chassis.errors import STATUS_DETAILS
from services.chassis.peers import MESH_REPLY

EMPTY_MESSAGE = bytes(5)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How HTTP/2 begins, and settings without a wish."""


@dataclass(frozen=True)
class Answer:
    """How a call ended. A proxy that refuses one gives no reason; of what it could not deliver it says so."""

    code: int
    reason: str
    delivered: bool

    @property
    def refused_by_proxy(self) -> bool:
        return self.code == grpc.StatusCode.PERMISSION_DENIED.value[0] and not self.reason


class Line:
    """Calls over one socket: plaintext, or with a certificate.

    gRPC's own client cannot do it: it compares the server's certificate with a host name, and ours have none.
    """

    def __init__(self, path: Path, tls: ssl.SSLContext | None = None) -> None:
        self._path, self._tls = path, tls
        self._http2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_unix_connection(
            str(self._path), ssl=self._tls, server_hostname="" if self._tls else None
        )
        self._http2.initiate_connection()
        return self

    async def __aexit__(self, *error: object) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def call(self, callee: str, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return (await self.calls([(callee, path)], headers))[0]

    async def calls(self, calls: Sequence[tuple[str, str]], headers: Mapping[str, str] | None = None) -> list[Answer]:
        """Send an empty message to each (callee, path). Without a token and a tenant no service does anything
        for it."""
        return [answer for batch in batches(calls) for answer in await self._together(batch, headers or {})]

    async def _together(self, calls: Sequence[tuple[str, str]], headers: Mapping[str, str]) -> list[Answer]:
        answers: dict[int, dict[str, str]] = {}
        for callee, path in calls:
            stream = self._http2.get_next_available_stream_id()
            pseudo = {":method": "POST", ":scheme": "http", ":authority": callee, ":path": path}
            grpc_headers = {"content-type": "application/grpc", "te": "trailers"}
            self._http2.send_headers(stream, list({**pseudo, **grpc_headers, **headers}.items()))
            self._http2.send_data(stream, EMPTY_MESSAGE, end_stream=True)
            answers[stream] = {}
        waiting = set(answers)
        async with asyncio.timeout(20):
            while waiting:
                self._writer.write(self._http2.data_to_send())
                data = await self._reader.read(65_536)
                assert data, "the connection was closed"
                for event in self._http2.receive_data(data):
                    match event:
                        case events.ResponseReceived() | events.TrailersReceived():
                            answers[event.stream_id].update((str(name), str(value)) for name, value in event.headers)
                        case events.DataReceived():
                            self._http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                        case events.StreamEnded() | events.StreamReset():
                            waiting.discard(event.stream_id)
        self._writer.write(self._http2.data_to_send())
        return [answer_in(headers) for headers in answers.values()]


def batches(calls: Sequence[tuple[str, str]], size: int = 50) -> Iterator[Sequence[tuple[str, str]]]:
    for start in range(0, len(calls), size):
        yield calls[start : start + size]


def answer_in(headers: Mapping[str, str]) -> Answer:
    status = int(headers.get("grpc-status", grpc.StatusCode.UNKNOWN.value[0]))
    return Answer(status, reason_in(headers.get(STATUS_DETAILS, "")), MESH_REPLY not in headers)


def reason_in(details: str) -> str:
    status = status_pb2.Status.FromString(base64.b64decode(details + "=" * (-len(details) % 4)))
    info = error_details_pb2.ErrorInfo()
    return info.reason if any(detail.Unpack(info) for detail in status.details) else ""


def identity_of(settings: Settings, identity: str, authority: Authority | None = None) -> ssl.SSLContext:
    """TLS as the proxy of this identity would do it."""
    return certificate_for(settings, settings.spiffe_id(identity), authority=authority)


def certificate_for(
    settings: Settings, uri: str, *, authority: Authority | None = None, lifetime: timedelta = timedelta(hours=1)
) -> ssl.SSLContext:
    key, certificate = (authority or Authority(settings)).certify(uri, lifetime)
    context = trusting(settings)
    with tempfile.NamedTemporaryFile(suffix=".pem") as pem:
        pem.write(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        pem.write(certificate.public_bytes(serialization.Encoding.PEM))
        pem.flush()
        context.load_cert_chain(pem.name)
    return context


def trusting(settings: Settings) -> ssl.SSLContext:
    """TLS towards the platform's mesh without a certificate of our own."""
    context = ssl.create_default_context(cafile=str(Authority(settings).folder / "ca.crt"))
    context.check_hostname = False  # there are SPIFFE ids instead of host names
    context.set_alpn_protocols(["h2"])
    return context


def shake_hands(path: Path, context: ssl.SSLContext) -> x509.Certificate:
    """Connect and exchange the first words of HTTP/2; returns the server's certificate.

    In TLS 1.3 the server judges our certificate after we are done, so only its first words show that it took it.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(path))
        with context.wrap_socket(connection) as secured:
            with contextlib.suppress(ssl.SSLEOFError):  # it may have hung up, and what it said is still to be read
                secured.sendall(PREFACE)
            assert len(secured.recv(9)) == 9
            certificate = secured.getpeercert(binary_form=True)
            assert certificate is not None
            return x509.load_der_x509_certificate(certificate)
