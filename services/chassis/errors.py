"""Errors as callers see them: a gRPC code, a documented reason, and `google.rpc` details. One shape, one place.

Reasons are enum values in the contracts (`reasons.proto`); `make gen` writes an exception for each, and a
handler raises it: `raise EmailTaken()`. The same class is raised in the calling service when the callee
answers with that reason, so `except EmailTaken` works across the wire.
"""

import importlib
from collections.abc import Sequence
from typing import Any, ClassVar

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

STATUS_DETAILS = "grpc-status-details-bin"


class Fault(Exception):  # noqa: N818  a fault is an answer, not a failure of the program
    """An answer other than OK. Subclasses are generated from the contracts; their keyword arguments fill the
    message's placeholders and travel as `ErrorInfo.metadata`."""

    domain: ClassVar[str]
    """The service that documents the reason, or "nexus" for the platform's own."""
    reason: ClassVar[str]
    code: ClassVar[StatusCode]
    template: ClassVar[str]

    registry: ClassVar[dict[tuple[str, str], type["Fault"]]] = {}

    def __init_subclass__(cls) -> None:
        Fault.registry[cls.domain, cls.reason] = cls

    def __init__(
        self,
        *,
        retry_after: float | None = None,
        violations: Sequence[tuple[str, str]] = (),
        **metadata: object,
    ) -> None:
        """`retry_after` is in seconds; `violations` are (field path, what is wrong with it)."""
        self.metadata = {name: str(value) for name, value in metadata.items()}
        self.retry_after = retry_after
        self.violations = violations
        self.message = self.template.format_map(_Lenient(self.metadata))
        super().__init__(self.message)

    def status(self) -> status_pb2.Status:
        """The `google.rpc.Status` that goes over the wire."""
        details: list[Message] = [
            error_details_pb2.ErrorInfo(reason=self.reason, domain=self.domain, metadata=self.metadata)
        ]
        if self.violations:
            bad_request = error_details_pb2.BadRequest()
            for field, description in self.violations:
                bad_request.field_violations.add(field=field, description=description)
            details.append(bad_request)
        if self.retry_after is not None:
            delay = duration_pb2.Duration()
            delay.FromNanoseconds(int(self.retry_after * 1e9))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        return status


class _Lenient(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "{" + key + "}"


def fault_from_status(status: status_pb2.Status, service_package: str) -> Fault | None:
    """The fault that a callee answered with, or None if it carries no reason known here.

    `service_package` is the callee's proto package; its faults are imported if they have not been.
    """
    info = error_details_pb2.ErrorInfo()
    packed = next((detail for detail in status.details if detail.Is(info.DESCRIPTOR)), None)
    if packed is None or not packed.Unpack(info):
        return None
    kind = Fault.registry.get((info.domain, info.reason))
    if kind is None:
        try:
            importlib.import_module(f"{service_package}.faults")
        except ModuleNotFoundError:
            return None
        kind = Fault.registry.get((info.domain, info.reason))
        if kind is None:
            return None
    retry_after = None
    violations: list[tuple[str, str]] = []
    for detail in status.details:
        if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after = retry.retry_delay.ToTimedelta().total_seconds()
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad_request = error_details_pb2.BadRequest()
            detail.Unpack(bad_request)
            violations = [(item.field, item.description) for item in bad_request.field_violations]
    metadata: dict[str, Any] = dict(info.metadata)
    fault = kind(retry_after=retry_after, violations=violations, **metadata)
    fault.message = status.message
    return fault
