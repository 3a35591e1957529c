"""The files by which the local mesh and the edge run: bootstraps, certificates, routes."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from edge import bootstrap
from edge.upstreams import Layout
from mesh.local import proxy, traffic
from mesh.local.identities import LIFETIME, RENEW_AFTER, Authority
from mesh.local.traffic import Traffic
from mesh.topology import topology
from services.chassis.config import Settings


def is_local(settings: Settings) -> bool:
    """Whether calls go through the local mesh proxy."""
    return "{caller}" in settings.service_address


def prepare(settings: Settings, layout: Layout, services: Sequence[str]) -> None:
    """Write everything that the proxies need before they start."""
    bootstrap.write(settings, settings.home / "edge" / "bootstrap.json", layout)
    if is_local(settings):
        folder = settings.run_dir / "mesh"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for stale in folder.glob("*.sock"):
            stale.unlink()
        renew_certificates(settings)
        traffic.write(settings.run_dir, Traffic())  # a fault does not outlive the platform it was meant for
        proxy.write_bootstrap(settings, topology(), layout, services, folder / "bootstrap.json")
        _layout_path(settings).write_text(
            json.dumps(
                {"services": list(services), "replicas": dict(layout.replicas), "canaries": sorted(layout.canaries)}
            )
        )


def renew_certificates(settings: Settings) -> None:
    """Give every identity a new certificate. Running proxies take them up without dropping a connection."""
    Authority(settings).issue(topology().callers)


async def keep_certificates_fresh(settings: Settings) -> None:
    """Replace the certificates at half their life, for as long as the platform runs."""
    while True:
        await asyncio.sleep(LIFETIME.total_seconds() * RENEW_AFTER)
        await asyncio.to_thread(renew_certificates, settings)


def change_traffic(settings: Settings, current: Traffic) -> None:
    """Put faults, canaries and mirrors into effect on the running platform."""
    services, layout = _running(settings)
    traffic.write(settings.run_dir, current)
    proxy.write_routes(settings, topology(), layout, services, current)
    splits = {service: split for service, split in current.splits.items() if layout.canary(service)}
    bootstrap.write_routes(settings, settings.home / "edge" / "routes", splits)


def canaries(settings: Settings) -> frozenset[str]:
    """The services that run a canary."""
    return _running(settings)[1].canaries


def _running(settings: Settings) -> tuple[list[str], Layout]:
    found = json.loads(_layout_path(settings).read_text())
    return found["services"], Layout(found["replicas"], frozenset(found["canaries"]))


def _layout_path(settings: Settings) -> Path:
    return settings.run_dir / "mesh" / "layout.json"
