"""`nexus tenant`."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from mesh.cli_operator.operator import PAGE, AsJson, Operator, all_pages, problem, run, short, show

tenant = typer.Typer(no_args_is_help=True, help="Create, list, suspend, resume and erase tenants.")

TenantId = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's id: acme.")]


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

    async def create(operator: Operator) -> Any:
        request = CreateTenantRequest(tenant_id=tenant_id, display_name=name or tenant_id, plan_id=plan)
        stub = operator.clients.stub(TenantServiceStub)
        return (await operator.call_as(stub.CreateTenant, request, "tenants.manage")).tenant

    _show_tenants([run(create)], as_json)


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
        raise problem(f"{state} is no state: active, suspended, erasing or erased.")
    request = ListTenantsRequest(state=TenantState.Value(name), page_size=PAGE)

    async def read(operator: Operator) -> list[Any]:
        stub = operator.clients.stub(TenantServiceStub)
        return await all_pages(
            lambda: operator.call_as(stub.ListTenants, request, "tenants.read"), request, lambda page: page.tenants
        )

    _show_tenants(run(read), as_json)


@tenant.command("suspend")
def tenant_suspend(
    tenant_id: TenantId,
    why: Annotated[str, typer.Option(help="For the audit trail.")] = "",
    as_json: AsJson = False,
) -> None:
    """Refuse every call of a tenant from now on. Nothing is lost. Example: nexus tenant suspend acme --why unpaid"""
    from nexus.modules.puabo_os.v1.tenants_pb2 import SuspendTenantRequest
    from nexus.modules.puabo_os.v1.tenants_pb2_grpc import TenantServiceStub

    async def suspend(operator: Operator) -> Any:
        request = SuspendTenantRequest(tenant_id=tenant_id, why=why)
        stub = operator.clients.stub(TenantServiceStub)
        return (await operator.call_as(stub.SuspendTenant, request, "tenants.manage")).tenant

    _show_tenants([run(suspend)], as_json)


@tenant.command("resume")
def tenant_resume(tenant_id: TenantId, as_json: AsJson = False) -> None:
    """Serve a suspended tenant again, or call off its erasure. Example: nexus tenant resume acme"""
    from nexus.modules.puabo_os.v1.tenants_pb2 import ResumeTenantRequest
    from nexus.modules.puabo_os.v1.tenants_pb2_grpc import TenantServiceStub

    async def resume(operator: Operator) -> Any:
        stub = operator.clients.stub(TenantServiceStub)
        request = ResumeTenantRequest(tenant_id=tenant_id)
        return (await operator.call_as(stub.ResumeTenant, request, "tenants.manage")).tenant

    _show_tenants([run(resume)], as_json)


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

    async def erase(operator: Operator) -> Any:
        stub = operator.clients.stub(TenantServiceStub)
        return (await operator.call_as(stub.EraseTenant, request, "tenants.erase")).tenant

    _show_tenants([run(erase)], as_json)


def _show_tenants(tenants: Sequence[Any], as_json: bool) -> None:
    rows = [
        (
            each.tenant_id,
            short(each, "state"),
            each.plan_id,
            each.display_name,
            f"waits for {', '.join(each.erasing_schemas)}" if each.erasing_schemas else "",
        )
        for each in tenants
    ]
    show(tenants, as_json, ("tenant", "state", "plan", "name", ""), rows)
