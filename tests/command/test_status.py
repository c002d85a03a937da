"""Who holds a tree and who waits for it, for people and for scripts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import time
from contextlib import nullcontext
from pathlib import Path
from subprocess import PIPE

import pytest
from support import (
    HOLD,
    LIMIT,
    PRELUDE,
    held_elsewhere,
    uv_build,
    wait_until,
    write_project,
)

from source_tree_lock import source_tree_lock
from source_tree_lock._holder.processes import INITIAL_PID_NAMESPACE, pid_namespace

from .driver import COMMAND, linux_only, run


def test_status_of_a_free_tree_is_0(tree: Path) -> None:
    ended = run("status", tree)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ended.stdout.decode().splitlines() == [
        f"{tree}: free",
        f"lock file: {source_tree_lock(tree).lock_file}",
    ]


def test_status_of_a_held_tree_is_1_and_says_by_whom_and_since_when(tree: Path) -> None:
    with held_elsewhere(tree) as child:
        ended = run("status", tree)
    assert (ended.returncode, ended.stderr) == (1, b"")
    first, second = ended.stdout.decode().splitlines()
    assert re.fullmatch(rf"{tree}: held by \S+ \(pid {child.pid}\) for \d+ s", first), first
    assert second == f"lock file: {source_tree_lock(tree).lock_file}"


def test_status_for_scripts_is_json(tree: Path) -> None:
    expected = {"tree": str(tree), "lock_file": str(source_tree_lock(tree).lock_file)}
    free = run("status", "--json", tree)
    assert free.returncode == 0
    assert json.loads(free.stdout) == {**expected, "held": False, "holder": None}
    before = time.time()
    with held_elsewhere(tree) as child:
        held = run("status", tree, "--json")
    assert held.returncode == 1
    found = json.loads(held.stdout)
    holder = found.pop("holder")
    assert found == {**expected, "held": True}
    assert set(holder) == {"pid", "program", "host", "since"}
    assert (holder["pid"], holder["host"]) == (child.pid, os.uname().nodename)
    assert before - 1 < holder["since"] < time.time() + 1


def test_status_looks_where_run_locks(tree: Path, tmp_path: Path) -> None:
    lock_dir = tmp_path / "locks"
    script = [*COMMAND, "status", "--lock-dir", str(lock_dir), str(tree)]
    ended = run("run", "--lock-dir", lock_dir, tree, "--", *script)
    assert ended.returncode == 1
    assert f"lock file: {lock_dir}/uv-setuptools-" in ended.stdout.decode()


def test_status_names_a_holder_whom_the_encoding_cannot(tree: Path, tmp_path: Path) -> None:
    script = tmp_path / "schläfer"
    script.write_text(PRELUDE + textwrap.dedent(HOLD))
    with subprocess.Popen([sys.executable, script, tree], stdin=PIPE, stdout=PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        ended = run("status", tree, environ={"PYTHONIOENCODING": "ascii"})
        holder.communicate(b"go\n", timeout=LIMIT)
    assert (ended.returncode, ended.stderr) == (1, b"")
    assert b"held by 'schl\\xe4fer (pid" in ended.stdout


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
