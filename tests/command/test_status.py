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
from typing import Any

import pytest
from in_line import each_lock, holding
from support import LIMIT, held_elsewhere, long_after, wait_until, wait_until_blocked

from source_tree_lock import source_tree_lock

from .driver import COMMAND, linux_only, python, run, started

#: Before a command: another user, who can do nothing to processes of root's.
NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
as_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="becomes another user by setpriv(1)",
)


def facts_of(tree: Path) -> Any:
    """What `status --json` prints."""
    return json.loads(run("status", "--json", tree).stdout)


def test_status_of_a_free_tree_is_0_and_makes_nothing(tree: Path, temp_dir: Path) -> None:
    lock_file = source_tree_lock(tree).lock_file
    for arguments in ([tree], [], ["."]):
        ended = run("status", *arguments, cwd=tree)
        assert (ended.returncode, ended.stderr) == (0, b"")
        assert ended.stdout.decode() == f"{tree}: free\nlock file: {lock_file}\n"
    facts = {"tree": str(tree), "lock_file": str(lock_file), "held": False}
    assert facts_of(tree) == {**facts, "holder": None, "waiters": [], "advice": None}
    environ = {"SOURCE_TREE_LOCK_DIR": f"{temp_dir}/locks"}
    assert run("status", tree, environ=environ).returncode == 0
    assert list(temp_dir.iterdir()) == []


@linux_only
def test_status_of_a_held_tree_is_1_and_says_all_that_a_waiter_asks(tree: Path) -> None:
    before = time.time()
    with held_elsewhere(tree, cwd=tree) as child:
        ended, for_programs = run("status", tree), run("status", tree, "--json")
    assert (ended.returncode, ended.stderr, for_programs.returncode) == (1, b"", 1)
    lock_file = source_tree_lock(tree).lock_file
    pattern = rf"""{tree}: held by (\S+) \(pid {child.pid}\) for \d+ s
since: \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d
working directory: {tree}
lock file: {lock_file}
(To end the wait, end pid {child.pid} \(kill {child.pid}\), or wait until it is done\.)
"""
    said = re.fullmatch(pattern, ended.stdout.decode())
    assert said is not None, ended.stdout.decode()
    facts = json.loads(for_programs.stdout)
    assert before - 1 < facts["holder"].pop("since") < time.time() + 1
    holder = {
        "pid": child.pid,
        "program": said[1],
        "user": subprocess.check_output(["id", "-un"], text=True).strip(),
        "host": os.uname().nodename,
        "stopped": False,
        "working_directory": str(tree),
    }
    where = {"tree": str(tree), "lock_file": str(lock_file), "held": True}
    assert facts == {**where, "holder": holder, "waiters": [], "advice": said[2]}


@linux_only
def test_a_stopped_holder_is_continued_and_not_killed(tree: Path) -> None:
    with started("run", tree, "--", "sh", "-c", "echo; cat", stdin=PIPE, stdout=PIPE) as process:
        assert process.stdout.read(1) == b"\n"
        os.killpg(process.pid, signal.SIGSTOP)
        wait_until(lambda: facts_of(tree)["holder"]["stopped"])
        told = run("status", tree).stdout.decode()
        assert " (stopped)\n" in told
        resume = f"kill -CONT -{process.pid}"
        assert f"It is stopped. Let it go on: fg in its terminal, or {resume}\n" in told
        assert "kill " not in told.replace(resume, "")
        subprocess.run(resume, shell=True, check=True)
        assert process.communicate(b"on", LIMIT) == (b"on", None)
        assert process.returncode == 0


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
    else:
        end = f"ask root to end pid {pid}" if reader else f"end pid {pid} (kill {pid})"
        assert f"To end the wait, {end}, or wait until it is done." in told


@linux_only
@each_lock
def test_status_lists_what_waits_in_the_order_in_which_it_gets_in(
    blocked_by: str, tree: Path
) -> None:
    """With the tree in the way, the first has the lock file, and waits for something else."""
    flock = ["flock", str(source_tree_lock(tree).lock_file), "true"]
    wait = "from source_tree_lock import source_tree_lock as lock; lock(sys.argv[1]).acquire()"
    commands = [[*COMMAND, "run", str(tree), "--", "true"], flock, python(wait, tree)]
    with holding(tree, blocked_by) as holder, ExitStack() as stack:
        waiting = []
        for command in commands:
            waiting.append(stack.enter_context(started(command=command, cwd=tree, stderr=PIPE)))
            wait_until_blocked(waiting[-1].pid)
        told = run("status", tree).stdout.decode()
        found = facts_of(tree)
        holder.say()
        assert [process.wait(LIMIT) for process in waiting] == [0, 0, 0]
    pids = [process.pid for process in waiting]
    assert found["holder"]["pid"] == holder.pid
    assert [each["pid"] for each in found["waiters"]] == pids
    assert [each["program"] for each in found["waiters"]][:2] == [Path(COMMAND[0]).name, "flock"]
    assert {each["working_directory"] for each in found["waiters"]} == {str(tree)}
    lines = [f"  {each['program']} (pid {each['pid']})\n" for each in found["waiters"]]
    assert "".join(["waiting, in this order:\n", *lines]) in told


def test_status_looks_where_run_locks_and_names_the_command(tree: Path, tmp_path: Path) -> None:
    options = ["--lock-dir", str(tmp_path / "locks"), str(tree)]
    ended = run("run", *options, "--", "env", "--", *COMMAND, "status", *options)
    assert ended.returncode == 1
    assert re.match(rf"{tree}: held by env \(pid \d+\) for ", ended.stdout.decode())
    assert f"lock file: {tmp_path}/locks/uv-setuptools-" in ended.stdout.decode()


@pytest.mark.parametrize("name", [b"caf\xe9", b"red \033[31m", b"two\nlines", "bä".encode()])
@pytest.mark.parametrize("encoding", long_after(1, ["ascii", "utf-8"]))
def test_every_path_can_be_shown_everywhere(name: bytes, encoding: str, tmp_path: Path) -> None:
    tree = tmp_path / os.fsdecode(name)
    tree.mkdir()
    ended = run("status", tree, environ={"PYTHONIOENCODING": encoding})
    assert (ended.returncode, ended.stderr) == (0, b"")
    text = ended.stdout.decode(encoding)
    assert text.count("\n") == 2
    assert "\033" not in text
    assert ("/bä: free" in text) == (name.endswith(b"\xa4") and encoding == "utf-8")
    assert facts_of(tree)["tree"] == str(tree)
