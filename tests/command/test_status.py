"""Which process holds a tree, which wait for it, and what can be done."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE

import pytest
from support import LIMIT, Child, held_elsewhere, wait_until, wait_until_blocked

from source_tree_lock import source_tree_lock

from .driver import COMMAND, linux_only, python, run, started

#: Before a command: another user, who can do nothing to processes of root's.
NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
as_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="becomes another user by setpriv(1)",
)


@pytest.mark.parametrize("arguments", [["{tree}"], [], ["."]], ids=["named", "default", "dot"])
def test_status_of_a_free_tree_is_0(arguments: list[str], tree: Path) -> None:
    ended = run("status", *(each.format(tree=tree) for each in arguments), cwd=tree)
    assert (ended.returncode, ended.stderr) == (0, b"")
    lock_file = source_tree_lock(tree).lock_file
    assert ended.stdout.decode() == f"{tree}: free\nlock file: {lock_file}\n"
    assert not lock_file.exists()


@linux_only
def test_status_of_a_held_tree_is_1_and_says_all_that_a_waiter_asks(tree: Path) -> None:
    with held_elsewhere(tree, cwd=tree) as child:
        ended = run("status", tree)
    assert (ended.returncode, ended.stderr) == (1, b"")
    pattern = rf"""{tree}: held by \S+ \(pid {child.pid}\) for \d+ s
