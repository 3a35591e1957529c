"""The README's lines work as they are printed."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from services.chassis.tools.generate import ROOT
from tests.platforms import Platform
from tests.tools import tool


def lines_after(marker: str) -> str:
    """The shell block that follows a comment `<!-- marker: … -->` in the README."""
    found = re.search(rf"<!-- {marker}:.*?-->\n```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found, f"the README has no block marked {marker}"
    return found[1]


def run(script: str, platform: Platform, path: str = "") -> str:
    """Run the lines against the test's platform: only its address and its folder are put in their place."""
    for port in (8080, 3003):
        script = script.replace(f"127.0.0.1:{port}", f"127.0.0.1:{platform.settings.port(port)}")
    environment = platform.environment
    environment["PATH"] = f"{path}:{environment['PATH']}"
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_tour_works_as_printed(platform: Platform) -> None:
    output = run(lines_after("tour"), platform)

    assert '"emailVerified":true' in output
    assert '"tenantId":"demo"' in output
    assert '"current":true' in output


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_shop_works_as_printed(platform: Platform) -> None:
    output = run(lines_after("shop"), platform)

    assert "ORDER_STATE_CONFIRMED" in output
    assert '"kind":"InvoiceIssued"' in output
    assert Path("/tmp/invoice.pdf").read_bytes().startswith(b"%PDF")  # noqa: S108  where the README puts it


def test_the_grpcurl_lines_work_as_printed(platform: Platform) -> None:
    output = run(lines_after("grpcurl"), platform, path=str(tool("grpcurl").parent))

    assert "nexus.identity.auth_service.v1.AuthService" in output
    assert "rpc Login" in output
    assert '"tenantId": "demo"' in output
    assert "nexus.identity.user_auth.v1.UserService" in output
