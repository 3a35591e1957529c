"""`nexus user`, and users as the other commands name them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mesh.cli_operator.operator import PAGE, AsJson, OfTenant, Operator, all_pages, problem, run, short, show

if TYPE_CHECKING:
    from nexus.identity.user_auth.v1.user_auth_pb2 import User

user = typer.Typer(no_args_is_help=True, help="Create, list, disable and enable the users of a tenant, and give roles.")

Who = Annotated[str, typer.Argument(metavar="USER", help="The user's e-mail address or id.")]


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

    async def create(operator: Operator) -> Any:
        request = ProvisionUserRequest(email=email, password=password, display_name=name, roles=role or [])
        stub = operator.clients.stub(UserServiceStub)
        return (await operator.call(stub.ProvisionUser, request, tenant_id)).user

    _show_users([run(create)], as_json)


@user.command("list")
def user_list(
    tenant_id: OfTenant,
    email: Annotated[str, typer.Option(help="Only the user with this address.")] = "",
    role: Annotated[str, typer.Option(help="Only users with this role.")] = "",
    as_json: AsJson = False,
) -> None:
    """List the users of a tenant. Example: nexus user list --tenant acme --role owner"""
    _show_users(run(lambda operator: _users(operator, tenant_id, email, role)), as_json)


@user.command("disable")
def user_disable(who: Who, tenant_id: OfTenant, as_json: AsJson = False) -> None:
    """End a user's sessions and let them sign in no more. Example: nexus user disable ann@acme.example -t acme"""
    from nexus.identity.user_auth.v1.user_auth_pb2 import DisableUserRequest
    from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub

    async def disable(operator: Operator) -> "User":
        request = DisableUserRequest(user_id=await id_of(operator, tenant_id, who))
        stub = operator.clients.stub(UserServiceStub)
        await operator.call_as(stub.DisableUser, request, "users.disable", tenant_id=tenant_id)
        return await _user(operator, tenant_id, request.user_id)

    _show_users([run(disable)], as_json)


@user.command("enable")
def user_enable(who: Who, tenant_id: OfTenant, as_json: AsJson = False) -> None:
    """Let a disabled user sign in again. Example: nexus user enable ann@acme.example -t acme"""
    from nexus.identity.user_auth.v1.user_auth_pb2 import EnableUserRequest
    from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub

    async def enable(operator: Operator) -> "User":
        request = EnableUserRequest(user_id=await id_of(operator, tenant_id, who))
        stub = operator.clients.stub(UserServiceStub)
        await operator.call_as(stub.EnableUser, request, "users.disable", tenant_id=tenant_id)
        return await _user(operator, tenant_id, request.user_id)

    _show_users([run(enable)], as_json)


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

    async def change(operator: Operator) -> "User":
        stub = operator.clients.stub(UserServiceStub)
        user_id = await id_of(operator, tenant_id, who)
        if add:
            given = AssignRolesRequest(user_id=user_id, roles=add)
            # Nobody gives a role that permits more than they may do themselves; the operator may do everything.
            await operator.call_as(stub.AssignRoles, given, "*", tenant_id=tenant_id)
        if remove:
            taken = RemoveRolesRequest(user_id=user_id, roles=remove)
            await operator.call_as(stub.RemoveRoles, taken, "*", tenant_id=tenant_id)
        return await _user(operator, tenant_id, user_id)

    _show_users([run(change)], as_json)


async def _users(operator: Operator, tenant_id: str, email: str, role: str = "") -> "list[User]":
    from nexus.identity.user_auth.v1.user_auth_pb2 import ListUsersRequest
    from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub

    request = ListUsersRequest(email=email, role=role, page_size=PAGE)
    stub = operator.clients.stub(UserServiceStub)
    return await all_pages(
        lambda: operator.call_as(stub.ListUsers, request, "users.read", tenant_id=tenant_id),
        request,
        lambda page: page.users,
    )


async def _user(operator: Operator, tenant_id: str, user_id: str) -> Any:
    from nexus.identity.user_auth.v1.user_auth_pb2 import GetUserRequest
    from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub

    stub = operator.clients.stub(UserServiceStub)
    request = GetUserRequest(user_id=user_id)
    return (await operator.call_as(stub.GetUser, request, "users.read", tenant_id=tenant_id)).user


async def id_of(operator: Operator, tenant_id: str, who: str) -> str:
    """The id of a user named by id or e-mail address."""
    if "@" not in who:
        return who
    for found in await _users(operator, tenant_id, who):
        if found.email.casefold() == who.casefold():
            return found.user_id
    raise problem(f"{tenant_id} has no user {who}.")


def _show_users(users: Sequence[Any], as_json: bool) -> None:
    rows = [
        (each.user_id, each.email, short(each, "state"), ", ".join(each.roles), each.display_name) for each in users
    ]
    show(users, as_json, ("user", "e-mail", "state", "roles", "name"), rows)
