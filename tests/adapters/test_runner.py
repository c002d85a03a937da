"""A subprocess runner that holds the tree while a hook runs, to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from build import BuildBackendException, ProjectBuilder
from build.util import project_wheel_metadata
from projects import ALL_COMMANDS, Witness, call_all_hooks
from pyproject_hooks import default_subprocess_runner, quiet_subprocess_runner
from support import ALIVE, LIMIT, Child, held_elsewhere, is_free, write_project
from ways import WAYS

from source_tree_lock import LockTimeout, LockUnavailable, SourceTreeLockError, source_tree_lock
from source_tree_lock._handover import VARIABLE
from source_tree_lock.adapters import locked_hooks, locked_runner

from .callers import TAKES_THE_LOCK, ThisEnvironment, caller, either

if TYPE_CHECKING:
    from source_tree_lock.adapters.runner import Runner

# setuptools warns of each editable installation, and pyproject_hooks passes that on.
pytestmark = pytest.mark.filterwarnings("ignore::pyproject_hooks.BuildBackendWarning")


def through_constructor(tree: Path, out: Path, runner: Runner) -> set[str]:
    call_all_hooks(caller(tree, runner), out)
    return ALL_COMMANDS


def through_context_manager(tree: Path, out: Path, runner: Runner) -> set[str]:
    hooks = caller(tree)
    with hooks.subprocess_runner(runner):
        hooks.build_wheel(str(out))
    return {"bdist_wheel"}


def through_project_builder(tree: Path, out: Path, runner: Runner) -> set[str]:
    builder = ProjectBuilder(tree, runner=runner)
    builder.get_requires_for_build("wheel")
    builder.metadata_path(out)
    builder.build("wheel", out)
    return {"egg_info", "dist_info", "bdist_wheel"}


def through_isolated_environment(tree: Path, out: Path, runner: Runner) -> set[str]:
    builder = ProjectBuilder.from_isolated_env(ThisEnvironment(), tree, runner=runner)
    builder.get_requires_for_build("sdist")
    builder.build("sdist", out)
    return {"egg_info", "sdist"}


def through_project_wheel_metadata(tree: Path, out: Path, runner: Runner) -> set[str]:
    metadata = project_wheel_metadata(tree, isolated=False, runner=runner)
    assert metadata["Name"] == "sample"
    return {"dist_info"}


THROUGH = [
    through_constructor,
    through_context_manager,
    through_project_builder,
    through_isolated_environment,
    through_project_wheel_metadata,
]


@pytest.mark.parametrize(
    ("way", "wrapped"),
    [(way, None) for way in THROUGH] + [(through_constructor, quiet_subprocess_runner)],
    ids=lambda each: getattr(each, "__name__", "bare"),
)
def test_every_hook_runs_under_the_lock(
    tree: Path,
    tmp_path: Path,
    no_leaks: object,
    way: Callable[[Path, Path, Runner], set[str]],
    wrapped: Runner | None,
) -> None:
    witness = Witness(tree)
    write_project(tree, witness.setup)
    commands = way(tree, tmp_path, locked_runner(wrapped))
    assert witness.report() == {f"{command} locked" for command in commands}
    assert is_free(source_tree_lock(tree).lock_file)


def test_without_it_no_hook_runs_under_the_lock(tree: Path, tmp_path: Path) -> None:
    witness = Witness(tree)
    write_project(tree, witness.setup)
    commands = through_constructor(tree, tmp_path, default_subprocess_runner)
    assert witness.report() == {f"{command} unlocked" for command in commands}


@pytest.mark.parametrize("wrapped", [None, quiet_subprocess_runner], ids=["bare", "wrapped"])
def test_a_hook_that_takes_the_lock_does_not_wait_for_its_frontend(
    tree: Path, tmp_path: Path, wrapped: Runner | None
) -> None:
    write_project(tree, TAKES_THE_LOCK)
    ProjectBuilder(tree, runner=locked_runner(wrapped)).build("wheel", tmp_path)
    locked_hooks(caller(tree, wrapped)).build_wheel(str(tmp_path))


def test_a_wrapped_runner_gets_the_call_as_it_is_and_the_hold_besides(tree: Path) -> None:
    seen: list[tuple[Sequence[str], str | None, Mapping[str, str] | None]] = []

    def record(
        cmd: Sequence[str], cwd: str | None = None, extra_environ: Mapping[str, str] | None = None
    ) -> None:
        assert not is_free(source_tree_lock(tree).lock_file)
        seen.append((cmd, cwd, extra_environ))

    locked_runner(record)(["a", "b"], str(tree), {"MARK": "1"})
    [(cmd, cwd, environ)] = seen
    assert (cmd, cwd) == (["a", "b"], str(tree))
    assert environ is not None
    assert environ["MARK"] == "1"
    assert set(environ) == {"MARK", VARIABLE}


def test_the_tree_of_a_runner_is_the_working_directory_by_default(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    free: list[bool] = []
    lock_file = source_tree_lock(tree).lock_file
    locked_runner(lambda *_, **__: free.append(is_free(lock_file)))(["x"])
    assert free == [False]


def test_a_command_of_its_own_gets_the_environment_and_the_directory(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INHERITED", "1")
    code = "import os; open('seen', 'w').write(os.environ['INHERITED'] + os.environ['MARK'])"
    locked_runner()([sys.executable, "-c", code], str(tree), {"MARK": "2"})
    assert (tree / "seen").read_text() == "12"


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


def test_a_timeout_is_in_the_error_that_build_makes_of_it(tree: Path, tmp_path: Path) -> None:
    write_project(tree)
    builder = ProjectBuilder(tree, runner=locked_runner(timeout=0))
    with held_elsewhere(tree), pytest.raises(BuildBackendException) as caught:
        builder.build("wheel", tmp_path / "dist")
    assert isinstance(caught.value.exception, LockTimeout)


def test_lock_options_are_those_of_the_lock(tree: Path, tmp_path: Path) -> None:
    write_project(tree)
    with held_elsewhere(tree), pytest.raises(LockTimeout):
        locked_runner(timeout=0.1)(["x"], str(tree))
    with held_elsewhere(tree), pytest.raises(LockTimeout):
        locked_hooks(caller(tree), timeout=0.1).build_wheel(str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    locked_runner(lambda *_, **__: None, lock_dir=elsewhere, digest=lambda _: "name")(
        ["x"], str(tree)
    )
    assert [path.name for path in elsewhere.iterdir()] == ["uv-setuptools-name.lock"]


class HookError(Exception):
    """What a hook, or what runs it, may raise; it may well be an OSError too."""


@either
@pytest.mark.parametrize("error", [HookError(), FileNotFoundError(2, "no such command", "cc")])
def test_an_error_before_the_hook_has_run_is_told_apart_from_the_hook_s(
    adapter: str, error: Exception, tree: Path, tmp_path: Path
) -> None:
    """By its class: a frontend need not know whether the hook has run."""
    ran: list[bool] = []

    def hook() -> None:
        ran.append(True)
        raise error

    def outcome(**options: Any) -> BaseException:
        with pytest.raises(Exception) as caught:  # noqa: PT011 (which one is the question)
            WAYS[adapter](tree, hook, **options)
        return caught.value

    no_directory = tmp_path / "a file"
    no_directory.touch()
    unavailable = outcome(lock_dir=no_directory)
    assert isinstance(unavailable, LockUnavailable)
    with held_elsewhere(tree):
        assert isinstance(outcome(timeout=0), LockTimeout)
    assert ran == []
    assert outcome() is error
    assert ran == [True]
    assert not isinstance(error, SourceTreeLockError)


def test_build_s_error_names_the_one_before_the_hook(tree: Path, tmp_path: Path) -> None:
    write_project(tree, "raise SystemExit('it cannot be built')")
    no_directory = tmp_path / "a file"
    no_directory.touch()
    kinds = []
    for runner in (locked_runner(lock_dir=no_directory), locked_runner()):
        with pytest.raises(BuildBackendException) as caught:
            ProjectBuilder(tree, runner=runner).build("wheel", tmp_path / "out")
        kinds.append(type(caught.value.exception))
    assert kinds == [LockUnavailable, subprocess.CalledProcessError]


@pytest.mark.parametrize(
    ("options", "error"), [({"tiemout": 1}, TypeError), ({"timeout": -1}, ValueError)]
)
def test_lock_options_that_make_no_sense_are_refused_before_any_hook(
    options: dict[str, int], error: type[Exception]
) -> None:
    name = next(iter(options))
    with pytest.raises(error, match=name):
        locked_runner(**options)  # type: ignore[arg-type]
    with pytest.raises(error, match=name):
        locked_hooks(object(), **options)  # type: ignore[arg-type]


INTERRUPTED = """
    import sys
    from source_tree_lock.adapters import locked_runner, runner
    runner._GRACE = float(sys.argv[3])
    try:
        locked_runner()([sys.executable, "-c", sys.argv[2]], sys.argv[1])
    except KeyboardInterrupt:
        tell("interrupted")
