"""A subprocess runner that holds the tree while a hook runs, to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import ALIVE, LIMIT, Child, held_elsewhere, is_free, write_project

from source_tree_lock import LockTimeout, source_tree_lock
from source_tree_lock.adapters import locked_runner


def test_a_wrapped_runner_gets_the_call_as_it_is_and_the_hold_besides(tree: Path) -> None:
    seen: list[Any] = []

    def record(*call: object) -> None:
        assert not is_free(source_tree_lock(tree).lock_file)
        seen.extend([*call, dict(source_tree_lock(tree).environ)])

    locked_runner(record)(["a", "b"], str(tree), {"MARK": "1"})
    *call, environ, held = seen
    assert (call, environ) == ([["a", "b"], str(tree)], {"MARK": "1", **held})


def test_a_command_gets_the_environment_and_the_directory_which_is_the_tree(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INHERITED", "1")
    monkeypatch.chdir(tree)
    code = "import os; open('seen', 'a').write(os.environ['INHERITED'] + os.environ['MARK'])"
    for directory in (str(tree), None):
        with held_elsewhere(tree), pytest.raises(LockTimeout):
            locked_runner(timeout=0)(["x"], directory)
        locked_runner()([sys.executable, "-c", code], directory, {"MARK": "2"})
    assert (tree / "seen").read_text() == "1212"


def test_a_command_that_fails_is_an_error_and_leaves_nothing_locked(
    tree: Path, no_leaks: object
) -> None:
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    with pytest.raises(subprocess.CalledProcessError) as failure:
        locked_runner()(command, str(tree))
    assert (failure.value.returncode, failure.value.cmd) == (3, command)
    with pytest.raises(FileNotFoundError):
        locked_runner()([str(tree / "no-such-program")], str(tree))
    assert is_free(source_tree_lock(tree).lock_file)


INTERRUPTED = """
    from source_tree_lock.adapters import locked_runner
    try:
        locked_runner()([sys.executable, "-c", sys.argv[2]], sys.argv[1])
    except KeyboardInterrupt:
        tell("interrupted")
"""
ENDS = f"{ALIVE}\nimport time; print('alive', flush=True)\ntime.sleep(600)"
# Not by print(): it may still be in it when the signal comes.
REFUSES_TO_END = f"""
import os, signal
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"no\\n"))
{ENDS}
"""


@pytest.mark.parametrize(
    ("hook", "interrupts"),
    [
        pytest.param(ENDS, 1, id="obedient"),
        pytest.param(REFUSES_TO_END, 2, id="killed by a second interrupt"),
        pytest.param(REFUSES_TO_END, 1, id="killed after 5 seconds", marks=pytest.mark.long),
    ],
)
def test_an_interruption_ends_the_command_before_the_tree_is_free(
    tree: Path, hook: str, interrupts: int
) -> None:
    with Child(INTERRUPTED, tree, hook) as frontend:
        frontend.expect("alive")
        os.kill(frontend.pid, signal.SIGINT)
        if hook == REFUSES_TO_END:
            frontend.expect("no")  # it was asked to end
        if interrupts == 2:
            os.kill(frontend.pid, signal.SIGINT)
        frontend.expect("interrupted")
        assert is_free(tree / "alive")
        assert is_free(source_tree_lock(tree).lock_file)


OUTLIVED = """
    from pyproject_hooks import BuildBackendHookCaller, default_subprocess_runner
    from source_tree_lock.adapters import locked_hooks, locked_runner
    tree, kind, out = sys.argv[1:]
    runners = {"runner": locked_runner(), "wrapped": locked_runner(default_subprocess_runner)}
    hooks = BuildBackendHookCaller(tree, "setuptools.build_meta", runner=runners.get(kind))
    (locked_hooks(hooks) if kind == "hooks" else hooks).build_wheel(out)
"""


@pytest.mark.parametrize("kind", ["runner", "wrapped", "hooks"])
def test_nobody_is_let_in_before_the_hook_of_a_killed_frontend_has_ended(
    tree: Path, tmp_path: Path, kind: str
) -> None:
    """SIGKILL in the middle of setuptools' own build_wheel."""
    write_project(tree, "print('writing', flush=True)\ninput()\n")
    with Child(OUTLIVED, tree, kind, tmp_path) as frontend:
        frontend.expect("writing")
        frontend.kill()
        with pytest.raises(LockTimeout), source_tree_lock(tree, timeout=0.05):
            pass
        assert not is_free(source_tree_lock(tree).lock_file)
        frontend.say()
        with source_tree_lock(tree, timeout=LIMIT):
            assert list(tmp_path.glob("*.whl"))  # it was written to its end
