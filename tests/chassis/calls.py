"""Calls as the chassis sees them, made by hand."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

import grpc.aio

from services.chassis import contract
from services.chassis.context import RequestContext, User
from services.chassis.contract import Method
from services.chassis.service import Service

USERS = "/nexus.identity.user_auth.v1.UserService/"
PLATFORM = "/nexus.platform.backend_api.v1.PlatformService/"


class Aborted(grpc.aio.AbortError):
    """What gRPC raises out of a handler that aborts."""


@dataclass
class FakeRpc:
    """What gRPC hands to a handler."""

    metadata: Sequence[tuple[str, str]] = ()
    connection: str = "unix:"
    seconds: float | None = None
    code: grpc.StatusCode | None = None
    message: str = ""
    trailing: dict[str, Any] = field(default_factory=dict)

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        return self.metadata

    def peer(self) -> str:
        return self.connection

    def time_remaining(self) -> float | None:
        return self.seconds

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Sequence[tuple[str, Any]] = ()
    ) -> NoReturn:
        self.code, self.message, self.trailing = code, details, dict(trailing_metadata)
        raise Aborted


def method(path: str) -> Method:
    return contract.methods()[path]


def call_of(path: str, tenant: str | None = None, seconds: float | None = None, **more: Any) -> RequestContext:
    """The context of a call in the middle of being served."""
    rpc: Any = FakeRpc()
    context = RequestContext(method=method(path), rpc=rpc, metadata={}, request_id="r-1", trace_id="", **more)
    context.tenant = tenant
    if seconds is not None:
        context.deadline = time.monotonic() + seconds
    return context


def user_of(tenant: str, *permissions: str, user_id: str = "0197f0c1-2345-7abc-8def-0123456789ab") -> User:
    return User(user_id, tenant, "session", frozenset(permissions), int(time.time()) + 600)


def unconnected_service(config: Any = None) -> Service:
    """A service with no database, no broker and no neighbours: it can be made, and can do nothing."""
    nothing = cast(Any, None)
    parts = ("spec", "settings", "database", "redis", "events", "clients", "signals", "sealer", "mailer")
    return Service(config=config, **dict.fromkeys(parts, nothing))
