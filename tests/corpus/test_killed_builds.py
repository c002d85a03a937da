"""Real builds that are killed: the next wheel is the one that is built alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .conftest import Fetch
from .real_project import OURS, SETUPTOOLS, RealProject

#: How many builds of each project are killed.
KILLS = 8
#: Shares of a whole build: in what comes before, Python itself starts.
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
    made = [
        path
        for path in (project.tree / "build").rglob("*")
        if path.is_file() and path.name[0] != "."
    ]
    linked = [path for path in made if path.suffix == ".so"]
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    kills: list[str] = []
    tries = 0
    while len(kills) < KILLS:
        tries += 1
        assert tries <= 10 * KILLS, f"builds are too quick to be killed: {kills}"
        # Every third is of plain setuptools, where the last build of ours has finished.
        backend = SETUPTOOLS if len(kills) % 3 == 2 else OURS
        path = chance.choice(linked or made)
        if backend == OURS:
            project.start_over()
        else:
            path.unlink()
        touch(project.tree)
        # A file that has just come up is the likeliest to be unfinished; an extension is open
        # for the longest time.
        if len(kills) % 4 == 3:
            share = chance.uniform(*MOMENTS)
            moment = f"at {share:.2f} of {whole:.1f} s"
            process = project.start(backend)
            time.sleep(share * whole)
        else:
            moment = f"at {path.name}"
            before = state(path)
            process = project.start(backend)
            while state(path) == before and process.poll() is None:
                time.sleep(0.0005)
        if kill(process):
            kills.append(f"{backend} {moment}")
            assert project.build() == right, f"seed {seed}, after {kills}"


def kill(process: subprocess.Popen[str]) -> bool:
    """Kill a build with all that it has started; False where it was over."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def state(path: Path) -> tuple[int, int] | None:
    """Changes when the file is written; None while there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def touch(tree: Path) -> None:
    """Make all sources newer than what was built of them."""
    for path in tree.rglob("*"):
        if ".git" not in path.parts and "build" not in path.parts and path.is_file():
            os.utime(path)
