"""Holds that are handed to children: locks one level down, in which the children take turns."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support import (
    HOLD,
    LIMIT,
    PRELUDE,
    Child,
    flocked,
    held_by_thread,
    held_elsewhere,
    in_thread,
    is_free,
    is_taken,
    long_after,
    unshared,
    wait_until,
    waiters,
    write_project,
)
from ways import KINDS, script

from source_tree_lock import LockTimeout, LockUnavailable, source_tree_lock

needs_proc_locks = pytest.mark.skipif(
    not os.path.exists("/proc/locks"), reason="asks the kernel who holds a lock"
)
# Elsewhere, the kernel hides locks whose taker has died (fs/locks.c, locks_translate_pid).
needs_first_pid_namespace = pytest.mark.skipif(
    not os.path.exists("/proc/self/ns/pid") or os.stat("/proc/self/ns/pid").st_ino != 0xEFFFFFFC,
    reason="only the first pid namespace sees the locks that the dead have left",
)

VARIABLE = "SOURCE_TREE_LOCK_HELD"
PYTHON = sys.executable

#: Tells whether it gets in at the first attempt. Arguments: the tree.
TRY = """
    import sys
    from source_tree_lock import source_tree_lock
    lock = source_tree_lock(sys.argv[1])
    tell("let in" if lock.acquire(blocking=False) else "kept out")
    heard()
    lock.release()
    tell("left")
    heard()
"""
#: Holds a tree, and tells what hands the hold over. Then it leaves, and may hold the tree again.
HAND_OVER = """
    import json, os, sys
    from source_tree_lock import source_tree_lock
    lock = source_tree_lock(sys.argv[1])
    with lock:
        tell(json.dumps(lock.environ))
        if heard() == "exec":
            os.execvp("sleep", ["sleep", "600"])
    tell("released")
    heard()
    with lock:
        tell("held again")
        heard()
"""
#: Holds a tree and runs a command on behalf of that. Arguments: how, the tree, the command.
FRONTEND = """
import os, subprocess, sys
from types import SimpleNamespace
from source_tree_lock import source_tree_lock
from source_tree_lock.adapters import locked_hooks, locked_runner
how, tree, *command = sys.argv[1:]
if how == "locked_runner":
    locked_runner(when=lambda _: True)(command, tree)
elif how == "locked_hooks":
    hooks = SimpleNamespace(build_wheel=lambda: subprocess.run(command, check=True))
    locked_hooks(hooks, tree, when=lambda _: True).build_wheel()
else:
    with source_tree_lock(tree) as lock:
        passed = lock.pass_fds if how == "pass_fds" else ()
        subprocess.run(command, check=True, env={**os.environ, **lock.environ}, pass_fds=passed)
"""
#: A program that locks a file and runs a command in a directory, as uv does.
FAKE_UV = f"""#!{PYTHON}
import fcntl, os, subprocess, sys
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o666)
fcntl.flock(descriptor, fcntl.LOCK_EX)
sys.exit(subprocess.run(sys.argv[3:], cwd=sys.argv[2]).returncode)
"""
#: Four processes at once, each of which is inside a tree three times, alone: two at once fail by
#: the directory. Arguments: the tree, and a directory.
CREW = """
import os, subprocess, sys, time
from source_tree_lock import source_tree_lock
tree, marks = sys.argv[1:3]
if len(sys.argv) == 3:
    command = sys.orig_argv + ["one"]
    crew = [subprocess.Popen(command, stdin=-1, stdout=-1) for _ in range(4)]
    for each in crew:
        assert each.stdout.readline() == b"ready\\n"
    for each in crew:
        each.stdin.close()  # all go at once
    sys.exit(sum(each.wait() != 0 for each in crew))
print("ready", flush=True)
sys.stdin.read()
for _ in range(3):
    with source_tree_lock(tree, timeout=60), open(f"{marks}/turns", "a") as turns:
        os.mkdir(f"{marks}/inside")
        time.sleep(0.002)
        turns.write("x")
        os.rmdir(f"{marks}/inside")