since: \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d
working directory: {tree}
lock file: {source_tree_lock(tree).lock_file}
To end the wait, end pid {child.pid} \(kill {child.pid}\), or wait until it is done\.
"""
    assert re.fullmatch(pattern, ended.stdout.decode()), ended.stdout.decode()


def test_status_for_programs_has_all_of_it(tree: Path) -> None:
    expected = {"tree": str(tree), "lock_file": str(source_tree_lock(tree).lock_file)}
    free = run("status", "--json", tree)
    nobody: dict[str, object] = {"held": False, "holder": None, "waiters": [], "advice": None}
    assert (free.returncode, json.loads(free.stdout)) == (0, {**expected, **nobody})
    before = time.time()
    with held_elsewhere(tree) as child:
        held = run("status", tree, "--json")
    assert held.returncode == 1
    found = json.loads(held.stdout)
    holder = found.pop("holder")
    assert f"end pid {child.pid}" in found.pop("advice")
    assert found == {**expected, "held": True, "waiters": []}
    assert before - 1 < holder.pop("since") < time.time() + 1
    program, user, directory = map(holder.pop, ("program", "user", "working_directory"))
    assert isinstance(program, str)
    if sys.platform == "linux":
        assert directory == os.getcwd()
        assert user == subprocess.check_output(["id", "-un"], text=True).strip()
    assert holder == {"pid": child.pid, "host": os.uname().nodename, "stopped": False}


@linux_only
def test_a_stopped_holder_is_continued_and_not_killed(tree: Path) -> None:
    with started("run", tree, "--", "sh", "-c", "echo; cat", stdin=PIPE, stdout=PIPE) as process:
        assert process.stdout.read(1) == b"\n"
        os.killpg(process.pid, signal.SIGSTOP)
        wait_until(lambda: json.loads(run("status", "--json", tree).stdout)["holder"]["stopped"])
        told = run("status", tree).stdout.decode()
        assert " (stopped)\n" in told
        advice = (
            rf"It is stopped\. Let it go on: fg in its terminal, or (kill -CONT -{process.pid})\n"
        )
        found = re.search(advice, told)
        assert found is not None, told
        assert "kill " not in told.replace("kill -CONT", "")
        subprocess.run(found[1], shell=True, check=True)
        process.stdin.write(b"on")
        process.stdin.close()
        assert process.stdout.read() == b"on"
        assert process.wait(LIMIT) == 0


@as_root
@pytest.mark.parametrize("is_stopped", [False, True], ids=["runs", "stopped"])
@pytest.mark.parametrize("reader", [(), NOBODY], ids=["asked by root", "held by root"])
def test_the_advice_can_be_followed_by_the_user_who_asks(
    reader: tuple[str, ...], is_stopped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if run("--version", command=[*NOBODY, *COMMAND]).returncode:
        pytest.skip("another user may not run this Python")
    holder, user = ((), "root") if reader else (NOBODY, "nobody")
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o1777)
        monkeypatch.setenv("TMPDIR", directory)
        command = [*holder, *COMMAND, "run", directory, "--", "sh", "-c", "echo; sleep 60"]
        with started(command=command, stdout=PIPE) as process:
            assert process.stdout.read(1) == b"\n"
            if is_stopped:
                process.send_signal(signal.SIGSTOP)
            told = run("status", directory, command=[*reader, *COMMAND]).stdout.decode()
    pid = process.pid
    assert f"(pid {pid}, user {user})" in told
    if is_stopped:
        assert ("It is stopped. Ask root to let it" if reader else "It is stopped. Let it") in told
    elif reader:
        assert f"To end the wait, ask root to end pid {pid}, or wait until it is done." in told
    else:
        assert f"end pid {pid} (kill {pid}), or wait until it is done." in told


WAIT = "from source_tree_lock import source_tree_lock as lock; lock(sys.argv[1]).acquire()"


@linux_only
def test_status_lists_what_waits_in_the_order_in_which_it_gets_in(tree: Path) -> None:
    """Of this command, of flock(1), of the library; whole names, of more than 15 letters."""
    flock = ["flock", str(source_tree_lock(tree).lock_file), "true"]
    commands = [[*COMMAND, "run", str(tree), "--", "true"], flock, python(WAIT, tree)]
    with held_elsewhere(tree) as holder, ExitStack() as stack:
        waiting = []
        for command in commands:
            waiting.append(stack.enter_context(started(command=command, cwd=tree, stderr=PIPE)))
            wait_until_blocked(waiting[-1].pid)
        told = run("status", tree).stdout.decode()
        found = json.loads(run("status", "--json", tree).stdout)["waiters"]
        holder.say()
        assert [process.wait(LIMIT) for process in waiting] == [0, 0, 0]
    pids = [process.pid for process in waiting]
    assert [each["pid"] for each in found] == pids
    assert [each["program"] for each in found][:2] == [Path(COMMAND[0]).name, "flock"]
    assert {each["working_directory"] for each in found} == {str(tree)}
    _, words = told.split("waiting, in this order:\n")
    assert [int(pid) for pid in re.findall(r"(?m)^  \S+ \(pid (\d+)\)$", words)] == pids


@linux_only
def test_status_lists_the_one_that_waits_for_the_tree_alone_before_all_others(tree: Path) -> None:
    hold_tree = """
        import fcntl, os
        fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
        tell("held")
        heard()
    """
    with Child(hold_tree, tree) as holder:
        holder.expect("held")
        with started(command=python(WAIT, tree)) as first:
            wait_until_blocked(first.pid)  # in the tree's queue, with the lock file its own
            with started(command=python(WAIT, tree)) as second:
                wait_until_blocked(second.pid)
                found = json.loads(run("status", "--json", tree).stdout)
                assert found["holder"]["pid"] == holder.pid
                assert [each["pid"] for each in found["waiters"]] == [first.pid, second.pid]


def test_status_looks_where_run_locks_and_names_the_command(tree: Path, tmp_path: Path) -> None:
    options = ["--lock-dir", str(tmp_path / "locks")]
    status = [*COMMAND, "status", *options, str(tree)]
    ended = run("run", *options, tree, "--", "env", "--", *status)
    assert ended.returncode == 1
    assert re.match(rf"{tree}: held by env \(pid \d+\) for ", ended.stdout.decode())
    assert f"lock file: {tmp_path}/locks/uv-setuptools-" in ended.stdout.decode()


def test_status_makes_nothing(tree: Path, temp_dir: Path) -> None:
    lock_dir = temp_dir / "locks"
    assert run("status", tree, environ={"SOURCE_TREE_LOCK_DIR": str(lock_dir)}).returncode == 0
    assert run("status", tree).returncode == 0
    assert list(temp_dir.iterdir()) == []


@pytest.mark.parametrize("name", [b"caf\xe9", b"red \033[31m", b"two\nlines", "bä".encode()])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_every_path_can_be_shown_everywhere(name: bytes, encoding: str, tmp_path: Path) -> None:
    tree = os.path.join(os.fsencode(tmp_path), name)
    os.mkdir(tree)
    ended = run("status", tree, environ={"PYTHONIOENCODING": encoding})
    assert (ended.returncode, ended.stderr) == (0, b"")
    text = ended.stdout.decode(encoding)
    assert text.count("\n") == 2
    assert "\033" not in text
    assert ("/bä: free" in text) == (name.endswith(b"\xa4") and encoding == "utf-8")
    assert os.fsencode(json.loads(run("status", "--json", tree).stdout)["tree"]) == tree
