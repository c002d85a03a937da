"""What uv's own lock leaves open, and the backend of this library closes.

uv does not lock the hook that asks for build requirements, though setuptools rewrites
`SOURCES.txt` in it. In a project whose `SOURCES.txt` alone names the data files, a wheel that is
built meanwhile lacks them, and so does every later one. Isolated builds by uv, all at once, with
setuptools' backend and with `source_tree_lock.build_meta`; packages come from the index of pip.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from concurrent_builds import COLUMNS, Tally, build_at_once
from measure import progress
from report import Section
from sample import make_tree, wheel_content

_BACKENDS = {
    "uv's own lock": ("setuptools.build_meta", '"setuptools"'),
    "with our backend": ("source_tree_lock.build_meta", '"setuptools", "source-tree-lock"'),
}


def make_project(tree: Path, backend: str, requires: str) -> Path:
    """A project with 20 data files that nothing but its SOURCES.txt names."""
    pyproject, manifest = make_tree(tree, backend, 3, 20) / "pyproject.toml", tree / "MANIFEST.in"
    text = pyproject.read_text().partition("[tool.setuptools.package-data]")[0]
    pyproject.write_text(text.replace('"setuptools"', requires))
    manifest.write_text("recursive-include src *.txt\n")
    hook = "from setuptools import build_meta; build_meta.get_requires_for_build_wheel()"
    subprocess.run([sys.executable, "-c", hook], cwd=tree, check=True, capture_output=True)
    manifest.unlink()
    return tree


def run(*, quick: bool) -> Section:
    count = 5 if quick else 50
    tallies = {label: Tally(label) for label in _BACKENDS}
    with tempfile.TemporaryDirectory() as directory, progress("uv's gap", len(tallies)) as step:
        work = Path(directory)
        os.environ["UV_CACHE_DIR"] = str(work / "cache")
        # Of this library, and of what it and the builds need.
        pip = [sys.executable, *"-m pip --quiet wheel setuptools --wheel-dir".split()]
        subprocess.run([*pip, work / "packages", Path(__file__).parents[1]], check=True)
        uv = [sys.executable, "-m", "uv", "build", "--wheel", "--no-config", "--no-index"]
        uv += ["--find-links", str(work / "packages"), "--python", sys.executable, "--out-dir"]
        for label, tally in tallies.items():
            here = work / label
            tree, alone = make_project(here / "alone", *_BACKENDS[label]), here / "wheels"
            build_at_once(Tally("alone"), {alone: [*uv, str(alone), str(tree)]}, None)
            expected = wheel_content(alone)
            if sum(name.endswith(".txt") for name, _ in expected or ()) < 20:
                raise SystemExit("the project cannot even be built alone")
            tree = make_project(here / "tree", *_BACKENDS[label])
            wheels = [here / str(number) for number in range(count)]
            build_at_once(tally, {each: [*uv, str(each), str(tree)] for each in wheels}, expected)
            step()
    section = Section()
    rows = [tally.row() for tally in tallies.values()]
    section.table(f"{count} isolated builds of one tree by uv at once:", COLUMNS, rows)
    bad = tally.failed + tally.wrong
    reason = "no build reports success and ships less than it should"
    section.goal("builds by uv with our backend: failed or wrong", bad, 0, reason)
    return section
