"""`nexus tenant`, `nexus user`, `nexus client` and `nexus key`: what those who run the platform do with tenants, their
users, OAuth clients and API keys.

Each command is a call or two of the contracts' own methods. Those for users are made with a token for the operator,
good for a minute and for the permissions that the command needs; token-mgr issues it because the mesh proves that
the operator asks.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from nexus.identity.user_auth.v1.user_auth_pb2 import User
    from services.chassis.clients import Clients
    from services.chassis.config import Settings

tenant = typer.Typer(no_args_is_help=True, help="Create, list, suspend, resume and erase tenants.")
user = typer.Typer(no_args_is_help=True, help="Create, list, disable and enable the users of a tenant, and give roles.")
client = typer.Typer(no_args_is_help=True, help="Register, list and delete the OAuth clients of a tenant.")
key = typer.Typer(no_args_is_help=True, help="Make, list and revoke the API keys of a tenant.")

OPERATOR_USER = "00000000-0000-0000-0000-000000000000"
"""The user that events name where the operator acted for nobody else."""
_TOKEN_LIFETIME = timedelta(minutes=1)
_CALL_SECONDS = 15.0
_PAGE = 1000
_GRANT_TYPES = {
    "authorization_code": "authorization_code",
    "refresh_token": "refresh_token",
    "client_credentials": "client_credentials",
    "device_code": "urn:ietf:params:oauth:grant-type:device_code",
    "token-exchange": "urn:ietf:params:oauth:grant-type:token-exchange",
}
"""As people write them, and as the standards do."""

TenantId = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's id: acme.")]
OfTenant = Annotated[str, typer.Option("--tenant", "-t", help="The tenant's id.")]
Who = Annotated[str, typer.Argument(metavar="USER", help="The user's e-mail address or id.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@dataclass
class _Operator:
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


@tenant.command("create")
def tenant_create(
    tenant_id: TenantId,
    name: Annotated[str, typer.Option(help="What people call it; the id when not given.")] = "",
    plan: Annotated[str, typer.Option(help="Its plan.")] = "standard",
    as_json: AsJson = False,
) -> None:
    """Create a tenant.

    Example: nexus tenant create acme --name "Acme Inc." && nexus user create owner@acme.example -t acme --role owner
    """
    from nexus.modules.puabo_os.v1.tenants_pb2 import CreateTenantRequest
    from nexus.modules.puabo_os.v1.tenants_pb2_grpc import TenantServiceStub

    async def create(operator: _Operator) -> Any:
        request = CreateTenantRequest(tenant_id=tenant_id, display_name=name or tenant_id, plan_id=plan)
        stub = operator.clients.stub(TenantServiceStub)
        return (await operator.call_as(stub.CreateTenant, request, "tenants.manage")).tenant

    _show_tenants([_run(create)], as_json)


@tenant.command("list")
def tenant_list(
    state: Annotated[str | None, typer.Option(help="Only active, suspended, erasing or erased ones.")] = None,
    as_json: AsJson = False,
) -> None:
    """List tenants. Example: nexus tenant list --state suspended"""
    from nexus.modules.puabo_os.v1.tenants_pb2 import ListTenantsRequest, TenantState
    from nexus.modules.puabo_os.v1.tenants_pb2_grpc import TenantServiceStub

    name = f"TENANT_STATE_{(state or 'unspecified').upper()}"
    if name not in TenantState.DESCRIPTOR.values_by_name:
        raise _problem(f"{state} is no state: active, suspended, erasing or erased.")
    request = ListTenantsRequest(state=TenantState.Value(name), page_size=_PAGE)

    async def read(operator: _Operator) -> list[Any]:
        stub = operator.clients.stub(TenantServiceStub)
        return await _all_pages(
            lambda: operator.call_as(stub.ListTenants, request, "tenants.read"), request, lambda page: page.tenants
        )

    _show_tenants(_run(read), as_json)


@tenant.command("suspend")
def tenant_suspend(
    tenant_id: TenantId,
    why: Annotated[str, typer.Option(help="For the audit trail.")] = "",
    as_json: AsJson = False,
) -> None:
    """Refuse every call of a tenant from now on. Nothing is lost. Example: nexus tenant suspend acme --why unpaid"""
    from nexus.modules.puabo_os.v1.tenants_pb2 import SuspendTenantRequest
    from nexus.modules.puabo_os.v1.tenants_pb2_grpc import TenantServiceStub

    async def suspend(operator: _Operator) -> Any:
        request = SuspendTenantRequest(tenant_id=tenant_id, why=why)
        stub = operator.clients.stub(TenantServiceStub)
        return (await operator.call_as(stub.SuspendTenant, request, "tenants.manage")).tenant

    _show_tenants([_run(suspend)], as_json)


@tenant.command("resume")
def tenant_resume(tenant_id: TenantId, as_json: AsJson = False) -> None:
    """Serve a suspended tenant again, or call off its erasure. Example: nexus tenant resume acme"""
    from nexus.modules.puabo_os.v1.tenants_pb2 import ResumeTenantRequest
    from nexus.modules.puabo_os.v1.tenants_pb2_grpc import TenantServiceStub

    async def resume(operator: _Operator) -> Any:
        stub = operator.clients.stub(TenantServiceStub)
        request = ResumeTenantRequest(tenant_id=tenant_id)
        return (await operator.call_as(stub.ResumeTenant, request, "tenants.manage")).tenant

    _show_tenants([_run(resume)], as_json)


@tenant.command("erase")
def tenant_erase(
    tenant_id: TenantId,
    confirm: Annotated[str, typer.Option(help="The tenant's id again; asked for when not given.")] = "",
    delay: Annotated[float, typer.Option(min=0, help="Hours in which `nexus tenant resume` can call it off.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Delete everything a suspended tenant has, in every service. It cannot be undone.

    Example: nexus tenant erase acme --delay 72
    """
    from google.protobuf.duration_pb2 import Duration

    from nexus.modules.puabo_os.v1.tenants_pb2 import EraseTenantRequest
    from nexus.modules.puabo_os.v1.tenants_pb2_grpc import TenantServiceStub

    confirm = confirm or typer.prompt(f"This deletes all data of {tenant_id} for good. Type its id to go on")
    request = EraseTenantRequest(
        tenant_id=tenant_id, confirm_tenant_id=confirm, delay=Duration(seconds=round(delay * 3600))
    )

    async def erase(operator: _Operator) -> Any:
        stub = operator.clients.stub(TenantServiceStub)
        return (await operator.call_as(stub.EraseTenant, request, "tenants.erase")).tenant

    _show_tenants([_run(erase)], as_json)


