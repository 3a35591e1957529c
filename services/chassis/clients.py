"""Calls to other services: only declared callees, with the call's deadline, user, tenant and trace.

`clients.stub(SessionServiceStub)` is the generated stub over a channel of ours. A callee's faults come back as
the exceptions generated from its contract. Retries happen only where the contract says that a repeat is safe.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn, TypeVar

import grpc
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry import trace

from nexus.type.v1.faults import CallerNotAllowed, DeadlineExceeded, DependencyUnavailable, Internal
from services.chassis import context, contract, telemetry
from services.chassis.breaker import Breaker
from services.chassis.config import Settings
from services.chassis.contract import Method
from services.chassis.errors import STATUS_DETAILS, fault_from_status
from services.chassis.peers import API_KEY, MESH_REPLY, VERSION_HEADER, XFCC
from services.chassis.spec import discover
from services.chassis.tasks import cancel_all

Stub = TypeVar("Stub")

DEADLINE_MARGIN = 0.02
"""Seconds kept back from a callee, to answer the caller when the callee has run out of time."""
ATTEMPTS = 3
_BACKOFF_SECONDS = 0.025
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""How a call ends that nobody answered. CANCELLED comes from a service that stops before it has begun with the call;
when we cancel a call ourselves, there is no status."""
_UNANSWERED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
"""How a call ends that speaks against its callee, unless the callee itself says so."""
_UNDELIVERED = "undelivered"
_WATCH_SECONDS = 0.5
_CHANNEL_OPTIONS = [
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.keepalive_time_ms", 30_000),
]


class Clients:
    """The stubs of one service, or of the operator."""

    def __init__(self, settings: Settings, caller: str, calls: frozenset[str] | None) -> None:
        """`calls` are the declared callees; None for the operator, who may call all."""
        self._settings = settings
        self._caller = caller
        self._calls = calls
        self._callees: dict[str, _Callee] = {}

    def stub(self, stub_class: Callable[["grpc.aio.Channel"], Stub], *, timeout: float | None = None) -> Stub:
        """The stub of a service. Raises ValueError for one that is not declared in the spec's `calls`.

        `timeout` is in seconds, for each call that does not say otherwise; none outlasts the call that it is made for.
        """
        callee = stub_class.__module__.split(".")[2].replace("_", "-")
        if self._calls is not None and callee not in self._calls:
            raise ValueError(f"{self._caller} does not declare {callee} in its calls")
        stub = self.infrastructure(stub_class, callee)
        for method in vars(stub).values():
            method.timeout = timeout
        return stub

    def infrastructure(self, stub_class: Callable[["grpc.aio.Channel"], Stub], callee: str) -> Stub:
        """A stub for what the chassis itself needs of any service: its public keys, its health."""
        if callee not in self._callees:
            self._callees[callee] = _Callee(self._settings, self._caller, callee)
        return stub_class(self._callees[callee])  # type: ignore[arg-type]

    async def stop(self) -> None:
        await asyncio.gather(*(callee.stop() for callee in self._callees.values()))


