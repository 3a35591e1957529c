"""Errors that Envoy itself raises, in the platform's one shape: a `google.rpc.Status`, as JSON or as gRPC has it."""

import base64
import re
from collections.abc import Mapping
from typing import Any as AnyValue

from envoy_data_plane.envoy.config.accesslog.v3 import (
    AccessLogFilter,
    AndFilter,
    ComparisonFilter,
    ComparisonFilterOp,
    ExtensionFilter,
    StatusCodeFilter,
)
from envoy_data_plane.envoy.config.core.v3 import (
    DataSource,
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    RuntimeUInt32,
    SubstitutionFormatString,
)
from envoy_data_plane.envoy.extensions.access_loggers.filters.cel.v3 import ExpressionFilter
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    LocalReplyConfig,
    ResponseMapper,
)
from envoy_data_plane.google.protobuf import Any, Struct
from google.protobuf import json_format
from google.rpc import status_pb2
from grpc import StatusCode

from nexus.type.v1 import faults
from services.chassis.errors import STATUS_DETAILS, Fault
from services.chassis.peers import MESH_REPLY
from services.chassis.pipeline import CHALLENGES

_BODY = "%LOCAL_REPLY_BODY%"
_GRPC = "request.headers['content-type'].startsWith('application/grpc')"
_TRANSCODED = "'x-envoy-original-path' in request.headers"
_ABSENT = HeaderValueOptionHeaderAppendAction.ADD_IF_ABSENT
RETRY_SECONDS = 1
UNDELIVERED = "undelivered"
FAILED = "failed"


def error(fault: type[Fault], message: str | None = None, retry_seconds: int | None = None) -> dict[str, AnyValue]:
    """The body of an error. `message` may hold Envoy's %COMMANDS%."""
    details: list[dict[str, AnyValue]] = [
        {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": fault.reason,
            "domain": fault.domain,
            "metadata": {},
        }
    ]
    if retry_seconds is not None:
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{retry_seconds}s"})
    return {"code": fault.code.value[0], "message": message or fault.template, "details": details}


def local_replies() -> LocalReplyConfig:
    bad_token = error(faults.TokenInvalid, f"The access token is not valid: {_BODY}.")
    unreadable = error(faults.MalformedRequest, f"The request cannot be read: {_BODY}")
    unclear_path = error(
        faults.MalformedRequest,
        "The request cannot be read: its path has an escaped slash, a fragment, or characters that no path has.",
    )
    away = error(faults.DependencyUnavailable, "The service is not available at the moment; try again.", RETRY_SECONDS)
    busy = error(faults.DependencyUnavailable, "The service has more to do than it can; try again.", RETRY_SECONDS)
    limited = error(faults.RateLimited, "Too many calls; try again in a moment.", RETRY_SECONDS)
    replies = [
        _when(401, error(faults.TokenExpired), detail="Jwt_is_expired"),
        _when(401, bad_token),
        _when(400, unclear_path, detail="path_normalization_failed"),
        _when(400, unreadable),
        # Envoy forbids what is meant for another audience; to us such a token is as bad as any other.
        _when(403, bad_token, detail="jwt_authn_access_denied", becomes=401),
        _when(403, error(faults.CallerNotAllowed, f"Refused: {_BODY}")),
        _when(404, error(faults.RouteUnknown)),
        _when(405, error(faults.MethodNotAllowed)),
        _when(413, error(faults.RequestTooLarge)),
        _when(429, limited, retry=True),
        _when(
            431,
            error(faults.RequestTooLarge, "The request's headers are larger than this platform takes."),
        ),
        _when(503, busy, detail="overflow", retry=True),
        _when(503, away, retry=True),
        _when(504, error(faults.DeadlineExceeded, "The call took longer than its contract gives it.")),
        # Last, for any that has no mapper of its own.
        _when(500, error(faults.Internal, "Something went wrong on our side."), at_least=True),
        _when(402, unreadable, at_least=True, at_most=499),
    ]
    return LocalReplyConfig(mappers=[mapper for pair in replies for mapper in pair])


def mesh_replies() -> LocalReplyConfig:
    """What a proxy of the local mesh says in a service's place: the same shape, and marked, so that no caller takes
    it for the service's own answer."""
    away = error(faults.DependencyUnavailable, "The service is not available at the moment; try again.", RETRY_SECONDS)
    late = error(faults.DeadlineExceeded, "The call took longer than its contract gives it.")
    unreached = _expression("response.code_details.contains('connection_failure')")
    return LocalReplyConfig(
        mappers=[
            _in_its_place(503, away, UNDELIVERED, unreached),
            _in_its_place(503, away, FAILED),
            _in_its_place(504, late, FAILED),
            # What `nexus fault` makes fail has failed like anything else.
            ResponseMapper(
                filter=_expression("response.code_details.contains('fault_filter_abort')"),
                headers_to_add=_headers({MESH_REPLY: FAILED}),
            ),
        ]
    )


