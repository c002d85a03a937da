"""Who holds a tree and who waits for it, for people and for scripts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from subprocess import PIPE

import pytest
from holder.crowd import OWN_PIDS, flock_1
from support import (
    LIMIT,
    Child,
    held_elsewhere,
    unshared,
    uv_build,
    wait_until,
    wait_until_blocked,
    write_project,
)

from source_tree_lock import source_tree_lock
from source_tree_lock._holder.processes import INITIAL_PID_NAMESPACE, pid_namespace

from .driver import COMMAND, SCRIPT, complaint, linux_only, python, run, started


@pytest.mark.parametrize("arguments", [["{tree}"], [], ["."]], ids=["named", "default", "dot"])
def test_status_of_a_free_tree_is_0(arguments: list[str], tree: Path) -> None:
    ended = run("status", *(each.format(tree=tree) for each in arguments), cwd=tree)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ended.stdout.decode().splitlines() == [
        f"{tree}: free",
        f"lock file: {source_tree_lock(tree).lock_file}",
    ]


@linux_only
def test_status_of_a_held_tree_is_1_and_says_all_that_a_waiter_asks(tree: Path) -> None:
    with held_elsewhere(tree, cwd=tree) as child:
        ended = run("status", tree)
    assert (ended.returncode, ended.stderr) == (1, b"")
    first, since, where, lock_file, advice = ended.stdout.decode().splitlines()
    assert re.fullmatch(rf"{tree}: held by \S+ \(pid {child.pid}\) for \d+ s", first), first
    assert re.fullmatch(r"since: \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", since), since
    assert where == f"working directory: {tree}"
    assert lock_file == f"lock file: {source_tree_lock(tree).lock_file}"
    assert advice == (
        f"To end the wait, end pid {child.pid} (kill {child.pid}), or wait until it is done."
    )
    assert "delete" not in ended.stdout.decode()


@linux_only
def test_status_lists_who_waits_in_the_order_in_which_they_get_in(tree: Path) -> None:
    """Of this command, of flock(1), of a plain entry, and of a bounded one."""
    lock_file = source_tree_lock(tree).lock_file
    plain = "from source_tree_lock import source_tree_lock as lock; lock(sys.argv[1]).acquire()"
    bounded = plain.replace("acquire()", "acquire(timeout=60)")
    commands = {
        "source-tree-lock": [*COMMAND, "run", "--timeout", "60", str(tree), "--", "true"],
        "flock": ["flock", str(lock_file), "true"],
        "plain": python(plain, tree),
        "bounded": python(bounded, tree),
    }
    with held_elsewhere(tree) as holder, ExitStack() as stack:
        waiting = {}
        for name, command in commands.items():
            waiting[name] = stack.enter_context(
                started(command=command, cwd=tree, stdout=PIPE, stderr=PIPE)
            )
            wait_until_blocked(waiting[name].pid)
        told = run("status", tree).stdout.decode()
        found = json.loads(run("status", "--json", tree).stdout)
        holder.say()
        for process in waiting.values():
            assert process.wait(LIMIT) == 0
    pids = [process.pid for process in waiting.values()]
    assert [each["pid"] for each in found["waiters"]] == pids
    assert [each["program"] for each in found["waiters"]][1] == "flock"
    if SCRIPT.exists():
        assert found["waiters"][0]["program"] == "source-tree-lock"
    assert {each["working_directory"] for each in found["waiters"]} == {str(tree)}
    _, words = told.split("waiting, in this order:\n")
    assert [int(pid) for pid in re.findall(r"(?m)^  \S+ \(pid (\d+)\)$", words)] == pids


@linux_only
def test_status_lists_who_waits_for_the_tree_alone_before_all_others(tree: Path) -> None:
    hold_tree = """
        import fcntl, os
        fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
        tell("held")
        heard()
    """
    wait = "from source_tree_lock import source_tree_lock as lock; lock(sys.argv[1]).acquire()"
    with Child(hold_tree, tree) as holder:
        holder.expect("held")
        with started(command=python(wait, tree)) as first:
            wait_until_blocked(first.pid)  # in the tree's queue, with the lock file its own
            with started(command=python(wait, tree)) as second:
                wait_until_blocked(second.pid)
                found = json.loads(run("status", "--json", tree).stdout)
                assert found["holder"]["pid"] == holder.pid
                assert [each["pid"] for each in found["waiters"]] == [first.pid, second.pid]


@linux_only
def test_status_of_a_holder_whom_nobody_can_name_says_so(tree: Path) -> None:
    # From another pid namespace, no holder without a record can be named.
    lock_file = source_tree_lock(tree).lock_file
    elsewhere = [*unshared(*OWN_PIDS), *COMMAND]
    with flock_1(lock_file):
        ended = run("status", tree, command=elsewhere)
        found = json.loads(run("status", "--json", tree, command=elsewhere).stdout)
    assert ended.returncode == 1
    assert f"{tree}: held by an unknown process" in ended.stdout.decode()
    assert "ask on the other hosts" in ended.stdout.decode()
    assert (found["held"], found["holder"]) == (True, None)


@linux_only
def test_status_names_what_outlived_the_one_that_took_the_lock(tree: Path) -> None:
    lock_file = source_tree_lock(tree).lock_file
    lock_file.touch()
    flock = ["flock", str(lock_file), "sh", "-c"]
    with started(command=[*flock, "sleep 1000 & echo $!"], stdout=PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert process.wait(LIMIT) == 0
        ended = run("status", tree)
    assert ended.returncode == 1
    assert ended.stdout.decode().startswith(f"{tree}: held by sleep (pid {pid})\n")


@linux_only
def test_status_names_the_command_of_a_wrapper_that_was_killed(tree: Path, tmp_path: Path) -> None:
    script = "echo $$; cat; true"
    command = ["run", tree, "--", "sh", "-c", script]
    with started(*command, stdin=PIPE, stdout=PIPE, cwd=tmp_path) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
        process.wait(LIMIT)
        told = run("status", tree).stdout.decode()
        holder = json.loads(run("status", "--json", tree).stdout)["holder"]
    assert told.startswith(f"{tree}: held by sh (pid {pid})\n")
    assert f"working directory: {tmp_path}\n" in told
    assert f"To end the wait, end pid {pid} (kill {pid})" in told
    assert (holder["pid"], holder["program"]) == (pid, "sh")


def test_status_for_scripts_has_all_of_it(tree: Path) -> None:
    expected = {"tree": str(tree), "lock_file": str(source_tree_lock(tree).lock_file)}
    free = run("status", "--json", tree)
    assert free.returncode == 0
    nobody: dict[str, object] = {"held": False, "holder": None, "waiters": [], "advice": None}
    assert json.loads(free.stdout) == {**expected, **nobody}
    before = time.time()
    with held_elsewhere(tree) as child:
        held = run("status", tree, "--json")
    assert held.returncode == 1
    found = json.loads(held.stdout)
    holder = found.pop("holder")
    assert f"end pid {child.pid}" in found.pop("advice")
    assert found == {**expected, "held": True, "waiters": []}
    assert set(holder) == {"pid", "program", "host", "since", "working_directory"}
    assert (holder["pid"], holder["host"]) == (child.pid, os.uname().nodename)
    assert before - 1 < holder["since"] < time.time() + 1
    if sys.platform == "linux":
        assert holder["working_directory"] == os.getcwd()


def test_a_lock_directory_that_is_not_there_is_an_error_and_not_free(
    tree: Path, tmp_path: Path
) -> None:
    ended = run("status", "--lock-dir", tmp_path / "missing", tree)
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert complaint(ended) == f"no such lock directory: '{tmp_path}/missing'"
    assert not (tmp_path / "missing").exists()


def test_status_looks_where_run_locks(tree: Path, tmp_path: Path) -> None:
    lock_dir = tmp_path / "locks"
    script = [*COMMAND, "status", "--lock-dir", str(lock_dir), str(tree)]
    ended = run("run", "--lock-dir", lock_dir, tree, "--", *script)
    assert ended.returncode == 1
    assert f"lock file: {lock_dir}/uv-setuptools-" in ended.stdout.decode()


@linux_only
def test_status_names_a_real_uv_and_leaves_it_alone(tree: Path, tmp_path: Path) -> None:
    go, inside = tmp_path / "go", tmp_path / "inside"
    os.mkfifo(go)
    write_project(
        tree,
        f"""
        import os, sys
        if "bdist_wheel" in sys.argv and not os.path.exists({str(inside)!r}):
            open({str(inside)!r}, "w").close()
            open({str(go)!r}).close()
        """,
    )
    process = uv_build(tree)
    try:
        wait_until(inside.exists)
        ended = run("status", tree)
        assert ended.returncode == 1
        first = ended.stdout.decode().splitlines()[0]
        assert first == f"{tree}: held by uv (pid {process.pid})"
        with open(go, "w"):
            pass
        assert process.wait(LIMIT) == 0
    finally:
        process.kill()
        process.wait(LIMIT)


@pytest.mark.skipif(
    sys.platform != "linux" or pid_namespace() != INITIAL_PID_NAMESPACE,
    reason="a pid namespace hides who holds a lock",
)
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("state", ["free", "held", "never locked"])
def test_status_takes_no_lock_and_makes_nothing(state: str, tree: Path, tmp_path: Path) -> None:
    lock = source_tree_lock(tree)
    if state != "never locked":
        with lock:
            pass
    trace = tmp_path / "trace"
    traced = ["strace", "-f", "-qq", "-e", "trace=flock,fcntl,mkdir", "-o", str(trace), *COMMAND]
    with held_elsewhere(tree) if state == "held" else nullcontext():
        ended = run("status", tree, command=traced)
    if ended.returncode not in (0, 1):
        pytest.skip(f"strace does not run here: {ended.stderr.decode()}")
    assert ended.returncode == (state == "held")
    calls = trace.read_text()
    assert "fcntl" in calls  # Python itself asks for flags, so that the trace shows what there is
    assert "flock(" not in calls
    assert "LK" not in calls  # F_SETLK, F_OFD_SETLK and their kin
    assert "mkdir" not in calls
    assert lock.lock_file.exists() == (state != "never locked")


@pytest.mark.parametrize(
    "name", [b"caf\xe9", b"red \033[31m", b"two\nlines", "bäcker".encode()], ids=repr
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_every_path_can_be_shown_in_every_encoding(
    name: bytes, encoding: str, tmp_path: Path
) -> None:
    tree = os.path.join(os.fsencode(tmp_path), name)
    try:
        os.mkdir(tree)
    except OSError:
        pytest.skip("the file system takes no such name")
    ended = subprocess.run(
        [*map(os.fsencode, COMMAND), b"status", tree],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        timeout=LIMIT,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    text = ended.stdout.decode(encoding)
    assert len(text.splitlines()) == 2
    assert "\033" not in text
    as_it_is = name.decode(errors="replace")
    if as_it_is == "bäcker" and encoding == "utf-8":
        assert f"/{as_it_is}: free" in text
    told = subprocess.run(
        [*map(os.fsencode, COMMAND), b"status", b"--json", tree], stdout=PIPE, timeout=LIMIT
    )
    assert os.fsencode(json.loads(told.stdout)["tree"]) == tree