class _Callee:
    """One service as the caller reaches it. Looks like a channel to the generated stubs."""

    def __init__(self, settings: Settings, caller: str, callee: str) -> None:
        self.caller, self.callee = caller, callee
        spec = discover()[callee]
        target = settings.service_address.format(
            service=callee, caller=caller, port=settings.port(spec.port), run=settings.run_dir
        )
        options: list[tuple[str, Any]] = list(_CHANNEL_OPTIONS)
        if target.startswith("unix:"):
            options.append(("grpc.default_authority", callee))
        # Both share their connection inside gRPC; only calls of a sampled trace pay for the interceptors.
        self._plain = grpc.aio.insecure_channel(target, options)
        self._traced = grpc.aio.insecure_channel(
            target, options, interceptors=telemetry.client_interceptors(trace.get_tracer_provider())
        )
        self.breaker = Breaker()
        self._away = False
        self._watching: asyncio.Task[None] | None = None
        self._gauge = telemetry.BREAKER_OPEN.labels(caller, callee)
        self.identity = (XFCC, f"URI={settings.spiffe_id(caller)}")

    def channel(self) -> "grpc.aio.Channel":
        return self._traced if trace.get_current_span().get_span_context().is_valid else self._plain

    def report(self) -> None:
        self._gauge.set(self.breaker.is_open)

    def failed(self, *, reached: bool) -> None:
        """A call got no answer; `reached` where there was somebody to give one."""
        self.breaker.failed()
        self._away = not reached
        if self.breaker.is_open and (self._watching is None or self._watching.done()):
            self._watching = asyncio.create_task(self._watch(), name=f"{self.caller} waits for {self.callee}")

    async def _watch(self) -> None:
        """Tell the breaker when a callee that was away serves again. One that was there all the time, and does not
        answer in time, gets its rest.

        The connection would not tell: through a mesh it ends at a proxy, and stands whatever the callee does.
        """
        while self.breaker.is_open:
            serves = await self._serves()
            if serves and self._away:
                self.breaker.is_back()
                return
            self._away = self._away or not serves
            await asyncio.sleep(_WATCH_SECONDS)

    async def _serves(self) -> bool:
        health = health_pb2_grpc.HealthStub(self._plain)
        try:
            answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=1.0, metadata=[self.identity])
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        if self._watching is not None:
            await cancel_all([self._watching])
        await self._plain.close(None)
        await self._traced.close(None)

    def unary_unary(self, path: str, *args: Any, **kwargs: Any) -> "_Unary":
        return _Unary(self, "unary_unary", path, args, kwargs)

    def stream_unary(self, path: str, *args: Any, **kwargs: Any) -> "_Unary":
        return _Unary(self, "stream_unary", path, args, kwargs)

    def unary_stream(self, path: str, *args: Any, **kwargs: Any) -> "_Stream":
        return _Stream(self, "unary_stream", path, args, kwargs)

    def stream_stream(self, path: str, *args: Any, **kwargs: Any) -> "_Stream":
        return _Stream(self, "stream_stream", path, args, kwargs)


class _Callable:
    """One method of a callee."""

    def __init__(self, callee: _Callee, kind: str, path: str, args: Any, kwargs: Any) -> None:
        self._callee = callee
        self.timeout: float | None = None
        self._path = path
        self._package = path[1:].partition("/")[0].rpartition(".")[0]
        self._method: Method | None = contract.methods().get(path)
        self._make: Callable[[Any], Any] = lambda channel: getattr(channel, kind)(path, *args, **kwargs)
        self._multicallables: dict[int, Any] = {}
        self._seconds = telemetry.CLIENT_SECONDS

    def _multicallable(self) -> Any:
        channel = self._callee.channel()
        if id(channel) not in self._multicallables:
            self._multicallables[id(channel)] = self._make(channel)
        return self._multicallables[id(channel)]

    def _time_limit(self, timeout: float | None) -> float | None:
        call = context.current()
        remaining = call.remaining() if call is not None else None
        if remaining is None:
            return timeout
        remaining -= DEADLINE_MARGIN
        if remaining <= 0:
            raise DeadlineExceeded(seconds="few")
        return remaining if timeout is None else min(timeout, remaining)

    def _metadata(self, extra: Any) -> list[tuple[str, str]]:
        metadata = [self._callee.identity, *(extra or ())]
        tenant = context.current_tenant()
        if tenant is not None:
            metadata.append(("x-nexus-tenant", tenant))
        call = context.current()
        if call is not None:
            metadata.append(("x-request-id", call.request_id))
            if call.token is not None:
                metadata.append(("authorization", f"Bearer {call.token}"))
            elif call.api_key is not None:
                metadata.append((API_KEY, call.api_key))
            if VERSION_HEADER in call.metadata:
                metadata.append((VERSION_HEADER, call.metadata[VERSION_HEADER]))
            if not trace.get_current_span().get_span_context().is_valid:
                # The decision not to trace travels along, with an id that ties the logs together.
                trace_id = call.trace_id.replace("-", "")
                if len(trace_id) == 32:
                    metadata.append(("traceparent", f"00-{trace_id}-{trace_id[:16]}-00"))
        return metadata

    def _admit(self) -> None:
        if not self._callee.breaker.admit():
            raise DependencyUnavailable(dependency=self._callee.callee, retry_after=1)

    def _note(self, started: float, error: "grpc.aio.AioRpcError | None" = None) -> None:
        """Tell the breaker and the metrics how a call ended. An error that the callee itself answered with
        shows that the callee is well."""
        breaker, code = self._callee.breaker, error.code() if error is not None else grpc.StatusCode.OK
        if code is grpc.StatusCode.CANCELLED:
            breaker.abandoned()
        elif error is None or code not in _UNANSWERED or _status(error) is not None:
            breaker.succeeded()
        else:
            self._callee.failed(reached=_reached(error))
        self._callee.report()
        method = self._path.rpartition("/")[2]
        self._seconds.labels(self._callee.caller, self._callee.callee, method, code.name).observe(
            time.monotonic() - started
        )

    def _raise(self, error: "grpc.aio.AioRpcError") -> NoReturn:
        status = _status(error)
        fault = fault_from_status(status, self._package) if status is not None else None
        if fault is not None:
            raise fault from None
        code = error.code()
        if code in _AWAY:
            raise DependencyUnavailable(dependency=self._callee.callee, retry_after=1) from error
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise DeadlineExceeded(seconds="few") from error
        if code is grpc.StatusCode.PERMISSION_DENIED:  # by a proxy between us
            raise CallerNotAllowed(caller=self._callee.caller, method=self._path[1:]) from error
        call = context.current()
        raise Internal(request_id=call.request_id if call is not None else "") from error