"""


TELLS = f"{ALIVE}\nimport time; print('alive', flush=True)\n"


ENDS = f"{TELLS}time.sleep(600)"


REFUSES_TO_END = (
    # Not by print(): it may still be in it when the signal comes.
    "import os, signal; signal.signal(signal.SIGTERM, lambda *_: os.write(1, b'no\\n'))\n"
    f"{TELLS}while True: time.sleep(1)"
)


@pytest.mark.parametrize(
    ("hook", "grace", "interrupts"),
    [(ENDS, LIMIT, 1), (REFUSES_TO_END, 0.1, 1), (REFUSES_TO_END, LIMIT, 2)],
    ids=["obedient", "killed after a while", "killed by a second interrupt"],
)
def test_an_interruption_ends_the_command_before_the_tree_is_free(
    tree: Path, hook: str, grace: float, interrupts: int
) -> None:
    with Child(INTERRUPTED, tree, hook, grace) as frontend:
        frontend.expect("alive")
        for number in range(interrupts):
            if number:
                frontend.expect("no")  # it was asked to end
            os.kill(frontend.pid, signal.SIGINT)
        line = frontend.line()
        assert "interrupted" in (line, line if line != "no" else frontend.line())
        assert is_free(tree / "alive")
        assert is_free(source_tree_lock(tree).lock_file)


def test_an_interruption_while_the_command_is_being_started_ends_it_too(tree: Path) -> None:
    """Python has the process, and the caller does not yet: it waits for news of exec(2)."""
    script = """
        import os, sys
        from source_tree_lock.adapters import locked_runner
        read = os.read
        def interrupted(*arguments):
            while not os.path.exists(os.path.join(sys.argv[1], "alive")):
                pass
            os.read = read
            raise KeyboardInterrupt
        run = locked_runner()
        os.read = interrupted
        try:
            run([sys.executable, "-c", sys.argv[2]], sys.argv[1])
        except KeyboardInterrupt:
            tell("interrupted")
        heard()
    """
    with Child(script, tree, f"{ALIVE}import time; time.sleep(600)") as frontend:
        frontend.expect("interrupted")
        assert is_free(tree / "alive")
        assert is_free(source_tree_lock(tree).lock_file)


SHOWS_WHO_OUTLIVES = """
    import sys
    from pyproject_hooks import BuildBackendHookCaller, default_subprocess_runner
    from source_tree_lock.adapters import locked_hooks, locked_runner
    tree = sys.argv[1]
    runners = {"runner": None, "runner around pyproject_hooks' own": default_subprocess_runner}
    if sys.argv[2] in runners:
        runner = locked_runner(runners[sys.argv[2]])
        hooks = BuildBackendHookCaller(tree, "setuptools.build_meta", runner=runner)
    else:
        hooks = locked_hooks(BuildBackendHookCaller(tree, "setuptools.build_meta"))
    hooks.build_wheel(sys.argv[3])
"""


@pytest.mark.parametrize("adapter", ["runner", "runner around pyproject_hooks' own", "hooks"])
def test_nobody_is_let_in_before_the_hook_of_a_killed_frontend_has_ended(
    tree: Path, tmp_path: Path, adapter: str
) -> None:
    """SIGKILL in the middle of setuptools' own build_wheel."""
    lock_file = source_tree_lock(tree).lock_file
    write_project(tree, "print('writing', flush=True)\ninput()\n")
    with Child(SHOWS_WHO_OUTLIVES, tree, adapter, tmp_path) as frontend:
        frontend.expect("writing")
        frontend.kill()
        with pytest.raises(LockTimeout), source_tree_lock(tree, timeout=0.05):
            pass
        assert not is_free(lock_file)
        frontend.say()
        with source_tree_lock(tree, timeout=LIMIT):
            assert list(tmp_path.glob("*.whl")) != []  # it was written to its end
