"""Twenty real projects: the backend makes of each what setuptools makes, and compiles as much."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Fetch
from .real_project import OURS, SETUPTOOLS, RealProject

PROJECTS = {
    # setup.py alone, and no pyproject.toml
    "docopt==0.6.2": "setup.py",
    "ply==3.11": "setup.py",
    "six==1.17.0": "setup.py",
    "sortedcontainers==2.4.0": "setup.py",
    # other ways to say what a project is
    "cachetools==5.5.0": "setup.cfg",
    "isodate==0.7.2": "setuptools-scm",
    "tabulate==0.10.0": "setuptools-scm",
    "toolz==0.12.1": "versioneer",
    "stevedore==5.4.0": "pbr",
    # extensions
    "MarkupSafe==3.0.2": "C",
    "multidict==6.1.0": "C",
    "setproctitle==1.3.4": "C",
    "simplejson==3.20.1": "C, optional",
    "wrapt==1.17.2": "C, optional",
    "xxhash==3.5.0": "C",
    "greenlet==3.1.1": "C++",
    "peewee==4.5.3": "Cython",
    "PyYAML==6.0.2": "in-tree backend",
    "argon2-cffi-bindings==21.2.0": "cffi, setuptools-scm",
    "cmarkgfm==2025.10.22": "cffi",
    "xattr==1.3.0": "cffi",
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("requirement", [pytest.param(each, id=each) for each in PROJECTS])
def test_the_backend_builds_what_setuptools_builds(
    tmp_path: Path, fetch: Fetch, requirement: str
) -> None:
    project = RealProject(fetch(requirement), tmp_path / "tree", requirement)
    made = []
    for backend in (SETUPTOOLS, OURS):
        project.start_over(backend)
        before = project.git_status()
        archives = [project.build(backend, hook) for hook in ("build_wheel", "build_sdist")]
        archives.append(project.build(backend))  # out of what the first has left
        if "in-tree backend" in PROJECTS[requirement]:
            # The sdist has the backend, which is another.
            archives[1] = archives[1]._replace(content=dict.fromkeys(archives[1].content, ""))
        made.append((archives, before, project.git_status()))
    assert made[1] == made[0]
