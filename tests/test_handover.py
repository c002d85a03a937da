"""Holds that are handed to children: locks one level down, in which the children take turns."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from support import (
    HOLD,
    LIMIT,
    Child,
    flocked,
    held_by_thread,
    held_elsewhere,
    in_thread,
    is_free,
    is_taken,
    unshared,
    wait_until,
    waiters,
    write_project,
)

from source_tree_lock import LockUnavailable, source_tree_lock

pytestmark = pytest.mark.skipif(os.name != "posix", reason="flock(2) and its descriptors")
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
        environ = {**os.environ, **lock.environ}
        subprocess.run(command, check=True, env=environ, pass_fds=passed)
print("done", flush=True)
"""
#: A program that locks a file and runs a command in a directory, as uv does.
FAKE_UV = f"""#!{PYTHON}
import fcntl, os, subprocess, sys
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o666)
fcntl.flock(descriptor, fcntl.LOCK_EX)
sys.exit(subprocess.run(sys.argv[3:], cwd=sys.argv[2]).returncode)
"""
#: Four processes at once, each of which is inside a tree three times, alone: two at once fail by
#: the marker, and lose a count. Arguments: the tree, and a directory with a file `turns`.
CREW = """
import os, subprocess, sys, time
tree, marks = sys.argv[1:3]
if len(sys.argv) == 3:
    command = sys.orig_argv + ["one"]
    crew = [subprocess.Popen(command, stdin=-1, stdout=-1) for _ in range(4)]
    for each in crew:
        assert each.stdout.readline() == b"ready\\n"
    for each in crew:
        each.stdin.close()  # all go at once
    sys.exit(sum(each.wait() != 0 for each in crew))
from source_tree_lock import source_tree_lock
print("ready", flush=True)
sys.stdin.read()
for _ in range(3):
    with source_tree_lock(tree, timeout=60):
        os.close(os.open(f"{marks}/inside", os.O_CREAT | os.O_EXCL))
        with open(f"{marks}/turns", "r+") as file:
            turns = int(file.read())
            time.sleep(0.002)
            file.seek(0)
            file.write(str(turns + 1))
        os.unlink(f"{marks}/inside")
"""


def is_let_in(tree: Path, environ: dict[str, str], **options: object) -> bool:
    """Whether a process with these variables gets in at once."""
    with Child(TRY, tree, environ=environ, **options) as child:  # type: ignore[arg-type]
        answer = child.line()
        assert answer in ("let in", "kept out")
        return answer == "let in"


def lock_file_of(tree: Path) -> Path:
    return source_tree_lock(tree).lock_file


def new_directory(path: Path) -> Path:
    path.mkdir()
    return path


def fake_uv(path: Path) -> str:
    path.write_text(FAKE_UV)
    path.chmod(0o755)
    return str(path)


def entry_of(environ: dict[str, str]) -> dict[str, object]:
    """The one hold that is handed over."""
    [entry] = json.loads(environ[VARIABLE])
    assert isinstance(entry, dict)
    return entry


# Children of one hold take turns


def crew(directory: Path, tree: Path) -> list[str]:
    """The command that starts the four processes."""
    marks = new_directory(directory / "marks")
    (marks / "turns").write_text("0")
    return [PYTHON, "-c", CREW, str(tree), str(marks)]


def turns(directory: Path) -> int:
    """How often they were inside."""
    return int((directory / "marks" / "turns").read_text())


@pytest.mark.parametrize(
    "outer",
    [
        "environ",
        "pass_fds",
        "locked_runner",
        "locked_hooks",
        "run",
        "environ, environ",
        "run, pass_fds, locked_runner",
        pytest.param("run, env -i", marks=needs_proc_locks),
        pytest.param("locked_hooks, env -i", marks=needs_proc_locks),
        pytest.param("run, env -i, run, env -i", marks=needs_proc_locks),
        pytest.param("uv", marks=needs_proc_locks),
        pytest.param("uv, environ", marks=needs_proc_locks),
    ],
)
def test_the_children_of_one_hold_take_turns(outer: str, tree: Path, tmp_path: Path) -> None:
    variables = [f"{name}={os.environ[name]}" for name in ("PATH", "TMPDIR")]
    steps = {
        "env -i": ["env", "-i", *variables],
        "run": [PYTHON, "-m", "source_tree_lock", "run", str(tree), "--"],
        "uv": [fake_uv(tmp_path / "uv"), str(lock_file_of(tree)), str(tree)],
    }
    command = []
    for each in outer.split(", "):
        command += steps.get(each, [PYTHON, "-c", FRONTEND, each, str(tree)])
    subprocess.run([*command, *crew(tmp_path, tree)], check=True, timeout=LIMIT)
    assert turns(tmp_path) == 12
    assert is_free(lock_file_of(tree))
    assert is_let_in(tree, {})