"""


def is_let_in(tree: Path, environ: dict[str, str], **options: Any) -> bool:
    """Whether a process with these variables gets in at once."""
    with Child(TRY, tree, environ=environ, **options) as child:
        return {"let in": True, "kept out": False}[child.line()]


def lock_file_of(tree: Path) -> Path:
    return source_tree_lock(tree).lock_file


def new_directory(path: Path) -> Path:
    path.mkdir()
    return path


def fake_uv(path: Path) -> str:
    path.write_text(FAKE_UV)
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def outer(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    """A process that holds the tree, and has handed its hold over to this one."""
    with Child(HAND_OVER, tree) as holder:
        monkeypatch.setenv(VARIABLE, json.loads(holder.line())[VARIABLE])
        yield holder


# Children of one hold take turns


def crew(directory: Path, tree: Path) -> list[str]:
    """The command that starts the four processes."""
    return [PYTHON, "-c", CREW, str(tree), str(new_directory(directory / "marks"))]


def turns(directory: Path) -> int:
    """How often they were inside."""
    return len((directory / "marks" / "turns").read_text())


@pytest.mark.parametrize(
    "outermost",
    [
        *("environ", "run, pass_fds, locked_runner"),
        pytest.param("run, env -i, run, env -i", marks=needs_proc_locks),
        pytest.param("uv, environ", marks=needs_proc_locks),
        *long_after(0, ["pass_fds", "locked_runner", "run", "environ, environ"]),
        pytest.param("locked_hooks, env -i", marks=[needs_proc_locks, pytest.mark.long]),
        pytest.param("uv", marks=[needs_proc_locks, pytest.mark.long]),
    ],
)
def test_the_children_of_one_hold_take_turns(outermost: str, tree: Path, tmp_path: Path) -> None:
    variables = [f"{name}={os.environ[name]}" for name in ("PATH", "TMPDIR")]
    steps = {
        "env -i": ["env", "-i", *variables],
        "run": [PYTHON, "-m", "source_tree_lock", "run", str(tree), "--"],
        "uv": [fake_uv(tmp_path / "uv"), str(lock_file_of(tree)), str(tree)],
    }
    command = []
    for each in outermost.split(", "):
        command += steps.get(each, [PYTHON, "-c", FRONTEND, each, str(tree)])
    subprocess.run([*command, *crew(tmp_path, tree)], check=True, timeout=LIMIT)
    assert turns(tmp_path) == 12
    assert is_free(lock_file_of(tree))
    assert is_let_in(tree, {})


UV = "-m uv build -q --wheel --no-build-isolation --offline --no-config --no-cache --python".split()


@needs_proc_locks
@pytest.mark.parametrize("backend", long_after(1, ["setuptools", "source_tree_lock"]))
def test_a_setup_py_below_a_real_uv_takes_the_lock_and_its_children_take_turns(
    tree: Path, tmp_path: Path, backend: str
) -> None:
    takes_the_lock = f"""
import os, subprocess, sys
from source_tree_lock import source_tree_lock
if "bdist_wheel" in sys.argv:
    with source_tree_lock(timeout={LIMIT / 2}) as lock:
        environ = {{**os.environ, **lock.environ}}
        subprocess.run({crew(tmp_path, tree)!r}, check=True, env=environ)
