"""Where the projects come from."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Fetch = Callable[[str], Path]


@pytest.fixture(scope="session")
def fetch(tmp_path_factory: pytest.TempPathFactory) -> Fetch:
    """Gives the sdist of a requirement such as ``six==1.17.0``, fetched once, or skips."""
    directory = tmp_path_factory.mktemp("sdists")
    options = "download -q --no-deps --no-binary :all: --no-build-isolation".split()

    def get(requirement: str) -> Path:
        place = directory / requirement
        if not place.exists():
            done = subprocess.run(
                [sys.executable, "-m", "pip", *options, "-d", place, requirement],
                capture_output=True,
                text=True,
            )
            if done.returncode:
                pytest.skip(f"cannot fetch {requirement}: {done.stderr.strip()[-500:]}")
        [sdist] = place.iterdir()
        return sdist

    return get