BUILD = [PYTHON, *"-m build -nx --wheel".split()]
UV = "-m uv build -q --wheel --no-build-isolation --offline --no-config --no-cache --python".split()
RUN = [PYTHON, *"-m source_tree_lock run . --".split()]
PIP = [PYTHON, *"-m pip wheel -q --no-build-isolation --no-deps -w dist .".split()]


@pytest.mark.parametrize(
    ("frontend", "backend"),
    [
        pytest.param(BUILD, "setuptools", id="build"),
        pytest.param(PIP, "source_tree_lock", id="pip, our backend"),
        pytest.param([PYTHON, *UV, PYTHON], "setuptools", id="uv"),
        pytest.param([PYTHON, *UV, PYTHON], "source_tree_lock", id="uv, our backend"),
        pytest.param([*RUN, "env", "-i", *BUILD], "source_tree_lock", id="run, env -i"),
    ],
)
def test_a_setup_py_takes_the_lock_and_its_children_take_turns(
    tree: Path, tmp_path: Path, frontend: list[str], backend: str
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
    project = tree / "pyproject.toml"
    project.write_text(
        project.read_text().replace("setuptools.build_meta", backend + ".build_meta")
    )
    subprocess.run(frontend, cwd=tree, check=True, timeout=LIMIT)
    assert [path.name for path in (tree / "dist").glob("*.whl")] == ["sample-1-py3-none-any.whl"]
    assert turns(tmp_path) == 12


def test_the_threads_and_tasks_of_a_child_take_turns(
    tree: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    async def is_taken_for_a_task() -> bool:
        lock = source_tree_lock(tree)
        is_entered = lock.acquire(blocking=False)
        if is_entered:
            lock.release()
        return not is_entered

    def look() -> list[bool]:
        return [is_taken(tree), in_thread(lambda: asyncio.run(is_taken_for_a_task()))]

    with Child(HAND_OVER, tree) as holder:
        monkeypatch.setenv(VARIABLE, json.loads(holder.line())[VARIABLE])
        with source_tree_lock(tree, timeout=LIMIT):
            assert look() == [True, True]
        assert look() == [False, False]


@needs_proc_locks
def test_the_time_limit_of_a_child_is_its_own_and_names_its_sibling(tree: Path) -> None:
    waits = """
    from source_tree_lock import LockTimeout, source_tree_lock
    try:
        source_tree_lock(sys.argv[1], timeout=0.05).acquire()
    except LockTimeout as error:
        tell(error.holder.pid)
    """
    with source_tree_lock(tree) as lock, held_elsewhere(tree, environ=lock.environ) as first:
        with Child(waits, tree, environ=lock.environ) as second:
            second.expect(str(first.pid))
        assert lock.is_owner()
        first.say()
        first.expect("released")
        assert is_let_in(tree, lock.environ)


@needs_proc_locks
def test_ctrl_c_ends_the_wait_for_a_sibling_and_nobody_elses(tree: Path) -> None:
    inner = lock_file_of(tree)
    inner = inner.with_name(f"{inner.stem}.1.lock")
    with source_tree_lock(tree) as lock, held_elsewhere(tree, environ=lock.environ) as first:
        with (
            Child(HOLD, tree, environ=lock.environ) as second,
            Child(HOLD, tree, environ=lock.environ) as third,
        ):
            wait_until(lambda: {second.pid, third.pid} <= set(waiters(inner)))
            second.process.send_signal(signal.SIGINT)
            assert second.process.wait(LIMIT) == -signal.SIGINT
            first.say()
            first.expect("released")
            third.expect("held")
        assert lock.is_owner()
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


def test_only_a_holder_hands_over(tree: Path) -> None:
    lock = source_tree_lock(tree)
    for attribute in ("environ", "pass_fds"):
        with pytest.raises(RuntimeError, match="only while this thread or task holds it"):
            getattr(lock, attribute)
        with lock:
            getattr(lock, attribute)
            error = in_thread(partial(getattr, lock, attribute))
        assert isinstance(error, RuntimeError)


def test_a_child_with_another_temporary_directory_is_let_in(tree: Path, tmp_path: Path) -> None:
    elsewhere = {"TMPDIR": str(new_directory(tmp_path / "other"))}
    with source_tree_lock(tree) as lock:
        assert is_let_in(tree, {**lock.environ, **elsewhere})
        assert not is_let_in(tree, elsewhere)
        with held_elsewhere(tree, environ=lock.environ):
            assert not is_let_in(tree, {**lock.environ, **elsewhere}), "siblings take turns"


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
    with Child(HAND_OVER, tree) as holder:
        environ = json.loads(holder.line())
        holder.say()
        holder.expect("released")
        with held_elsewhere(tree):
            assert not is_let_in(tree, environ)
        with flocked(lock_file_of(tree)):
            assert not is_let_in(tree, environ)
        holder.say()
        holder.expect("held again")
        assert not is_let_in(tree, environ)


def test_a_hold_that_is_over_lets_nobody_in_before_the_next_ones_record_is_complete(
    tree: Path,
) -> None:
    """The same process has the kernel locks again, and is stopped on its way in."""
    stops = """
    from source_tree_lock import _acquire
    is_in_place = _acquire.Entry._is_in_place
    def stop(*what):
        tell("stops")
        heard()
        return is_in_place(*what)
    _acquire.Entry._is_in_place = stop
    with lock:"""
    script = HAND_OVER.replace("    heard()\n    with lock:", stops)
    with Child(script, tree) as holder:
        environ = json.loads(holder.line())
        holder.say()
        holder.expect("released")
        holder.expect("stops")
        assert not is_let_in(tree, environ)
        holder.say()
        holder.expect("held again")


@pytest.mark.parametrize("end", ["died", pytest.param("exec", marks=needs_proc_locks)])
def test_a_holder_that_lost_its_lock_is_not_believed(tree: Path, end: str) -> None:
    """Its record is still in the lock file when somebody who writes none takes the lock."""
    lock_file = lock_file_of(tree)
    with Child(HAND_OVER, tree) as holder:
        environ = json.loads(holder.line())
        if end == "died":
            holder.kill()
        else:
            holder.say("exec")
        wait_until(lambda: is_free(lock_file))
        assert str(entry_of(environ)["token"]) in lock_file.read_text()
        with flocked(lock_file):
            assert not is_let_in(tree, environ)


@pytest.mark.parametrize("change", [{"pid": 1}, {"token": "0" * 32}, {"level": 1}], ids=str)
@pytest.mark.parametrize("kernel_names", [True, False])
def test_what_is_not_true_of_a_hold_is_not_believed(
    tree: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], kernel_names: bool
) -> None:
    if not kernel_names:  # as on macOS, and on btrfs and overlays
        if "pid" in change:
            pytest.skip("whoever has the token was handed the hold")
        monkeypatch.setattr("source_tree_lock._proc.kernel_holders", _nobody)
    with Child(HAND_OVER, tree) as holder:
        entry = entry_of(json.loads(holder.line()))
        monkeypatch.setenv(VARIABLE, json.dumps([{**entry, **change}]))
        assert not source_tree_lock(tree).acquire(blocking=False)


def _nobody(*identities: object) -> list[None]:
    return [None] * len(identities)


@pytest.mark.parametrize("end", ["", "died"])
def test_where_the_kernel_names_nobody_the_writer_of_the_record_has_to_live(
    tree: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Its token outlives it, while somebody like uv, who writes no record, has the lock."""
    monkeypatch.setattr("source_tree_lock._proc.kernel_holders", _nobody)
    with ExitStack() as stack:
        holder = stack.enter_context(Child(HAND_OVER, tree))
        monkeypatch.setenv(VARIABLE, json.loads(holder.line())[VARIABLE])
        if end == "died":
            holder.kill()
            stack.enter_context(flocked(lock_file_of(tree)))
        lock = source_tree_lock(tree)
        assert lock.acquire(blocking=False) is (end == "")
        if end == "":
            lock.release()


GOOD: dict[str, object] = {"lock_file": "/x", "level": 0, "pid": 1, "token": "t"}
JUNK = [
    *("words", "5", '[5, null, {}, {"tree": 1}]', "[" * 100_000),
    *({"lock_file": each} for each in ("a\0b", "\ud800", "/dev/null/x", "/" + "x" * 5000, 5)),
    *({"level": -1}, {"level": 10**30}, {"token": "", "level": 10**6}),
    *({"pid": float("inf")}, {"tree": [10**40, -1]}, {"lock_file": None, "token": ""}),
]


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: str(junk)[:40].replace("\0", "NUL"))
def test_junk_in_the_environment_lets_nobody_in_and_breaks_nothing(
    tree: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object, junk: object
) -> None:
    if isinstance(junk, dict):
        status = tree.stat()
        junk = json.dumps([{"tree": [status.st_dev, status.st_ino], **GOOD, **junk}])
    monkeypatch.setenv(VARIABLE, str(junk))
    with held_elsewhere(tree) as child:
        assert not source_tree_lock(tree).acquire(blocking=False)
        child.say()
        child.expect("released")
    with source_tree_lock(tree, timeout=LIMIT) as lock:
        assert is_let_in(tree, lock.environ)


# What happens to the lock file, and where the child runs


def replace(lock_file: Path) -> None:
    lock_file.unlink()
    lock_file.write_text("somebody else's")


CHANGES: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "truncated": lambda path: os.truncate(path, 0),
    "written to": lambda path: path.write_text("x"),
    "replaced": replace,
    "linked": lambda path: os.link(path, path.with_name("another-name")),
}


@needs_proc_locks
@pytest.mark.parametrize("change", CHANGES)
def test_a_handed_hold_is_believed_whatever_becomes_of_the_lock_file(
    change: str, tree: Path
) -> None:
    with source_tree_lock(tree) as lock:
        environ = lock.environ
        CHANGES[change](lock.lock_file)
        assert is_let_in(tree, environ)
        assert not is_let_in(tree, {})


@pytest.mark.parametrize(
    "options",
    [
        "--pid --fork --mount-proc",
        "--mount",
        "--user --map-root-user",
        "--user --map-root-user --mount --pid --fork --mount-proc",
    ],
)
def test_a_handed_hold_is_believed_from_a_namespace(options: str, tree: Path) -> None:
    prefix = unshared(*options.split())
    with source_tree_lock(tree) as lock:
        assert is_let_in(tree, lock.environ, prefix=prefix)
        assert not is_let_in(tree, {}, prefix=prefix)
        with held_elsewhere(tree, environ=lock.environ):
            assert not is_let_in(tree, lock.environ, prefix=prefix), "siblings take turns"


def test_a_child_with_a_temporary_directory_of_its_own_at_the_same_path_is_kept_out(
    tree: Path, temp_dir: Path
) -> None:
    # Siblings would not see each other's lock files there.
    private = ("sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(temp_dir))
    prefix = (*unshared("--mount"), *private)
    with source_tree_lock(tree) as lock:
        assert not is_let_in(tree, lock.environ, prefix=prefix)
        assert is_let_in(tree, lock.environ)


def test_another_thread_waits_for_a_hold_that_its_own_process_hands_over(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = threading.Event()

    def enter() -> bool:
        with source_tree_lock(tree, timeout=LIMIT, on_wait=lambda _: waits.set()) as other:
            return other.is_owner()

    with ThreadPoolExecutor(1) as pool:
        with source_tree_lock(tree) as lock:
            # As the backend does for a setup.py.
            monkeypatch.setenv(VARIABLE, lock.environ[VARIABLE])
            entered = pool.submit(enter)
            assert waits.wait(LIMIT)
            assert is_let_in(tree, lock.environ), "the other thread is not in the way of a child"
            assert not entered.done()
        assert entered.result(LIMIT)


def test_where_the_levels_lock_file_cannot_be_made_a_child_is_refused(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = {"TMPDIR": str(tmp_path / "none")}
    with Child(HAND_OVER, tree, environ=alone) as holder:  # it locks the tree alone
        environ = json.loads(holder.line())
        assert entry_of(environ)["lock_file"] is None
        monkeypatch.setenv(VARIABLE, environ[VARIABLE])
        with pytest.raises(LockUnavailable):
            source_tree_lock(tree, timeout=LIMIT).acquire()
    monkeypatch.delenv(VARIABLE)
    directory = tmp_path / "locks"
    lock = source_tree_lock(tree, lock_dir=directory)
    with lock:
        environ = lock.environ
        inner = Path(f"{str(lock.lock_file).removesuffix('.lock')}.1.lock")
        inner.mkdir()
        tries = """
        from source_tree_lock import LockUnavailable, source_tree_lock
        try:
            source_tree_lock(sys.argv[1]).acquire(blocking=False)
        except LockUnavailable as error:
            tell(error.filename)
        """
        with Child(tries, tree, environ=environ) as child:
            child.expect(str(inner))


# When the holder is killed


def hook(script: str, tree: Path) -> list[str]:
    """A command that talks to the test through the pipes of its frontend."""
    # Each message is one write: two processes share the pipe.
    prelude = """
import os, subprocess, sys
from source_tree_lock import source_tree_lock as lock
def tell(x): os.write(1, f"{x}\\n".encode())
def heard(): os.read(0, 1)
tell("here")
"""
    return [PYTHON, "-c", prelude + script, str(tree)]


@pytest.mark.parametrize("is_two_levels", [False, True])
def test_when_a_holder_is_killed_who_is_inside_its_hold_keeps_everybody_out(
    tree: Path, is_two_levels: bool
) -> None:
    """Strangers and siblings, who get in one at a time when it has left; it may enter again."""
    with ExitStack() as stack:
        outer = stack.enter_context(Child(HAND_OVER, tree))
        environ = json.loads(outer.line())
        killed = [outer]
        if is_two_levels:
            killed.append(stack.enter_context(Child(HAND_OVER, tree, environ=environ)))
            environ = json.loads(killed[-1].line())
        inside = stack.enter_context(held_elsewhere(tree, environ=environ))
        sibling = stack.enter_context(Child(HOLD, tree, environ=environ))
        for each in killed:
            each.kill()
        assert not is_let_in(tree, {})
        assert not is_let_in(tree, environ)
        assert source_tree_lock(tree).locked()
        stranger = stack.enter_context(Child(HOLD, tree))
        assert stranger.is_silent(0.2)
        assert sibling.is_silent(0.1)
        inside.say()
        inside.expect("released")
        wait_until(lambda: sibling.has_told() or stranger.has_told())
        first, second = (sibling, stranger) if sibling.has_told() else (stranger, sibling)
        first.expect("held")
        assert second.is_silent(0.1)
        first.say()
        first.expect("released")
        second.expect("held")
        second.say()
        second.expect("released")
    assert is_let_in(tree, {})


@needs_proc_locks
@needs_first_pid_namespace
def test_a_hook_that_outlives_its_frontend_keeps_everybody_out_and_takes_turns_inside(
    tree: Path,
) -> None:
    """The kernel names the dead frontend as the holder, by the descriptors that the hook has."""
    script = f"""
with lock(sys.argv[1]):
    tell("inside"); heard()
enter = "from source_tree_lock import *; source_tree_lock('.').acquire()"
subprocess.run([sys.executable, "-c", enter], cwd=sys.argv[1], check=True)
tell(os.environ[{VARIABLE!r}]); heard()
"""
    lock_file = lock_file_of(tree)
    with Child(FRONTEND, "pass_fds", tree, *hook("heard()" + script, tree)) as pipes:
        pipes.expect("here")
        pipes.kill()
        assert not is_let_in(tree, {})
        assert not is_free(lock_file)
        pipes.say()
        pipes.expect("inside")
        assert not is_let_in(tree, {})
        pipes.say()
        environ = {VARIABLE: pipes.line()}
        assert is_let_in(tree, environ), "a sibling"
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