"""
    write_project(tree, takes_the_lock)
    text = (tree / "pyproject.toml").read_text()
    (tree / "pyproject.toml").write_text(text.replace("setuptools.build", f"{backend}.build"))
    subprocess.run([PYTHON, *UV, PYTHON], cwd=tree, check=True, timeout=LIMIT)
    assert turns(tmp_path) == 12


def test_the_threads_and_tasks_of_a_child_take_turns(
    tree: Path, outer: Child, no_leaks: object
) -> None:
    async def is_taken_for_a_task() -> bool:
        lock = source_tree_lock(tree)
        is_entered = lock.acquire(blocking=False)
        if is_entered:
            lock.release()
        return not is_entered

    def look() -> list[bool]:
        return [is_taken(tree), in_thread(lambda: asyncio.run(is_taken_for_a_task()))]

    with source_tree_lock(tree, timeout=LIMIT):
        assert look() == [True, True]
    assert look() == [False, False]


@needs_proc_locks
def test_a_time_limit_and_ctrl_c_end_the_wait_for_a_sibling_and_nobody_elses(
    tree: Path, outer: Child
) -> None:
    inner = lock_file_of(tree).with_suffix(".1.lock")
    with held_elsewhere(tree) as first:
        with pytest.raises(LockTimeout) as caught:
            source_tree_lock(tree, timeout=0.05).acquire()
        assert caught.value.holder is not None
        assert caught.value.holder.pid == first.pid
        with Child(HOLD, tree) as second, Child(HOLD, tree) as third:
            wait_until(lambda: {second.pid, third.pid} <= set(waiters(inner)))
            second.process.send_signal(signal.SIGINT)
            assert second.process.wait(LIMIT) == -signal.SIGINT
            first.say()
            first.expect("released")
            third.expect("held")
    assert not is_let_in(tree, {VARIABLE: ""}), "the outer hold lasts"
    assert is_let_in(tree, {})


# Who is let in


def test_a_child_is_let_in_only_if_the_hold_was_handed_to_it(tree: Path) -> None:
    with source_tree_lock(tree) as lock, Child(TRY, tree, environ=lock.environ) as child:
        assert VARIABLE not in os.environ
        child.expect("let in")
        assert not is_let_in(tree, {})
        child.say()
        child.expect("left")
        assert not is_free(lock.lock_file)
        assert not is_let_in(tree, {})
    assert is_let_in(tree, {})


def test_another_thread_waits_for_a_hold_that_its_own_process_hands_over(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = threading.Event()
    other = source_tree_lock(tree, timeout=LIMIT, on_wait=lambda _: waits.set())
    with ThreadPoolExecutor(1) as pool:
        with source_tree_lock(tree) as lock:
            monkeypatch.setenv(VARIABLE, lock.environ[VARIABLE])  # as the backend does
            entered = pool.submit(other(lambda: "in"))
            assert waits.wait(LIMIT)
            assert is_let_in(tree, {}), "the other thread is in the way of a child"
            assert not entered.done()
        assert entered.result(LIMIT) == "in"


def test_only_a_holder_hands_over(tree: Path) -> None:
    lock = source_tree_lock(tree)
    for attribute in ("environ", "pass_fds"):
        with pytest.raises(RuntimeError, match="only while this thread or task holds it"):
            getattr(lock, attribute)
        with lock:
            getattr(lock, attribute)
            error = in_thread(partial(getattr, lock, attribute))
        assert isinstance(error, RuntimeError)


def test_environ_hands_over_all_holds_of_its_owner_and_what_was_handed_to_it(
    tree: Path, tmp_path: Path
) -> None:
    second, third, other = (new_directory(tmp_path / name) for name in ("2", "3", "other"))
    with (
        source_tree_lock(tree) as lock,
        source_tree_lock(second) as second_lock,
        held_by_thread(other),
    ):
        for environ in (lock.environ, second_lock.environ):
            assert is_let_in(tree, environ)
            assert is_let_in(second, environ)
            assert not is_let_in(other, environ)
        with Child(HAND_OVER, third, environ=lock.environ) as child:
            environ = json.loads(child.line())
            assert all(is_let_in(each, environ) for each in (tree, second, third))


# A hold that is over lets nobody in


def test_a_hold_that_is_over_lets_nobody_into_the_next_one(tree: Path) -> None:
    """Neither into another process's, with or without a record, nor into one of the same."""
    stops_on_its_way_in = """
    from source_tree_lock import _acquire
    is_in_place = _acquire.Entry._is_in_place
    def stop(*what):
        tell("has the kernel locks")
        heard()
        return is_in_place(*what)
    _acquire.Entry._is_in_place = stop
    with lock:
        tell("held again")
    """
    script = HAND_OVER.replace('    with lock:\n        tell("held again")', stops_on_its_way_in)
    with Child(script, tree) as holder:
        environ = json.loads(holder.line())
        holder.say()
        holder.expect("released")
        with held_elsewhere(tree):
            assert not is_let_in(tree, environ)
        with flocked(lock_file_of(tree)):
            assert not is_let_in(tree, environ)
        for words in ("has the kernel locks", "held again"):
            holder.say()
            holder.expect(words)
            assert not is_let_in(tree, environ)


def name_nobody(*identities: object) -> list[None]:
    """What the kernel answers on macOS, and on btrfs and overlays."""
    return [None] * len(identities)


