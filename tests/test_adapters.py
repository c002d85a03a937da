"""Around other tools' calls: each hook runs under the lock, and everything else is as it was."""

from __future__ import annotations

import copy
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from build import BuildBackendException, ProjectBuilder
from build.util import project_wheel_metadata
from projects import Witness
from pyproject_api import SubprocessFrontend
from pyproject_hooks import (
    BuildBackendHookCaller,
    default_subprocess_runner,
    quiet_subprocess_runner,
)
from support import (
    ALIVE,
    LIMIT,
    Child,
    held_elsewhere,
    is_free,
    wait_until,
    waiters,
    write_project,
)
from ways import WAYS

from source_tree_lock import (
    LockTimeout,
    LockUnavailable,
    SourceTreeLockError,
    Wait,
    source_tree_lock,
)
from source_tree_lock._handover import VARIABLE
from source_tree_lock.adapters import is_setuptools, locked_hooks, locked_runner

if TYPE_CHECKING:
    from source_tree_lock.adapters.runner import Runner

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="what a hook sees is told by flock(2)"),
    # setuptools warns of each editable installation, and pyproject_hooks passes that on.
    pytest.mark.filterwarnings("ignore::pyproject_hooks.BuildBackendWarning"),
]

BACKEND = "setuptools.build_meta"
#: For a setup.py: a deadlock is an error rather than a wait.
TAKES_THE_LOCK = f"""
from source_tree_lock import source_tree_lock
with source_tree_lock(timeout={LIMIT / 2}):
    pass
"""


def caller(
    tree: Path, runner: Runner | None = None, backend: str = BACKEND
) -> BuildBackendHookCaller:
    return BuildBackendHookCaller(str(tree), backend, runner=runner)


def pyproject_api_frontend(tree: Path) -> SubprocessFrontend:
    return SubprocessFrontend(*SubprocessFrontend.create_args_from_folder(tree)[:-1])


class ThisEnvironment:
    """Of the kind that `build` makes for isolated builds, without installing anything."""

    python_executable = sys.executable

    def make_extra_environ(self) -> dict[str, str]:
        return {"MARK": "isolated"}


# locked_runner


def call_all_hooks(hooks: BuildBackendHookCaller, out: Path) -> None:
    hooks.get_requires_for_build_wheel()
    hooks.prepare_metadata_for_build_wheel(str(out))
    hooks.build_wheel(str(out))
    hooks.get_requires_for_build_sdist()
    hooks.build_sdist(str(out))
    hooks.get_requires_for_build_editable()
    hooks.prepare_metadata_for_build_editable(str(out))
    hooks.build_editable(str(out))


ALL_COMMANDS = {"egg_info", "dist_info", "bdist_wheel", "sdist", "editable_wheel"}


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


either = pytest.mark.parametrize("adapter", ["locked_runner", "locked_hooks"])


