"""build's, tox's, PDM's and Poetry's own tests of packaging: the lock changes no outcome.

Takes an hour and a package index, so that it runs on ``--own-suites`` alone. Each suite runs twice
without the lock and twice with it: some of these tests do not always end alike.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from plugins import frontends
from recipes.recipes import RECIPES

pytestmark = [pytest.mark.once, pytest.mark.timeout(3600)]
#: How long a suite may take, in seconds.
LIMIT = 1500
Outcomes = dict[str, str]


@dataclass(frozen=True)
class Suite:
    """What of a frontend's sdist is run, and what that needs."""

    sdist: str
    needs: tuple[str, ...]
    tests: tuple[str, ...]
    extras: str = ""


_PYTEST = "pytest pytest-cov pytest-mock pytest-rerunfailures pytest-timeout pytest-xdist".split()
SUITES = {
    "build": Suite(
        "build",
        ("filelock", "covdefaults", "wheel", "setuptools", "setuptools_scm", "pip"),
        ("test_projectbuilder.py", "test_main.py", "test_env.py", "test_util.py"),
        "[uv,virtualenv]",
    ),
    # Newer sdists need a build hook that is not on the index.
    "tox": Suite(
        "tox==4.67.0",
        (
            *("build[virtualenv]", "covdefaults", "coverage", "devpi-process", "distlib", "flaky"),
            *("hatchling", "hatch-vcs", "pdm-backend", "psutil", "re-assert", "setuptools<82"),
            *("time-machine", "wheel", "detect-test-pollution", "docutils"),
        ),
        ("tox_env/python/virtual_env", "tox_env/python/test_python_api.py", "execute"),
    ),
    "pdm": Suite(
        "pdm==2.29.3",  # the last whose own pins can be installed
        ("pytest-httpserver", "pytest-httpx"),
        ("cli/test_build.py", "cli/test_install.py", "models/test_candidates.py", "test_plugin.py"),
        "[pytest,locked]",
    ),
    "poetry": Suite(
        "poetry==2.*",
        ("dulwich", "responses", "jaraco-classes", "pytest-randomly", "psutil"),
        (
            *("installation", "inspection", "masonry", "plugins"),
            *("console/commands/test_build.py", "console/commands/test_install.py"),
        ),
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


def run(python: Path, source: Path, tests: list[str], report: Path, *, locked: bool) -> Outcomes:
    """Run some of its tests; what became of each."""
    options = "-q -p no:randomly -p no:cacheprovider -n 2 --no-cov --timeout 300".split()
    subprocess.run(
        [python, "-m", "pytest", *options, f"--junitxml={report}", *tests],
        cwd=source,
        env={
            **os.environ,
            "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
            "SOURCE_TREE_LOCK_PLUGINS": "1" if locked else "0",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=LIMIT,
    )
    outcomes = {}
    for case in ET.parse(report).iter("testcase"):
        tags = {child.tag for child in case} & {"failure", "error", "skipped"}
        outcomes[f"{case.get('classname')}::{case.get('name')}"] = min(tags, default="passed")
    return outcomes


def run_twice(
    python: Path, source: Path, tests: list[str], reports: Path, *, locked: bool
) -> dict[str, set[str]]:
    """Run some of its tests two times; what became of each."""
    reports.mkdir(parents=True)
    found: dict[str, set[str]] = {}
    for number in range(2):
        report = reports / f"{number}.xml"
        for test, outcome in run(python, source, tests, report, locked=locked).items():
            found.setdefault(test, set()).add(outcome)
    return found


@pytest.mark.parametrize("name", SUITES)
def test_the_lock_changes_no_outcome_of_its_own_suite(name: str, tmp_path: Path) -> None:
    suite = SUITES[name]
    source = unpacked_sdist(suite, tmp_path / "sdist")
    version = source.name.removeprefix(f"{name}-")
    python = frontends.make_environment(
        tmp_path / "environment", f"{name}{suite.extras}=={version}", *_PYTEST, *suite.needs
    )
    frontends.install_this(python, frontends.own_wheels(tmp_path / "wheels"))
    tests = [f"tests/{test}" for test in suite.tests]
    reports = tmp_path / "reports"
    without = run_twice(python, source, tests, reports / "without", locked=False)
    if name in RECIPES:
        [site_packages] = (tmp_path / "environment").glob("lib/python*/site-packages")
        RECIPES[name].apply(site_packages)
    with_lock = run_twice(python, source, tests, reports / "with", locked=True)
    flaky = sorted(test for test, seen in without.items() if len(seen) > 1)
    print(f"{name} {version}: {len(without)} tests, not always alike without the lock: {flaky}")
    for kind, outcomes in (("without", without), ("with", with_lock)):
        print(f"  {kind}: {Counter(' or '.join(sorted(seen)) for seen in outcomes.values())}")
    assert without.keys() == with_lock.keys()
    assert any("passed" in seen for seen in without.values())
    assert {
        test: (without[test], seen) for test, seen in with_lock.items() if seen - without[test]
    } == {}