@pytest.mark.parametrize(
    ("end", "kernel_names"),
    [("died", True), ("died", False), pytest.param("exec", True, marks=needs_proc_locks)],
)
def test_a_holder_that_lost_its_lock_is_not_believed(
    tree: Path, outer: Child, end: str, kernel_names: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record is still in the lock file when somebody who writes none takes the lock."""
    if not kernel_names:
        monkeypatch.setattr("source_tree_lock._proc.kernel_holders", name_nobody)
    lock, lock_file = source_tree_lock(tree), lock_file_of(tree)
    with lock:
        pass
    outer.kill() if end == "died" else outer.say("exec")
    wait_until(lambda: is_free(lock_file))
    [entry] = json.loads(os.environ[VARIABLE])
    assert entry["token"] in lock_file.read_text()
    with flocked(lock_file):
        assert not lock.acquire(blocking=False)


#: A hold of a process that has none.
UNTRUE = {"lock_file": "/x", "directory": None, "pid": 1, "token": "t"}
JUNK: list[Any] = [
    *("words", "5", '[5, null, {}, {"tree": 1}]', "[" * 100_000),
    *({"pid": 1}, {"token": "0" * 32}, {"level": 1}),
    *(UNTRUE | {"lock_file": each} for each in ("a\0b", "\ud800", "/dev/null/x", "/" + "x" * 5000)),
    *(UNTRUE | {"lock_file": 5}, UNTRUE | {"lock_file": None, "token": ""}),
    *(UNTRUE | {"level": each} for each in (-1, 10**30)),
    *(UNTRUE | {"token": "", "level": 10**6}, UNTRUE | {"pid": float("inf")}),
    *(UNTRUE | {"tree": [10**40, -1]}, UNTRUE | {"directory": 5}),
]


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: str(junk)[:70])
def test_what_is_not_true_of_a_hold_lets_nobody_in_and_breaks_nothing(
    tree: Path, outer: Child, junk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    [entry] = json.loads(os.environ[VARIABLE])
    text = junk if isinstance(junk, str) else json.dumps([{**entry, **junk}])
    monkeypatch.setenv(VARIABLE, text)
    lock = source_tree_lock(tree, timeout=LIMIT)
    assert not lock.acquire(blocking=False)
    if junk != {"pid": 1}:  # a process that has the token was handed the hold
        with monkeypatch.context() as patch:
            patch.setattr("source_tree_lock._proc.kernel_holders", name_nobody)
            assert not lock.acquire(blocking=False)
    outer.say()
    outer.expect("released")
    with lock:
        assert is_let_in(tree, lock.environ)


# What happens to the lock file, and where the child runs


CHANGES: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "truncated": lambda path: os.truncate(path, 0),
    "written to": lambda path: path.write_text("x"),
    "replaced": lambda path: path.with_name("somebody else's").replace(path),
    "linked": lambda path: os.link(path, path.with_name("another-name")),
}


@needs_proc_locks
@pytest.mark.parametrize("change", CHANGES)
def test_a_handed_hold_is_believed_whatever_becomes_of_the_lock_file(
    change: str, tree: Path
) -> None:
    with source_tree_lock(tree) as lock:
        environ = lock.environ
        lock.lock_file.with_name("somebody else's").write_text("x")
        CHANGES[change](lock.lock_file)
        assert is_let_in(tree, environ)
        assert not is_let_in(tree, {})


@pytest.mark.parametrize(
    "namespaces",
    [
        "",
        "--pid --fork --mount-proc",
        "--mount",
        "--user --map-root-user",
        "--user --map-root-user --mount --pid --fork --mount-proc",
    ],
)
def test_a_handed_hold_is_believed_from_a_namespace_or_with_another_temporary_directory(
    namespaces: str, tree: Path, tmp_path: Path
) -> None:
    prefix = unshared(*namespaces.split()) if namespaces else ()
    environ = {} if namespaces else {"TMPDIR": str(new_directory(tmp_path / "other"))}
    with source_tree_lock(tree) as lock:
        handed = {**lock.environ, **environ}
        assert is_let_in(tree, handed, prefix=prefix)
        assert not is_let_in(tree, environ, prefix=prefix)
        with held_elsewhere(tree, environ=lock.environ):
            assert not is_let_in(tree, handed, prefix=prefix), "siblings take turns"


def test_a_handed_hold_is_believed_where_the_lock_directory_is_a_symbolic_link(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(new_directory(tmp_path / "real"))
    monkeypatch.setenv("SOURCE_TREE_LOCK_DIR", str(tmp_path / "link"))
    with source_tree_lock(tree) as lock:
        assert is_let_in(tree, lock.environ)
        assert not is_let_in(tree, {})


def test_a_child_with_a_temporary_directory_of_its_own_at_the_same_path_is_kept_out(
    tree: Path, outer: Child, temp_dir: Path
) -> None:
    # Siblings would not see each other's lock files there.
    private = ("sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(temp_dir))
    assert not is_let_in(tree, {}, prefix=(*unshared("--mount"), *private))
    assert is_let_in(tree, {})


def test_where_the_levels_lock_file_cannot_be_made_a_child_is_refused(
    tree: Path, outer: Child
) -> None:
    lock_file_of(tree).with_suffix(".1.lock").mkdir()
    with pytest.raises(LockUnavailable, match=r"\.1\.lock"):
        source_tree_lock(tree).acquire(blocking=False)


# When the holder is killed


@pytest.mark.parametrize(("levels", "wait"), [(2, "for ever"), *((1, wait) for wait in KINDS)])
def test_when_a_holder_is_killed_who_is_inside_its_hold_keeps_everybody_out(
    tree: Path, levels: int, wait: str
) -> None:
    """Strangers and siblings, who get in one at a time when it has left."""
    environ: dict[str, str] = {}
    killed = []
    with ExitStack() as stack:
        for _ in range(levels):
            killed.append(stack.enter_context(Child(HAND_OVER, tree, environ=environ)))
            environ = json.loads(killed[-1].line())
        inside = stack.enter_context(held_elsewhere(tree, environ=environ))
        sibling = stack.enter_context(Child(HOLD, tree, environ=environ))
        for each in killed:
            each.kill()
        assert not is_let_in(tree, {})
        assert not is_let_in(tree, environ)
        lock = source_tree_lock(tree)
        assert lock.locked()
        assert not lock.acquire(timeout=0.05)
        stranger = stack.enter_context(Child("tell('starts')" + script(wait), tree))
        stranger.expect("starts")
        assert stranger.is_silent(0.2)
        assert sibling.is_silent(0.1)
        inside.say()
        inside.expect("released")
        wait_until(lambda: sibling.has_told() or stranger.has_told())
        first, second = (sibling, stranger) if sibling.has_told() else (stranger, sibling)
        first.expect("held")
        assert second.is_silent(0.1)
        first.say()
        second.expect("held")
    assert is_let_in(tree, {})


@needs_proc_locks
@needs_first_pid_namespace
def test_a_hook_that_outlives_its_frontend_keeps_everybody_out_and_takes_turns_inside(
    tree: Path,
) -> None:
    """The kernel names the dead frontend as the holder, by the descriptors that the hook has."""
    hook = [PYTHON, "-c", PRELUDE + textwrap.dedent(HAND_OVER), tree]
    lock_file = lock_file_of(tree)
    with Child(FRONTEND, "pass_fds", tree, *hook) as pipes:  # the hook's pipes too
        environ = json.loads(pipes.line())
        pipes.kill()
        for words, is_inside in (("released", False), ("held again", True)):
            assert not is_let_in(tree, {})
            pipes.say()
            pipes.expect(words)
            assert is_let_in(tree, environ) is not is_inside, "siblings take turns"
            assert not is_free(lock_file), "what was inherited is never unlocked"
        assert not is_let_in(tree, {})
        pipes.say()
        wait_until(lambda: is_free(lock_file))


# Below uv, which hands nothing over


@needs_proc_locks
@pytest.mark.parametrize(
    ("name", "directory", "expected"),
    [("uv", "tree", "let in"), ("uv", "temp", "kept out"), ("make", "tree", "kept out")],
)
def test_only_uv_holds_the_tree_for_the_child_that_it_started_there(
    tree: Path, tmp_path: Path, name: str, directory: str, expected: str
) -> None:
    prefix = (fake_uv(tmp_path / name), str(lock_file_of(tree)), str(tmp_path / directory))
    with Child(TRY, tree, prefix=prefix) as child:
        child.expect(expected)
        if expected == "let in":
            # It has the tree itself, which keeps out those who use another lock file.
            assert not is_let_in(tree, {"TMPDIR": str(tmp_path)})
        child.say()
        child.say()


@needs_proc_locks
def test_a_uv_that_dies_during_the_wait_holds_the_tree_for_nobody(
    tree: Path, tmp_path: Path
) -> None:
    lock_file = lock_file_of(tree)
    prefix = (fake_uv(tmp_path / "uv"), str(lock_file), str(tree))
    with (
        held_elsewhere(tree, environ={"TMPDIR": str(tmp_path)}) as stranger,
        Child("\n    import os; tell(os.getpid())" + HOLD, tree, prefix=prefix) as child,
    ):
        pid = int(child.line())
        wait_until(lambda: pid in waiters(tree))
        child.kill()  # uv; the child of ours lives on
        with flocked(lock_file) as second:
            stranger.say()
            stranger.expect("released")
            wait_until(lambda: pid in waiters(lock_file))
            second.say()
            child.expect("held")
            child.say()
            child.expect("released")
