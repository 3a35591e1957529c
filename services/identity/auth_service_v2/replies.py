"""HTTP answers of gRPC methods: what the edge must set beside the body travels as response metadata."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from authlib.oauth2 import OAuth2Error
from google.api.httpbody_pb2 import HttpBody

from services.chassis.context import RequestContext

STATUS = "x-http-status"
"""Metadata that the edge turns into the HTTP status."""
_CHALLENGED = {401: 'Basic realm="oauth2"'}


@dataclass(frozen=True)
class Reply:
    """One HTTP answer."""

    status: int = 200
    body: bytes = b""
    content_type: str = "text/html; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = field(default=())

    def with_headers(self, *headers: tuple[str, str]) -> "Reply":
        return Reply(self.status, self.body, self.content_type, (*self.headers, *headers))

    async def send(self, call: RequestContext) -> HttpBody:
        """Send status and headers on their way; returns the body."""
        metadata = self.headers if self.status == 200 else ((STATUS, str(self.status)), *self.headers)
        await call.rpc.send_initial_metadata(metadata)
        return HttpBody(content_type=self.content_type, data=self.body)


def as_json(content: Mapping[str, Any], status: int = 200, *headers: tuple[str, str]) -> Reply:
    """JSON that no cache keeps, unless a header says otherwise."""
    if not any(name == "cache-control" for name, _ in headers):
        headers = (*headers, ("cache-control", "no-store"))
    return Reply(status, json.dumps(content).encode(), "application/json", headers)


def redirect(location: str) -> Reply:
    """303: the browser goes on with GET and never posts a password there (RFC 9700, section 4.12)."""
    return Reply(303, headers=(("location", location), ("cache-control", "no-store")))


def refusal(error: OAuth2Error) -> Reply:
    """An error in the shape of RFC 6749, section 5.2."""
    status = 401 if error.error == "invalid_client" else error.status_code
    challenge = [("www-authenticate", _CHALLENGED[status])] if status in _CHALLENGED else []
    content = {"error": error.error, "error_description": error.description or ""}
    return as_json({name: value for name, value in content.items() if value}, status, *challenge)


def bearer_refusal(status: int, error: str, description: str) -> Reply:
    """An error of a resource (RFC 6750, section 3)."""
    challenge = f'Bearer error="{error}", error_description="{description}"' if error else "Bearer"
    return as_json({"error": error, "error_description": description}, status, ("www-authenticate", challenge))