@user.command("create")
def user_create(
    email: Annotated[str, typer.Argument(metavar="EMAIL", help="The address to sign in with; taken as verified.")],
    tenant_id: OfTenant,
    password: Annotated[
        str, typer.Option(help="Asked for when not given.", prompt=True, hide_input=True, confirmation_prompt=True)
    ],
    name: Annotated[str, typer.Option(help="The user's name.")] = "",
    role: Annotated[list[str] | None, typer.Option(help="A role; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create a user, or give the one with this address another password and these roles.

    Example: nexus user create ann@acme.example --tenant acme --role owner
    """
    from nexus.identity.user_auth.v1.user_auth_pb2 import ProvisionUserRequest
    from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub

    async def create(operator: _Operator) -> Any:
        request = ProvisionUserRequest(email=email, password=password, display_name=name, roles=role or [])
        stub = operator.clients.stub(UserServiceStub)
        return (await operator.call(stub.ProvisionUser, request, tenant_id)).user

    _show_users([_run(create)], as_json)


@user.command("list")
def user_list(
    tenant_id: OfTenant,
    email: Annotated[str, typer.Option(help="Only the user with this address.")] = "",
    role: Annotated[str, typer.Option(help="Only users with this role.")] = "",
    as_json: AsJson = False,
) -> None:
    """List the users of a tenant. Example: nexus user list --tenant acme --role owner"""
    _show_users(_run(lambda operator: _users(operator, tenant_id, email, role)), as_json)


@user.command("disable")
def user_disable(who: Who, tenant_id: OfTenant, as_json: AsJson = False) -> None:
    """End a user's sessions and let them sign in no more. Example: nexus user disable ann@acme.example -t acme"""
    from nexus.identity.user_auth.v1.user_auth_pb2 import DisableUserRequest
    from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub

    async def disable(operator: _Operator) -> "User":
        request = DisableUserRequest(user_id=await _user_id(operator, tenant_id, who))
        stub = operator.clients.stub(UserServiceStub)
        await operator.call_as(stub.DisableUser, request, "users.disable", tenant_id=tenant_id)
        return await _user(operator, tenant_id, request.user_id)

    _show_users([_run(disable)], as_json)


@user.command("enable")
def user_enable(who: Who, tenant_id: OfTenant, as_json: AsJson = False) -> None:
    """Let a disabled user sign in again. Example: nexus user enable ann@acme.example -t acme"""
    from nexus.identity.user_auth.v1.user_auth_pb2 import EnableUserRequest
    from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub

    async def enable(operator: _Operator) -> "User":
        request = EnableUserRequest(user_id=await _user_id(operator, tenant_id, who))
        stub = operator.clients.stub(UserServiceStub)
        await operator.call_as(stub.EnableUser, request, "users.disable", tenant_id=tenant_id)
        return await _user(operator, tenant_id, request.user_id)

    _show_users([_run(enable)], as_json)


@user.command("roles")
def user_roles(
    who: Who,
    tenant_id: OfTenant,
    add: Annotated[list[str] | None, typer.Option(help="A role to give; may be repeated.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="A role to take; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show, give and take a user's roles. Example: nexus user roles ann@acme.example -t acme --add owner"""
    from nexus.identity.user_auth.v1.user_auth_pb2 import AssignRolesRequest, RemoveRolesRequest
    from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub

    async def change(operator: _Operator) -> "User":
        stub = operator.clients.stub(UserServiceStub)
        user_id = await _user_id(operator, tenant_id, who)
        if add:
            given = AssignRolesRequest(user_id=user_id, roles=add)
            # Nobody gives a role that permits more than they may do themselves; the operator may do everything.
            await operator.call_as(stub.AssignRoles, given, "*", tenant_id=tenant_id)
        if remove:
            taken = RemoveRolesRequest(user_id=user_id, roles=remove)
            await operator.call_as(stub.RemoveRoles, taken, "*", tenant_id=tenant_id)
        return await _user(operator, tenant_id, user_id)

    _show_users([_run(change)], as_json)


@client.command("create")
def client_create(
    name: Annotated[str, typer.Argument(help="What users read on the consent page.")],
    tenant_id: OfTenant,
    redirect_uri: Annotated[list[str] | None, typer.Option(help="Where users come back to; may be repeated.")] = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="openid, profile, email, offline_access or a permission; may be repeated.")
    ] = None,
    grant_type: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(_GRANT_TYPES)}; may be repeated. The first two when not given."),
    ] = None,
    authentication: Annotated[
        str, typer.Option(help="client_secret_basic, client_secret_post, private_key_jwt or none.")
    ] = "client_secret_basic",
    jwks: Annotated[
        typer.FileText | None, typer.Option(help="For private_key_jwt: a file with its public keys, a JWK Set.")
    ] = None,
    first_party: Annotated[bool, typer.Option("--first-party", help="Ask users for no consent.")] = False,
    as_json: AsJson = False,
) -> None:
    """Register an OAuth client, and print its id and, once and for all, its secret.

    Example: nexus client create "Web shop" --tenant acme --redirect-uri https://shop.example/callback --scope openid
    """
    from nexus.identity.auth_service_v2.v1.clients_pb2 import ClientAuthentication, ClientSettings, CreateClientRequest
    from nexus.identity.auth_service_v2.v1.clients_pb2_grpc import ClientServiceStub

    method = f"CLIENT_AUTHENTICATION_{authentication.upper()}"
    if method not in ClientAuthentication.DESCRIPTOR.values_by_name:
        raise _problem(f"{authentication} is no way to authenticate.")
    request = CreateClientRequest(
        settings=ClientSettings(
            client_name=name,
            redirect_uris=redirect_uri or [],
            scopes=scope or [],
            grant_types=[_GRANT_TYPES.get(each, each) for each in grant_type or []],
            jwks=jwks.read() if jwks else "",
            first_party=first_party,
        ),
        authentication=ClientAuthentication.Value(method),
    )

    async def create(operator: _Operator) -> Any:
        stub = operator.clients.stub(ClientServiceStub)
        # Nobody gives a client what they may not do themselves; the operator may do everything.
        return await operator.call_as(stub.CreateClient, request, "*", tenant_id=tenant_id)

    made = _run(create)
    if as_json:
        _print_json({**_fields(made.client), "client_secret": made.client_secret})
    else:
        print("\n".join(filter(None, (made.client.client_id, made.client_secret))))


@client.command("list")
def client_list(tenant_id: OfTenant, as_json: AsJson = False) -> None:
    """List the OAuth clients of a tenant. Example: nexus client list --tenant acme"""
    from nexus.identity.auth_service_v2.v1.clients_pb2 import ListClientsRequest
    from nexus.identity.auth_service_v2.v1.clients_pb2_grpc import ClientServiceStub

    request = ListClientsRequest(page_size=_PAGE)

    async def read(operator: _Operator) -> list[Any]:
        stub = operator.clients.stub(ClientServiceStub)
        return await _all_pages(
            lambda: operator.call_as(stub.ListClients, request, "clients.manage", tenant_id=tenant_id),
            request,
            lambda page: page.clients,
        )

    _show_clients(_run(read), as_json)


@client.command("delete")
def client_delete(
    client_id: Annotated[
        str, typer.Argument(metavar="CLIENT", help="The client's id, as `nexus client list` shows it.")
    ],
    tenant_id: OfTenant,
) -> None:
    """Delete an OAuth client, with all consent given to it; its refresh tokens stop working at once.

    Example: nexus client delete 01980000-0000-7000-8000-000000000000 -t acme
    """
    from nexus.identity.auth_service_v2.v1.clients_pb2 import DeleteClientRequest
    from nexus.identity.auth_service_v2.v1.clients_pb2_grpc import ClientServiceStub

    async def delete(operator: _Operator) -> Any:
        stub = operator.clients.stub(ClientServiceStub)
        request = DeleteClientRequest(client_id=client_id)
        return await operator.call_as(stub.DeleteClient, request, "clients.manage", tenant_id=tenant_id)

    _run(delete)


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
        raise _problem(f"{rate} is no rate: low, standard or high.")

    async def create(operator: _Operator) -> Any:
        user_id = await _user_id(operator, tenant_id, who)
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

    made = _run(create)
    if as_json:
        _print_json({**_fields(made.api_key), "secret": made.secret})
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

    request = ListApiKeysRequest(include_ended=ended, page_size=_PAGE)

    async def read(operator: _Operator) -> list[Any]:
        stub = operator.clients.stub(ApiKeyServiceStub)
        return await _all_pages(
            lambda: operator.call_as(stub.ListApiKeys, request, "api_keys.manage", tenant_id=tenant_id),
            request,
            lambda page: page.api_keys,
        )

    _show_keys(_run(read), as_json)


@key.command("revoke")
def key_revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="The key's id, as `nexus key list` shows it.")],
    tenant_id: OfTenant,
    as_json: AsJson = False,
) -> None:
    """Refuse an API key from now on. Example: nexus key revoke 01980000-0000-7000-8000-000000000000 -t acme"""
    from nexus.platform.backend_api.v1.api_keys_pb2 import RevokeApiKeyRequest
    from nexus.platform.backend_api.v1.api_keys_pb2_grpc import ApiKeyServiceStub

    async def revoke(operator: _Operator) -> Any:
        request = RevokeApiKeyRequest(key_id=key_id)
        stub = operator.clients.stub(ApiKeyServiceStub)
        return (await operator.call_as(stub.RevokeApiKey, request, "api_keys.manage", tenant_id=tenant_id)).api_key

    _show_keys([_run(revoke)], as_json)


