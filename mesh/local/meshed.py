"""What the local mesh runs on: the secrets that the supervisor hands to the proxies."""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator

from edge.layout import Layout, supervisor_socket, through_local_mesh
from mesh.local.discovery import Discovery
from mesh.local.identities import LIFETIME, RENEW_AFTER, Authority
from mesh.topology import topology
from services.chassis.config import Settings

RENEW_SIGNAL = signal.SIGUSR1
"""Tells the supervisor to renew the certificates now."""


@contextlib.asynccontextmanager
async def secrets(settings: Settings, layout: Layout) -> AsyncIterator[None]:
    """The certificates of the mesh, handed out for as long as the proxies run."""
    if not through_local_mesh(settings):
        yield
        return
    folder = settings.run_dir / "mesh"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for stale in folder.glob("*.sock"):
        stale.unlink()
    (folder / "canaries.json").write_text(json.dumps(sorted(layout.canaries)))
    discovery = Discovery(supervisor_socket(settings))
    await discovery.start()
    renewing = asyncio.create_task(_keep_fresh(Authority(settings), discovery))
    try:
        yield
    finally:
        renewing.cancel()
        await discovery.stop()


async def _keep_fresh(authority: Authority, discovery: Discovery) -> None:
    """Hand out certificates now, at half their life, and when asked to."""
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(RENEW_SIGNAL, asked.set)
    while True:
        await discovery.put(await asyncio.to_thread(authority.issue, topology().callers))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asked.wait(), LIFETIME.total_seconds() * RENEW_AFTER)
        asked.clear()


def canaries(settings: Settings) -> list[str]:
    """The services of the running platform that have a canary."""
    path = settings.run_dir / "mesh" / "canaries.json"
    return list(json.loads(path.read_text())) if path.exists() else []
