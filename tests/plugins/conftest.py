"""The frontends are installed once a run, for all tests here and those of the recipes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from . import frontends
from .frontends import REQUIREMENTS, Frontend


@pytest.fixture(autouse=True)
def nothing_runs_on() -> Iterator[None]:
    """End what a test has started and not waited for, with all of its children."""
    yield
    while frontends.STARTED:
        with frontends.STARTED.pop() as process:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def environments(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Where the frontends are installed: gone after the run, unless ``--environments`` names it."""
    kept = request.config.getoption("--environments")
    with nullcontext(kept) if kept else tempfile.TemporaryDirectory(prefix="frontends-") as name:
        yield Path(name).absolute()


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the builds of the tests need, and a wheel of this distribution in `own`."""
    directory = tmp_path_factory.mktemp("wheels")
    try:
        frontends.pip(sys.executable, "download", "-d", directory, *frontends.BUILD_REQUIREMENTS)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"installs the frontends from a package index: {error}")
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
