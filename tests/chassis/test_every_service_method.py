"""Whatever a service is sent by another, it answers with a reason of its own: never with a failure of the program.

What people can call is tried through the edge (`tests/edge/test_openapi_fuzz.py`); this is for the methods that only
services can.
"""

import random
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from services.chassis import contract
from services.chassis.errors import STATUS_DETAILS
from services.chassis.ids import new_id
from services.chassis.peers import XFCC
from tests.edge.wire import details
from tests.platforms import Platform, Tenant

METHODS = [method for method in contract.methods().values() if method.access == "service_only"]
VARIANTS = 25
TEXTS = ["", "x", "EUR", "\0", "é" * 60, "a" * 3_000, "../..", "' OR 1=1 --", "0" * 36]
NUMBERS = [0, 1, -1, 2, 100, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63)]
CHOICE = random.Random(7)


def fill(message: Message, depth: int = 3) -> Message:
    """Some of its fields, with values of which few make sense."""
    for field in message.DESCRIPTOR.fields:
        if CHOICE.random() < 0.25:
            continue
        if field.is_repeated:
            if field.message_type is None or not field.message_type.GetOptions().map_entry:
                add(getattr(message, field.name), field, depth)
        elif field.message_type is not None:
            if depth:
                fill(getattr(message, field.name), depth - 1)
                getattr(message, field.name).SetInParent()
        else:
            setattr(message, field.name, scalar(field))
    return message


def add(values: Any, field: Any, depth: int) -> None:
    for _ in range(CHOICE.randrange(3)):
        if field.message_type is None:
            values.append(scalar(field))
        elif depth:
            fill(values.add(), depth - 1)


def scalar(field: Any) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            text = CHOICE.choice([*TEXTS, new_id()])
            return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
        case FieldDescriptor.CPPTYPE_BOOL:
            return CHOICE.random() < 0.5
        case FieldDescriptor.CPPTYPE_ENUM:
            return CHOICE.choice([0, 1, 2, 99])
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return CHOICE.choice([0.0, -1.0, 1e30, float("nan"), float("inf")])
        case FieldDescriptor.CPPTYPE_INT32:
            return CHOICE.choice([number for number in NUMBERS if -(2**31) <= number < 2**31])
        case FieldDescriptor.CPPTYPE_UINT32:
            return CHOICE.choice([number for number in NUMBERS if 0 <= number < 2**32])
        case FieldDescriptor.CPPTYPE_UINT64:
            return CHOICE.choice([number for number in NUMBERS if number >= 0])
        case _:
            return CHOICE.choice(NUMBERS)


def requests(method: contract.Method) -> Iterator[Message]:
    yield method.input()
    for _ in range(VARIANTS):
        yield fill(method.input())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
async def test_nonsense_is_refused_with_a_reason(platform: Platform, tenant: Tenant, method: contract.Method) -> None:
    operator = (XFCC, f"URI={platform.settings.spiffe_id('operator')}")
    async with grpc.aio.insecure_channel(f"unix:{platform.settings.run_dir / method.service_id}.sock") as channel:
        for request in requests(method):
            why = await refusal(channel, method, request, (operator, *tenant.headers.items()))
            assert why not in ("INTERNAL", "UNKNOWN"), request


async def refusal(
    channel: grpc.aio.Channel, method: contract.Method, request: Message, metadata: tuple[tuple[str, str], ...]
) -> str:
    """The reason of the answer; empty for one without."""
    sends = iter([request]) if method.descriptor.client_streaming else request
    kind = f"{'stream' if method.descriptor.client_streaming else 'unary'}_"
    kind += "stream" if method.descriptor.server_streaming else "unary"
    call = getattr(channel, kind)(method.path, type(request).SerializeToString, method.output.FromString)
    try:
        running = call(sends, metadata=metadata, timeout=5)
        if method.descriptor.server_streaming:
            await running.read()
            running.cancel()
        else:
            await running
    except grpc.aio.AioRpcError as error:
        trailing: Any = error.trailing_metadata()
        return details(error)[1] if STATUS_DETAILS in dict(trailing or ()) else error.code().name
    return ""
