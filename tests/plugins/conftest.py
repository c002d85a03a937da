"""The frontends are installed once for all tests here, and kept for the next run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import frontends
from .frontends import FRONTENDS, REQUIREMENTS, Frontend


@pytest.fixture(autouse=True)
def nothing_runs_on() -> Iterator[None]:
    yield
    frontends.end_all()


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the builds of the tests need, and a wheel of this distribution in `own`."""
    directory = tmp_path_factory.mktemp("wheels")
    try:
        frontends.pip(sys.executable, "download", "-d", directory, "setuptools", "flit_core")
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"needs a package index: {error}")
    frontends.own_wheel(directory / "own")
    return directory


@pytest.fixture(scope="session")
def index(wheels: Path) -> Iterator[str]:
    with frontends.served(wheels) as address:
        yield address


@pytest.fixture(scope="session", params=FRONTENDS)
def frontend(request: pytest.FixtureRequest, wheels: Path, index: str) -> Frontend:
    assert request.config.cache is not None
    name: str = request.param
    try:
        python = frontends.make_environment(
            request.config.cache.mkdir("frontends") / name, *REQUIREMENTS[name]
        )
    except (RuntimeError, subprocess.SubprocessError) as error:
        pytest.skip(f"needs {name} from a package index: {error}")
    own = wheels / "own"
    frontends.pip(
        python, "install", "--force-reinstall", "--no-deps", *own.glob("source_tree_lock-*.whl")
    )
    frontends.pip(python, "install", "portalocker", "typing-extensions", "tomli")
    return Frontend(name, python, wheels, index)
