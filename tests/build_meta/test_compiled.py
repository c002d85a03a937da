"""Our backend compiles what setuptools compiles, whatever was built between."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import long_after

from .building import ANEW, OURS, SETUPTOOLS, Project

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the compiler is a shell script")

#: A step is a hook, with a backend if it is not the one that is tried; setuptools' own command; or
#: a source with what is written into it.
SCENARIOS = [
    ["build_wheel", "m0.c new", "build_ext -i", "build_wheel"],
    ["m1.c of-the-future", *["build_wheel"] * 4],
    [
        *["m2.c error", "build_wheel", "m2.c new", "build_wheel"],
        *["m2.c error", "build_wheel", "m2.c right", "build_wheel", "build_wheel"],
    ],
    ["build_wheel", "build_wheel"],
    ["build_wheel", "m0.c new", f"build_wheel {SETUPTOOLS}", "build_wheel"],
    ["build_wheel", "m1.c new", "build_wheel", "build_wheel"],
    # As of a library that is missing: the linker removes its output, and builds go on there.
    ["build_wheel", "m0.c refuse", "build_wheel", "m0.c right", "build_wheel"],
    ["build_wheel", "build_editable", "build_sdist", "build_wheel"],
    ["build_wheel", "build_wheel unwritable", "build_wheel"],
]


def take(step: str, project: Project, backend: str) -> str:
    """Take a step; what a build has compiled, and its status."""
    name, _, how = step.partition(" ")
    if step == "build_ext -i":
        command = [sys.executable, "setup.py", "-q", *step.split()]
        environ = {**os.environ, **project.environ}
        subprocess.run(command, cwd=project.tree, env=environ, check=True)
        return ""
    if name.endswith(".c"):
        source = project.tree / name
        source.write_text(how)
        if how == "of-the-future":
            os.utime(source, (4e9, 4e9))
        return ""
    unwritable = "import zipfile\ndel zipfile.ZipFile.writestr\n" if how == "unwritable" else ""
    backend = how if how == SETUPTOOLS else backend
    done = project.run(name, backend=backend, prelude=unwritable)
    assert ANEW not in done.stderr
    return f"{done.returncode}: {' '.join(project.compiled())}"


@pytest.mark.parametrize("steps", long_after(1, SCENARIOS))
def test_as_much_is_compiled_as_by_setuptools(tmp_path: Path, steps: list[str]) -> None:
    counts = []
    for backend in (SETUPTOOLS, OURS):
        project = Project(tmp_path / backend, ("m0", "m1", "m2"))
        counts.append([take(step, project, backend) for step in steps])
    assert counts[1] == counts[0], steps
    assert "m0.c m1.c m2.c" in "".join(counts[0])
