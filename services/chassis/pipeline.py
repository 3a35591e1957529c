"""What happens around every handler, bound to each method once, at the start, from its contract.

A stage takes the next handler and returns its own. A stage that a method's contract does not need returns the
next handler as it is, and so costs nothing. All four kinds of RPC share the stages: a handler that streams its
answer writes it to the call itself.
"""

import asyncio
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import grpc
import protovalidate
from google.protobuf.message import Message

from nexus.type.v1 import faults
from services.chassis import contract, telemetry
from services.chassis.assurance import require_proof
from services.chassis.context import EDGE, OPERATOR, RequestContext, User, enter
from services.chassis.contract import Method
from services.chassis.errors import STATUS_DETAILS, Fault
from services.chassis.ids import new_id
from services.chassis.peers import API_KEY, XFCC, PeerIdentifier
from services.chassis.rates import EXACT, RateLimiter
from services.chassis.streams import OpenStreams
from services.chassis.tenants import TenantDirectory
from services.chassis.times import impossible, with_times
from services.chassis.tokens import TokenVerifier

if TYPE_CHECKING:
    from services.chassis.api_keys import ApiKeyVerifier
    from services.chassis.idempotency import Once

Handler = Callable[[Any, Any], Awaitable[Any]]
"""(request or iterator of requests, call) → answer; None where the answer is streamed."""

SLOW_SECONDS = 1.0
CONFLICT_ATTEMPTS = 3
MAX_KEY_LENGTH = 128
OUTSIDE = (None, EDGE)
"""The callers who are no services."""
MAX_VIOLATIONS = 20
"""More than a person mends at once, and than fits into the 8 KiB of a trailer."""
CHALLENGES = {
    "TOKEN_INVALID": 'Bearer error="invalid_token"',
    "TOKEN_EXPIRED": 'Bearer error="invalid_token"',
    "STEP_UP_REQUIRED": 'Bearer error="insufficient_user_authentication"',
}
"""What HTTP tells with a 401 (RFC 6750, section 3; RFC 9470)."""

logger = logging.getLogger(__name__)
_HEX_ID = re.compile(r"[0-9a-f]{32}")
_REQUEST_ID = re.compile(r"[\w.:-]{1,64}")


@dataclass
class Load:
    """How many calls a service works on. Counted here: gRPC's own `maximum_concurrent_rpcs` costs a sixth of a call."""

    limit: int
    calls: int = 0


@dataclass(frozen=True)
class Guards:
    """What the stages of one service work with."""

    peers: PeerIdentifier
    callers: frozenset[str]
    """The services that declare this one among their calls."""
    verifier: TokenVerifier
    api_keys: "ApiKeyVerifier"
    limiter: RateLimiter
    tenants: TenantDirectory
    streams: OpenStreams
    once: "Once"
    tracer: telemetry.CallTracer
    load: Load
    platform_tenant: str
    default_timeout: float


Stage = Callable[[Method, Guards, Handler], Handler]


def bind(method: Method, guards: Guards, handler: Handler) -> Handler:
    """The handler with all its stages, ready to be given to gRPC."""
    for stage in reversed(STAGES):
        handler = stage(method, guards, handler)
    return handler


def observe(method: Method, guards: Guards, call_next: Handler) -> Handler:
    """Opens the call's context with request id and trace; at the end maps errors, measures and logs."""

    def timer(code: grpc.StatusCode) -> Any:
        return telemetry.CALL_SECONDS.labels(method.service_id, method.name, code.name)

    load = guards.load
    time_ok = timer(grpc.StatusCode.OK)
    peers = guards.peers
    sampled = guards.tracer.sampled

    async def stage(request: Any, rpc: "grpc.aio.ServicerContext") -> Any:
        pairs: Any = rpc.invocation_metadata()
        metadata: dict[str, str] = dict(pairs or ())
        run = traced if sampled(metadata.get("traceparent")) else serve
        return await run((request, metadata), rpc)

    async def serve(incoming: tuple[Any, dict[str, str]], rpc: "grpc.aio.ServicerContext") -> Any:
        request, metadata = incoming
        request_id = metadata.get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = new_id()
        call = RequestContext(
            method=method,
            rpc=rpc,
            metadata=metadata,
            request_id=request_id,
            trace_id=telemetry.current_trace_id() or _trace_id(metadata.get("traceparent", ""), request_id),
        )
        forwarded = metadata.get(XFCC)
        if forwarded is not None:
            call.caller = peers.caller(rpc.peer(), forwarded)
        enter(call)
        load.calls += 1
        try:
            if load.calls > load.limit:
                raise faults.RateLimited(seconds=1, retry_after=1)
            if isinstance(request, bytes):
                raise faults.MalformedRequest(why="the bytes are no message of the contract")
            answer = await call_next(request, call)
        except Fault as fault:
            await _refuse(call, fault)
        except asyncio.CancelledError:
            timer(grpc.StatusCode.CANCELLED).observe(time.monotonic() - call.started)
            raise
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            logger.exception("unexpected %s", type(error).__name__)
            await _refuse(call, faults.Internal(request_id=request_id))
        else:
            elapsed = time.monotonic() - call.started
            time_ok.observe(elapsed)
            if elapsed > SLOW_SECONDS and not method.streams:
                logger.warning("slow", extra={"seconds": round(elapsed, 3), "caller": call.caller})
            return answer
        finally:
            load.calls -= 1

    async def _refuse(call: RequestContext, fault: Fault) -> None:
        elapsed = time.monotonic() - call.started
        timer(fault.code).observe(elapsed)
        if fault.code is not grpc.StatusCode.INTERNAL:  # that one has been logged with its stack
            logger.info(
                "refused",
                extra={"reason": fault.reason, "status": fault.code.name, "seconds": round(elapsed, 4)},
            )
        trailing = [(STATUS_DETAILS, fault.status().SerializeToString()), ("x-request-id", call.request_id)]
        if fault.retry_after is not None:
            trailing.append(("retry-after", str(math.ceil(fault.retry_after))))  # RFC 9110, section 10.2.3
        if fault.code is grpc.StatusCode.UNAUTHENTICATED:
            trailing.append(("www-authenticate", CHALLENGES.get(fault.reason, "Bearer")))
        await call.rpc.abort(fault.code, fault.message, tuple(trailing))

    traced = guards.tracer.around(method.path, serve)
    return stage


