"""The proxies' bootstraps are written when something has changed that they are made of, and only then."""

import os
from pathlib import Path

import pytest

from edge.layout import Layout
from mesh.local import bootstraps
from mesh.local.platform import MESH_ADDRESS
from mesh.local.supervisor import PlatformError
from services.chassis.config import Settings

SERVICES = ["user-auth", "session-mgr"]


def settings(home: Path, **more: str) -> Settings:
    return Settings(home=home, service_address=MESH_ADDRESS, **more)  # type: ignore[arg-type]


async def written(given: Settings, layout: Layout | None = None) -> bool:
    """Whether they were written anew."""
    files = [bootstraps.edge_file(given), bootstraps.mesh_file(given)]
    before = [file.stat().st_mtime_ns if file.exists() else 0 for file in files]
    ours = {name: value for name, value in os.environ.items() if not name.startswith("NEXUS_")}
    environment = {**ours, "NEXUS_HOME": str(given.home), "NEXUS_SERVICE_ADDRESS": given.service_address}
    await bootstraps.ensure(given, environment, layout or Layout(), SERVICES)
    changed = {file.stat().st_mtime_ns != moment for file, moment in zip(files, before, strict=True)}
    assert len(changed) == 1, "both or none"
    return changed.pop()


async def test_what_has_not_changed_is_not_written_again(tmp_path: Path) -> None:
    assert await written(settings(tmp_path))
    assert not await written(settings(tmp_path))
    assert await written(settings(tmp_path, token_audience="other"))
    assert await written(settings(tmp_path, token_audience="other"), Layout({"user-auth": 2}))


async def test_what_is_missing_is_written_again(tmp_path: Path) -> None:
    given = settings(tmp_path)
    assert await written(given)
    bootstraps.mesh_file(given).unlink()
    assert await written(given)


async def test_a_writer_that_fails_says_why_and_leaves_nothing_to_trust(tmp_path: Path) -> None:
    given = settings(tmp_path)
    environment = {**os.environ, "NEXUS_HOME": str(tmp_path), "NEXUS_NO_SUCH_SETTING": "1"}
    for _ in range(2):
        with pytest.raises(PlatformError, match=r"cannot be written: .*NEXUS_NO_SUCH_SETTING"):
            await bootstraps.ensure(given, environment, Layout(), SERVICES)
