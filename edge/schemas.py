"""What a JSON body may hold, for the strict-JSON filter: the field names of every request message.

The transcoder drops fields that a message does not have. A misspelt field would vanish without a word, so the
edge refuses it, by names taken from the contracts.
"""

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from services.chassis import contract


def is_opaque(message: Descriptor) -> bool:
    """Whether the body is not JSON of our own: it is passed through as it comes (`google.api.HttpBody`)."""
    return message.full_name == "google.api.HttpBody"


def lua_table() -> str:
    """A Lua table: message name → JSON field name → name of its message, or true for a plain value.

    Both names that the transcoder accepts are there, `display_name` and `displayName`. A map's values are
    listed under the key "*".
    """
    messages: dict[str, dict[str, str | bool]] = {}
    for method in contract.methods().values():
        if method.external:
            _collect(method.descriptor.input_type, messages)
    rows = []
    for name, fields in sorted(messages.items()):
        pairs = ", ".join(f'["{key}"] = {_lua(value)}' for key, value in sorted(fields.items()))
        rows.append(f'  ["{name}"] = {{ {pairs} }},')
    return "{\n" + "\n".join(rows) + "\n}"


def _lua(value: str | bool) -> str:
    return "true" if value is True else f'"{value}"'


def _collect(message: Descriptor, messages: dict[str, dict[str, str | bool]]) -> None:
    if message.full_name in messages or _has_own_json(message):
        return
    fields: dict[str, str | bool] = {}
    messages[message.full_name] = fields
    for field in message.fields:
        value = _value(field, messages)
        for name in (field.name, field.json_name):
            fields[name] = value


def _value(field: FieldDescriptor, messages: dict[str, dict[str, str | bool]]) -> str | bool:
    child = field.message_type
    if child is None or _has_own_json(child):
        return True
    if child.GetOptions().map_entry:
        messages[child.full_name] = {"*": _value(child.fields_by_name["value"], messages)}
    else:
        _collect(child, messages)
    return child.full_name


def _has_own_json(message: Descriptor) -> bool:
    """Whether its JSON form is not an object of its fields: Timestamp, Struct, Any, wrappers, HttpBody."""
    return message.full_name.startswith("google.")
