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

_OPTIONS = {
    "isolated, without site": ["-I", "-S"],
    "optimised": ["-O"],
    "optimised, without docstrings": ["-OO"],
    "all imports lazy": ["-X", "lazy_imports=all"],
    "threads inherit the context": ["-X", "thread_inherit_context=1"],
    "development mode": ["-X", "dev"],
}
#: The first Python that has the option.
_SINCE = {"all imports lazy": (3, 15), "threads inherit the context": (3, 14)}

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


def _run(options: list[str], script: str, *arguments: object) -> list[str]:
    """The lines that a script tells by a Python with these options, which must end well."""
    command = [sys.executable, *options, "-c", PRELUDE + textwrap.dedent(script)]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(params=_OPTIONS)
def options(request: pytest.FixtureRequest) -> list[str]:
    """The options of a Python, where it has them."""
    since = _SINCE.get(request.param, (3, 10))
    if sys.version_info < since:
        pytest.skip("this option came with Python {}.{}".format(*since))
    return _OPTIONS[request.param]


def test_an_option_of_the_interpreter_changes_nothing_of_the_rules(
    tree: Path, options: list[str]
) -> None:
    script = """
        with source_tree_lock(tree) as lock:
            tell("the tree is", is_free(tree))
            tell("the lock file is", is_free(lock.lock_file))
            tell("the owner", enters(0))
            child = os.fork()
            if not child:
                tell("a forked child", enters(0))
                os._exit(0)
            os.waitpid(child, 0)
            tell("after its end the tree is", is_free(tree))
            tell("another thread", in_a_thread(enters, 0.01))
        tell("left, the tree is", is_free(tree))
    """
    assert _run(options, _START + textwrap.dedent(script), tree, *_PATHS) == [
        "the tree is locked",
        "the lock file is locked",
        "the owner enters",
        "a forked child is kept out",
        "after its end the tree is locked",
        "another thread is kept out",
        "left, the tree is free",
    ]


def test_a_wait_ends_with_the_hold_whatever_the_options(tree: Path, options: list[str]) -> None:
    script = """
        class Holder(threading.Thread):
            def __init__(self):
                super().__init__()
                self.held, self.let_go = threading.Event(), threading.Event()
                self.start()
                self.held.wait()

            def run(self):
                with source_tree_lock(tree):
                    self.held.set()
                    self.let_go.wait()

            def told(self, *_):
                self.let_go.set()

        for name, timeout in ("patient", None), ("bounded", 60):
            holder = Holder()
            with source_tree_lock(tree, timeout=timeout, on_wait=holder.told):
                tell("the", name, "waiter entered")
            holder.join()

        async def task():
            holder = Holder()
            async with source_tree_lock(tree, on_wait=holder.told):
                tell("the task entered")
                tell("a thread of the task", in_a_thread(enters, 0.01))
            holder.join()

        asyncio.run(task())
        tell("left, the tree is", is_free(tree))
    """
    told = _run(options, _START + textwrap.dedent(script), tree, *_PATHS)
    assert told == [
        "the patient waiter entered",
        "the bounded waiter entered",
        "the task entered",
        "a thread of the task is kept out",
        "left, the tree is free",
    ]


def test_a_hold_is_handed_to_a_child_whatever_the_options(tree: Path, options: list[str]) -> None:
    script = """
        code = start + "tell('the child', enters(0))"
        with source_tree_lock(tree) as lock:
            for environ in lock.environ, {}:
                command = [sys.executable, *options, "-c", code, *sys.argv[1:]]
                subprocess.run(command, env={**os.environ, **environ}, check=True)
    """
    known = f"start, options = {PRELUDE + _START!r}, {options!r}\n"
    assert _run(options, _START + known + textwrap.dedent(script), tree, *_PATHS) == [
        "the child enters",
        "the child is kept out",
    ]


def test_a_dropped_lock_is_released_where_warnings_are_errors(tree: Path) -> None:
    script = """
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        import gc
        lock = source_tree_lock(tree)
        lock.acquire()
        del lock
        gc.collect()
        tell("the tree is", is_free(tree))
    """
    told = _run(["-W", "error"], _START + textwrap.dedent(script), tree, *_PATHS)
    assert told == ["the tree is free"]
