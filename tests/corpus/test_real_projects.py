"""Twenty real projects: the backend makes of each what setuptools makes, and compiles as much."""

from __future__ import annotations

import pytest

from .real_project import OURS, SETUPTOOLS, RealProject

#: With a setup.py alone; with other ways to say what a project is, such as setuptools-scm and pbr;
#: with extensions in C and C++, by Cython (peewee, PyYAML) and by cffi (the last line).
PROJECTS = """
    docopt==0.6.2 ply==3.11 six==1.17.0 sortedcontainers==2.4.0
    cachetools==5.5.0 isodate==0.7.2 tabulate==0.10.0 toolz==0.12.1 stevedore==5.4.0
    MarkupSafe==3.0.2 multidict==6.1.0 setproctitle==1.3.4 simplejson==3.20.1 wrapt==1.17.2
    xxhash==3.5.0 greenlet==3.1.1 peewee==4.5.3 PyYAML==6.0.2
    argon2-cffi-bindings==21.2.0 cmarkgfm==2025.10.22 xattr==1.3.0
""".split()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("requirement", PROJECTS)
def test_the_backend_builds_what_setuptools_builds(project: RealProject, requirement: str) -> None:
    made = []
    for backend in (SETUPTOOLS, OURS):
        project.start_over(backend)
        before = project.git("status", "--porcelain")
        archives = [project.build(backend, hook) for hook in ("build_wheel", "build_sdist")]
        archives.append(project.build(backend))  # out of what the first has left
        if requirement.startswith("PyYAML"):
            # The sdist has the in-tree backend, which is another.
            archives[1] = archives[1]._replace(content=dict.fromkeys(archives[1].content, ""))
        made.append((archives, before, project.git("status", "--porcelain")))
    assert made[1] == made[0]