class _Unary(_Callable):
    """A method with one answer."""

    async def __call__(self, request: Any, timeout: float | None = None, metadata: Any = None) -> Any:
        """Raises the callee's faults, or DependencyUnavailable and DeadlineExceeded when it does not answer."""
        attempts = ATTEMPTS if self._repeatable(request) else 1
        for attempt in range(1, attempts + 1):
            limit = self._time_limit(timeout or self.timeout)
            self._admit()
            started = time.monotonic()
            try:
                answer = await self._multicallable()(request, timeout=limit, metadata=self._metadata(metadata))
            except grpc.aio.AioRpcError as error:
                self._note(started, error)
                if _status(error) is not None or error.code() not in _AWAY or attempt == attempts:
                    self._raise(error)
                await asyncio.sleep(_BACKOFF_SECONDS * 2**attempt * random.uniform(0.5, 1.5))  # noqa: S311
            except asyncio.CancelledError:
                self._callee.breaker.abandoned()
                raise
            else:
                self._note(started)
                return answer
        raise AssertionError("the last attempt returns or raises")

    def _repeatable(self, request: Any) -> bool:
        method = self._method
        if method is None or method.descriptor.client_streaming:
            return False
        keyed = method.policy.idempotency == contract.KEYED and bool(getattr(request, "request_id", None))
        return method.retryable or keyed


class _Stream(_Callable):
    """A method that streams its answers."""

    async def __call__(self, request: Any, timeout: float | None = None, metadata: Any = None) -> AsyncIterator[Any]:
        limit = self._time_limit(timeout or self.timeout)
        self._admit()
        started = time.monotonic()
        try:
            async for answer in self._multicallable()(request, timeout=limit, metadata=self._metadata(metadata)):
                yield answer
        except grpc.aio.AioRpcError as error:
            self._note(started, error)
            self._raise(error)
        except (asyncio.CancelledError, GeneratorExit):
            self._callee.breaker.abandoned()
            raise
        else:
            self._note(started)


def _reached(error: "grpc.aio.AioRpcError") -> bool:
    """Whether a call that nobody answered found somebody who could have."""
    pairs: Any = error.trailing_metadata()
    undelivered = dict(pairs or ()).get(MESH_REPLY, _UNDELIVERED) == _UNDELIVERED
    return not (error.code() is grpc.StatusCode.UNAVAILABLE and undelivered)


def _status(error: "grpc.aio.AioRpcError") -> status_pb2.Status | None:
    """The `google.rpc.Status` that the callee answered with, if it got as far as answering."""
    pairs: Any = error.trailing_metadata()
    trailing = dict(pairs or ())
    if STATUS_DETAILS not in trailing or MESH_REPLY in trailing:
        return None
    return status_pb2.Status.FromString(trailing[STATUS_DETAILS])
