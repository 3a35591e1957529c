"""The bootstraps of the edge and the local mesh: what the proxies start from.

    python -m mesh.local.bootstraps '{"services": ["user-auth"], "replicas": {}, "canaries": []}'

Building them takes seconds, and the libraries for it tens of megabytes. So the supervisor has a process of its own do
it while the databases and services start, and only when something has changed that they are made of.
"""

import asyncio
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from edge import tls
from edge.layout import Layout, through_local_mesh
from mesh.local.supervisor import PlatformError
from services.chassis import contract
from services.chassis.config import Settings, load_settings
from services.chassis.spec import discover

_CODE = ("edge", "mesh", "services")


def edge_file(settings: Settings) -> Path:
    return settings.home / "edge" / "bootstrap.pb"


def mesh_file(settings: Settings) -> Path:
    return settings.home / "edge" / "mesh.pb"


async def ensure(settings: Settings, environment: Mapping[str, str], layout: Layout, services: Sequence[str]) -> None:
    """Write them anew unless they are as they would be. Raises PlatformError with what the writer said last."""
    tls.ensure_certificate(settings.home / "secrets" / "edge")
    request = {"services": list(services), "replicas": dict(layout.replicas), "canaries": sorted(layout.canaries)}
    wanted, stamp = _fingerprint(settings, request), edge_file(settings).with_name("bootstraps.stamp")
    files = [edge_file(settings), *([mesh_file(settings)] if through_local_mesh(settings) else [])]
    if all(file.exists() for file in (stamp, *files)) and stamp.read_text() == wanted:
        return
    stamp.unlink(missing_ok=True)
    writer = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, json.dumps(request)),
        env=dict(environment),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, said = await writer.communicate()
    except asyncio.CancelledError:
        writer.kill()
        await writer.wait()
        raise
    if writer.returncode:
        last = said.decode(errors="replace").strip().rpartition("\n")[2]
        raise PlatformError(f"The proxies' bootstraps cannot be written: {last}")
    stamp.write_text(wanted)


def _fingerprint(settings: Settings, request: Mapping[str, object]) -> str:
    """Of all that goes into them: settings, contracts, specs, the code that builds them and what that is built on."""
    digest = hashlib.sha256(settings.model_dump_json().encode())
    digest.update(f"{sys.version}\0{version('envoy-data-plane')}\0{version('betterproto2')}\n".encode())
    digest.update(json.dumps(request).encode())
    digest.update(contract.IMAGE.read_bytes())
    for path in _code():
        digest.update(f"{path}\0{path.stat().st_mtime_ns}\0{path.stat().st_size}\n".encode())
    return digest.hexdigest()


def _code() -> list[Path]:
    root = Path(__file__).parents[2]
    kinds = {".py", ".lua", ".html"}
    return sorted(path for folder in _CODE for path in (root / folder).rglob("*.*") if path.suffix in kinds)


def main() -> int:
    from edge import bootstrap, envoy
    from mesh.local import proxy
    from mesh.topology import topology

    request = json.loads(sys.argv[1])
    settings = load_settings(service_ids=discover())
    layout = Layout(request["replicas"], frozenset(request["canaries"]))
    bootstrap.write(settings, edge_file(settings), layout)
    if through_local_mesh(settings):
        envoy.write(proxy.build(settings, topology(), layout, request["services"]), mesh_file(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
