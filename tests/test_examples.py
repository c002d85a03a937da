"""The examples that the README shows, run as they stand."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from projects import archives, content
from support import (
    ALIVE,
    LIMIT,
    finish,
    held_elsewhere,
    is_free,
    long_after,
    start,
    wait_until,
    waiters,
    write_project,
)

from source_tree_lock import source_tree_lock

EXAMPLES = Path(__file__).with_name("examples")
PIP = [sys.executable, *"-m pip wheel -q --no-build-isolation --no-deps -w".split()]
UV = [sys.executable, *"-m uv build -q --wheel --no-build-isolation --offline --no-config".split()]
pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/locks"), reason="asks the kernel who waits for a lock"
)


def example(script: str, *arguments: object) -> subprocess.Popen[str]:
    return start(sys.executable, EXAMPLES / script, *arguments)


def modules(out: Path) -> set[str]:
    """The modules in the one wheel of a directory."""
    [wheel] = archives(out)
    return {name for name in content(wheel) if name.endswith(".py")}


def lock_file_of(tree: Path) -> Path:
    return source_tree_lock(tree).lock_file


def is_awaited(tree: Path) -> bool:
    return lock_file_of(tree).exists() and waiters(lock_file_of(tree)) != []


def make_trees(directory: Path, **setups: str) -> list[Path]:
    for name, setup in setups.items():
        (directory / name).mkdir()
        write_project(directory / name, setup)
    return [directory / name for name in setups]


@pytest.mark.long
def test_several_trees_are_taken_in_one_order_however_they_are_named(tmp_path: Path) -> None:
    """One process waits for the second tree; the other, for the first, and holds nothing."""
    one, two = trees = make_trees(tmp_path, one="", two="")
    frontend = [sys.executable, str(EXAMPLES / "frontends.py"), "build"]  # is handed the holds
    command = " && ".join(shlex.join([*frontend, str(tree), str(tree / "dist")]) for tree in trees)
    with held_elsewhere(two) as holder:
        first = example("several_trees.py", command, one, two)
        wait_until(lambda: is_awaited(two))
        second = example("several_trees.py", command, two, one)
        wait_until(lambda: is_awaited(one))
        holder.say()
        finish(first, second)
    assert [modules(tree / "dist") for tree in trees] == [{"sample.py"}] * 2


# The async frontends

ASYNC = ["frontend_async.py", "frontend_trio.py"]


@pytest.mark.parametrize("script", long_after(1, ASYNC))
def test_an_async_frontend_builds_several_trees_at_once(tmp_path: Path, script: str) -> None:
    trees = make_trees(tmp_path, one="", two="", three="")
    with held_elsewhere(trees[0]) as holder:
        process = example(script, *trees)
        wait_until(lambda: all(archives(tree / "dist") for tree in trees[1:]))
        assert not (trees[0] / "dist").exists()
        holder.say()
        finish(process)
    assert [modules(tree / "dist") for tree in trees] == [{"sample.py"}] * 3


SLOW = f"{ALIVE}\nimport time; time.sleep(600)"
FAILS = """
import pathlib, time
while not pathlib.Path("../one/alive").exists() or not pathlib.Path("../two/alive").exists():
    time.sleep(0.01)
raise SystemExit("it cannot be built")
"""


@pytest.mark.parametrize("script", ASYNC)
@pytest.mark.parametrize("what", long_after(1, ["Ctrl-C", "a build that fails"]))
def test_an_async_frontend_ends_what_it_started(tmp_path: Path, script: str, what: str) -> None:
    slow = make_trees(tmp_path, one=SLOW, two=SLOW)
    fails = make_trees(tmp_path, fails=FAILS) if what != "Ctrl-C" else []
    process = example(script, *slow, *fails)
    wait_until(lambda: all((tree / "alive").exists() for tree in slow))
    if what == "Ctrl-C":
        process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode != 0
    assert ("it cannot be built" in output) is (what != "Ctrl-C")
    for tree in slow:
        assert is_free(tree / "alive")
        assert is_free(lock_file_of(tree))


# What a frontend does during a wait


def test_a_frontend_cancels_its_wait_and_the_holder_stays(tree: Path) -> None:
    with held_elsewhere(tree) as holder:
        process = example("waits.py", "cancel", tree)
        wait_until(lambda: is_awaited(tree))
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=LIMIT)
        assert output == "cancelled\n"
        assert process.returncode == 1
        assert not is_free(lock_file_of(tree))
        holder.say()
        holder.expect("released")


def test_a_frontend_shows_a_spinner_during_its_wait(tree: Path) -> None:
    with held_elsewhere(tree) as holder:
        process = example("waits.py", "spinner", tree)
        assert process.stdout is not None
        said = ""
        while not re.search(r"\| waiting .*\r/ waiting .*\r- waiting ", said):
            chunk = os.read(process.stdout.fileno(), 4096)
            assert chunk, said
            said += chunk.decode()
        assert f"(pid {holder.pid}) to leave" in said
        holder.say()
        rest, _ = process.communicate(timeout=LIMIT)
        assert rest.endswith("\033[Kbuilt\n")  # the line was free for what came next
        assert process.returncode == 0


def test_a_frontend_limits_the_time_of_all_its_waits(tree: Path) -> None:
    with held_elsewhere(tree) as holder:
        process = example("waits.py", "limit", tree)
        output, _ = process.communicate(timeout=LIMIT)
        [line] = output.splitlines()
        assert process.returncode == 1
        assert line.startswith("gave up waiting ")
        assert f"(pid {holder.pid})" in line


# Projects


@pytest.mark.long
@pytest.mark.parametrize("name", ["in_tree_backend", "setup_step"])
def test_a_project_waits_for_its_tree_and_builds_right_wheels_under_every_frontend(
    tmp_path: Path, name: str
) -> None:
    """uv and our own frontend hold the tree, as they should, while the step takes the lock."""
    tree = shutil.copytree(EXAMPLES / name, tmp_path / "project")
    outs = [tmp_path / str(number) for number in range(3)]
    with held_elsewhere(tree) as holder:
        process = start(*PIP, outs[0], tree)
        wait_until(lambda: is_awaited(tree))
        assert not (tree / "answer.py").exists()
        holder.say()
        finish(process)
    finish(start(*UV, "--python", sys.executable, "-o", outs[1], tree))
    finish(example("frontends.py", "build", tree, outs[2]))
    assert [modules(out) for out in outs] == [{"answer.py"}] * 3
