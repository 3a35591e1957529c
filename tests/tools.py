"""Programs that tests use where they are installed."""

import shutil
from pathlib import Path

import pytest

from services.chassis.tools.generate import ROOT


def grpcurl_path() -> Path:
    """grpcurl, built by `make tools` or installed; skips the test where there is none."""
    built = ROOT / ".tools" / "grpcurl"
    if built.exists():
        return built
    found = shutil.which("grpcurl")
    if found is None:
        pytest.skip("grpcurl is not installed, and there is no Go to build it with")
    return Path(found)
