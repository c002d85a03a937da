"""What uv's own lock leaves open, and the backend of this library closes.

    python benchmarks/uv_gap.py [--builds N]

uv does not lock the hook that asks for build requirements, though setuptools rewrites
`SOURCES.txt` in it. In a project whose `SOURCES.txt` alone names the data files, a wheel that is
built meanwhile lacks them, and so does every later one. Isolated builds by uv, as many at once as
are asked for, with setuptools' backend and with `source_tree_lock.build_meta`. Exit status: 0 if
with the latter every wheel is right. The packages that the builds need come from the index of pip.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from concurrent_builds import Tally, table
from progress import Progress
from sample import Content, make_tree, wheel_content

ROOT = Path(__file__).parents[1]
BACKENDS = {
    "uv's own lock": ("setuptools.build_meta", '"setuptools"'),
    "with our backend": ("source_tree_lock.build_meta", '"setuptools", "source-tree-lock"'),
}
_LIMIT = 1800  # seconds: only a deadlock lasts this long


def make_packages(directory: Path) -> Path:
    """A directory with wheels of this library and of what it and the builds need."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    copy = directory / "copy"  # so that nothing is built in the repository itself
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    packages = directory / "packages"
    subprocess.run([*pip, "wheel", "--wheel-dir", packages, copy, "setuptools"], check=True)
    return packages


def make_project(directory: Path, backend: str, requires: str) -> Path:
    """A project with 20 data files that nothing but its SOURCES.txt names."""
    tree = make_tree(directory, modules=3, data=20, backend=backend)
    pyproject = (tree / "pyproject.toml").read_text().partition("[tool.setuptools.package-data]")[0]
    (tree / "pyproject.toml").write_text(pyproject.replace('"setuptools"', requires))
    manifest = tree / "MANIFEST.in"
    manifest.write_text("recursive-include src *.txt\n")
    hook = "from setuptools import build_meta; build_meta.get_requires_for_build_wheel()"
    subprocess.run([sys.executable, "-c", hook], cwd=tree, check=True, capture_output=True)
    manifest.unlink()
    return tree


class Builds:
    """Isolated builds by uv, from a directory of packages."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._packages = make_packages(work)
        self._environ = {**os.environ, "UV_CACHE_DIR": str(work / "cache"), "TMPDIR": str(work)}
        self._made = 0

    def start(self, tree: Path, wheels: Path) -> subprocess.Popen[str]:
        options = ["--wheel", "--no-config", "--no-index", "--find-links", self._packages]
        python = ["--python", sys.executable, "--out-dir", wheels]
        return subprocess.Popen(
            [sys.executable, "-m", "uv", "build", *options, *python, tree],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environ,
        )

    def directory(self) -> Path:
        self._made += 1
        return self._work / str(self._made)

    def alone(self, backend: str, requires: str) -> Content:
        """What a wheel has to hold."""
        tree = make_project(self.directory(), backend, requires)
        wheels = self.directory()
        _, complaint = self.start(tree, wheels).communicate(timeout=_LIMIT)
        content = wheel_content(wheels)
        if content is None or sum(name.endswith(".txt") for name, _ in content) < 20:
            raise SystemExit(f"the project cannot even be built alone:\n{complaint}")
        return content

    def at_once(self, label: str, count: int) -> Tally:
        backend, requires = BACKENDS[label]
        expected = self.alone(backend, requires)
        tree = make_project(self.directory(), backend, requires)
        tally = Tally(label)
        started = time.monotonic()
        wheels = [self.directory() for _ in range(count)]
        with Progress(label, count) as progress, ThreadPoolExecutor(count) as threads:
            processes = [self.start(tree, each) for each in wheels]
            ends = threads.map(lambda process: process.communicate(timeout=_LIMIT), processes)
            for process, directory, (_, complaint) in zip(processes, wheels, ends, strict=True):
                tally.count(directory, process.returncode, complaint, expected)
                progress.step()
        tally.seconds = time.monotonic() - started
        return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--builds", type=int, default=50, metavar="N", help="at once (default 50)")
    count = parser.parse_args().builds
    if count < 1:
        parser.error("at least one build")
    with tempfile.TemporaryDirectory(prefix="uv-gap-") as work:
        builds = Builds(Path(work))
        tallies = [builds.at_once(label, count) for label in BACKENDS]
    print(f"\n{count} isolated builds by uv at once of one source tree\n")
    print(table(tallies))
    if tallies[-1].is_perfect():
        return 0
    print("\nWith our backend, every wheel should have been right.", *tallies[-1].complaints)
    return 1


if __name__ == "__main__":
    sys.exit(main())
