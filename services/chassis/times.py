"""Times in requests. Protobuf carries any two numbers as a Timestamp or a Duration; JSON is checked when it is read,
gRPC is not. What is out of range (google/protobuf/timestamp.proto and duration.proto) is refused here, once for all.
"""

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

TIMESTAMP, DURATION = "google.protobuf.Timestamp", "google.protobuf.Duration"
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799
"""From the year 1 to 9999."""
_LONGEST = 315_576_000_000
"""Seconds in 10,000 years."""
_NANOS = 999_999_999


def with_times(descriptor: Descriptor) -> frozenset[str]:
    """The types of messages, of those that a message is made of, in which there are times; empty if in none."""
    parts: dict[str, set[str]] = {}

    def visit(message: Any) -> None:
        if message.full_name not in parts:
            children = [field.message_type for field in message.fields if field.message_type is not None]
            parts[message.full_name] = {child.full_name for child in children}
            for child in children:
                visit(child)

    visit(descriptor)
    found = {TIMESTAMP, DURATION} & parts.keys()
    while more := {name for name, children in parts.items() if name not in found and children & found}:
        found |= more
    return frozenset(found)


def impossible(message: Message, types: frozenset[str], at: str = "") -> Iterator[str]:
    """The paths of what is no time. `types` are those `with_times`."""
    name = message.DESCRIPTOR.full_name
    if name in (TIMESTAMP, DURATION):
        if not _is_possible(message, name):
            yield at
        return
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.full_name not in types:
            continue
        path = f"{at}.{field.name}" if at else field.name
        if not field.is_repeated:
            yield from impossible(value, types, path)
        elif field.message_type.GetOptions().map_entry:
            for key, each in value.items():
                yield from impossible(each, types, f"{path}[{key}]")
        else:
            for index, each in enumerate(value):
                yield from impossible(each, types, f"{path}[{index}]")


def _is_possible(time: Any, name: str) -> bool:
    if name == TIMESTAMP:
        return _FIRST_SECOND <= time.seconds <= _LAST_SECOND and 0 <= time.nanos <= _NANOS
    return abs(time.seconds) <= _LONGEST and abs(time.nanos) <= _NANOS and time.seconds * time.nanos >= 0
