"""`make new-service` writes a service whose own test passes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from services.chassis.tools.generate import ROOT

PARTS = ["proto", "services", "edge", "mesh", "tests", "pyproject.toml", "buf.yaml"]


def test_a_new_service_passes_its_own_test_and_the_checks(tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    copy = tmp_path / "copy"
    copy.mkdir()
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, copy / part)
        else:
            shutil.copy(source, copy / part)
    shutil.copytree(ROOT / "gen", copy / "gen")
    # The copy's packages before the checkout's, for this process and all that it starts.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TEST_"))}
    environment["PYTHONPATH"] = f"{copy}:{copy / 'gen'}"

    def run(*arguments: str) -> None:
        result = subprocess.run(
            [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True, timeout=150
        )
        assert result.returncode == 0, result.stdout + result.stderr

    run("-m", "services.chassis.tools.new_service", "finance", "tip-jar")
    run("-m", "services.chassis.tools.generate", "--check")
    run("-m", "ruff", "check", "services/finance", "tests/finance")
    run("-m", "ruff", "format", "--check", "services/finance", "tests/finance")
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/finance/test_tip_jar.py")
