"""The frontends are installed once a run, for all tests here and those of the recipes."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import frontends
from .frontends import REQUIREMENTS, Frontend


@pytest.fixture(autouse=True)
def nothing_runs_on() -> Iterator[None]:
    yield
    frontends.end_all()


@pytest.fixture(scope="session")
def environments(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Where the frontends are installed: gone after the run, unless ``--environments`` names it."""
    kept: str | None = request.config.getoption("--environments")
    if kept is not None:
        yield Path(kept).absolute()
        return
    with tempfile.TemporaryDirectory(prefix="frontends-") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the builds of the tests need, and a wheel of this distribution in `own`."""
    directory = tmp_path_factory.mktemp("wheels")
    try:
        frontends.pip(sys.executable, "download", "-d", directory, *frontends.BUILD_REQUIREMENTS)
    except RuntimeError as error:
        pytest.skip(f"installs the frontends from a package index: {str(error).splitlines()[-1]}")
    return frontends.own_wheels(directory)


@pytest.fixture(scope="session")
def index(wheels: Path) -> Iterator[str]:
    with frontends.served(wheels) as address:
        yield address


@pytest.fixture(scope="session", params=REQUIREMENTS)
def frontend(
    request: pytest.FixtureRequest, environments: Path, wheels: Path, index: str
) -> Frontend:
    return frontends.make_frontend(request.param, environments, wheels, index)
