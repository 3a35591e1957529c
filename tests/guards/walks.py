"""What the guards walk over: the fields of every request, and the reasons of every contract."""

from collections.abc import Iterator
from dataclasses import dataclass

from buf.validate import validate_pb2
from buf.validate.validate_pb2 import FieldRules
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from nexus.options.v1 import policy_pb2
from nexus.options.v1.policy_pb2 import ReasonPolicy
from services.chassis import contract
from services.chassis.contract import Method

TEXT = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


@dataclass(frozen=True)
class Reason:
    """One value of an enum named `Reason`."""

    package: str
    name: str
    """Without the prefix: "EMAIL_TAKEN"."""
    full_name: str
    policy: ReasonPolicy

    @property
    def fault(self) -> str:
        """The name of the exception that `make gen` writes for it."""
        return "".join(word.capitalize() for word in self.name.split("_"))


def options(field: FieldDescriptor) -> descriptor_pb2.FieldOptions:
    """The field's options, of a class that knows our extensions."""
    return descriptor_pb2.FieldOptions.FromString(field.GetOptions().SerializeToString())


def rules(field: FieldDescriptor) -> FieldRules:
    """The field's `buf.validate.field`."""
    return options(field).Extensions[validate_pb2.field]


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def is_repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)


def is_ours(message: Descriptor) -> bool:
    return message.full_name.startswith("nexus.")


def fields_of(message: Descriptor, _seen: frozenset[str] = frozenset()) -> Iterator[FieldDescriptor]:
    """Every field of a message and of our messages inside it, each message once. The entries of a map have none of
    their own: what bounds them is at the map."""
    for field in message.fields:
        yield field
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            inner = inner.fields_by_name["value"].message_type
        if inner is not None and is_ours(inner) and inner.full_name not in _seen:
            yield from fields_of(inner, _seen | {message.full_name, inner.full_name})


def messages() -> Iterator[Descriptor]:
    """Every message of ours, nested ones included; not the options themselves."""
    for file in contract.image().file:
        if file.package.startswith("nexus.") and file.package != policy_pb2.DESCRIPTOR.package:
            for message in file.message_type:
                yield from _with_nested(contract.pool().FindMessageTypeByName(f"{file.package}.{message.name}"))


def _with_nested(message: Descriptor) -> Iterator[Descriptor]:
    if not message.GetOptions().map_entry:
        yield message
    for nested in message.nested_types:
        yield from _with_nested(nested)


def reason_enums() -> Iterator[EnumDescriptor]:
    for file in contract.image().file:
        for enum in file.enum_type:
            if file.package.startswith("nexus.") and enum.name == "Reason":
                yield contract.pool().FindEnumTypeByName(f"{file.package}.{enum.name}")


def reasons() -> list[Reason]:
    """Every reason but the zeros."""
    found = []
    for enum in reason_enums():
        for value in enum.values:
            if value.number:
                known = descriptor_pb2.EnumValueOptions.FromString(value.GetOptions().SerializeToString())
                found.append(
                    Reason(
                        package=enum.file.package,
                        name=value.name.removeprefix("REASON_"),
                        full_name=f"{enum.full_name}.{value.name}",
                        policy=known.Extensions[policy_pb2.reason],
                    )
                )
    return found


def methods() -> list[Method]:
    return list(contract.methods().values())


def external_methods() -> list[Method]:
    return [method for method in methods() if method.external]