def _in_its_place(status: int, body: dict[str, AnyValue], mark: str, *conditions: AccessLogFilter) -> ResponseMapper:
    return ResponseMapper(
        filter=_all(_status(ComparisonFilterOp.EQ, status), _lacks("direct_response"), *conditions),
        body_format_override=SubstitutionFormatString(text_format_source=DataSource(inline_string=body["message"])),
        headers_to_add=_headers({MESH_REPLY: mark, "retry-after": str(RETRY_SECONDS), **_grpc_status(status, body)}),
    )


def _when(
    status: int,
    body: dict[str, AnyValue],
    *,
    detail: str = "",
    at_least: bool = False,
    at_most: int | None = None,
    becomes: int | None = None,
    retry: bool = False,
) -> tuple[ResponseMapper, ResponseMapper]:
    """Answer with `body` to local replies of this status: to gRPC callers, and to all others."""
    conditions = [_status(ComparisonFilterOp.GE if at_least else ComparisonFilterOp.EQ, status)]
    if at_most is not None:
        conditions.append(_status(ComparisonFilterOp.LE, at_most))
    if detail:
        conditions.append(_expression(f"response.code_details.contains('{detail}')"))
    conditions.append(_lacks("lua_response"))  # it speaks for itself
    # A request that HTTP itself refuses is answered before it gets its id.
    headers = {"x-request-id": "%UNIQUE_ID%"}
    if retry:
        headers["retry-after"] = str(RETRY_SECONDS)
    if 401 in (status, becomes):
        headers["www-authenticate"] = CHALLENGES["TOKEN_INVALID"]
    grpc = ResponseMapper(
        filter=_all(*conditions, _expression(f"{_GRPC} && !({_TRANSCODED})")),
        status_code=becomes,
        body_format_override=SubstitutionFormatString(text_format_source=DataSource(inline_string=body["message"])),
        headers_to_add=_headers({**headers, **_grpc_status(status, body)}),
    )
    # Our own routes answer with such a body already.
    plain = ResponseMapper(
        filter=_all(*conditions, _lacks("direct_response")),
        status_code=becomes,
        body_format_override=SubstitutionFormatString(json_format=Struct.from_dict(body)),
        headers_to_add=_headers(headers),
    )
    return grpc, plain


def _grpc_status(http_status: int, body: dict[str, AnyValue]) -> dict[str, str]:
    """The headers of an error in gRPC."""
    status = _status_of(http_status, body)
    return {"grpc-status": str(status.code), STATUS_DETAILS: status_details(http_status, body)}


def status_details(http_status: int, body: dict[str, AnyValue]) -> str:
    """An error as the header `grpc-status-details-bin` has it."""
    return base64.b64encode(_status_of(http_status, body).SerializeToString()).decode()


def _status_of(http_status: int, body: dict[str, AnyValue]) -> status_pb2.Status:
    """What nobody serves is UNIMPLEMENTED in gRPC."""
    status = json_format.ParseDict(body, status_pb2.Status())
    status.code = StatusCode.UNIMPLEMENTED.value[0] if http_status == 404 else status.code
    status.message = re.sub(f":? ?{_BODY}", "", status.message)
    return status


def _headers(values: Mapping[str, str]) -> list[HeaderValueOption]:
    return [
        HeaderValueOption(header=HeaderValue(key=key, value=value), append_action=_ABSENT)
        for key, value in values.items()
    ]


def _all(*conditions: AccessLogFilter) -> AccessLogFilter:
    return AccessLogFilter(and_filter=AndFilter(filters=list(conditions)))


def _lacks(detail: str) -> AccessLogFilter:
    return _expression(f"!response.code_details.contains('{detail}')")


def _status(operation: ComparisonFilterOp, value: int) -> AccessLogFilter:
    comparison = ComparisonFilter(op=operation, value=RuntimeUInt32(default_value=value, runtime_key="nexus.unused"))
    return AccessLogFilter(status_code_filter=StatusCodeFilter(comparison=comparison))


def _expression(cel: str) -> AccessLogFilter:
    return AccessLogFilter(
        extension_filter=ExtensionFilter(
            name="envoy.access_loggers.extension_filters.cel",
            typed_config=Any.pack(ExpressionFilter(expression=cel)),
        )
    )
