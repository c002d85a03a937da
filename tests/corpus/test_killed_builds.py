"""Real builds that are killed: the next wheel is the one that is built alone."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from .real_project import RealProject

PROJECTS = (
    "six==1.17.0 stevedore==5.4.0 MarkupSafe==3.0.2 setproctitle==1.3.4 wrapt==1.17.2 "
    "PyYAML==6.0.2 xattr==1.3.0 cmarkgfm==2025.10.22"
).split()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("requirement", PROJECTS)
def test_a_killed_build_spoils_no_later_one(
    project: RealProject, requirement: str, long_run: bool
) -> None:
    kills_wanted = 8 if long_run else 4
    project.start_over()
    started = time.monotonic()
    right = project.build()
    whole = time.monotonic() - started
    build = project.tree / "build"
    made = [path for path in build.rglob("*") if path.is_file() and path.suffix != ".o"]
    linked = [path for path in made if path.suffix == ".so"]
    chance = random.Random(seed := random.randrange(2**32))
    kills: list[str] = []
    for attempt in range(10 * kills_wanted):
        if len(kills) == kills_wanted:
            break
        # Each second is a first build. In the others all sources are newer than what is there.
        if attempt % 2:
            shutil.rmtree(build)
        for path in project.tree.rglob("*"):
            if not {".git", "build"} & {*path.parts} and path.is_file():
                os.utime(path)
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
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            kills.append(moment)
            after = project.build()
            assert after[:2] == right[:2], f"seed {seed}, after {kills}"
    assert len(kills) == kills_wanted, f"builds are too quick to be killed: {kills}"


def state(path: Path) -> tuple[int, int] | None:
    """Changes when the file is written; None while there is none."""
    with suppress(FileNotFoundError):
        status = path.stat()
        return status.st_ino, status.st_mtime_ns
    return None