def _run(work: Callable[[_Operator], Awaitable[Any]]) -> Any:
    """Do it with the platform of this environment. What the platform refuses is a PlatformError."""
    from mesh.local.platform import connected
    from services.chassis.clients import Clients
    from services.chassis.config import load_settings
    from services.chassis.context import OPERATOR
    from services.chassis.errors import Fault
    from services.chassis.spec import discover

    async def run() -> Any:
        settings = connected(load_settings(service_ids=discover()))
        clients = Clients(settings, OPERATOR, None)
        try:
            return await work(_Operator(settings, clients))
        except Fault as fault:
            raise _problem(f"{fault.message} ({fault.reason})") from fault
        finally:
            await clients.stop()

    return asyncio.run(run())


def _problem(message: str) -> Exception:
    from mesh.local.supervisor import PlatformError

    return PlatformError(message)


async def _all_pages(read: Callable[[], Awaitable[Any]], request: Any, items: Callable[[Any], Any]) -> list[Any]:
    found: list[Any] = []
    while True:
        page = await read()
        found += items(page)
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


async def _users(operator: _Operator, tenant_id: str, email: str, role: str = "") -> "list[User]":
    from nexus.identity.user_auth.v1.user_auth_pb2 import ListUsersRequest
    from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub

    request = ListUsersRequest(email=email, role=role, page_size=_PAGE)
    stub = operator.clients.stub(UserServiceStub)
    return await _all_pages(
        lambda: operator.call_as(stub.ListUsers, request, "users.read", tenant_id=tenant_id),
        request,
        lambda page: page.users,
    )


