"""A copy of the library below another package, made by `vendoring`, the tool of pip itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from plugins.frontends import make_environment
from support import LIMIT, finish, held_elsewhere, start

pytestmark = [pytest.mark.once, pytest.mark.timeout(600)]
SETTINGS = """\
[tool.vendoring]
destination = "frontend/_vendor/"
requirements = "vendor.txt"
namespace = "frontend._vendor"
protected-files = ["__init__.py"]

[tool.vendoring.transformations]
drop = ["*.dist-info", "bin/", "source_tree_lock/plugins"]
"""
#: No package of the environment is there. Arguments: the directory of the frontend; the tree.
LOCK = """
import sys
sys.path.insert(0, sys.argv[1])
from frontend._vendor.source_tree_lock import LockTimeout, source_tree_lock
from frontend._vendor.source_tree_lock.adapters import is_setuptools, locked_runner
assert is_setuptools(sys.argv[2])
try:
    locked_runner(timeout=0)([sys.executable, "-c", "print('built')"], sys.argv[2])
except LockTimeout as error:
    print(error)
ours = {"source_tree_lock", "portalocker", "typing_extensions", "tomli"}
assert not ours & {name.partition(".")[0] for name in sys.modules}
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="on 3.10 two others are vendored too")
def test_a_vendored_copy_needs_nothing_beside_itself(
    environments: Path, wheels: Path, tmp_path: Path, tree: Path
) -> None:
    python = make_environment(environments / "vendoring", "vendoring")
    vendor = tmp_path / "frontend" / "_vendor"
    vendor.mkdir(parents=True)
    for package in (vendor.parent, vendor):
        (package / "__init__.py").touch()
    (tmp_path / "pyproject.toml").write_text(SETTINGS)
    (tmp_path / "vendor.txt").write_text("source-tree-lock\n")
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    own = str(wheels / "own")
    vendoring = python.parent / "vendoring"
    finish(start(vendoring, "sync", cwd=tmp_path, PATH=path, PIP_FIND_LINKS=own))

    def run() -> str:
        command = [sys.executable, "-I", "-S", "-c", LOCK, str(tmp_path), str(tree)]
        return subprocess.check_output(command, text=True, timeout=LIMIT)

    assert run() == "built\n"
    with held_elsewhere(tree) as holder:
        assert f"(pid {holder.pid})" in run()
