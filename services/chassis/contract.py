"""The contracts as data: every service and method with its policy and HTTP routes, from the descriptor set.

The edge, the mesh, the guards and the documentation read contracts here. A running service reads its own from
the same options on its generated descriptors, through the same classes.
"""

import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from buf.validate import validate_pb2  # noqa: F401  registers the field rules
from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

import nexus
from nexus.options.v1 import policy_pb2
from nexus.options.v1.policy_pb2 import MethodPolicy

IMAGE = Path(next(iter(nexus.__path__))).parent / "descriptors" / "nexus.binpb"
"""The descriptor set of all contracts, written by `make gen`."""

NO_SIDE_EFFECTS = policy_pb2.IDEMPOTENCY_NO_SIDE_EFFECTS
IDEMPOTENT = policy_pb2.IDEMPOTENCY_IDEMPOTENT
KEYED = policy_pb2.IDEMPOTENCY_KEYED
_OWN_SCOPE = re.compile(r"my\.[a-z_]{1,40}")
"""Told apart from permissions by its first word."""


class ContractError(Exception):
    """A contract lacks something that the platform needs. The message names the method."""


@dataclass(frozen=True)
class HttpRoute:
    """One HTTP binding of a method (`google.api.http`)."""

    verb: str
    """"GET", "POST", …"""
    path: str
    """The template: "/api/v1/sessions/{session_id}"."""
    body: str
    """The field that the body fills, "*" for the whole request, "" for none."""

    @cached_property
    def prefix(self) -> str:
        """The path up to its first variable."""
        return self.path.split("{", 1)[0]

    @cached_property
    def regex(self) -> str:
        """Matches the paths of this template: a variable is one segment, `{name=**}` the rest."""
        pattern = ""
        for literal, variable in re.findall(r"([^{]+)|\{([^}]+)\}", self.path):
            if literal:
                pattern += re.escape(literal)
            else:
                pattern += ".+" if variable.endswith("=**") else "[^/:]+"
        return pattern


@dataclass(frozen=True)
class Method:
    """One RPC with everything its contract says."""

    descriptor: MethodDescriptor
    policy: MethodPolicy
    routes: tuple[HttpRoute, ...]

    @property
    def name(self) -> str:
        return self.descriptor.name

    @cached_property
    def input(self) -> type[Message]:
        return GetMessageClass(self.descriptor.input_type)

    @cached_property
    def output(self) -> type[Message]:
        return GetMessageClass(self.descriptor.output_type)

    @cached_property
    def full_name(self) -> str:
        """ "nexus.identity.user_auth.v1.UserService/Register"."""
        return f"{self.descriptor.containing_service.full_name}/{self.descriptor.name}"

    @cached_property
    def path(self) -> str:
        """The gRPC path: "/nexus.identity.user_auth.v1.UserService/Register"."""
        return "/" + self.full_name

    @cached_property
    def service_id(self) -> str:
        """ "user-auth"."""
        return self.descriptor.containing_service.full_name.split(".")[2].replace("_", "-")

    @cached_property
    def access(self) -> str:
        """ "public", "signed_in", "service_only" or "permission"."""
        return self.policy.WhichOneof("access") or ""

    @cached_property
    def needs_user(self) -> bool:
        return self.access in ("signed_in", "permission")

    @cached_property
    def tenant_scoped(self) -> bool:
        return self.policy.tenancy != policy_pb2.TENANCY_PLATFORM

    @cached_property
    def retryable(self) -> bool:
        """Whether a caller or proxy may repeat it unasked."""
        return self.policy.idempotency in (NO_SIDE_EFFECTS, IDEMPOTENT)

    @cached_property
    def rate_class(self) -> str:
        """ "READ", "WRITE", "CREDENTIALS" or "COSTLY"."""
        if self.policy.rate_class:
            return policy_pb2.RateClass.Name(self.policy.rate_class).removeprefix("RATE_CLASS_")
        return "READ" if self.policy.idempotency == NO_SIDE_EFFECTS else "WRITE"

    @cached_property
    def streams(self) -> bool:
        return self.descriptor.client_streaming or self.descriptor.server_streaming

    @property
    def external(self) -> bool:
        """Whether outside callers reach it: it has an HTTP route."""
        return bool(self.routes)

    def timeout(self, default: float) -> float | None:
        """Seconds it may take; None for a stream without a limit."""
        if self.policy.HasField("timeout"):
            return self.policy.timeout.ToTimedelta().total_seconds()
        return None if self.streams else default


def method_of(descriptor: MethodDescriptor) -> Method:
    """The contract of a method.

    Raises ContractError when it has no policy, or one that contradicts itself.
    """
    options = descriptor_pb2.MethodOptions.FromString(descriptor.GetOptions().SerializeToString())
    method = Method(
        descriptor=descriptor,
        policy=options.Extensions[policy_pb2.method],
        routes=_routes(options.Extensions[annotations_pb2.http]),
    )
    problem = _problem(method)
    if problem:
        raise ContractError(f"{method.full_name} {problem}")
    return method


