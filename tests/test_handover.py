"""Holds that are handed to children: who is let in, and who is not, whatever the variable says."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support import (
    HOLD,
    LIMIT,
    Child,
    held_by_thread,
    held_elsewhere,
    is_free,
    unshared,
    wait_until,
    waiters,
    write_project,
)

from source_tree_lock import LockTimeout, LockUnavailable, _handover, source_tree_lock
from source_tree_lock._handover import VARIABLE, believed_handover
from source_tree_lock._holder.proc_locks import kernel_holder
from source_tree_lock._paths.tree import open_tree

pytestmark = pytest.mark.skipif(os.name != "posix", reason="flock(2) and its descriptors")
needs_proc_locks = pytest.mark.skipif(
    not os.path.exists("/proc/locks"), reason="asks the kernel who holds a lock"
)
# Elsewhere, the kernel hides locks whose taker has died (fs/locks.c, locks_translate_pid).
needs_first_pid_namespace = pytest.mark.skipif(
    not os.path.exists("/proc/self/ns/pid") or os.stat("/proc/self/ns/pid").st_ino != 0xEFFFFFFC,
    reason="only the first pid namespace sees the locks that the dead have left",
)

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
#: Holds a tree, and tells what hands the hold over.
HAND_OVER = """
    import json, os, sys
    from source_tree_lock import source_tree_lock
    with source_tree_lock(sys.argv[1]) as lock:
        tell(json.dumps(lock.environ))
        if heard() == "exec":
            os.execvp("sleep", ["sleep", "600"])
    tell("released")
    heard()
"""
#: Starts the command that it is given with the descriptors of its hold, and waits for it.
FRONTEND = """
    import os, sys
    from source_tree_lock.adapters import locked_runner
    low_numbers = [os.dup(0) for _ in range(50)]  # which a child uses for something else
    locked_runner(when=lambda _: True)(sys.argv[2:], sys.argv[1])
    tell("done")
