"""`nexus fault`, `nexus traffic` and `nexus certificates`: what the mesh does, changed while it runs."""

import re
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
    failures = [name for name in StatusCode.__members__ if name != StatusCode.OK.name]
    if abort is not None and abort not in failures:
        raise PlatformError(f"A call cannot fail with {abort}; it can with {', '.join(failures)}.")
    wait = _milliseconds(delay) if delay else None
    rules.inject(_running(to), to, rules.Fault(abort=abort, delay_ms=wait, percent=percent))


@fault.command("list")
def fault_list() -> None:
    """Show the faults in effect. Example: nexus fault list"""
    from mesh.local import traffic as rules

    found = rules.faults(_running())
    for service, injected in found.items():
        parts = [injected.abort, f"{injected.delay_ms} ms" if injected.delay_ms else None]
        print(f"{service}: {' after '.join(filter(None, parts))}, {injected.percent} % of calls")
    if not found:
        print("No faults.")


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
    from edge.layout import through_local_mesh
    from mesh.local.platform import connected
    from mesh.local.supervisor import PlatformError, read_state

    settings = connected(load_settings(service_ids=discover()))
    if service is not None and service not in discover():
        raise PlatformError(f"There is no service {service}.")
    if not through_local_mesh(settings):
        raise PlatformError("NEXUS_SERVICE_ADDRESS takes calls past the local mesh, so there is nothing to change.")
    state = read_state(settings.run_dir)
    if state is None or not state.alive:
        raise PlatformError(f"No platform runs in {settings.home}.")
    if service is not None and not any(service in process.services for process in state.processes):
        raise PlatformError(f"{service} does not run in {settings.home}.")
    return settings


def _milliseconds(text: str) -> int:
    """`300ms` or `2s`."""
    from mesh.local.supervisor import PlatformError
    from mesh.local.traffic import LONGEST_DELAY_MS

    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s)", text)
    milliseconds = round(float(found[1]) * {"ms": 1, "s": 1000}[found[2]]) if found else 0
    if not 1 <= milliseconds <= LONGEST_DELAY_MS:
        raise PlatformError(f"--delay {text}: say it as 300ms or 2s; the longest is {LONGEST_DELAY_MS // 1000}s.")
    return milliseconds
