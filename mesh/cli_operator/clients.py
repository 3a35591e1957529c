"""`nexus client`: OAuth clients."""

from collections.abc import Sequence
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
    short,
    show,
)

client = typer.Typer(no_args_is_help=True, help="Register, list and delete the OAuth clients of a tenant.")

_GRANT_TYPES = {
    "authorization_code": "authorization_code",
    "refresh_token": "refresh_token",
    "client_credentials": "client_credentials",
    "device_code": "urn:ietf:params:oauth:grant-type:device_code",
    "token-exchange": "urn:ietf:params:oauth:grant-type:token-exchange",
}
"""As people write them, and as the standards do."""


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
        raise problem(f"{authentication} is no way to authenticate.")
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

    async def create(operator: Operator) -> Any:
        stub = operator.clients.stub(ClientServiceStub)
        # Nobody gives a client what they may not do themselves; the operator may do everything.
        return await operator.call_as(stub.CreateClient, request, "*", tenant_id=tenant_id)

    made = run(create)
    if as_json:
        print_json({**fields(made.client), "client_secret": made.client_secret})
    else:
        print("\n".join(filter(None, (made.client.client_id, made.client_secret))))


@client.command("list")
def client_list(tenant_id: OfTenant, as_json: AsJson = False) -> None:
    """List the OAuth clients of a tenant. Example: nexus client list --tenant acme"""
    from nexus.identity.auth_service_v2.v1.clients_pb2 import ListClientsRequest
    from nexus.identity.auth_service_v2.v1.clients_pb2_grpc import ClientServiceStub

    request = ListClientsRequest(page_size=PAGE)

    async def read(operator: Operator) -> list[Any]:
        stub = operator.clients.stub(ClientServiceStub)
        return await all_pages(
            lambda: operator.call_as(stub.ListClients, request, "clients.manage", tenant_id=tenant_id),
            request,
            lambda page: page.clients,
        )

    _show_clients(run(read), as_json)


@client.command("rotate-secret")
def client_rotate_secret(
    client_id: Annotated[
        str, typer.Argument(metavar="CLIENT", help="The client's id, as `nexus client list` shows it.")
    ],
    tenant_id: OfTenant,
) -> None:
    """Give an OAuth client a new secret and print it, once and for all. The old one stops working at once.

    Example: nexus client rotate-secret 01980000-0000-7000-8000-000000000000 -t acme
    """
    from nexus.identity.auth_service_v2.v1.clients_pb2 import RotateClientSecretRequest
    from nexus.identity.auth_service_v2.v1.clients_pb2_grpc import ClientServiceStub

    async def rotate(operator: Operator) -> Any:
        stub = operator.clients.stub(ClientServiceStub)
        request = RotateClientSecretRequest(client_id=client_id)
        return await operator.call_as(stub.RotateClientSecret, request, "*", tenant_id=tenant_id)

    print(run(rotate).client_secret)


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

    async def delete(operator: Operator) -> Any:
        stub = operator.clients.stub(ClientServiceStub)
        request = DeleteClientRequest(client_id=client_id)
        return await operator.call_as(stub.DeleteClient, request, "clients.manage", tenant_id=tenant_id)

    run(delete)


def _show_clients(clients: Sequence[Any], as_json: bool) -> None:
    rows = [
        (
            each.client_id,
            short(each, "authentication"),
            ", ".join(grant.rpartition(":")[2] for grant in each.settings.grant_types),
            ", ".join(each.settings.scopes),
            each.settings.client_name,
        )
        for each in clients
    ]
    show(clients, as_json, ("client", "authenticates by", "grants", "scopes", "name"), rows)