def methods_of(service: ServiceDescriptor) -> list[Method]:
    return [method_of(method) for method in service.methods]


def _problem(method: Method) -> str | None:
    policy = method.policy
    if not method.access:
        return "has no access policy: set public, signed_in, service_only or permission"
    if method.access != "permission" and not getattr(policy, method.access):
        return f"says `{method.access}: false`; leave it out instead"
    if not policy.idempotency:
        return "does not say what a repeated request does: set idempotency"
    if method.access == "service_only" and method.routes:
        return "is for services only and has an HTTP route"
    if method.access != "service_only" and not method.routes:
        return "has no HTTP route, so nobody outside can call it: add one or make it service_only"
    if policy.HasField("recent_proof") and not method.needs_user:
        return "asks for a recent proof of a user whom it does not ask for"
    if policy.scope:
        if method.access != "signed_in" or policy.HasField("recent_proof"):
            return "names a scope and is not for any signed-in user, or asks for a proof that no client can give"
        if not _OWN_SCOPE.fullmatch(policy.scope):
            return f"names the scope {policy.scope}, which is not of the form my.<what>"
    if policy.two_factors and not policy.HasField("recent_proof"):
        return "asks for two factors and not how recently: set recent_proof"
    if policy.HasField("cache_lifetime") and (method.access != "public" or policy.idempotency != NO_SIDE_EFFECTS):
        return "may be cached only if it is public and without side effects"
    return None


def _routes(rule: http_pb2.HttpRule) -> tuple[HttpRoute, ...]:
    kind = rule.WhichOneof("pattern")
    if kind is None:
        return ()
    if kind == "custom":
        verb, path = rule.custom.kind, rule.custom.path
    else:
        verb, path = kind.upper(), getattr(rule, kind)
    more = [route for extra in rule.additional_bindings for route in _routes(extra)]
    return (HttpRoute(verb, path, rule.body), *more)


@cache
def image() -> descriptor_pb2.FileDescriptorSet:
    """The descriptor set, source comments included."""
    return descriptor_pb2.FileDescriptorSet.FromString(IMAGE.read_bytes())


@cache
def pool() -> DescriptorPool:
    """All contracts, linked."""
    result = DescriptorPool()
    for file in image().file:
        result.Add(file)
    return result


@cache
def services() -> dict[str, ServiceDescriptor]:
    """Every gRPC service of the platform by its full name."""
    found = {}
    for file in image().file:
        for service in file.service:
            if file.package.startswith("nexus."):
                name = f"{file.package}.{service.name}"
                found[name] = pool().FindServiceByName(name)
    return found


@cache
def methods() -> dict[str, Method]:
    """Every method of the platform by its gRPC path."""
    return {method.path: method for service in services().values() for method in methods_of(service)}


@cache
def own_scopes() -> frozenset[str]:
    """The scopes by which others may act for a user in the user's own matters."""
    return frozenset(method.policy.scope for method in methods().values() if method.policy.scope)


@cache
def comments() -> dict[str, str]:
    """The comment above every service, method, message, field, enum and value, by full name."""
    found: dict[str, str] = {}
    for file in image().file:
        if file.package.startswith("nexus."):
            texts = {
                tuple(location.path): _clean(location.leading_comments)
                for location in file.source_code_info.location
                if location.leading_comments
            }
            _collect(file, texts, found)
    return found


def _clean(comment: str) -> str:
    lines = [line.removeprefix(" ").rstrip() for line in comment.splitlines()]
    return "\n".join(line for line in lines if not line.startswith("buf:lint:")).strip()


def _collect(
    file: descriptor_pb2.FileDescriptorProto, texts: dict[tuple[int, ...], str], found: dict[str, str]
) -> None:
    def note(path: tuple[int, ...], name: str) -> None:
        if path in texts:
            found[name] = texts[path]

    def enum(path: tuple[int, ...], scope: str, descriptor: descriptor_pb2.EnumDescriptorProto) -> None:
        name = f"{scope}.{descriptor.name}"
        note(path, name)
        for index, value in enumerate(descriptor.value):
            note((*path, 2, index), f"{name}.{value.name}")

    def message(path: tuple[int, ...], scope: str, descriptor: descriptor_pb2.DescriptorProto) -> None:
        name = f"{scope}.{descriptor.name}"
        note(path, name)
        for index, field in enumerate(descriptor.field):
            note((*path, 2, index), f"{name}.{field.name}")
        for index, nested in enumerate(descriptor.nested_type):
            message((*path, 3, index), name, nested)
        for index, nested_enum in enumerate(descriptor.enum_type):
            enum((*path, 4, index), name, nested_enum)

    for index, top in enumerate(file.message_type):
        message((4, index), file.package, top)
    for index, top_enum in enumerate(file.enum_type):
        enum((5, index), file.package, top_enum)
    for index, service in enumerate(file.service):
        name = f"{file.package}.{service.name}"
        note((6, index), name)
        for position, rpc in enumerate(service.method):
            note((6, index, 2, position), f"{name}/{rpc.name}")
