"""A subprocess runner that holds the tree while a hook runs, to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from support import ALIVE, LIMIT, Child, held_elsewhere, is_free, write_project

from source_tree_lock import LockTimeout, source_tree_lock
from source_tree_lock.adapters import locked_runner


def test_a_wrapped_runner_gets_the_call_as_it_is_and_the_hold_besides(tree: Path) -> None:
    seen: list[tuple[Sequence[str], str | None, Mapping[str, str] | None]] = []

    def record(
        cmd: Sequence[str], cwd: str | None = None, extra_environ: Mapping[str, str] | None = None
    ) -> None:
        assert not is_free(source_tree_lock(tree).lock_file)
        seen.append((cmd, cwd, extra_environ))
        handed.update(source_tree_lock(tree).environ)

    handed = {"MARK": "1"}
    locked_runner(record)(["a", "b"], str(tree), {"MARK": "1"})
    assert seen == [(["a", "b"], str(tree), handed)]


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
    import sys
    from source_tree_lock.adapters import locked_runner
    try:
        locked_runner()([sys.executable, "-c", sys.argv[2]], sys.argv[1])
    except KeyboardInterrupt:
        tell("interrupted")
"""
ENDS = f"{ALIVE}\nimport time; print('alive', flush=True)\ntime.sleep(600)"
REFUSES_TO_END = (
    # Not by print(): it may still be in it when the signal comes.
    "import os, signal; signal.signal(signal.SIGTERM, lambda *_: os.write(1, b'no\\n'))\n"
    f"{ALIVE}\nimport time; print('alive', flush=True)\nwhile True: time.sleep(1)"
)


@pytest.mark.parametrize(
    ("hook", "interrupts"),
    [(ENDS, 1), (REFUSES_TO_END, 2), (REFUSES_TO_END, 1)],
    ids=["obedient", "killed by a second interrupt", "killed after 5 seconds"],
)
def test_an_interruption_ends_the_command_before_the_tree_is_free(
    tree: Path, hook: str, interrupts: int, long_run: bool
) -> None:
    if hook == REFUSES_TO_END and interrupts == 1 and not long_run:
        pytest.skip("takes 5 seconds: --long")
    with Child(INTERRUPTED, tree, hook) as frontend:
        frontend.expect("alive")
        for number in range(interrupts):
            if number:
                frontend.expect("no")  # it was asked to end
            os.kill(frontend.pid, signal.SIGINT)
        line = frontend.line()
        assert "interrupted" in (line, line if line != "no" else frontend.line())
        assert is_free(tree / "alive")
        assert is_free(source_tree_lock(tree).lock_file)


OUTLIVED = """
    import sys
    from pyproject_hooks import BuildBackendHookCaller, default_subprocess_runner
    from source_tree_lock.adapters import locked_hooks, locked_runner
    tree, kind, out = sys.argv[1:]
    runner = {
        "runner": locked_runner(),
        "around the default": locked_runner(default_subprocess_runner),
        "hooks": None,
    }[kind]
    hooks = BuildBackendHookCaller(tree, "setuptools.build_meta", runner=runner)
    if runner is None:
        hooks = locked_hooks(hooks)
    hooks.build_wheel(out)
"""


@pytest.mark.parametrize("kind", ["runner", "around the default", "hooks"])
def test_nobody_is_let_in_before_the_hook_of_a_killed_frontend_has_ended(
    tree: Path, tmp_path: Path, kind: str
) -> None:
    """SIGKILL in the middle of setuptools' own build_wheel."""
    lock_file = source_tree_lock(tree).lock_file
    write_project(tree, "print('writing', flush=True)\ninput()\n")
    with Child(OUTLIVED, tree, kind, tmp_path) as frontend:
        frontend.expect("writing")
        frontend.kill()
        with pytest.raises(LockTimeout), source_tree_lock(tree, timeout=0.05):
            pass
        assert not is_free(lock_file)
        frontend.say()
        with source_tree_lock(tree, timeout=LIMIT):
            assert list(tmp_path.glob("*.whl")) != []  # it was written to its end
