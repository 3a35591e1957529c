"""The context of a call: who calls, for which tenant, until when."""

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

import grpc.aio

from services.chassis.contract import Method

EDGE = "edge"
"""The identity of the edge in the mesh; it calls on behalf of people outside."""
OPERATOR = "operator"
"""The identity of the command line and of set-up jobs; it may call any method of any service."""
OPERATOR_USER = "00000000-0000-0000-0000-000000000000"
"""The user for whom the operator acts, and whom events name, where there is no other."""


@dataclass(frozen=True, slots=True)
class User:
    """A signed-in user, as the access token or the API key says."""

    user_id: str
    tenant_id: str
    session_id: str
    permissions: frozenset[str]
    token_expires: int
    """Seconds since the epoch."""
    scoped: bool = False
    """Whether it is called through something that may be given less than the user has: an API key, an OAuth client."""
    scopes: frozenset[str] = frozenset()
    """What that was given, if `scoped`: permissions, and scopes that contracts name; "*" for everything."""
    machine: bool = False
    """Whether there is nobody to ask: it calls by an API key, or is a client that acts for itself."""
    assurance: str = ""
    """How sure the platform is of the user: "aal1", "aal2" (NIST SP 800-63B); empty if the token does not say."""
    auth_time: int = 0
    """When they last proved who they are, in seconds since the epoch; 0 if the token does not say."""
    second_factor: bool | None = None
    """Whether they have one; None if the token does not say."""

    def may(self, permission: str) -> bool:
        return permission in self.permissions or "*" in self.permissions


@dataclass(slots=True)
class RequestContext:
    """Everything a handler may want to know of its call. The pipeline fills it in, stage by stage."""

    method: Method
    rpc: "grpc.aio.ServicerContext"
    metadata: dict[str, str]
    request_id: str
    trace_id: str
    started: float = field(default_factory=time.monotonic)
    deadline: float | None = None
    """When the contract's time is over, on the clock of `time.monotonic`."""
    caller: str | None = None
    """The calling service by its mesh identity; None for a caller outside the mesh."""
    token: str | None = None
    api_key: str | None = None
    """What the user called by instead of a token."""
    signed_in: User | None = None
    tenant: str | None = None
    idempotency_key: str | None = None

    @property
    def user(self) -> User:
        """The signed-in user. Only for methods whose contract asks for one."""
        assert self.signed_in is not None, f"{self.method.full_name} does not require a user"
        return self.signed_in

    @property
    def tenant_id(self) -> str:
        """The tenant. Only for methods whose contract is tenant-scoped."""
        assert self.tenant is not None, f"{self.method.full_name} is not scoped to a tenant"
        return self.tenant

    @property
    def user_agent(self) -> str:
        return self.metadata.get("user-agent", "")

    def client_address(self) -> str:
        """The address that the call came from: what the edge says, or the connection."""
        if self.caller == EDGE:
            return self.metadata.get("x-envoy-external-address") or self.metadata.get("x-forwarded-for", "")
        peer = str(self.rpc.peer())
        return peer.partition(":")[2].rpartition(":")[0] or peer

    def remaining(self) -> float | None:
        """Seconds left, by the contract or by the caller; None without a limit."""
        given = self.rpc.time_remaining()
        if self.deadline is None:
            return given
        left = self.deadline - time.monotonic()
        return left if given is None else min(left, given)


_acting_for: ContextVar[str | None] = ContextVar("nexus_acting_for", default=None)
_current: ContextVar[RequestContext | None] = ContextVar("nexus_call", default=None)


def current() -> RequestContext | None:
    """The call being served, or None in a job or at start-up."""
    return _current.get()


def enter(context: RequestContext) -> None:
    """Make this the call being served in the running task. gRPC runs every call in a task of its own."""
    _current.set(context)


def current_tenant() -> str | None:
    """The tenant that queries and calls to other services are made for."""
    named = _acting_for.get()
    if named is not None:
        return named
    call = _current.get()
    return call.tenant if call is not None else None


@contextlib.contextmanager
def acting_for(tenant_id: str) -> Iterator[None]:
    """Act for a tenant that the call does not name by itself: in a job, in a subscriber, for a tenant in a path."""
    token = _acting_for.set(tenant_id)
    try:
        yield
    finally:
        _acting_for.reset(token)