async def _user(operator: _Operator, tenant_id: str, user_id: str) -> Any:
    from nexus.identity.user_auth.v1.user_auth_pb2 import GetUserRequest
    from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub

    stub = operator.clients.stub(UserServiceStub)
    request = GetUserRequest(user_id=user_id)
    return (await operator.call_as(stub.GetUser, request, "users.read", tenant_id=tenant_id)).user


async def _user_id(operator: _Operator, tenant_id: str, who: str) -> str:
    """The id of a user named by id or e-mail address."""
    if "@" not in who:
        return who
    for found in await _users(operator, tenant_id, who):
        if found.email.casefold() == who.casefold():
            return found.user_id
    raise _problem(f"{tenant_id} has no user {who}.")


def _show_tenants(tenants: Sequence[Any], as_json: bool) -> None:
    rows = [
        (
            each.tenant_id,
            _short(each, "state"),
            each.plan_id,
            each.display_name,
            f"waits for {', '.join(each.erasing_schemas)}" if each.erasing_schemas else "",
        )
        for each in tenants
    ]
    _show(tenants, as_json, ("tenant", "state", "plan", "name", ""), rows)


def _show_users(users: Sequence[Any], as_json: bool) -> None:
    rows = [
        (each.user_id, each.email, _short(each, "state"), ", ".join(each.roles), each.display_name) for each in users
    ]
    _show(users, as_json, ("user", "e-mail", "state", "roles", "name"), rows)


def _show_clients(clients: Sequence[Any], as_json: bool) -> None:
    rows = [
        (
            each.client_id,
            _short(each, "authentication"),
            ", ".join(grant.rpartition(":")[2] for grant in each.settings.grant_types),
            ", ".join(each.settings.scopes),
            each.settings.client_name,
        )
        for each in clients
    ]
    _show(clients, as_json, ("client", "authenticates by", "grants", "scopes", "name"), rows)


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
    _show(keys, as_json, ("key", "begins with", "ends", "last used", "scopes", "title"), rows)


def _show(messages: "Sequence[Message]", as_json: bool, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if as_json:
        _print_json([_fields(message) for message in messages])
        return
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in (titles, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _fields(message: "Message") -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    fields: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return fields


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _short(message: Any, enum_field: str) -> str:
    """The name of an enum's value, without what is common to all: "suspended"."""
    enum = message.DESCRIPTOR.fields_by_name[enum_field].enum_type
    name: str = enum.values_by_number[getattr(message, enum_field)].name
    return name.removeprefix(enum.values_by_number[0].name.removesuffix("UNSPECIFIED")).lower()
