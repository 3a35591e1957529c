"""Traces and metrics. A call that is not sampled pays for neither spans nor context propagation."""

import random
from collections.abc import Callable
from typing import Any

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


def tracer_provider(settings: Settings, service: str) -> TracerProvider:
    """Traces of one service. The sampling decision is made before spans exist: see `sampler`."""
    provider = TracerProvider(
        sampler=ALWAYS_ON,
        resource=Resource.create({SERVICE_NAME: service, SERVICE_NAMESPACE: settings.namespace}),
    )
    if settings.otlp_endpoint:
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(settings.otlp_endpoint, insecure=True)))
    return provider


def server_interceptor(provider: trace.TracerProvider, ratio: float) -> grpc.aio.ServerInterceptor:
    return aio_server_interceptor(tracer_provider=provider, filter_=sampler(ratio))


def client_interceptors(provider: trace.TracerProvider) -> list[grpc.aio.ClientInterceptor]:
    return aio_client_interceptors(tracer_provider=provider)


def sampler(ratio: float) -> Callable[[Any], bool]:
    """Decide whether a call is traced: as its caller decided (W3C `traceparent`), else by the ratio."""

    def sampled(call: grpc.HandlerCallDetails) -> bool:
        for name, value in call.invocation_metadata or ():
            if name == "traceparent":
                return len(value) == 55 and str(value)[-1] in "13579bdf"
        return random.random() < ratio  # noqa: S311  sampling is not a secret

    return sampled


def current_trace_id() -> str | None:
    """The id of the running trace as 32 hex digits, or None when the call is not traced."""
    span = trace.get_current_span().get_span_context()
    return format(span.trace_id, "032x") if span.is_valid else None