@either
@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING], ids=logging.getLevelName)
def test_all_that_the_library_says_goes_where_one_argument_says(
    adapter: str, level: int, tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whom a wait is for, and a warning, such as that of a lock directory of everybody's."""
    caplog.set_level(level, "source_tree_lock")
    lock_dir = tmp_path / "everybody's"
    lock_dir.mkdir()
    lock_dir.chmod(0o777)
    said: list[str] = []
    told: list[Wait] = []

    with held_elsewhere(tree, environ={"SOURCE_TREE_LOCK_DIR": str(lock_dir)}) as holder:

        def tell(wait: Wait) -> None:
            told.append(wait)
            holder.say()

        WAYS[adapter](tree, lambda: None, lock_dir=lock_dir, say=said.append, on_wait=tell)
        warning, wait = sorted(said, key=lambda each: each.startswith("waiting "))
        assert str(lock_dir) in warning
        assert wait == str(told[0])
        assert f"(pid {holder.pid})" in wait
        assert len(told) == 1
    assert caplog.records == []
    # Afterwards, and of others, the log hears as before.
    logging.getLogger("source_tree_lock").warning("of others")
    assert [each.getMessage() for each in caplog.records] == ["of others"]


@either
def test_a_circle_that_a_thread_of_its_own_finds_is_said_there_too(
    adapter: str, tree: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    crosses = """
        from source_tree_lock import source_tree_lock
        with source_tree_lock(sys.argv[1]):
            tell("held")
            heard()
            source_tree_lock(sys.argv[2]).acquire()
    """
    if not os.path.exists("/proc/locks"):
        pytest.skip("asks /proc/locks who waits for whom")

    said: list[str] = []

    def say(sentence: str) -> None:
        said.append(sentence)
        if "may never end" in sentence:
            child.kill()

    with source_tree_lock(other), Child(crosses, tree, other) as child:
        child.expect("held")
        child.say()
        wait_until(lambda: bool(waiters(source_tree_lock(other).lock_file)))
        WAYS[adapter](tree, lambda: None, say=say)
    assert len(said) == 2
    assert f"(pid {child.pid}) holds '{tree}' and waits for '{other}'" in said[1]


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


# An interruption ends the command before the tree is free

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


# Which trees

SETUPTOOLS_TABLE = {
    "no pyproject.toml": (None, True),
    "empty": ("", True),
    "no build-system": ("[project]\nname = 'x'", True),
    "no build-backend": ("[build-system]\nrequires = ['setuptools']", True),
    "setuptools": ("[build-system]\nbuild-backend = 'setuptools.build_meta'", True),
    "legacy": ("[build-system]\nbuild-backend = 'setuptools.build_meta:__legacy__'", True),
    "a wrapper": ("[build-system]\nbuild-backend = 'pbr.build'", True),
    "another wrapper": ("[build-system]\nbuild-backend = 'jupyter_packaging.build_api'", True),
    "setuptools among what it requires": (
        "[build-system]\nrequires = ['x', 'SetupTools[core] >= 70']\nbuild-backend = 'x'",
        True,
    ),
    "a name that begins so": (
        "[build-system]\nrequires = ['setuptools-scm']\nbuild-backend = 'hatchling.build'",
        False,
    ),
    "ours": ("[build-system]\nbuild-backend = 'source_tree_lock.build_meta'", False),
    "our legacy": ("[build-system]\nbuild-backend='source_tree_lock.build_meta:__legacy__'", False),
    "in tree": ("[build-system]\nbuild-backend = 'x'\nbackend-path = ['.']", True),
    "ours, with a path": (
        "[build-system]\nbuild-backend = 'source_tree_lock.build_meta'\nbackend-path = ['.']",
        False,
    ),
    "a longer name": ("[build-system]\nbuild-backend = 'setuptools.build_meta_x'", False),
    "flit": ("[build-system]\nbuild-backend = 'flit_core.buildapi'", False),
    "hatchling": ("[build-system]\nbuild-backend = 'hatchling.build'", False),
    "maturin": ("[build-system]\nbuild-backend = 'maturin'", False),
    "poetry": ("[build-system]\nbuild-backend = 'poetry.core.masonry.api'", False),
    "meson": ("[build-system]\nbuild-backend = 'mesonpy'", False),
    "broken": ("[build-system", True),
    "not UTF-8": ("[build-system]\nbuild-backend = '\udcff'", True),
    "no table": ("build-system = 5", True),
    "a list of backends": ("[build-system]\nbuild-backend = ['flit_core.buildapi']", True),
    "too deep": ("x = " + "[" * 100_000, True),
}


@pytest.mark.parametrize("name", SETUPTOOLS_TABLE)
def test_which_trees_are_setuptools(tree: Path, name: str) -> None:
    text, expected = SETUPTOOLS_TABLE[name]
    if text is not None:
        (tree / "pyproject.toml").write_bytes(text.encode(errors="surrogateescape"))
    assert is_setuptools(tree) is expected
    assert is_setuptools(os.fsencode(tree)) is expected
    assert is_setuptools(str(tree)) is expected


def test_a_pyproject_toml_that_cannot_be_read_locks(tree: Path) -> None:
    (tree / "pyproject.toml").mkdir()
    assert is_setuptools(tree)


#: Of the kind that flit, hatchling and maturin are: a hook that writes nothing into the tree.
OTHER_BACKEND = """
def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    return "built.whl"
"""


@pytest.mark.parametrize("module", ["flit_core.buildapi", "hatchling.build", "maturin"])
def test_other_backends_do_not_wait_for_a_held_tree(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    path = tmp_path / "site" / (module.replace(".", "/") + ".py")
    path.parent.mkdir(parents=True)
    (path.parent / "__init__.py").touch()  # so that it comes before one that is installed
    path.write_text(OTHER_BACKEND)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    (tree / "pyproject.toml").write_text(
        f"[build-system]\nrequires = []\nbuild-backend = '{module}'\n"
    )
    with held_elsewhere(tree):
        for runner in (locked_runner(timeout=0), locked_runner(quiet_subprocess_runner, timeout=0)):
            assert caller(tree, runner, module).build_wheel(str(tmp_path)) == "built.whl"
        hooks = locked_hooks(caller(tree, None, module), timeout=0)
        assert hooks.build_wheel(str(tmp_path)) == "built.whl"
        frontend = locked_hooks(pyproject_api_frontend(tree), timeout=0)
        assert frontend.build_wheel(tmp_path).wheel == tmp_path / "built.whl"


def test_any_other_rule_may_say_which_trees_are_locked(tree: Path, tmp_path: Path) -> None:
    asked: list[object] = []

    def never(source_tree: object) -> bool:
        asked.append(source_tree)
        return False

    witness = Witness(tree)
    write_project(tree, witness.setup)
    caller(tree, locked_runner(when=never)).build_wheel(str(tmp_path))
    locked_hooks(caller(tree), when=never).build_wheel(str(tmp_path))
    assert witness.report() == {"bdist_wheel unlocked"}
    assert [os.fspath(each) for each in asked] == [str(tree)] * 2  # type: ignore[call-overload]
    (tree / "pyproject.toml").write_text("[build-system]\nbuild-backend = 'maturin'")
    caller(tree, locked_runner(when=lambda _: True)).build_wheel(str(tmp_path))
    assert witness.report() == {"bdist_wheel locked"}


def test_a_broken_pyproject_toml_is_the_frontends_to_report(tree: Path) -> None:
    (tree / "pyproject.toml").write_text("[build-system")
    free: list[bool] = []
    lock_file = source_tree_lock(tree).lock_file
    locked_runner(lambda *_, **__: free.append(is_free(lock_file)))(["x"], str(tree))
    assert free == [False]


# locked_hooks


def test_every_hook_of_a_hook_caller_runs_under_the_lock(
    tree: Path, tmp_path: Path, no_leaks: object
) -> None:
    witness = Witness(tree)
    write_project(tree, witness.setup)
    hooks = caller(tree)
    runner = hooks._subprocess_runner
    call_all_hooks(locked_hooks(hooks), tmp_path)
    assert witness.report() == {f"{command} locked" for command in ALL_COMMANDS}
    assert hooks._subprocess_runner is runner
    assert is_free(source_tree_lock(tree).lock_file)


def test_every_hook_of_pyproject_apis_frontend_runs_under_the_lock(
    tree: Path, tmp_path: Path, no_leaks: object
) -> None:
    witness = Witness(tree)
    write_project(tree, witness.setup)
    frontend = locked_hooks(pyproject_api_frontend(tree))
    frontend.get_requires_for_build_wheel()
    frontend.prepare_metadata_for_build_wheel(tmp_path / "metadata")
    assert frontend.build_wheel(tmp_path).wheel.is_file()
    frontend.get_requires_for_build_sdist()
    assert frontend.build_sdist(tmp_path).sdist.is_file()
    frontend.get_requires_for_build_editable()
    frontend.prepare_metadata_for_build_editable(tmp_path / "editable")
    frontend.build_editable(tmp_path)
    assert witness.report() == {f"{command} locked" for command in ALL_COMMANDS}
    frontend.metadata_from_built(tmp_path / "built", "wheel")
    assert witness.report() == {"bdist_wheel locked"}


BACKEND_IN_PROCESS = """
    import importlib, sys
    from source_tree_lock.adapters import locked_hooks
    import setuptools.build_meta
    backend = locked_hooks(setuptools.build_meta)
    if sys.argv[1] == "legacy":
        backend = backend.__legacy__
    out = sys.argv[2]
    backend.get_requires_for_build_wheel()
    backend.prepare_metadata_for_build_wheel(metadata_directory=out)
    backend.build_wheel(out, config_settings=None, metadata_directory=None)
    backend.build_sdist(sdist_directory=out)
    backend.build_editable(out)
    tell("done")
"""


@pytest.mark.parametrize("kind", ["module", "legacy"])
def test_every_hook_of_a_backend_runs_under_the_lock(tree: Path, tmp_path: Path, kind: str) -> None:
    witness = Witness(tree)
    write_project(tree, witness.setup)
    with Child(BACKEND_IN_PROCESS, kind, tmp_path, cwd=tree) as child:
        while child.line() != "done":
            pass
    assert witness.report() == {f"{command} locked" for command in ALL_COMMANDS}


def test_a_source_tree_that_is_named_is_the_one_that_is_locked(tree: Path, tmp_path: Path) -> None:
    class Backend:
        def build_wheel(self) -> bool:
            return is_free(source_tree_lock(tree).lock_file)

    assert not locked_hooks(Backend(), tree).build_wheel()
    assert locked_hooks(Backend(), tmp_path).build_wheel()
    assert Backend().build_wheel()


class Frontend:
    """Something with hooks."""

    name = "mine"

    def build_wheel(self, wheel_directory: str) -> str:
        """Build it."""
        return f"{self.name} {wheel_directory}"

    def greet(self) -> bool:
        return is_free(source_tree_lock().lock_file)


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy])
def test_a_copy_locks_as_well(
    make: Callable[[BuildBackendHookCaller], BuildBackendHookCaller], tree: Path
) -> None:
    write_project(tree)
    hooks = make(locked_hooks(caller(tree), timeout=0))
    with held_elsewhere(tree), pytest.raises(LockTimeout):
        hooks.get_requires_for_build_wheel()


def test_what_is_no_hook_passes_through(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    frontend = Frontend()
    hooks = locked_hooks(frontend)
    assert hooks.name == "mine"
    hooks.name = "yours"
    assert frontend.name == "yours"
    assert hooks.build_wheel("here") == "yours here"
    assert hooks.build_wheel(wheel_directory="there") == "yours there"
    del hooks.name
    assert frontend.name == "mine"
    assert hooks.greet()
    assert "build_wheel" in dir(hooks)
    assert repr(frontend) in repr(hooks)


def test_a_locked_object_is_of_the_same_kind(tree: Path) -> None:
    assert isinstance(locked_hooks(Frontend()), Frontend)
    assert isinstance(locked_hooks(caller(tree)), BuildBackendHookCaller)
    assert isinstance(locked_hooks(sys), ModuleType)
    assert not isinstance(locked_hooks(Frontend()), BuildBackendHookCaller)


def test_optional_hooks_are_there_if_they_were(tree: Path) -> None:
    hooks = locked_hooks(Frontend())
    assert hasattr(hooks, "build_wheel")
    assert not hasattr(hooks, "build_editable")
    with pytest.raises(AttributeError, match="build_editable"):
        _ = hooks.build_editable  # type: ignore[attr-defined]


def test_a_hook_beyond_the_standards_is_locked_when_it_is_named(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    hooks = locked_hooks(Frontend(), also=["greet"])
    assert not hooks.greet()
    assert hooks.build_wheel("here") == "mine here"
    assert hooks.name == "mine"
    assert is_free(source_tree_lock().lock_file)


def test_the_legacy_hooks_of_a_backend_are_locked_too(tree: Path) -> None:
    class Hooks:
        def build_wheel(self) -> bool:
            return is_free(tree)

    class Backend(Hooks):
        __legacy__ = Hooks()

    legacy = locked_hooks(Backend(), source_tree=tree).__legacy__
    assert isinstance(legacy, Hooks)
    assert not legacy.build_wheel()
    assert is_free(tree)


def test_a_hook_keeps_its_name_and_its_words(tree: Path) -> None:
    hook = locked_hooks(Frontend()).build_wheel
    assert (hook.__name__, hook.__doc__) == ("build_wheel", "Build it.")


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