"""
#: A process that takes one lock, and leaves no record. Arguments: what to lock.
FLOCK = """
    import fcntl, os, sys
    descriptor = os.open(sys.argv[1], os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    tell("locked")
    heard()
"""


@contextmanager
def flocked(path: Path) -> Iterator[Child]:
    with Child(FLOCK, path) as child:
        child.expect("locked")
        yield child


def is_let_in(tree: Path, environ: dict[str, str], **options: object) -> bool:
    """Whether a process with these variables gets in at once."""
    with Child(TRY, tree, environ=environ, **options) as child:  # type: ignore[arg-type]
        answer = child.line()
        assert answer in ("let in", "kept out")
        return answer == "let in"


def lock_file_of(tree: Path) -> Path:
    return source_tree_lock(tree).lock_file


def entry_of(environ: dict[str, str]) -> dict[str, object]:
    """The one hold that is handed down."""
    [entry] = json.loads(environ[VARIABLE])
    assert isinstance(entry, dict)
    return entry


def environ_of(*entries: dict[str, object]) -> dict[str, str]:
    return {VARIABLE: json.dumps(entries)}


# Who is let in


def test_a_child_that_was_handed_the_hold_is_let_in(tree: Path) -> None:
    with source_tree_lock(tree) as lock, Child(TRY, tree, environ=lock.environ) as child:
        child.expect("let in")
        child.say()
        child.expect("left")
        assert not is_free(lock.lock_file)


def test_a_child_that_was_not_handed_the_hold_is_kept_out(tree: Path) -> None:
    with source_tree_lock(tree) as lock:
        assert lock.environ
        assert VARIABLE not in os.environ
        assert not is_let_in(tree, {})
    assert is_let_in(tree, {})


def test_only_a_holder_hands_over(tree: Path) -> None:
    lock = source_tree_lock(tree)
    with pytest.raises(RuntimeError, match="only while this thread or task holds it"):
        _ = lock.environ
    with lock:
        complaints: list[RuntimeError] = []

        def ask() -> None:
            try:
                _ = lock.environ
            except RuntimeError as error:
                complaints.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(LIMIT)
        assert len(complaints) == 1


def test_a_grandchild_is_let_in_by_what_it_inherits(tree: Path) -> None:
    script = f"""
    import os, subprocess, sys
    from source_tree_lock import source_tree_lock
    enter = "from source_tree_lock import *; print(source_tree_lock(%r).acquire(blocking=False))"
    command = [sys.executable, "-c", enter % {str(tree)!r}]
    tell(subprocess.check_output(command, text=True).strip())
    with source_tree_lock({str(tree)!r}) as lock:
        environ = {{**os.environ, **lock.environ}}
        tell(subprocess.check_output(command, text=True, env=environ).strip())
    """
    with source_tree_lock(tree) as lock, Child(script, environ=lock.environ) as child:
        child.expect("True")
        child.expect("True")


def test_a_child_with_another_temporary_directory_is_let_in(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    elsewhere = {"TMPDIR": str(tmp_path / "other")}
    with source_tree_lock(tree) as lock:
        assert is_let_in(tree, {**lock.environ, **elsewhere})
        assert not is_let_in(tree, elsewhere)


def test_a_task_of_a_child_is_let_in(
    tree: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    async def enter() -> None:
        async with source_tree_lock(tree, timeout=LIMIT) as lock:
            assert lock.locked()

    with Child(HAND_OVER, tree) as writer:
        monkeypatch.setenv(VARIABLE, json.loads(writer.line())[VARIABLE])
        asyncio.run(enter())


def test_a_nested_hold_hands_down_its_parents_too(tree: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    with source_tree_lock(tree) as lock, Child(HAND_OVER, inner, environ=lock.environ) as child:
        environ = json.loads(child.line())
        assert is_let_in(tree, environ)
        assert is_let_in(inner, environ)


def test_two_holds_of_one_owner_are_handed_over_together(tree: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    with source_tree_lock(tree) as outer_lock, source_tree_lock(inner) as inner_lock:
        for environ in (
            {**outer_lock.environ, **inner_lock.environ},
            {**inner_lock.environ, **outer_lock.environ},
        ):
            assert is_let_in(tree, environ)
            assert is_let_in(inner, environ)


def test_a_hold_of_another_thread_is_not_handed_over(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with held_by_thread(other), source_tree_lock(tree) as lock:
        assert not is_let_in(other, lock.environ)


def test_two_threads_of_a_child_keep_each_other_out(
    tree: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    seen: list[bool] = []

    def try_to_enter() -> None:
        lock = source_tree_lock(tree)
        seen.append(lock.acquire(blocking=False))
        if seen[-1]:
            lock.release()

    with Child(HAND_OVER, tree) as writer:
        monkeypatch.setenv(VARIABLE, json.loads(writer.line())[VARIABLE])
        with source_tree_lock(tree, timeout=LIMIT):
            inside = threading.Thread(target=try_to_enter)
            inside.start()
            inside.join(LIMIT)
        after = threading.Thread(target=try_to_enter)
        after.start()
        after.join(LIMIT)
    assert seen == [False, True]


def test_a_child_whose_parent_has_released_takes_the_lock_itself(tree: Path) -> None:
    with source_tree_lock(tree) as lock:
        environ, lock_file = lock.environ, lock.lock_file
    with Child(TRY, tree, environ=environ) as child:
        child.expect("let in")
        assert not is_free(lock_file)
        assert not is_let_in(tree, {})


# Who is not: what the environment says must still be true


def test_an_entry_planted_for_a_tree_that_somebody_else_holds_lets_nobody_in(tree: Path) -> None:
    with source_tree_lock(tree) as lock:
        planted = entry_of(lock.environ)  # with the right token
        assert not is_let_in(tree, environ_of({**planted, "pid": os.getppid()}))


def test_where_the_kernel_names_nobody_a_forged_token_is_not_believed(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("source_tree_lock._handover.kernel_holder", lambda _: None)
    with Child(HAND_OVER, tree) as writer:
        entry = entry_of(json.loads(writer.line()))
        monkeypatch.setenv(VARIABLE, environ_of({**entry, "token": "0" * 32})[VARIABLE])
        assert not source_tree_lock(tree).acquire(blocking=False)


def test_a_hold_of_another_tree_is_none_of_this_one(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with source_tree_lock(tree) as lock, held_elsewhere(other):
        assert not is_let_in(other, lock.environ)


def test_a_hold_that_was_released_lets_nobody_in_while_somebody_else_holds(tree: Path) -> None:
    with source_tree_lock(tree) as lock:
        environ, lock_file = lock.environ, lock.lock_file
    with held_elsewhere(tree):
        assert not is_let_in(tree, environ)
    with flocked(lock_file):
        assert not is_let_in(tree, environ)


@pytest.mark.parametrize("end", ["died", pytest.param("exec", marks=needs_proc_locks)])
def test_a_writer_that_lost_the_lock_is_not_believed(tree: Path, end: str) -> None:
    """It leaves its record in the lock file, and somebody who writes none takes the lock."""
    lock_file = lock_file_of(tree)
    with Child(HAND_OVER, tree) as writer:
        environ = json.loads(writer.line())
        if end == "died":
            writer.kill()
        else:
            writer.say("exec")
        wait_until(lambda: is_free(lock_file))
        assert str(entry_of(environ)["token"]) in lock_file.read_text()
        with flocked(lock_file):
            assert not is_let_in(tree, environ)


def test_a_writer_that_lost_the_lock_is_not_believed_from_elsewhere_either(
    tree: Path, tmp_path: Path
) -> None:
    """Its lock file is free, and somebody else holds the tree by way of another one."""
    directories = [tmp_path / name for name in ("second", "third")]
    for directory in directories:
        directory.mkdir()
    with ExitStack() as stack:
        writer = stack.enter_context(Child(HAND_OVER, tree))
        environ = json.loads(writer.line())
        writer.say("exec")
        wait_until(lambda: is_free(lock_file_of(tree)))
        second, third = ({"TMPDIR": str(directory)} for directory in directories)
        stack.enter_context(held_elsewhere(tree, environ=second))
        assert not is_let_in(tree, {**environ, **third})


@needs_proc_locks
def test_a_writer_whom_the_kernel_does_not_name_is_not_believed(tree: Path) -> None:
    with source_tree_lock(tree) as lock:
        assert not is_let_in(tree, environ_of({**entry_of(lock.environ), "pid": os.getppid()}))


@pytest.mark.parametrize(
    ("what", "expected"),
    [("alive", True), ("dead", False), ("host", True), ("pids", True), ("boot", False)],
)
def test_where_the_kernel_names_nobody_the_record_must_be_the_writers_under_this_kernel(
    tree: Path, monkeypatch: pytest.MonkeyPatch, what: str, expected: bool
) -> None:
    monkeypatch.setattr("source_tree_lock._handover.kernel_holder", lambda _: None)
    lock_file = lock_file_of(tree)
    with ExitStack() as stack:
        writer = stack.enter_context(Child(HAND_OVER, tree))
        monkeypatch.setenv(VARIABLE, json.loads(writer.line())[VARIABLE])
        record = json.loads(lock_file.read_text())
        if what == "dead":
            writer.kill()
            stack.enter_context(flocked(lock_file))
        elif what == "host":
            lock_file.write_text(json.dumps({**record, "host": "another"}))
        elif what == "pids":
            lock_file.write_text(json.dumps({**record, "pid_namespace": 1}))
        elif what == "boot":
            lock_file.write_text(json.dumps({**record, "boot": "another"}))
        lock = source_tree_lock(tree)
        assert lock.acquire(blocking=False) is expected
        if expected:
            lock.release()


LOOKS_GOOD = {"lock_file": "/x", "pid": 1, "pid_namespace": 1, "token": "t", "descriptors": []}


@pytest.mark.parametrize(
    "nonsense",
    [
        "words",
        "5",
        "[5]",
        "[{}]",
        "[" * 100_000,
        {"lock_file": "a\0b"},
        {"lock_file": "\ud800", "descriptors": [0]},
        {"lock_file": "/dev/null/x", "descriptors": [10**20]},
        {"lock_file": "/" + "x" * 5000, "descriptors": [-7, 10**6]},
        {"lock_file": 5},
        {"pid": float("inf")},
        {"descriptors": "12"},
    ],
    ids=lambda nonsense: str(nonsense)[:40].replace("\0", "NUL"),
)
def test_nonsense_in_the_environment_lets_nobody_in_and_breaks_nothing(
    tree: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object, nonsense: object
) -> None:
    if isinstance(nonsense, dict):
        status = tree.stat()
        entry = {**LOOKS_GOOD, "tree": [status.st_dev, status.st_ino], **nonsense}
        nonsense = json.dumps([entry])
    monkeypatch.setenv(VARIABLE, str(nonsense))
    with held_elsewhere(tree) as child:
        assert not source_tree_lock(tree).acquire(blocking=False)
        child.say()
        child.expect("released")
    with source_tree_lock(tree, timeout=LIMIT) as lock:
        assert is_let_in(tree, lock.environ)


# Inherited descriptors


def hook(script: str, tree: Path) -> list[str]:
    """A command that talks to the test through the pipes of its frontend."""
    # A line is written at once: two processes tell by one pipe. `print` writes its end apart, where
    # PYTHONUNBUFFERED is set.
    prelude = (
        "import sys\ndef tell(x): sys.stdout.write(f'{x}\\n'); sys.stdout.flush()\n"
        "def heard(): input()\n"
    )
    enter = "from source_tree_lock import source_tree_lock as lock\n"
    return [sys.executable, "-c", prelude + enter + script, str(tree)]


@contextmanager
def orphan(tree: Path, script: str) -> Iterator[Child]:
    """A hook whose frontend, which held the tree, was killed. It tells when it is there."""
    with Child(FRONTEND, tree, *hook('tell("here"); heard()\n' + script, tree)) as frontend:
        frontend.expect("here")
        os.kill(frontend.pid, signal.SIGKILL)
        frontend.process.wait(LIMIT)
        yield frontend


def test_a_hook_that_outlives_its_frontend_keeps_everybody_out(tree: Path) -> None:
    lock_file = lock_file_of(tree)
    with orphan(tree, 'tell("writing"); heard()') as frontend:
        frontend.say()
        frontend.expect("writing")
        assert not is_let_in(tree, {})
        assert not is_free(lock_file)
        frontend.say()
        wait_until(lambda: is_free(lock_file))
        assert is_let_in(tree, {})


def test_an_orphaned_hook_does_not_wait_for_itself(tree: Path) -> None:
    """By its descriptors alone: with two names, the lock file carries no record."""
    lock_file = lock_file_of(tree)
    lock_file.touch()
    os.link(lock_file, lock_file.with_name("another-name"))
    enters = """
for _ in range(2):
    with lock(sys.argv[1]):
        tell("inside"); heard()
    tell("outside"); heard()
"""
    with orphan(tree, enters) as frontend:
        assert lock_file.read_bytes() == b""
        for words in ("inside", "outside", "inside", "outside"):
            frontend.say()
            frontend.expect(words)
            assert not is_free(lock_file)  # what was inherited is never unlocked
            assert not is_let_in(tree, {})
        frontend.say()
        wait_until(lambda: is_free(lock_file))


@needs_proc_locks
@needs_first_pid_namespace
def test_a_child_of_an_orphaned_hook_is_let_in_by_its_token(tree: Path) -> None:
    """The kernel names the dead frontend as the holder; the descriptors were not inherited."""
    enters = """
import subprocess
code = "from source_tree_lock import *; print(source_tree_lock('.').acquire(blocking=False))"
tell(subprocess.check_output([sys.executable, "-c", code], text=True).strip())
"""
    with orphan(tree, enters) as frontend:
        frontend.say()
        frontend.expect("True")


def test_a_hook_is_let_in_even_if_its_lock_file_was_deleted(tree: Path) -> None:
    lock_file = lock_file_of(tree)
    enters = 'heard()\nwith lock(sys.argv[1]): tell("inside")'
    with Child(FRONTEND, tree, *hook('tell("here")\n' + enters, tree)) as frontend:
        frontend.expect("here")
        lock_file.unlink()
        frontend.say()
        frontend.expect("inside")
        frontend.expect("done")


def test_a_hold_that_no_child_could_believe_is_not_handed_over_without_descriptors(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be written down, and the kernel names nobody, as on an overlay."""
    monkeypatch.setattr("source_tree_lock._handover.kernel_holder", lambda _: None)
    lock_file = lock_file_of(tree)
    lock_file.touch()
    os.link(lock_file, lock_file.with_name("another-name"))
    with source_tree_lock(tree) as lock, pytest.raises(LockUnavailable, match="handed over"):
        _ = lock.environ


def test_descriptors_that_lead_elsewhere_are_not_the_hold(tree: Path, tmp_path: Path) -> None:
    """They are inherited and locked, and the variable says that they are this tree's."""
    other = tmp_path / "other"
    other.mkdir()
    forges = f"""
import json, os
tree = os.stat(sys.argv[1])
[entry] = json.loads(os.environ[{VARIABLE!r}])
entry.update(tree=[tree.st_dev, tree.st_ino], lock_file=str(lock(sys.argv[1]).lock_file))
os.environ[{VARIABLE!r}] = json.dumps([entry])
tell(lock(sys.argv[1]).acquire(blocking=False))
"""
    with held_elsewhere(tree), Child(FRONTEND, other, *hook(forges, tree)) as frontend:
        frontend.expect("False")
        frontend.expect("done")


@pytest.fixture
def stale(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The environment hands down a hold that is over, with descriptors that lead to these paths."""
    with source_tree_lock(tree) as lock:
        entry, paths = entry_of(lock.environ), [lock.lock_file, tree]
    entry["descriptors"] = descriptors = [os.open(path, os.O_RDONLY) for path in paths]
    monkeypatch.setenv(VARIABLE, environ_of(entry)[VARIABLE])
    yield paths
    for descriptor in descriptors:
        os.close(descriptor)


@needs_proc_locks
def test_descriptors_of_a_hold_that_is_over_lock_nothing(tree: Path, stale: list[Path]) -> None:
    """Nobody would ever unlock what a stray process took by them, and so keep for its life."""
    assert believed_handover(open_tree(tree)) is None
    assert all(is_free(path) for path in stale)


def test_where_nobody_tells_who_holds_the_descriptors_of_a_hold_that_is_over_lock_nothing(
    tree: Path, stale: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an overlay: by then, somebody has the tree through another lock file."""
    monkeypatch.setattr(_handover, "kernel_holder", lambda identity: None)
    with flocked(tree):
        assert believed_handover(open_tree(tree)) is None
        assert is_free(stale[0])


def test_a_stray_child_with_descriptors_keeps_nothing_locked(tree: Path) -> None:
    stray = (
        f"import subprocess\nsubprocess.Popen({hook('tell(1); heard()', tree)}, close_fds=False)"
    )
    with Child(FRONTEND, tree, *hook(stray, tree)) as frontend:
        assert {frontend.line(), frontend.line()} == {"1", "done"}
        assert is_let_in(tree, {})
        assert is_free(lock_file_of(tree))


def test_a_frontend_below_a_hook_hands_the_hold_on(tree: Path) -> None:
    """It inherited no descriptors, only what the environment says of them."""
    innermost = hook('with lock(sys.argv[1]): tell("inside")', tree)
    middle = f"""
from source_tree_lock.adapters import locked_runner
locked_runner(when=lambda _: True)({innermost!r}, sys.argv[1])
"""
    outer = f"import subprocess\nsubprocess.run({hook(middle, tree)!r}, check=True)"
    with Child(FRONTEND, tree, *hook(outer, tree)) as frontend:
        frontend.expect("inside")
        frontend.expect("done")


def test_an_orphan_below_two_frontends_keeps_both_trees_locked(tree: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    nested = f"""
from source_tree_lock.adapters import locked_runner
import os
tell(os.getpid())
locked_runner(when=lambda _: True)({hook('tell("writing"); heard()', inner)!r}, {str(inner)!r})
"""
    with Child(FRONTEND, tree, *hook(nested, tree)) as frontend:
        middle = int(frontend.line())
        frontend.expect("writing")
        frontend.kill()
        os.kill(middle, signal.SIGKILL)
        assert not is_let_in(inner, {})
        assert not is_let_in(tree, {})
        frontend.say()
        wait_until(lambda: is_free(lock_file_of(tree)) and is_free(lock_file_of(inner)))


# Below uv, which hands nothing over


def fake_uv(directory: Path, name: str) -> Path:
    """A program of this name that locks a file and runs a command in a directory, as uv does."""
    program = directory / name
    program.write_text(
        f"#!{sys.executable}\n"
        "import fcntl, os, subprocess, sys\n"
        "descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o666)\n"
        "fcntl.flock(descriptor, fcntl.LOCK_EX)\n"
        "subprocess.run(sys.argv[3:], cwd=sys.argv[2])\n"
    )
    program.chmod(0o755)
    return program


@needs_proc_locks
@pytest.mark.parametrize(
    ("name", "directory", "expected"),
    [("uv", "tree", "let in"), ("uv", "temp", "kept out"), ("make", "tree", "kept out")],
)
def test_only_uv_holds_the_tree_for_the_child_that_it_started_there(
    tree: Path, tmp_path: Path, name: str, directory: str, expected: str
) -> None:
    program = fake_uv(tmp_path, name)
    prefix = (str(program), str(lock_file_of(tree)), str(tmp_path / directory))
    with Child(TRY, tree, prefix=prefix) as child:
        child.expect(expected)
        if expected == "let in":
            # It has the tree itself, which keeps out whoever uses another lock file.
            assert not is_let_in(tree, {"TMPDIR": str(tmp_path)})
        child.say()
        child.say()


@needs_proc_locks
def test_a_uv_that_dies_during_the_wait_holds_the_tree_for_nobody(
    tree: Path, tmp_path: Path
) -> None:
    lock_file = lock_file_of(tree)
    prefix = (str(fake_uv(tmp_path, "uv")), str(lock_file), str(tree))
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


# A setup.py that takes the lock

TAKES_THE_LOCK = f"""
from source_tree_lock import source_tree_lock
with source_tree_lock(timeout={LIMIT / 2}) as lock:
    assert lock.locked()
"""
PYTHON = [sys.executable, "-m"]
BUILD = [*PYTHON, "build", "-nx", "--wheel"]
UV = "uv build -q --wheel --no-build-isolation --offline --no-config --no-cache --python".split()
FRONTENDS = {
    "pip": [*PYTHON, *"pip wheel -q --no-build-isolation --no-deps -w dist .".split()],
    "build": BUILD,
    "uv": [*PYTHON, *UV, sys.executable],
    "source-tree-lock run": [*PYTHON, "source_tree_lock", "run", ".", "--", *BUILD],
}


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_a_setup_py_that_takes_the_lock_builds(tree: Path, frontend: str) -> None:
    write_project(tree, TAKES_THE_LOCK)
    subprocess.run(FRONTENDS[frontend], cwd=tree, check=True, timeout=LIMIT)
    assert [path.name for path in (tree / "dist").glob("*.whl")] == ["sample-1-py3-none-any.whl"]


def test_numbers_of_a_hold_that_is_over_do_not_touch_what_has_them_now(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What closes inherited descriptors frees their numbers, and we open ours next."""
    other = tmp_path / "other"
    other.mkdir()
    passed: list[list[int]] = []

    def stranger() -> None:
        assert not source_tree_lock(tree).acquire(blocking=False)
        with source_tree_lock(other) as lock:
            passed.append(lock._hand_over(with_descriptors=True)[1])

    with source_tree_lock(tree) as lock:
        environ, ours = lock._hand_over(with_descriptors=True)
        [entry] = json.loads(environ[VARIABLE])
        assert entry["descriptors"] == ours
        monkeypatch.setenv(VARIABLE, json.dumps([{**entry, "token": "of a hold that is over"}]))
        thread = threading.Thread(target=stranger)
        thread.start()
        thread.join(LIMIT)
        assert not is_free(lock.lock_file)
        assert not is_free(tree)
    [descriptors] = passed
    assert len(descriptors) == 2
    assert not set(descriptors) & set(ours)


# The kernel's list of locks

#: Locks and unlocks a hundred files, over and over. Arguments: a directory.
CHURN = """
    import fcntl, os, sys
    names = [os.path.join(sys.argv[1], str(number)) for number in range(100)]
    descriptors = [os.open(name, os.O_RDWR | os.O_CREAT) for name in names]
    tell("ready")
    while True:
        for change in (fcntl.LOCK_EX, fcntl.LOCK_UN):
            for descriptor in descriptors:
                fcntl.flock(descriptor, change)
"""


@needs_proc_locks
def test_no_holder_is_overlooked_while_others_lock_and_unlock(tree: Path, tmp_path: Path) -> None:
    """A child that is not believed once would wait for its own parent, for ever."""
    with source_tree_lock(tree) as lock, Child(CHURN, tmp_path) as churn:
        churn.expect("ready")
        status = lock.lock_file.stat()
        identity = (status.st_dev, status.st_ino)
        assert {kernel_holder(identity) for _ in range(1000)} == {os.getpid()}


# The kernel names the writer as the holder of the tree, whatever becomes of the lock file


def delete(lock_file: Path) -> None:
    lock_file.unlink()


def truncate(lock_file: Path) -> None:
    os.truncate(lock_file, 0)


def write_a_byte(lock_file: Path) -> None:
    with lock_file.open("r+") as file:
        file.write("x")


def replace(lock_file: Path) -> None:
    lock_file.unlink()
    lock_file.write_text("somebody else's")


@needs_proc_locks
@pytest.mark.parametrize("change", [delete, truncate, write_a_byte, replace])
def test_a_handed_hold_is_believed_whatever_becomes_of_the_lock_file(
    change: Callable[[Path], None], tree: Path
) -> None:
    with source_tree_lock(tree) as lock:
        environ = lock.environ
        change(lock.lock_file)
        assert is_let_in(tree, environ)
        assert not is_let_in(tree, {})


@pytest.mark.parametrize(
    "options",
    [
        ("--pid", "--fork", "--mount-proc"),
        ("--mount",),
        ("--user", "--map-root-user"),
        ("--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc"),
    ],
    ids=" ".join,
)
def test_a_handed_hold_is_believed_from_a_namespace(options: tuple[str, ...], tree: Path) -> None:
    prefix = unshared(*options)
    with source_tree_lock(tree) as lock:
        assert is_let_in(tree, lock.environ, prefix=prefix)
        assert not is_let_in(tree, {}, prefix=prefix)


@pytest.mark.parametrize(
    "nonsense",
    [
        "no JSON",
        "17",
        '[17, null, {}, {"tree": 1}]',
        '[{"tree": [@], "lock_file": "\\u0000", "pid": 1, "descriptors": []}]',
        '[{"tree": [@], "lock_file": "\\ud800", "pid": 1, "descriptors": [3]}]',
        '[{"tree": [@], "lock_file": 17, "pid": Infinity, "descriptors": [1e300]}]',
        '[{"tree": [@], "lock_file": "/", "pid": 1, "descriptors": [99999999999999999999, -1]}]',
    ],
)
def test_nonsense_in_the_environment_hands_nothing_over_and_disturbs_nobody(
    nonsense: str, tree: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    status = tree.stat()
    nonsense = nonsense.replace("@", f"{status.st_dev}, {status.st_ino}")
    nonsense = nonsense.replace("}", ', "pid_namespace": 0, "token": "x"}')
    monkeypatch.setenv("SOURCE_TREE_LOCK_HELD", nonsense)
    with held_elsewhere(tree) as child:
        assert not source_tree_lock(tree).acquire(blocking=False)
        with pytest.raises(LockTimeout):
            source_tree_lock(tree, timeout=0.01).__enter__()
        child.say()
        child.expect("released")
        with source_tree_lock(tree, timeout=LIMIT):
            pass
