"""Requests as they go over the wire, for those that an HTTP library would mend or refuse to send."""

import contextlib
import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
from google.rpc import error_details_pb2, status_pb2

from services.chassis.errors import STATUS_DETAILS
from tests.platforms import Platform

LOGIN = "/api/v1/auth/login"
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "strict-transport-security": "max-age=31536000; includeSubDomains",
}
_INNER_WORDS = ("traceback", "exception", "<class", "google.protobuf", "asyncpg", "grpc.", "upstream", ".py", "envoy")
"""What only an answer that shows the inside of the platform would hold."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    """By lower-case name."""
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


def send(platform: Platform, data: bytes, *, verb: str = "POST") -> Answer:
    """Send these bytes to the edge and read its answer, which may come before it has read them all."""
    with socket.create_connection(("127.0.0.1", platform.settings.port(8080)), timeout=15) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
        response = http.client.HTTPResponse(connection, method=verb)
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read().decode())


def request(
    platform: Platform,
    verb: str = "POST",
    path: str = LOGIN,
    body: str | bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """A request of which no byte is looked at on the way. It is JSON unless `headers` say otherwise."""
    content = body.encode() if isinstance(body, str) else body
    lines = {
        "host": "nexus",
        "content-type": "application/json",
        "content-length": str(len(content)),
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return send(platform, f"{verb} {path} HTTP/1.1\r\n{head}\r\n".encode() + content, verb=verb)


def reason(answer: Answer | httpx.Response, *statuses: int) -> str:
    """The reason of an error, once it is known to be in the platform's one shape. `statuses` are those it may
    have: those of the caller's mistakes unless given."""
    status = answer.status if isinstance(answer, Answer) else answer.status_code
    assert status in statuses or (not statuses and 400 <= status < 500), f"{status}: {answer.text}"
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    for name, value in SECURITY_HEADERS.items():
        assert answer.headers[name] == value
    body = answer.json()
    assert set(body) == {"code", "message", "details"}
    assert 1 <= body["code"] <= 16
    assert body["message"]
    assert body["details"], answer.text
    info = body["details"][0]
    assert info["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    assert set(info) == {"@type", "reason", "domain", "metadata"}
    shown = [word for word in _INNER_WORDS if word in body["message"].lower()]
    assert not shown, f"{body['message']} shows the inside of the platform: {shown}"
    if status in (429, 503):
        assert any(detail["@type"].endswith("RetryInfo") for detail in body["details"])
        assert int(answer.headers["retry-after"]) >= 1
    if status == 401:
        assert answer.headers["www-authenticate"].startswith("Bearer")
    return str(info["reason"])


def details(error: grpc.aio.AioRpcError) -> tuple[status_pb2.Status, str]:
    """The status of an error, which agrees with its code, and the reason in it."""
    trailing: Any = error.trailing_metadata()
    status = status_pb2.Status.FromString(dict(trailing)[STATUS_DETAILS])
    assert status.code == error.code().value[0]
    assert not (error.details() or "").startswith("{"), "the message is for people, not JSON"
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return status, info.reason
