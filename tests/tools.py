"""Programs that tests use where they are: built by `make tools`, or installed."""

import shutil
from pathlib import Path

import pytest

from services.chassis.tools.generate import ROOT


def tool(name: str) -> Path:
    """A program of `mesh/tools`; skips the test where there is none."""
    built = ROOT / ".tools" / name
    found = str(built) if built.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is neither built (`make tools`, where Go is) nor installed")
    return Path(found)
