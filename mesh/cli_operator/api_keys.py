"""`nexus key`: API keys."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any

import typer

from mesh.cli_operator.operator import (
    PAGE,
    AsJson,
    OfTenant,
    Operator,
    all_pages,
    fields,
    print_json,
    problem,
    run,
    show,
)
from mesh.cli_operator.users import id_of

key = typer.Typer(no_args_is_help=True, help="Make, list and revoke the API keys of a tenant.")


@key.command("create")
def key_create(
    title: Annotated[str, typer.Argument(help="What it is for.")],
    tenant_id: OfTenant,
    who: Annotated[str, typer.Option("--user", help="E-mail address or id of the user for whom it acts.")],
    scope: Annotated[list[str], typer.Option(help="A permission of that user; may be repeated.")],
    days: Annotated[float | None, typer.Option(min=0, help="How long it works; for ever when not given.")] = None,
    rate: Annotated[str, typer.Option(help="low, standard or high.")] = "standard",
    as_json: AsJson = False,
) -> None:
    """Make an API key and print it, once and for all.

    Example: nexus key create "nightly export" --tenant acme --user ann@acme.example --scope users.read --days 90
    """
    from nexus.identity.user_auth.v1.user_auth_pb2 import ResolveUserRequest
    from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub
    from nexus.platform.backend_api.v1.api_keys_pb2 import ApiKeyRate, CreateApiKeyRequest
    from nexus.platform.backend_api.v1.api_keys_pb2_grpc import ApiKeyServiceStub
    from services.chassis.clock import now, timestamp

    name = f"API_KEY_RATE_{rate.upper()}"
    if name not in ApiKeyRate.DESCRIPTOR.values_by_name:
        raise problem(f"{rate} is no rate: low, standard or high.")

    async def create(operator: Operator) -> Any:
        user_id = await id_of(operator, tenant_id, who)
        users = operator.clients.stub(UserServiceStub)
        resolved = await operator.call(users.ResolveUser, ResolveUserRequest(user_id=user_id), tenant_id)
        request = CreateApiKeyRequest(
            title=title,
            scopes=scope,
            rate=ApiKeyRate.Value(name),
            expire_time=timestamp(now() + timedelta(days=days)) if days is not None else None,
        )
        # As the user, who needs no permission of their own to have keys made for them.
        held = {*resolved.permissions, "api_keys.manage"}
        stub = operator.clients.stub(ApiKeyServiceStub)
        return await operator.call_as(stub.CreateApiKey, request, *sorted(held), tenant_id=tenant_id, user_id=user_id)

    made = run(create)
    if as_json:
        print_json({**fields(made.api_key), "secret": made.secret})
    else:
        print(made.secret)


@key.command("list")
def key_list(
    tenant_id: OfTenant,
    ended: Annotated[bool, typer.Option("--all", help="Revoked and expired ones, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the API keys of a tenant. Example: nexus key list --tenant acme"""
    from nexus.platform.backend_api.v1.api_keys_pb2 import ListApiKeysRequest
    from nexus.platform.backend_api.v1.api_keys_pb2_grpc import ApiKeyServiceStub

    request = ListApiKeysRequest(include_ended=ended, page_size=PAGE)

    async def read(operator: Operator) -> list[Any]:
        stub = operator.clients.stub(ApiKeyServiceStub)
        return await all_pages(
            lambda: operator.call_as(stub.ListApiKeys, request, "api_keys.manage", tenant_id=tenant_id),
            request,
            lambda page: page.api_keys,
        )

    _show_keys(run(read), as_json)


@key.command("revoke")
def key_revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="The key's id, as `nexus key list` shows it.")],
    tenant_id: OfTenant,
    as_json: AsJson = False,
) -> None:
    """Refuse an API key from now on. Example: nexus key revoke 01980000-0000-7000-8000-000000000000 -t acme"""
    from nexus.platform.backend_api.v1.api_keys_pb2 import RevokeApiKeyRequest
    from nexus.platform.backend_api.v1.api_keys_pb2_grpc import ApiKeyServiceStub

    async def revoke(operator: Operator) -> Any:
        request = RevokeApiKeyRequest(key_id=key_id)
        stub = operator.clients.stub(ApiKeyServiceStub)
        return (await operator.call_as(stub.RevokeApiKey, request, "api_keys.manage", tenant_id=tenant_id)).api_key

    _show_keys([run(revoke)], as_json)


def _show_keys(keys: Sequence[Any], as_json: bool) -> None:
    def day(each: Any, name: str) -> str:
        return getattr(each, name).ToDatetime().date().isoformat() if each.HasField(name) else "never"

    rows = [
        (
            each.key_id,
            each.prefix,
            "revoked" if each.HasField("revoke_time") else day(each, "expire_time"),
            day(each, "last_used_time"),
            ", ".join(each.scopes),
            each.title,
        )
        for each in keys
    ]
    show(keys, as_json, ("key", "begins with", "ends", "last used", "scopes", "title"), rows)
