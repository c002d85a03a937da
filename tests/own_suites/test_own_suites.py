"""build's, tox's, PDM's and Poetry's own tests of packaging: the lock changes no outcome.

Takes half an hour and a package index, so that it runs on ``--own-suites`` alone. Some of these
tests do not always end alike: files with one that ends otherwise under the lock run again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
from plugins import frontends
from recipes.recipes import RECIPES

pytestmark = [pytest.mark.once, pytest.mark.timeout(3600)]
#: How long a suite may take, in seconds.
LIMIT = 1500
#: Of each test, by its file and its name.
Outcomes = dict[tuple[str, str], str]


class Suite(NamedTuple):
    """What of a frontend's sdist is run, and what that needs."""

    sdist: str
    needs: str
    tests: str
    extras: str = ""


PYTEST = "pytest pytest-cov pytest-mock pytest-rerunfailures pytest-timeout pytest-xdist"
SUITES = {
    "build": Suite(
        "build",
        "filelock covdefaults wheel setuptools setuptools_scm pip",
        "test_projectbuilder.py test_main.py test_env.py test_util.py",
        "[uv,virtualenv]",
    ),
    # Newer sdists need a build hook that is not on the index.
    "tox": Suite(
        "tox==4.67.0",
        "build[virtualenv] covdefaults coverage devpi-process distlib flaky hatchling hatch-vcs "
        "pdm-backend psutil re-assert setuptools<82 time-machine wheel detect-test-pollution "
        "docutils",
        "tox_env/python/virtual_env tox_env/python/test_python_api.py execute",
    ),
    "pdm": Suite(
        "pdm==2.29.3",  # the last whose own pins can be installed
        "pytest-httpserver pytest-httpx",
        "cli/test_build.py cli/test_install.py models/test_candidates.py test_plugin.py",
        "[pytest,locked]",
    ),
    "poetry": Suite(
        "poetry==2.*",
        "dulwich responses jaraco-classes pytest-randomly psutil",
        "installation inspection masonry plugins "
        "console/commands/test_build.py console/commands/test_install.py",
    ),
}


def unpacked_sdist(suite: Suite, directory: Path) -> Path:
    """The frontend's sdist from the index, unpacked."""
    name = suite.sdist.partition("=")[0]
    options = ("--no-deps", "--no-binary", name, "-d", directory)
    frontends.pip(sys.executable, "download", *options, suite.sdist)
    [sdist] = directory.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(directory, filter="data")
    return directory / sdist.name.removesuffix(".tar.gz")


def run(
    python: Path, source: Path, tests: Iterable[str], report: Path, *, locked: bool
) -> Outcomes:
    """Run some of its tests; what became of each."""
    options = "-q -p no:randomly -p no:cacheprovider -n 2 --no-cov --timeout 300".split()
    options += ["-o", "junit_family=xunit1"]  # it tells the file of each test
    environ = {
        **os.environ,
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "SOURCE_TREE_LOCK_PLUGINS": "1" if locked else "0",
    }
    with report.with_suffix(".log").open("w") as log:
        subprocess.run(
            [python, "-m", "pytest", *options, f"--junitxml={report}", *tests],
            cwd=source,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            timeout=LIMIT,
        )
    outcomes = {}
    for case in ET.parse(report).iter("testcase"):
        tags = {child.tag for child in case} & {"failure", "error", "skipped"}
        test = case.attrib["file"], f"{case.get('classname')}::{case.get('name')}"
        outcomes[test] = min(tags, default="passed")
    return outcomes


def outcomes_both_ways(
    name: str, python: Path, source: Path, tests: Iterable[str], reports: Path
) -> tuple[Outcomes, Outcomes]:
    """What becomes of these tests without the lock, and with it: by a plugin, or by a recipe."""
    reports.mkdir()
    without = run(python, source, tests, reports / "without.xml", locked=False)
    if name not in RECIPES:
        return without, run(python, source, tests, reports / "with.xml", locked=True)
    [site_packages] = python.parents[1].glob("lib/python*/site-packages")
    file = site_packages / RECIPES[name].file
    before = file.read_text()
    RECIPES[name].apply(site_packages)
    try:
        return without, run(python, source, tests, reports / "with.xml", locked=True)
    finally:
        file.write_text(before)


@pytest.mark.parametrize("name", SUITES)
def test_the_lock_changes_no_outcome_of_its_own_suite(name: str, tmp_path: Path) -> None:
    suite = SUITES[name]
    source = unpacked_sdist(suite, tmp_path / "sdist")
    frontend = f"{name}{suite.extras}=={source.name.removeprefix(f'{name}-')}"
    needs = [*PYTEST.split(), *suite.needs.split()]
    python = frontends.make_environment(tmp_path / "environment", frontend, *needs)
    frontends.install_this(python, frontends.own_wheels(tmp_path / "wheels"))
    tests = [f"tests/{test}" for test in suite.tests.split()]
    rounds = [outcomes_both_ways(name, python, source, tests, tmp_path / "round-0")]
    [(without, with_lock)] = rounds
    print(f"{frontend}: without {Counter(without.values())}, with {Counter(with_lock.values())}")
    assert without.keys() == with_lock.keys()
    assert "passed" in without.values()
    differ = {test for test, outcome in without.items() if with_lock[test] != outcome}
    tests = sorted({file for file, _ in differ})
    for number in (1, 2) if differ else ():
        again = outcomes_both_ways(name, python, source, tests, tmp_path / f"round-{number}")
        rounds.append(again)
    always = {test for test in differ if all(a.get(test) != b.get(test) for a, b in rounds)}
    assert not always, "they end otherwise each time"
