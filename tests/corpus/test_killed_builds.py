"""Real builds that are killed: the next wheel is the one that is built alone."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .conftest import Fetch
from .real_project import RealProject

#: How many builds of each project are killed.
KILLS = 8
PROJECTS = (
    "six==1.17.0 stevedore==5.4.0 MarkupSafe==3.0.2 setproctitle==1.3.4 wrapt==1.17.2 "
    "PyYAML==6.0.2 xattr==1.3.0 cmarkgfm==2025.10.22"
).split()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("requirement", PROJECTS)
def test_a_killed_build_spoils_no_later_one(tmp_path: Path, fetch: Fetch, requirement: str) -> None:
    project = RealProject(fetch(requirement), tmp_path / "tree", requirement)
    project.start_over()
    started = time.monotonic()
    right = project.build()
    whole = time.monotonic() - started
    build = project.tree / "build"
    made = [path for path in build.rglob("*") if path.is_file() and path.suffix != ".o"]
    linked = [path for path in made if path.suffix == ".so"]
    chance = random.Random(seed := random.randrange(2**32))
    kills: list[str] = []
    for attempt in range(10 * KILLS):
        if len(kills) == KILLS:
            break
        # Each second is a first build. In the others all sources are newer than what is there.
        if attempt % 2:
            shutil.rmtree(build)
        touch(project.tree)
        # A file that has just come up is the likeliest to be unfinished.
        if attempt % 3:
            path = chance.choice(linked if linked and attempt % 3 == 1 else made)
            moment = path.name
            before = state(path)
            process = project.start()
            while state(path) == before and process.poll() is None:
                time.sleep(0.0005)
        else:
            share = chance.uniform(0.15, 1.0)  # Python itself starts before
            moment = f"{share:.2f} of {whole:.1f} s"
            process = project.start()
            time.sleep(share * whole)
        if kill(process):
            kills.append(moment)
            after = project.build()
            assert after[:2] == right[:2], f"seed {seed}, after {kills}"
    assert len(kills) == KILLS, f"builds are too quick to be killed: {kills}"


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
