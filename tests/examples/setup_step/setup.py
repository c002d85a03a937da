"""A `setup.py` with a step that writes into the source tree, one process at a time."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

from source_tree_lock import source_tree_lock


class BuildPy(build_py):
    @source_tree_lock()
    def run(self):
        Path("answer.py").write_text("ANSWER = 42\n")
        super().run()


setup(cmdclass={"build_py": BuildPy})
