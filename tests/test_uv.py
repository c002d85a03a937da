"""uv and the library take the very same lock: each waits for the other. With the real uv."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import LIMIT, Child, uv_build, wait_until, wait_until_blocked, write_project

from source_tree_lock import LockTimeout, source_tree_lock

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="asks /proc/locks; Windows has tests of its own"
)

#: A build that says by a file that it is under way, and waits for the other end of a pipe: `go`.
PAUSE = f"""
import signal, sys
if "bdist_wheel" in sys.argv:
    open("building", "w").close()
    signal.alarm({int(LIMIT)})
    open("go").close()
"""


def test_uv_waits_until_we_let_go(tree: Path) -> None:
    write_project(tree, 'import sys\nif "bdist_wheel" in sys.argv: open("building", "w").close()')
    with source_tree_lock(tree, timeout=0):
        build = uv_build(tree)
        wait_until_blocked(build.pid)
        assert not (tree / "building").exists()
        assert build.poll() is None
    assert build.wait(LIMIT) == 0
    assert list(tree.glob("dist/*.whl"))


def test_while_uv_builds_we_time_out_or_wait_until_it_has_built(
    tree: Path, no_leaks: object
) -> None:
    script = """
        import os
        from source_tree_lock import source_tree_lock
        with source_tree_lock(sys.argv[1]):
            tell(*(name for name in os.listdir(sys.argv[1] + "/dist") if name.endswith(".whl")))
    """
    os.mkfifo(tree / "go")
    write_project(tree, PAUSE)
    with uv_build(tree) as build, ExitStack() as stack:
        wait_until((tree / "building").exists)
        child = stack.enter_context(Child(script, tree))
        wait_until_blocked(child.pid)
        assert not source_tree_lock(tree).acquire(blocking=False)
        with pytest.raises(LockTimeout) as caught:
            source_tree_lock(tree, timeout=0.1).__enter__()
        assert caught.value.holder is not None
        assert (caught.value.holder.pid, caught.value.holder.program) == (build.pid, "uv")
        with pytest.raises(LockTimeout):
            asyncio.run(source_tree_lock(tree, timeout=0.1).__aenter__())
        assert child.is_silent(0)
        assert build.poll() is None
        (tree / "go").open("w").close()
        child.expect("sample-1-py3-none-any.whl")
        assert build.wait(LIMIT) == 0
