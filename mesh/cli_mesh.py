"""`nexus fault`, `nexus traffic` and `nexus certificates`: what the mesh does, changed while it runs."""

from typing import Annotated

import typer

from services.chassis.config import Settings, load_settings
from services.chassis.spec import discover

fault = typer.Typer(no_args_is_help=True, help="Make calls to a service fail or wait, to see what its callers do.")
traffic = typer.Typer(no_args_is_help=True, help="Divide calls between a service and its canary.")
certificates = typer.Typer(no_args_is_help=True, help="The identities of the local mesh.")

Service = Annotated[str, typer.Option("--to", help="The service that is called.")]


@fault.command("add")
def fault_add(
    to: Service,
    abort: Annotated[str | None, typer.Option(help="A gRPC status: UNAVAILABLE.")] = None,
    delay: Annotated[str | None, typer.Option(help="How long to wait: 300ms, 2s.")] = None,
    percent: Annotated[int, typer.Option(min=0, max=100, help="The share of calls.")] = 100,
) -> None:
    """Inject a fault into calls to a service; replaces the one before.

    Example: nexus fault add --to user-auth --abort UNAVAILABLE --percent 20 --delay 300ms
    """
    from grpc import StatusCode

    from mesh.local import traffic as rules
    from mesh.local.supervisor import PlatformError

    if abort is None and delay is None:
        raise PlatformError("Say what goes wrong: --abort UNAVAILABLE, --delay 300ms, or both.")
    if abort is not None and abort not in StatusCode.__members__:
        raise PlatformError(f"{abort} is no gRPC status; there are {', '.join(StatusCode.__members__)}.")
    wait = _milliseconds(delay) if delay else None
    rules.inject(_running(to), to, rules.Fault(abort=abort, delay_ms=wait, percent=percent))


@fault.command("list")
def fault_list() -> None:
    """Show the faults in effect. Example: nexus fault list"""
    from mesh.local import traffic as rules

    for service, injected in rules.faults(_running()).items():
        parts = [injected.abort, f"{injected.delay_ms} ms" if injected.delay_ms else None]
        print(f"{service}: {' after '.join(filter(None, parts))}, {injected.percent} % of calls")


@fault.command("clear")
def fault_clear(
    to: Annotated[str | None, typer.Option("--to", help="Only this service's.")] = None,
) -> None:
    """Take faults out again. Example: nexus fault clear"""
    from mesh.local import traffic as rules

    rules.clear_faults(_running(to), to)


@traffic.command("set")
def traffic_set(
    to: Service,
    canary: Annotated[int, typer.Option(min=0, max=100, help="Percent of calls that the canary serves.")] = 0,
    mirror: Annotated[int, typer.Option(min=0, max=100, help="Percent of calls it gets a copy of.")] = 0,
) -> None:
    """Send a share of calls to the canary. The header `x-nexus-version: canary` always reaches it.

    Mirror only what may happen twice: a copied call is a call.

    Example: nexus up --canary user-auth=../branch, then: nexus traffic set --to user-auth --canary 10
    """
    from mesh.local import meshed
    from mesh.local import traffic as rules
    from mesh.local.supervisor import PlatformError

    settings = _running(to)
    if to not in meshed.canaries(settings):
        raise PlatformError(f"{to} runs no canary: start with `nexus up --canary {to}`.")
    rules.split(settings, to, canary_percent=canary, mirror_percent=mirror)


@traffic.command("clear")
def traffic_clear() -> None:
    """Send everything to the ordinary version again. Example: nexus traffic clear"""
    from mesh.local import traffic as rules

    rules.clear_splits(_running())


@certificates.command("renew")
def certificates_renew() -> None:
    """Replace every identity's certificate now; nothing is interrupted. Example: nexus certificates renew"""
    import os

    from mesh.local.meshed import RENEW_SIGNAL
    from mesh.local.supervisor import read_state

    state = read_state(_running().run_dir)
    assert state is not None, "it runs"
    os.kill(state.pid, RENEW_SIGNAL)


def _running(service: str | None = None) -> Settings:
    """The settings of the platform that runs in this home."""
    from mesh.local.platform import connected
    from mesh.local.supervisor import PlatformError, read_state

    settings = connected(load_settings(service_ids=discover()))
    state = read_state(settings.run_dir)
    if state is None or not state.alive:
        raise PlatformError(f"No platform runs in {settings.home}.")
    if service is not None and service not in discover():
        raise PlatformError(f"There is no service {service}.")
    return settings


def _milliseconds(text: str) -> int:
    """`300ms` or `2s`."""
    from mesh.local.supervisor import PlatformError

    for unit, factor in (("ms", 1), ("s", 1000)):
        number = text.removesuffix(unit)
        if number != text and number.replace(".", "", 1).isdigit():
            return round(float(number) * factor)
    raise PlatformError(f"{text}: say it as 300ms or 2s.")
