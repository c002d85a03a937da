"""Where the projects come from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .real_project import RealProject


@pytest.fixture
def project(requirement: str, tmp_path: Path) -> RealProject:
    """The project of a requirement such as ``six==1.17.0``; skips where it cannot be fetched."""
    options = "-m pip download -q --no-deps --no-binary :all: --no-build-isolation -d".split()
    command = [sys.executable, *options, str(tmp_path / "sdist"), requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot fetch {requirement}: {done.stderr.strip()[-500:]}")
    [sdist] = (tmp_path / "sdist").iterdir()
    return RealProject(sdist, tmp_path / "tree", requirement.partition("==")[2])
