"""`nexus user`, and users as the other commands name them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

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
    short,
    show,
)

if TYPE_CHECKING:
    from nexus.identity.user_auth.v1.user_auth_pb2 import User

user = typer.Typer(
    no_args_is_help=True, help="Create, list, disable, export and erase the users of a tenant, and give roles."
)

Who = Annotated[str, typer.Argument(metavar="USER", help="The user's e-mail address or id.")]


@user.command("create")
def user_create(
    email: Annotated[str, typer.Argument(metavar="EMAIL", help="The address to sign in with.")],
    tenant_id: OfTenant,
    password: Annotated[str, typer.Option(help="Asked for when not given.")] = "",
    invite: Annotated[bool, typer.Option("--invite", help="Let a mail ask the user to choose a password.")] = False,
    name: Annotated[str, typer.Option(help="The user's name.")] = "",
    role: Annotated[list[str] | None, typer.Option(help="A role; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create a user whose address is taken as verified, or invite one.

    Example: nexus user create ann@acme.example --tenant acme --role owner
    """
    from nexus.identity.user_auth.v1.user_auth_pb2 import CreateUserRequest
    from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub
    from services.chassis.ids import new_id

    if not invite:
        password = password or typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    request = CreateUserRequest(
        email=email, password="" if invite else password, display_name=name, roles=role or [], request_id=new_id()
    )

    async def create(operator: Operator) -> Any:
        stub = operator.clients.stub(UserServiceStub)
        # Nobody gives a role that permits more than they may do themselves; the operator may do everything.
        return (await operator.call_as(stub.CreateUser, request, "*", tenant_id=tenant_id)).user

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


@user.command("reset-password")
def user_reset_password(who: Who, tenant_id: OfTenant) -> None:
    """Take a user's password, end their sessions, and mail them a code to choose another.

    Example: nexus user reset-password ann@acme.example -t acme
    """
    from nexus.identity.user_auth.v1.user_auth_pb2 import ResetPasswordRequest
    from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub
    from services.chassis.ids import new_id

    async def reset(operator: Operator) -> Any:
        request = ResetPasswordRequest(user_id=await id_of(operator, tenant_id, who), request_id=new_id())
        stub = operator.clients.stub(UserServiceStub)
        return await operator.call_as(stub.ResetPassword, request, "*", tenant_id=tenant_id)

    print(f"A code is on its way to the user; {run(reset).ended_sessions} sessions have ended.")


@user.command("export")
def user_export(who: Who, tenant_id: OfTenant) -> None:
    """Print all that the platform has about a user, as JSON.

    Example: nexus user export ann@acme.example -t acme > ann.json
    """
    from nexus.identity.user_auth.v1.user_auth_pb2 import ExportUserRequest
    from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub

    async def export(operator: Operator) -> Any:
        request = ExportUserRequest(user_id=await id_of(operator, tenant_id, who))
        stub = operator.clients.stub(UserServiceStub)
        return (await operator.call_as(stub.ExportUser, request, "users.export", tenant_id=tenant_id)).export

    print_json(fields(run(export)))


@user.command("erase")
def user_erase(
    who: Who,
    tenant_id: OfTenant,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a user with everything that every service has about them. It cannot be undone.

    Example: nexus user erase ann@acme.example -t acme
    """
    from nexus.identity.user_auth.v1.user_auth_pb2 import EraseUserRequest
    from nexus.identity.user_auth.v1.user_auth_pb2_grpc import UserServiceStub

    if not yes:
        typer.confirm(f"This deletes {who} of {tenant_id} for good. Go on?", abort=True)

    async def erase(operator: Operator) -> Any:
        request = EraseUserRequest(user_id=await id_of(operator, tenant_id, who))
        stub = operator.clients.stub(UserServiceStub)
        return await operator.call_as(stub.EraseUser, request, "*", tenant_id=tenant_id)

    run(erase)


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
