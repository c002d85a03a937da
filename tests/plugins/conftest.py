"""The frontends are installed once for all tests here, and kept for the next run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import frontends
from .frontends import FRONTENDS, Frontend


@pytest.fixture(autouse=True)
def nothing_runs_on() -> Iterator[None]:
    yield
    frontends.end_all()


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the builds of the tests need, and a wheel of this distribution in `own`."""
    directory = tmp_path_factory.mktemp("wheels")
    try:
        frontends.pip(sys.executable, "download", "-d", directory, *frontends.BUILD_REQUIREMENTS)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"needs a package index: {error}")
    return frontends.own_wheels(directory)


@pytest.fixture(scope="session")
def index(wheels: Path) -> Iterator[str]:
    with frontends.served(wheels) as address:
        yield address


@pytest.fixture(scope="session", params=FRONTENDS)
def frontend(request: pytest.FixtureRequest, wheels: Path, index: str) -> Frontend:
    assert request.config.cache is not None
    environments = request.config.cache.mkdir("frontends")
    try:
        return frontends.make_frontend(request.param, environments, wheels, index)
    except (RuntimeError, subprocess.SubprocessError) as error:
        pytest.skip(f"needs {request.param} from a package index: {error}")
