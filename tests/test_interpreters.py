"""Interpreters with options that change how Python runs: the rules stay the same."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support import LIMIT, PRELUDE

import source_tree_lock

pytestmark = pytest.mark.skipif(os.name != "posix", reason="flock(2) tells what is held")

#: And the first Python that has them.
_OPTIONS = {
    "-I -S": (3, 10),
    "-OO": (3, 10),
    "-X dev": (3, 10),
    "-X thread_inherit_context=1": (3, 14),
    "-X lazy_imports=all": (3, 15),
}

#: Where modules are found: what -I and -S leave out, in the order of this process.
_PATHS = [str(Path(source_tree_lock.__file__).parents[1]), *filter(None, sys.path)]

# What a script starts with. It has no assert, which -O takes out: it tells, and the test compares.
_START = """
import sys
tree = sys.argv[1]
sys.path.extend(sys.argv[2:])
import asyncio, fcntl, logging, os, subprocess, threading
logging.disable()
from source_tree_lock import LockTimeout, source_tree_lock

def is_free(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "locked"
    finally:
        os.close(descriptor)
    return "free"

def enters(timeout):
    try:
        with source_tree_lock(tree, timeout=timeout):
            return "enters"
    except LockTimeout:
        return "is kept out"

def in_a_thread(function, *arguments):
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(function(*arguments)))
    thread.start()
    thread.join()
    return outcome[0]
"""


def _run(options: list[str], script: str, tree: Path) -> list[str]:
    """The lines that a script tells by a Python with these options, which must end well."""
    command = [sys.executable, *options, "-c", PRELUDE + _START + textwrap.dedent(script)]
    command += [str(tree), *_PATHS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.fixture(params=_OPTIONS)
def options(request: pytest.FixtureRequest) -> list[str]:
    """The options of a Python, where it has them."""
    if sys.version_info < _OPTIONS[request.param]:
        pytest.skip("a later Python has this option")
    return str(request.param).split()


def test_an_option_of_the_interpreter_changes_nothing_of_the_rules(
    tree: Path, options: list[str]
) -> None:
    script = """
        with source_tree_lock(tree) as lock:
            tell(is_free(tree), is_free(lock.lock_file), enters(0))
            child = os.fork()
            if not child:
                tell("a forked child", enters(0))
                os._exit(0)
            os.waitpid(child, 0)
            tell(is_free(tree))
            tell("another thread", in_a_thread(enters, 0.01))
            for environ in lock.environ, {}:
                command = [sys.executable, *options, "-c", start, *sys.argv[1:]]
                subprocess.run(command, env={**os.environ, **environ}, check=True)
        tell(is_free(tree))
    """
    known = f"options, start = {options!r}, {PRELUDE + _START!r} + 'tell(\"a child\", enters(0))'\n"
    assert _run(options, known + textwrap.dedent(script), tree) == [
        "locked locked enters",
        "a forked child is kept out",
        "locked",
        "another thread is kept out",
        "a child enters",
        "a child is kept out",
        "free",
    ]


def test_a_wait_ends_with_the_hold_whatever_the_options(tree: Path, options: list[str]) -> None:
    script = """
        held, let_go = threading.Event(), threading.Event()
        def hold():
            with source_tree_lock(tree):
                held.set()
                let_go.wait()

        def lock(timeout):
            held.clear()
            let_go.clear()
            threading.Thread(target=hold).start()
            held.wait()
            return source_tree_lock(tree, timeout=timeout, on_wait=lambda _: let_go.set())

        async def task():
            async with lock(60):
                tell("the task entered")
                tell("a thread of the task", in_a_thread(enters, 0.01))

        for timeout in None, 60:
            with lock(timeout):
                tell("timeout", timeout)
        asyncio.run(task())
        tell(is_free(tree))
    """
    told = _run(options, script, tree)
    entered = ["timeout None", "timeout 60", "the task entered"]
    assert told == [*entered, "a thread of the task is kept out", "free"]


def test_a_dropped_lock_is_released_where_warnings_are_errors(tree: Path) -> None:
    script = """
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        import gc
        lock = source_tree_lock(tree)
        lock.acquire()
        del lock
        gc.collect()
        tell(is_free(tree))
    """
    assert _run(["-W", "error"], script, tree) == ["free"]
