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


class Steps:
    """Builds of one project with one backend, and what each has compiled."""

    def __init__(self, project: Project, backend: str) -> None:
        self._project = project
        self._backend = backend
        self._now = 1_000_000_000

    def build(self, hook: str = "build_wheel", backend: str = "", prelude: str = "") -> str:
        done = self._project.run(hook, backend=backend or self._backend, prelude=prelude)
        assert ANEW not in done.stderr
        return f"{done.returncode}: {' '.join(self._project.compiled())}"

    def write(self, name: str, text: str = "new", *, time: int = 0) -> None:
        """Change a source; it is newer than anything that was built of it."""
        self._now += 1
        path = self._project.tree / name
        path.write_text(text)
        if time:
            os.utime(path, (time, time))

    def build_ext(self) -> str:
        command = [sys.executable, "setup.py", "-q", "build_ext", "-i"]
        environ = {**os.environ, **self._project.environ}
        subprocess.run(command, cwd=self._project.tree, env=environ, check=True)
        return "build_ext -i"


def twice(steps: Steps) -> Iterator[str]:
    for _ in range(2):
        yield steps.build()


def build_ext_between(steps: Steps) -> Iterator[str]:
    yield steps.build()
    steps.write("m0.c")
    yield steps.build_ext()
    yield steps.build()


def plain_setuptools_between(steps: Steps) -> Iterator[str]:
    yield steps.build()
    steps.write("m0.c")
    yield steps.build(backend=SETUPTOOLS)
    yield steps.build()


def a_newer_source(steps: Steps) -> Iterator[str]:
    yield steps.build()
    steps.write("m1.c")
    yield steps.build()
    yield steps.build()


def a_time_in_the_future(steps: Steps) -> Iterator[str]:
    steps.write("m1.c", time=4_000_000_000)
    for _ in range(4):
        yield steps.build()


def an_error_corrected(steps: Steps) -> Iterator[str]:
    steps.write("m2.c", "error")
    yield steps.build()
    steps.write("m2.c")
    yield steps.build()
    steps.write("m2.c", "error")
    yield steps.build()
    steps.write("m2.c", "right")
    yield steps.build()
    yield steps.build()


def an_error_of_the_linker_corrected(steps: Steps) -> Iterator[str]:
    """As of a library that is missing: the linker removes its output, and builds go on there."""
    yield steps.build()
    steps.write("m0.c", "refuse")
    yield steps.build()
    steps.write("m0.c", "right")
    yield steps.build()


def other_hooks_between(steps: Steps) -> Iterator[str]:
    for hook in ("build_wheel", "build_editable", "build_sdist", "build_wheel"):
        yield steps.build(hook)


def the_archive_cannot_be_written(steps: Steps) -> Iterator[str]:
    yield steps.build()
    yield steps.build(prelude="import zipfile\ndel zipfile.ZipFile.writestr\n")
    yield steps.build()


SHORT = (build_ext_between, a_time_in_the_future, an_error_corrected)
LONG = (
    *(*SHORT, twice, plain_setuptools_between, a_newer_source, an_error_of_the_linker_corrected),
    *(other_hooks_between, the_archive_cannot_be_written),
)


@pytest.mark.timeout(600)
def test_as_much_is_compiled_as_by_setuptools(tmp_path: Path, long_run: bool) -> None:
    for scenario in LONG if long_run else SHORT:
        counts = []
        for backend in (SETUPTOOLS, OURS):
            project = Project(tmp_path / backend / scenario.__name__, ("m0", "m1", "m2"))
            counts.append(list(scenario(Steps(project, backend))))
        print(scenario.__name__, *counts, sep="\n  ")
        assert counts[1] == counts[0], scenario.__name__
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
