"""The hooks of the backend: setuptools' own, and all that it offers besides, under the lock."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyproject_api
import pytest
from projects import ALL_COMMANDS, Witness, archives, call_all_hooks
from pyproject_hooks import BuildBackendHookCaller
from support import LIMIT, Child, held_elsewhere, is_free, wait_until_blocked, write_project

from source_tree_lock import build_meta, source_tree_lock
from source_tree_lock._hook_names import HOOK_NAMES

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="what a hook sees is told by flock(2)"),
    pytest.mark.filterwarnings("ignore::pyproject_hooks.BuildBackendWarning"),
]

BACKEND = "source_tree_lock.build_meta"
SETUPTOOLS = importlib.import_module("setuptools.build_meta")  # which has no types


@pytest.mark.parametrize("kind", ["module", "legacy"])
def test_it_offers_exactly_setuptools_hooks_with_their_parameters(kind: str) -> None:
    ours, theirs = (
        getattr(module, "__legacy__") if kind == "legacy" else module  # noqa: B009
        for module in (build_meta, SETUPTOOLS)
    )
    offered = {name for name in HOOK_NAMES if hasattr(theirs, name)}
    assert "build_wheel" in offered
    assert {name for name in HOOK_NAMES if hasattr(ours, name)} == offered
    for name in offered:
        assert inspect.signature(getattr(ours, name)) == inspect.signature(getattr(theirs, name))
        assert getattr(ours, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_hook"):
        _ = ours.no_such_hook


def test_it_follows_a_setuptools_that_offers_fewer_hooks() -> None:
    script = """
    import setuptools.build_meta
    from source_tree_lock import build_meta
    del setuptools.build_meta.build_editable
    tell(hasattr(build_meta, "build_editable"), hasattr(build_meta, "build_wheel"))
    """
    with Child(script) as child:
        child.expect("False True")


def test_everything_that_it_offers_can_be_imported_at_once() -> None:
    namespace: dict[str, object] = {}
    exec("from source_tree_lock.build_meta import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(SETUPTOOLS.__all__)
    assert namespace["build_wheel"] == build_meta.build_wheel


def test_in_tree_backends_find_public_names_and_no_class_that_would_not_lock() -> None:
    for name in vars(SETUPTOOLS):
        if not name.startswith("_"):
            assert hasattr(build_meta, name), name
    assert build_meta.SetupRequirementsError is SETUPTOOLS.SetupRequirementsError
    assert set(SETUPTOOLS.__all__) <= set(dir(build_meta))
    with pytest.raises(AttributeError, match=r"takes the lock with source_tree_lock\(\)"):
        _ = build_meta._BuildMetaBackend


def test_setuptools_is_imported_when_a_hook_is_looked_up() -> None:
    script = """
    import sys
    from source_tree_lock import build_meta
    tell(hasattr(build_meta, "__path__"), hasattr(build_meta, "__wrapped__"))
    tell("setuptools" in sys.modules)
    build_meta.build_wheel
    tell("setuptools" in sys.modules)
    """
    with Child(script) as child:
        child.expect("True False")
        child.expect("False")
        child.expect("True")


def run_all_hooks(tree: Path, out: Path, backend: str, *backend_path: str) -> None:
    hooks = BuildBackendHookCaller(str(tree), backend, backend_path=backend_path or None)
    call_all_hooks(hooks, out)


ALL_LOCKED = {f"{command} locked" for command in ALL_COMMANDS}


@pytest.mark.parametrize("name", [BACKEND, f"{BACKEND}:__legacy__"])
def test_every_hook_runs_under_the_lock(tree: Path, tmp_path: Path, name: str) -> None:
    witness = Witness(tree)
    write_project(tree, witness.setup)
    if name.endswith("__legacy__"):
        (tree / "beside.py").touch()  # which only the legacy backend finds
        write_project(tree, f"import beside\n{witness.setup}")
    run_all_hooks(tree, tmp_path, name)
    assert witness.report() == ALL_LOCKED
    assert is_free(source_tree_lock(tree).lock_file)


def test_what_a_setup_py_builds_in_its_own_tree_gets_in(tree: Path, tmp_path: Path) -> None:
    inner = f"import {BACKEND} as b; b.build_wheel(sys.argv[1])"
    write_project(
        tree,
        f"""
        import os, subprocess, sys
        if "bdist_wheel" in sys.argv and "INNER" not in os.environ:
            os.environ["INNER"] = "1"
            code = "import sys; " + {inner!r}
            subprocess.run([sys.executable, "-c", code, "../inner"], check=True)
        """,
    )
    outer = f"import os, sys\n{inner}\ntell('SOURCE_TREE_LOCK_HELD' in os.environ)"
    with Child(outer, tmp_path, cwd=tree) as child:
        assert child.rest()[-1] == "False"
    assert archives(tmp_path)
    assert archives(tmp_path / "inner")


# Waiting


def test_a_hook_that_waits_says_for_what_and_that_it_is_over(tree: Path) -> None:
    write_project(tree)
    hook = f"import {BACKEND} as backend; print(backend.get_requires_for_build_wheel())"
    with held_elsewhere(tree) as holder:
        process = subprocess.Popen(
            [sys.executable, "-c", hook],
            cwd=tree,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        line = process.stderr.readline()
    assert line.startswith("source-tree-lock: waiting ")
    assert f"(pid {holder.pid}) to leave {tree}\n" in line
    stdout, stderr = process.communicate(timeout=LIMIT)
    assert (process.returncode, stdout[-3:]) == (0, "[]\n")
    over = rf"^source-tree-lock: waited .* for {re.escape(str(tree))}$"
    assert re.search(over, stderr, re.MULTILINE)
    assert "waiting" not in stderr


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc/locks")
@pytest.mark.parametrize("way", ["no descriptor", "a closed file", "a pipe without a reader"])
def test_a_hook_that_waits_needs_nobody_who_listens(tree: Path, tmp_path: Path, way: str) -> None:
    write_project(tree)
    hook = f"import sys, {BACKEND} as backend; {{}}backend.get_requires_for_build_wheel()"
    close = "sys.stderr.close(); " if way == "a closed file" else ""
    shell = 'exec "$0" "$@" 2>&-' if way == "no descriptor" else 'exec "$0" "$@"'
    reader, writer = os.pipe()
    os.close(reader)
    with held_elsewhere(tree), open(tmp_path / "stdout", "wb") as stdout:
        process = subprocess.Popen(
            ["sh", "-c", shell, sys.executable, "-c", hook.format(close)],
            cwd=tree,
            stdout=stdout,
            stderr=writer if way == "a pipe without a reader" else None,
        )
        wait_until_blocked(process.pid)
    os.close(writer)
    assert process.wait(LIMIT) == 0
    assert "waiting" not in (tmp_path / "stdout").read_text(), "it goes where nobody expects it"


@pytest.mark.parametrize("why", ["time", "directory", "relative"])
def test_a_hook_that_cannot_get_in_says_so_in_one_line_without_a_traceback(
    why: str, tree: Path, tmp_path: Path
) -> None:
    """The line is what the frontend shows of the hook, as of an error of setuptools."""
    write_project(tree)
    call = (
        "from pyproject_hooks import BuildBackendHookCaller\n"
        f"BuildBackendHookCaller('.', {BACKEND!r}).get_requires_for_build_wheel()"
    )
    no_directory = tmp_path / "a file"
    no_directory.touch()
    environ = {
        "time": {"SOURCE_TREE_LOCK_TIMEOUT": "0"},
        "directory": {"SOURCE_TREE_LOCK_DIR": str(no_directory)},
        "relative": {"SOURCE_TREE_LOCK_DIR": "a/b"},
    }[why]
    with held_elsewhere(tree) as holder:
        ended = subprocess.run(
            [sys.executable, "-c", call],
            cwd=tree,
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
    assert ended.returncode != 0
    of_hook = ended.stderr.partition("Traceback")[0]  # that of pyproject_hooks, in this process
    [line] = of_hook.splitlines()
    assert line.startswith("source-tree-lock: ")
    if why == "time":
        assert f"for source tree '{tree}', held by " in line
        assert f"(pid {holder.pid})" in line
    else:
        assert ("'a/b'" if why == "relative" else str(no_directory)) in line


def test_toxs_persistent_backend_holds_the_tree_for_a_hook_not_for_its_life(
    tree: Path, tmp_path: Path
) -> None:
    """pyproject_api's own backend process, which tox keeps, and which calls by keyword."""
    witness = Witness(tree)
    write_project(tree, witness.setup)
    lock_file = source_tree_lock(tree).lock_file
    backend = Path(pyproject_api.__file__).with_name("_backend.py")
    calls: list[tuple[str, dict[str, object]]] = [
        ("get_requires_for_build_wheel", {"config_settings": None}),
        (
            "prepare_metadata_for_build_wheel",
            {"metadata_directory": str(tmp_path / "m"), "config_settings": None},
        ),
        (
            "build_wheel",
            {
                "wheel_directory": str(tmp_path / "w"),
                "config_settings": None,
                "metadata_directory": str(tmp_path / "m"),
            },
        ),
        ("build_sdist", {"sdist_directory": str(tmp_path / "s"), "config_settings": None}),
    ]
    (tmp_path / "m").mkdir()  # as the frontend does
    with subprocess.Popen(
        [sys.executable, str(backend), "True", BACKEND],
        cwd=tree,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number, (command, keywords) in enumerate(calls):
            result = tmp_path / f"{number}.json"
            message = {"cmd": command, "kwargs": keywords, "result": str(result)}
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            while not process.stdout.readline().startswith("Backend: Wrote response"):
                assert process.poll() is None
            assert "return" in json.loads(result.read_text()), result.read_text()
            assert is_free(lock_file)
            assert {line.split()[1] for line in witness.report()} == {"locked"}
        process.kill()
    assert [path.suffix for path in archives(tmp_path / "w")] == [".whl"]
