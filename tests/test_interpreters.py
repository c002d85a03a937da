"""Interpreters with options that change them, and several interpreters in one process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support import LIMIT, PRELUDE, held_elsewhere

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


# Interpreters of one process. Python 3.14 has a public module for them; older ones have this one.
_INTERPRETERS = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

def create(kind):
    if sys.version_info >= (3, 13):
        return interpreters.create(kind)
    return interpreters.create(isolated=kind == "isolated")

def run(interpreter, code):
    run_it = getattr(interpreters, "exec", None) or interpreters.run_string
    prelude = f"import sys; sys.path[:] = {sys.path}; sys.argv = {sys.argv}" + chr(10)
    failure = run_it(interpreter, prelude + code)
    if failure is not None:
        raise SystemExit(failure.formatted)
"""

#: With the GIL of the process and daemon threads as before, or with neither.
_KINDS = ("legacy", "isolated")


def _run_interpreters(kind: str, script: str, tree: Path) -> list[str]:
    if sys.implementation.name != "cpython":
        pytest.skip("only CPython has several interpreters in a process")
    code = _START + _INTERPRETERS + f"kind = {kind!r}\nstart = {PRELUDE + _START!r}\n"
    return _run([], code + textwrap.dedent(script), tree, *_PATHS)


@pytest.mark.parametrize("kind", _KINDS)
def test_interpreters_of_one_process_keep_each_other_out(tree: Path, kind: str) -> None:
    script = """
        other = create(kind)
        run(other, start)
        run(other, "tell('the other', enters(0))")
        with source_tree_lock(tree):
            run(other, "tell('the other', enters(0))")
        (told, tell_here), (heard, tell_other) = os.pipe(), os.pipe()
        hold = f"with source_tree_lock(tree): os.write({tell_here}, b'held'); os.read({heard}, 1)"
        holder = threading.Thread(target=run, args=(other, hold))
        holder.start()
        os.read(told, 4)
        tell("this one", enters(0))
        os.write(tell_other, b"!")
        holder.join()
        tell("this one", enters(0))
        interpreters.destroy(other)
        tell("after its end, this one", enters(0))
    """
    assert _run_interpreters(kind, script, tree) == [
        "the other enters",
        "the other is kept out",
        "this one is kept out",
        "this one enters",
        "after its end, this one enters",
    ]


@pytest.mark.parametrize("kind", _KINDS)
def test_an_interpreter_that_gave_up_waiting_can_end(tree: Path, kind: str) -> None:
    # A thread that still blocks in the kernel at the end of its interpreter is a fatal error of
    # Python's up to 3.13, which ends the whole process.
    script = """
        other = create(kind)
        run(other, start)
        run(other, "tell('the other', enters(0.5))")  # long enough for a thread to wait
        interpreters.destroy(other)
        tell("it has ended")
    """
    with held_elsewhere(tree):
        assert _run_interpreters(kind, script, tree) == ["the other is kept out", "it has ended"]


@pytest.mark.parametrize("kind", _KINDS)
def test_an_interpreter_that_has_waited_without_a_limit_can_end(tree: Path, kind: str) -> None:
    # The same goes for a thread that looks after the wait.
    script = """
        other = create(kind)
        run(other, start)
        (told, tell_here), (heard, tell_other) = os.pipe(), os.pipe()
        def hold():
            with source_tree_lock(tree):
                os.write(tell_here, b"held")
                os.read(heard, 1)
        holder = threading.Thread(target=hold)
        holder.start()
        os.read(told, 4)
        waits = f"with source_tree_lock(tree, on_wait=lambda _: os.write({tell_other}, b'!')): 0"
        run(other, waits)
        interpreters.destroy(other)
        tell("it has ended")
        holder.join()
    """
    assert _run_interpreters(kind, script, tree) == ["it has ended"]


@pytest.mark.skipif(sys.version_info < (3, 13), reason="Python ends no interpreter with threads")
@pytest.mark.parametrize("kind", _KINDS)
def test_an_interpreter_ends_after_its_threads_have_got_the_lock(tree: Path, kind: str) -> None:
    script = """
        reads, writes = os.pipe()
        other = create(kind)
        run(other, start)
        with source_tree_lock(tree):
            run(other, f'''if True:
                def wait():
                    told = lambda *_: os.write({writes}, b"waits")
                    with source_tree_lock(tree, timeout=60, on_wait=told):
                        tell("its thread entered")
                threading.Thread(target=wait).start()
            ''')
            os.read(reads, 5)
            ends = threading.Thread(target=interpreters.destroy, args=(other,))
            ends.start()
        ends.join()
        tell("it has ended, and this one", enters(0))
    """
    assert _run_interpreters(kind, script, tree) == [
        "its thread entered",
        "it has ended, and this one enters",
    ]


@pytest.mark.parametrize("kind", _KINDS)
def test_what_an_interpreter_holds_is_released_when_it_ends(tree: Path, kind: str) -> None:
    script = """
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # Python may say that a lock was dropped
        other = create(kind)
        run(other, start)
        run(other, "lock = source_tree_lock(tree); lock.acquire()")
        tell("while it holds, this one", enters(0))
        interpreters.destroy(other)
        tell("after its end, this one", enters(0))
    """
    assert _run_interpreters(kind, script, tree) == [
        "while it holds, this one is kept out",
        "after its end, this one enters",
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