def deadline(method: Method, guards: Guards, call_next: Handler) -> Handler:
    """Ends the call after the contract's time. At the caller's own deadline gRPC cancels it, and nobody listens."""
    limit = method.timeout(guards.default_timeout)
    if limit is None:
        return call_next

    async def stage(request: Any, call: RequestContext) -> Any:
        call.deadline = call.started + limit
        return await _within(limit, call_next, request, call)

    return stage


async def _within(seconds: float, handler: Handler, request: Any, call: RequestContext) -> Any:
    """`asyncio.timeout` for the hot path: one timer and one look-up of the running loop."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task(loop)
    assert task is not None
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = True
        task.cancel()

    timer = loop.call_later(seconds, expire)
    try:
        return await handler(request, call)
    except asyncio.CancelledError:
        # Cancelled by us, and by nobody else meanwhile.
        if expired and task.uncancel() == 0:
            raise faults.DeadlineExceeded(seconds=round(seconds, 3)) from None
        raise
    finally:
        timer.cancel()


def authenticate(method: Method, guards: Guards, call_next: Handler) -> Handler:
    """Turns the access token or the API key into a user, where the contract asks for one."""
    if not method.needs_user:
        return call_next
    verify, verify_key = guards.verifier.verify, guards.api_keys.verify

    async def stage(request: Any, call: RequestContext) -> Any:
        key = call.metadata.get(API_KEY)
        if key is None:
            scheme, _, token = call.metadata.get("authorization", "").partition(" ")
            if not token or scheme.lower() != "bearer":
                raise faults.TokenRequired()
            call.signed_in = await verify(token)
            call.token = token
        elif "authorization" in call.metadata:
            raise faults.CredentialsAmbiguous()
        else:
            call.signed_in = await verify_key(key, count=call.caller in OUTSIDE)
            call.api_key = key
        return await call_next(request, call)

    return stage


def authorize(method: Method, guards: Guards, call_next: Handler) -> Handler:
    """Lets in the callers that the contract and the topology name, users with the permission, and clients and API
    keys of users with the scope."""
    declared = guards.callers | {OPERATOR}
    permission, mesh_wide = method.policy.permission, method.policy.mesh_wide
    from_outside = () if method.access == "service_only" else OUTSIDE
    asks_for_proof = method.policy.HasField("recent_proof")
    own, scope = method.access == "signed_in", method.policy.scope

    def may(user: User) -> bool:
        # A tenant's owner may do everything in the tenant, and nothing to the platform.
        in_reach = method.tenant_scoped or user.tenant_id == guards.platform_tenant
        return in_reach and user.may(permission)

    async def stage(request: Any, call: RequestContext) -> Any:
        caller = call.caller
        if not (caller in from_outside or caller in declared or (mesh_wide and caller is not None)):
            raise faults.CallerNotAllowed(caller=caller or "An outside caller", method=method.full_name)
        if permission and not may(call.user):
            raise faults.PermissionMissing(permission=permission)
        if own and call.user.scoped and caller in OUTSIDE and not (scope and call.user.scopes & {scope, "*"}):
            raise faults.ScopeMissing(scope=scope) if scope else faults.OwnSignInRequired()
        if asks_for_proof and caller in OUTSIDE:
            require_proof(method, call.user)
        return await call_next(request, call)

    return stage


def limit_rate(method: Method, guards: Guards, call_next: Handler) -> Handler:
    """Counts callers from outside, for the rate classes that must be exact."""
    if method.rate_class not in EXACT:
        return call_next
    count = guards.limiter.count

    async def stage(request: Any, call: RequestContext) -> Any:
        if call.caller in OUTSIDE:
            await count(method, call.client_address())
        return await call_next(request, call)

    return stage


def scope_tenant(method: Method, guards: Guards, call_next: Handler) -> Handler:
    """Settles the tenant: the token's, else the header's. Every query of the handler is bound to it."""
    if not method.tenant_scoped:
        return call_next
    require_active = guards.tenants.require_active

    async def stage(request: Any, call: RequestContext) -> Any:
        named = call.metadata.get("x-nexus-tenant")
        if call.signed_in is not None:
            tenant = call.signed_in.tenant_id
            if named is not None and named != tenant:
                raise faults.TenantMismatch(token_tenant=tenant, tenant=named[:64])
        elif named:
            tenant = named
        else:
            raise faults.TenantRequired()
        await require_active(tenant)
        call.tenant = tenant
        return await call_next(request, call)

    return stage


def end_stream(method: Method, guards: Guards, call_next: Handler) -> Handler:
    """Ends a stream when the session or the tenant that it was opened for does."""
    if not method.streams:
        return call_next
    serve = guards.streams.serve

    async def stage(request: Any, call: RequestContext) -> Any:
        return await serve(call_next, request, call)

    return stage


def validate(method: Method, guards: Guards, call_next: Handler) -> Handler:
    """Checks the request against the rules in the contract."""
    check = protovalidate.Validator().validate
    timed = with_times(method.descriptor.input_type)

    def checked(request: Message) -> Message:
        if timed and (wrong := list(islice(impossible(request, timed), MAX_VIOLATIONS))):
            raise faults.InvalidRequest(
                violations=[(path, "is out of range") for path in wrong], summary=f"{wrong[0]}: is out of range"
            )
        try:
            check(request)
        except protovalidate.ValidationError as error:
            raise _invalid(error) from None
        return request

    async def each(requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
        async for request in requests:
            yield checked(request)

    async def stage(request: Any, call: RequestContext) -> Any:
        return await call_next(checked(request), call)

    async def stream_stage(requests: Any, call: RequestContext) -> Any:
        return await call_next(each(requests), call)

    return stream_stage if method.descriptor.client_streaming else stage


def once(method: Method, guards: Guards, call_next: Handler) -> Handler:
    """Makes a keyed call happen once, and repeats one that lost a race with another where that is safe."""
    keyed = method.policy.idempotency == contract.KEYED
    if method.streams or not (keyed or method.retryable):
        return call_next
    run_once = guards.once.run
    has_field = "request_id" in method.descriptor.input_type.fields_by_name

    async def stage(request: Any, call: RequestContext) -> Any:
        key = ""
        if keyed:
            key = (request.request_id if has_field else "") or call.metadata.get("idempotency-key", "")
            if len(key) > MAX_KEY_LENGTH:
                long = ("idempotency-key", f"must be at most {MAX_KEY_LENGTH} characters")
                raise faults.InvalidRequest(violations=[long], summary=": ".join(long))
            if not key:
                return await call_next(request, call)
            call.idempotency_key = key
        for attempt in range(1, CONFLICT_ATTEMPTS + 1):
            try:
                if key:
                    return await run_once(request, call, key, call_next)
                return await call_next(request, call)
            except faults.Conflict:
                if attempt == CONFLICT_ATTEMPTS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    return stage


STAGES: tuple[Stage, ...] = (
    observe,
    deadline,
    authenticate,
    authorize,
    limit_rate,
    scope_tenant,
    end_stream,
    validate,
    once,
)
"""From the outside in."""


def _trace_id(traceparent: str, request_id: str) -> str:
    """The caller's trace, else one named after the request, which ties the logs of an untraced call together."""
    if len(traceparent) == 55:
        return traceparent[3:35]
    named = request_id.replace("-", "")
    return named if _HEX_ID.fullmatch(named) else new_id().replace("-", "")


def _invalid(error: protovalidate.ValidationError) -> Fault:
    violations = []
    for violation in error.violations[:MAX_VIOLATIONS]:
        elements = violation.proto.field.elements if violation.proto.field else ()
        path = ".".join(
            element.field_name + (f"[{element.subscript.value}]" if element.subscript else "") for element in elements
        )
        violations.append((path, violation.proto.message))
    summary = "; ".join(f"{path}: {what}" if path else what for path, what in violations[:5])
    return faults.InvalidRequest(violations=violations, summary=summary)
