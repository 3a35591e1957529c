"""A policy that contradicts itself keeps its service from starting, and says why."""

from typing import Any

import pytest
from google.api import annotations_pb2
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.duration_pb2 import Duration

from nexus.options.v1 import policy_pb2
from nexus.options.v1.policy_pb2 import IDEMPOTENCY_IDEMPOTENT, IDEMPOTENCY_NO_SIDE_EFFECTS, MethodPolicy
from services.chassis import contract

PROOF = {"recent_proof": Duration(seconds=900)}
KEPT = {"cache_lifetime": Duration(seconds=60)}


def method(*, route: str, policy: dict[str, Any] | None) -> MethodDescriptor:
    """Of a contract with one method, with this policy."""
    file = FileDescriptorProto(name="sample.proto", package="nexus.sample.v1", syntax="proto3")
    file.message_type.add(name="ActRequest")
    described = file.service.add(name="SampleService").method.add(
        name="Act", input_type=".nexus.sample.v1.ActRequest", output_type=".nexus.sample.v1.ActRequest"
    )
    if policy is not None:
        whole = {"idempotency": IDEMPOTENCY_IDEMPOTENT, **policy}
        described.options.Extensions[policy_pb2.method].CopyFrom(MethodPolicy(**whole))
    if route:
        described.options.Extensions[annotations_pb2.http].post = route
    pool = DescriptorPool()
    pool.Add(file)
    found: MethodDescriptor = pool.FindServiceByName("nexus.sample.v1.SampleService").methods[0]
    return found


@pytest.mark.parametrize(
    "policy",
    [
        {"signed_in": True, "scope": "my.orders"},
        {"signed_in": True, **PROOF, "two_factors": True},
        {"permission": "orders.read", **PROOF},
        {"public": True, "idempotency": IDEMPOTENCY_NO_SIDE_EFFECTS, **KEPT},
    ],
)
def test_a_policy_that_makes_sense_is_taken(policy: dict[str, Any]) -> None:
    assert contract.method_of(method(route="/api/v1/sample", policy=policy)).policy == MethodPolicy(
        **{"idempotency": IDEMPOTENCY_IDEMPOTENT, **policy}
    )


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        (None, "has no access policy"),
        ({}, "has no access policy"),
        ({"signed_in": False}, "leave it out instead"),
        ({"signed_in": True, "idempotency": 0}, "does not say what a repeated request does"),
        ({"service_only": True}, "is for services only and has an HTTP route"),
        ({"permission": "orders.read", "scope": "my.orders"}, "names a scope and is not for any signed-in user"),
        ({"public": True, "scope": "my.orders"}, "names a scope and is not for any signed-in user"),
        ({"signed_in": True, "scope": "my.orders", **PROOF}, "asks for a proof that no client can give"),
        ({"signed_in": True, "scope": "orders.read"}, "is not of the form my.<what>"),
        ({"signed_in": True, "scope": "my."}, "is not of the form my.<what>"),
        ({"signed_in": True, "scope": "my.Orders"}, "is not of the form my.<what>"),
        ({"signed_in": True, "scope": "my.orders my.cart"}, "is not of the form my.<what>"),
        ({"public": True, **PROOF}, "asks for a recent proof of a user whom it does not ask for"),
        ({"signed_in": True, "two_factors": True}, "asks for two factors and not how recently"),
        ({"signed_in": True, **KEPT}, "may be cached only if it is public"),
        ({"public": True, **KEPT}, "may be cached only if it is public and without side effects"),
    ],
)
def test_a_policy_that_contradicts_itself_is_refused(policy: dict[str, Any] | None, problem: str) -> None:
    with pytest.raises(contract.ContractError, match=problem):
        contract.method_of(method(route="/api/v1/sample", policy=policy))


def test_a_method_for_people_has_a_route() -> None:
    with pytest.raises(contract.ContractError, match="has no HTTP route"):
        contract.method_of(method(route="", policy={"signed_in": True}))
