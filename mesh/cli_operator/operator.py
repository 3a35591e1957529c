"""The platform as its operator calls it, and what came back as people and programs read it."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.chassis.context import OPERATOR, OPERATOR_USER

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from services.chassis.clients import Clients
    from services.chassis.config import Settings

_TOKEN_LIFETIME = timedelta(minutes=1)
_CALL_SECONDS = 15.0
PAGE = 1000

OfTenant = Annotated[str, typer.Option("--tenant", "-t", help="The tenant's id.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@dataclass
class Operator:
    """Calls methods of the platform as its operator."""

    settings: "Settings"
    clients: "Clients"
    _tokens: dict[tuple[str, ...], str] = field(default_factory=dict)

    async def call(self, method: Any, request: "Message", tenant_id: str | None = None) -> Any:
        """A method that is for services only."""
        metadata = (("x-nexus-tenant", tenant_id),) if tenant_id else ()
        return await method(request, timeout=_CALL_SECONDS, metadata=metadata)

    async def call_as(
        self,
        method: Any,
        request: "Message",
        *permissions: str,
        tenant_id: str | None = None,
        user_id: str = OPERATOR_USER,
    ) -> Any:
        """A method for users, as one with these permissions: of a tenant, or of the platform itself."""
        token = await self._token(tenant_id or self.settings.platform_tenant, user_id, permissions)
        return await method(request, timeout=_CALL_SECONDS, metadata=(("authorization", f"Bearer {token}"),))

    async def _token(self, tenant_id: str, user_id: str, permissions: Sequence[str]) -> str:
        from nexus.identity.token_mgr.v1.token_mgr_pb2 import IssueTokensRequest
        from nexus.identity.token_mgr.v1.token_mgr_pb2_grpc import TokenServiceStub
        from services.chassis.clock import now, timestamp
        from services.chassis.ids import new_id

        held = (tenant_id, user_id, *permissions)
        if held not in self._tokens:
            request = IssueTokensRequest(
                user_id=user_id,
                session_id=new_id(),
                permissions=permissions,
                session_expire_time=timestamp(now() + _TOKEN_LIFETIME),
            )
            issued = await self.call(self.clients.stub(TokenServiceStub).IssueTokens, request, tenant_id)
            self._tokens[held] = issued.tokens.access_token
        return self._tokens[held]


def run(work: Callable[[Operator], Awaitable[Any]]) -> Any:
    """Do it with the platform of this environment. What the platform refuses is a PlatformError."""
    from mesh.local.platform import connected
    from services.chassis.clients import Clients
    from services.chassis.config import load_settings
    from services.chassis.errors import Fault
    from services.chassis.spec import discover

    async def run() -> Any:
        settings = connected(load_settings(service_ids=discover()))
        clients = Clients(settings, OPERATOR, None)
        try:
            return await work(Operator(settings, clients))
        except Fault as fault:
            raise problem(f"{fault.message} ({fault.reason})") from fault
        finally:
            await clients.stop()

    return asyncio.run(run())


def problem(message: str) -> Exception:
    from mesh.local.supervisor import PlatformError

    return PlatformError(message)


async def all_pages(read: Callable[[], Awaitable[Any]], request: Any, items: Callable[[Any], Any]) -> list[Any]:
    found: list[Any] = []
    while True:
        page = await read()
        found += items(page)
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def show(messages: "Sequence[Message]", as_json: bool, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if as_json:
        print_json([fields(message) for message in messages])
        return
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in (titles, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def fields(message: "Message") -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    fields: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return fields


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def short(message: Any, enum_field: str) -> str:
    """The name of an enum's value, without what is common to all: "suspended"."""
    enum = message.DESCRIPTOR.fields_by_name[enum_field].enum_type
    name: str = enum.values_by_number[getattr(message, enum_field)].name
    return name.removeprefix(enum.values_by_number[0].name.removesuffix("UNSPECIFIED")).lower()
