"""JSON, queries and forms to gRPC and back."""

from envoy_data_plane.envoy.extensions.filters.http.grpc_json_transcoder.v3 import (
    GrpcJsonTranscoder,
    GrpcJsonTranscoderPrintOptions,
    GrpcJsonTranscoderRequestValidationOptions,
)

from services.chassis import contract
from services.chassis.contract import Method

HTTP_BODY = "google.api.HttpBody"
MAX_REQUEST_BYTES = 4 * 1024 * 1024


def transcoder(*services: str, lenient: bool = False) -> GrpcJsonTranscoder:
    """`lenient` ignores query parameters that a message does not have, instead of refusing them."""
    external = sorted({m.path[1:].partition("/")[0] for m in contract.methods().values() if m.external})
    return GrpcJsonTranscoder(
        proto_descriptor=str(contract.IMAGE),
        services=list(services) or external,
        convert_grpc_status=True,
        # "+" is a space in a query, as forms and OAuth clients write it.
        query_param_unescape_plus=True,
        ignore_unknown_query_parameters=lenient,
        print_options=GrpcJsonTranscoderPrintOptions(always_print_primitive_fields=True, stream_newline_delimited=True),
        request_validation_options=GrpcJsonTranscoderRequestValidationOptions(
            reject_unknown_query_parameters=not lenient, reject_binding_body_field_collisions=True
        ),
        max_request_body_size=MAX_REQUEST_BYTES,
    )


def speaks_for_itself(method: Method) -> bool:
    """Whether a method answers as HTTP standards of others have it, with a status of its own."""
    return method.descriptor.output_type.full_name == HTTP_BODY
