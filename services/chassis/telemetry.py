"""Traces and metrics. A call that is not sampled pays for neither spans nor context propagation."""

import random
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import grpc
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.grpc import aio_client_interceptors, aio_server_interceptor
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_NAMESPACE, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from prometheus_client import Counter, Gauge, Histogram, start_http_server

from services.chassis.config import Settings

Handler = Callable[[Any, Any], Awaitable[Any]]

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2.5, 5, 10)

CALL_SECONDS = Histogram("nexus_call_seconds", "Time to serve a call", ["service", "method", "code"], buckets=_BUCKETS)
CALLS_IN_PROGRESS = Gauge("nexus_calls_in_progress", "Calls being served now", ["service"])
CLIENT_SECONDS = Histogram(
    "nexus_client_call_seconds",
    "Time that a call to another service took, retries included",
    ["service", "callee", "method", "code"],
    buckets=_BUCKETS,
)
BREAKER_OPEN = Gauge("nexus_breaker_open", "Whether calls to a service are held back", ["service", "callee"])
DEPENDENCY_UP = Gauge("nexus_dependency_up", "Whether the database or broker answers", ["service", "dependency"])
IDEMPOTENT_REPLAYS = Counter(
    "nexus_idempotent_replays_total", "Calls answered from a stored answer", ["service", "method"]
)


def serve_metrics(settings: Settings) -> None:
    """Open `/metrics` for Prometheus, if a port is configured."""
    if settings.metrics_port:
        start_http_server(settings.metrics_port, settings.host)


class _Details(NamedTuple):
    """`grpc.HandlerCallDetails`."""

    method: str
    invocation_metadata: tuple[tuple[str, str], ...]


def tracer_provider(settings: Settings, service: str) -> TracerProvider:
    """Traces of one service. The sampling decision is made before spans exist: see `CallTracer`."""
    provider = TracerProvider(
        sampler=ALWAYS_ON,
        resource=Resource.create({SERVICE_NAME: service, SERVICE_NAMESPACE: settings.namespace}),
    )
    if settings.otlp_endpoint:
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(settings.otlp_endpoint, insecure=True)))
    return provider


class CallTracer:
    """Traces the sampled calls of a server with OpenTelemetry's own instrumentation for gRPC.

    The instrumentation is wound around each handler once, instead of standing between gRPC and every call as an
    interceptor: a call that is not sampled goes straight to its handler.
    """

    def __init__(self, provider: trace.TracerProvider, ratio: float) -> None:
        self._interceptor = aio_server_interceptor(tracer_provider=provider)
        self._ratio = ratio

    def sampled(self, traceparent: str | None) -> bool:
        """Whether to trace a call: as its caller decided (W3C Trace Context), else by the ratio."""
        if traceparent is not None:
            return len(traceparent) == 55 and traceparent[-1] in "13579bdf"
        return random.random() < self._ratio  # noqa: S311  sampling is not a secret

    def around(self, path: str, handler: Handler) -> Handler:
        """The handler of a method, traced."""

        async def untraced(_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            # All handlers of the chassis have the unary shape, also those that stream.
            return grpc.unary_unary_rpc_method_handler(handler)

        wrapping = self._interceptor.intercept_service(untraced, _Details(method=path, invocation_metadata=()))
        try:
            wrapping.send(None)
        except StopIteration as finished:
            traced: Handler = finished.value.unary_unary
            return traced
        raise AssertionError("wrapping a handler waits for nothing")


def client_interceptors(provider: trace.TracerProvider) -> list[grpc.aio.ClientInterceptor]:
    return aio_client_interceptors(tracer_provider=provider)


def current_trace_id() -> str | None:
    """The id of the running trace as 32 hex digits, or None when the call is not traced."""
    span = trace.get_current_span().get_span_context()
    return format(span.trace_id, "032x") if span.is_valid else None
