"""Real builds, killed at random moments: the next wheel is the one that is built alone."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from .conftest import Fetch
from .real_project import OURS, SETUPTOOLS, RealProject

#: Of each project, so many builds are killed. The bounds are shares of a whole build: before the
#: first, Python itself starts.
KILLS = 8
MOMENTS = (0.15, 1.0)
PROJECTS = [
    "six==1.17.0",
    "stevedore==5.4.0",
    "MarkupSafe==3.0.2",
    "setproctitle==1.3.4",
    "wrapt==1.17.2",
    "PyYAML==6.0.2",
    "xattr==1.3.0",
    "cmarkgfm==2025.10.22",
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("requirement", PROJECTS)
def test_a_killed_build_poisons_no_later_one(
    tmp_path: Path, fetch: Fetch, requirement: str
) -> None:
    project = RealProject(fetch(requirement), tmp_path / "tree", requirement)
    project.start_over()
    started = time.monotonic()
    right = project.build()
    whole = time.monotonic() - started
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    kills: list[str] = []
    while len(kills) < KILLS:
        # Every third is of plain setuptools, where the last build of ours has finished.
        backend = SETUPTOOLS if len(kills) % 3 == 2 else OURS
        if len(kills) % 2:
            touch(project.tree)  # else as a first build
        else:
            project.start_over()
            if backend == SETUPTOOLS:
                project.build()
                touch(project.tree)
        share = chance.uniform(*MOMENTS)
        process = project.start(backend)
        time.sleep(share * whole)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if process.returncode != -signal.SIGKILL:
            continue  # it was too quick
        kills.append(f"{backend} at {share:.2f} of {whole:.1f} s")
        assert project.build() == right, f"seed {seed}, after {kills}"


def touch(tree: Path) -> None:
    """Make all sources newer than what was built of them."""
    for path in tree.rglob("*"):
        if ".git" not in path.parts and "build" not in path.parts and path.is_file():
            os.utime(path)
