"""Interpreters with options that change how Python runs: the rules stay the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import LIMIT, PRELUDE

import source_tree_lock

pytestmark = pytest.mark.skipif(os.name != "posix", reason="flock(2) tells what is held")

#: And the first Python that has them.
OPTIONS = {
    "-I -S": (3, 10),
    "-OO": (3, 10),
    "-X dev": (3, 10),
    "-X thread_inherit_context=1": (3, 14),
    "-X lazy_imports=all": (3, 15),
}
#: Where modules are found: what -I and -S leave out, in the order of this process.
PATHS = [str(Path(source_tree_lock.__file__).parents[1]), *filter(None, sys.path)]

# They have no assert, which -O takes out: they tell, and the test compares.
START = f"""{PRELUDE}
tree, *paths = sys.argv[1:]
sys.path.extend(paths)
import asyncio, logging, os, subprocess
from concurrent.futures import ThreadPoolExecutor
from source_tree_lock import LockTimeout, source_tree_lock
logging.disable()

def enters(who, timeout=0.01):
    try:
        with source_tree_lock(tree, timeout=timeout):
            tell(who, "enters")
    except LockTimeout:
        tell(who, "is kept out")

def in_a_thread(function, *arguments):
    return other.submit(function, *arguments).result()

other = ThreadPoolExecutor(1)
"""
RULES = """
with source_tree_lock(tree) as lock:
    enters("the same thread")
    child = os.fork()
    if not child:
        enters("a forked child")
        os._exit(0)
    os.waitpid(child, 0)
    in_a_thread(enters, "another thread")
    for environ in lock.environ, {}:
        command = [sys.executable, *options, "-c", start + 'enters("a child")', *sys.argv[1:]]
        subprocess.run(command, env={**os.environ, **environ}, check=True)

async def task():
    async with source_tree_lock(tree, on_wait=lambda _: in_a_thread(lock.release)):
        in_a_thread(enters, "a thread of the task")

in_a_thread(lock.acquire)
with source_tree_lock(tree, on_wait=lambda _: in_a_thread(lock.release)):
    tell("the wait is over")
in_a_thread(lock.acquire)
asyncio.run(task())
"""


def run(options: list[str], script: str, tree: Path) -> list[str]:
    """The lines that a script tells under a Python with these options, which must end well."""
    command = [sys.executable, *options, "-c", script, str(tree), *PATHS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_of_the_interpreter_changes_nothing_of_the_rules(tree: Path, option: str) -> None:
    if sys.version_info < OPTIONS[option]:
        pytest.skip("a later Python has this option")
    known = f"options, start = {option.split()!r}, {START!r}\n"
    assert run(option.split(), START + known + RULES, tree) == [
        "the same thread enters",
        "a forked child is kept out",
        "another thread is kept out",
        "a child enters",
        "a child is kept out",
        "the wait is over",
        "a thread of the task is kept out",
    ]


def test_a_dropped_lock_is_released_where_warnings_are_errors(tree: Path) -> None:
    script = """
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
import gc
lock = source_tree_lock(tree)
lock.acquire()
del lock
gc.collect()
in_a_thread(enters, "another thread")
"""
    assert run(["-W", "error"], START + script, tree) == ["another thread enters"]
