"""`nexus fault`, `nexus traffic` and `nexus certificates`: what the mesh does, changed while it runs."""

from typing import TYPE_CHECKING, Annotated

import typer

from services.chassis.config import Settings, load_settings
from services.chassis.spec import discover

if TYPE_CHECKING:
    from mesh.local.traffic import Traffic

fault = typer.Typer(no_args_is_help=True, help="Make calls to a service fail or wait, to see what its callers do.")
traffic = typer.Typer(no_args_is_help=True, help="Divide calls between a service and its canary.")
certificates = typer.Typer(no_args_is_help=True, help="The identities of the local mesh.")

Service = Annotated[str, typer.Option("--to", help="The service that is called.")]


@fault.command("add")
def fault_add(
    to: Service,
    abort: Annotated[str | None, typer.Option(help="A gRPC status: UNAVAILABLE.")] = None,
    delay: Annotated[str | None, typer.Option(help="How long to wait: 300ms, 2s.")] = None,
    percent: Annotated[float, typer.Option(min=0, max=100, help="The share of calls.")] = 100,
) -> None:
    """Inject a fault into calls to a service; replaces the one before.

    Example: nexus fault add --to user-auth --abort UNAVAILABLE --percent 20 --delay 300ms
    """
    from grpc import StatusCode

    from mesh.local.supervisor import PlatformError
    from mesh.local.traffic import Fault

    if abort is None and delay is None:
        raise PlatformError("Say what goes wrong: --abort UNAVAILABLE, --delay 300ms, or both.")
    if abort is not None and abort not in StatusCode.__members__:
        raise PlatformError(f"{abort} is no gRPC status; there are {', '.join(StatusCode.__members__)}.")
    settings, current = _running(to)
    current.faults[to] = Fault(abort=abort, delay_ms=_milliseconds(delay) if delay else None, percent=percent)
    _apply(settings, current)


@fault.command("list")
def fault_list() -> None:
    """Show the faults in effect. Example: nexus fault list"""
    _, current = _running()
    for service, injected in current.faults.items():
        parts = [injected.abort, f"{injected.delay_ms} ms" if injected.delay_ms else None]
        print(f"{service}: {' after '.join(filter(None, parts))}, {injected.percent:g} % of calls")


@fault.command("clear")
def fault_clear(
    to: Annotated[str | None, typer.Option("--to", help="Only this service's.")] = None,
) -> None:
    """Take faults out again. Example: nexus fault clear"""
    settings, current = _running(to)
    current.faults = {service: each for service, each in current.faults.items() if to not in (None, service)}
    _apply(settings, current)


@traffic.command("set")
def traffic_set(
    to: Service,
    canary: Annotated[int, typer.Option(min=0, max=100, help="Percent of calls that the canary serves.")] = 0,
    mirror: Annotated[float, typer.Option(min=0, max=100, help="Percent of calls it gets a copy of.")] = 0,
) -> None:
    """Send a share of calls to the canary. The header `x-nexus-version: canary` always reaches it.

    Mirror only what may happen twice: a copied call is a call.

    Example: nexus up --canary user-auth=../branch, then: nexus traffic set --to user-auth --canary 10
    """
    from edge.upstreams import Split
    from mesh.local import meshed
    from mesh.local.supervisor import PlatformError

    settings, current = _running(to)
    if to not in meshed.canaries(settings):
        raise PlatformError(f"{to} runs no canary: start with `nexus up --canary {to}`.")
    current.splits[to] = Split(canary_percent=canary, mirror_percent=mirror)
    _apply(settings, current)


@traffic.command("clear")
def traffic_clear() -> None:
    """Send everything to the ordinary version again. Example: nexus traffic clear"""
    settings, current = _running()
    current.splits = {}
    _apply(settings, current)


@certificates.command("renew")
def certificates_renew() -> None:
    """Replace every identity's certificate now; nothing is interrupted. Example: nexus certificates renew"""
    from mesh.local import meshed

    settings, _ = _running()
    meshed.renew_certificates(settings)


def _running(service: str | None = None) -> tuple[Settings, "Traffic"]:
    """The settings and the traffic rules of the platform that runs in this home."""
    from mesh.local import traffic as rules
    from mesh.local.platform import connected
    from mesh.local.supervisor import PlatformError, read_state

    settings = connected(load_settings(service_ids=discover()))
    state = read_state(settings.run_dir)
    if state is None or not state.alive:
        raise PlatformError(f"No platform runs in {settings.home}.")
    if service is not None and service not in discover():
        raise PlatformError(f"There is no service {service}.")
    return settings, rules.read(settings.run_dir)


def _apply(settings: Settings, current: "Traffic") -> None:
    from mesh.local import meshed

    meshed.change_traffic(settings, current)


def _milliseconds(text: str) -> int:
    """`300ms` or `2s`."""
    from mesh.local.supervisor import PlatformError

    for unit, factor in (("ms", 1), ("s", 1000)):
        number = text.removesuffix(unit)
        if number != text and number.replace(".", "", 1).isdigit():
            return round(float(number) * factor)
    raise PlatformError(f"{text}: say it as 300ms or 2s.")
