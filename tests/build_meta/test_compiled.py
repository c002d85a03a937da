"""Our backend compiles what setuptools compiles, whatever was built between."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .building import ANEW, OURS, SETUPTOOLS, Project

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the compiler is a shell script")


BUILD, ERROR = "build_wheel", "m2 = error"
#: Steps, each a hook, "build_ext", "plain" setuptools, a wheel that cannot be "packed", or a source
#: that gets another text, and so is newer than what was built of it.
SCENARIOS = {
    "build_ext between": [BUILD, "m0 = new", "build_ext", BUILD],
    "an error": [ERROR, BUILD, "m2 = new", BUILD, ERROR, BUILD, "m2 = right", BUILD, BUILD],
    # Only in the long run:
    "a time in the future": ["m1 = future", BUILD, BUILD, BUILD, BUILD],
    "nothing between": [BUILD, BUILD],
    "plain setuptools between": [BUILD, "m0 = new", "plain", BUILD],
    "a newer source": [BUILD, "m1 = new", BUILD, BUILD],
    # As of a library that is missing: the linker removes its output, and builds go on there.
    "an error of the linker": [BUILD, "m0 = refuse", BUILD, "m0 = right", BUILD],
    "other hooks between": [BUILD, "build_editable", "build_sdist", BUILD],
    "the wheel cannot be packed": [BUILD, "packed", BUILD],
}
UNPACKABLE = "import zipfile\ndel zipfile.ZipFile.writestr\n"


def compiled_by(project: Project, backend: str, steps: list[str]) -> Iterator[str]:
    """How each build with this backend ends, and what it has compiled."""
    for step in steps:
        name, is_source, text = step.partition(" = ")
        if is_source:
            path = project.tree / f"{name}.c"
            path.write_text(text)
            if text == "future":
                os.utime(path, (4e9, 4e9))
        elif step == "build_ext":
            command = [sys.executable, "setup.py", "-q", "build_ext", "-i"]
            environ = {**os.environ, **project.environ}
            subprocess.run(command, cwd=project.tree, env=environ, check=True)
        else:
            done = project.run(
                step if step.startswith("build_") else BUILD,
                backend=SETUPTOOLS if step == "plain" else backend,
                prelude=UNPACKABLE if step == "packed" else "",
            )
            assert ANEW not in done.stderr
            yield f"{done.returncode}: {' '.join(project.compiled())}"


@pytest.mark.timeout(600)
def test_as_much_is_compiled_as_by_setuptools(tmp_path: Path, long_run: bool) -> None:
    for name in list(SCENARIOS)[: None if long_run else 2]:
        counts = []
        for backend in (SETUPTOOLS, OURS):
            project = Project(tmp_path / backend / name.replace(" ", "-"), ("m0", "m1", "m2"))
            counts.append(list(compiled_by(project, backend, SCENARIOS[name])))
        assert counts[1] == counts[0], name
        assert "m0.c m1.c m2.c" in counts[0][0]


OWN_STATE = """
import os, pathlib
from setuptools.command.build_ext import build_ext
class Own(build_ext):
    def build_extension(self, ext):
        state = pathlib.Path(self.build_temp, "state")
        print("state:", state.exists())
        state.parent.mkdir(parents=True, exist_ok=True)
        state.touch()
        if "CTRL_C" in os.environ: raise KeyboardInterrupt
        super().build_extension(ext)
"""


def test_an_interrupted_build_keeps_what_another_build_system_has_compiled(tmp_path: Path) -> None:
    """As CMake's projects do, in ``build/temp``: a long build goes on where it was stopped."""
    project = Project(tmp_path)
    project.write_setup(OWN_STATE, "cmdclass={'build_ext': Own},")
    assert project.run(environ={"CTRL_C": "1"}).returncode != 0
    done = project.run()
    assert ANEW in done.stderr
    assert "state: True" in done.stdout
    shutil.rmtree(project.tree / "build")
    assert "state: False" in project.run().stdout
