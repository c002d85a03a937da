"""The hooks of the backend: setuptools' own, and all that it offers besides, under the lock."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from projects import ALL_COMMANDS, Witness, call_all_hooks
from pyproject_hooks import BuildBackendHookCaller
from support import (
    LIMIT,
    Child,
    held_elsewhere,
    is_free,
    long_after,
    start,
    wait_until,
    wait_until_blocked,
    write_project,
)

from source_tree_lock import build_meta, source_tree_lock

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="what a hook sees is told by flock(2)"),
    pytest.mark.filterwarnings("ignore::pyproject_hooks.BuildBackendWarning"),
]

BACKEND = "source_tree_lock.build_meta"
HOOK_NAMES = [
    f"{each}_{kind}"
    for each in ("build", "get_requires_for_build", "prepare_metadata_for_build")
    for kind in ("editable", "sdist", "wheel")
]
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


def test_it_follows_a_setuptools_that_offers_fewer_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(SETUPTOOLS, "build_editable")
    monkeypatch.delitem(vars(build_meta), "build_editable", raising=False)
    assert (hasattr(build_meta, "build_editable"), hasattr(build_meta, "build_wheel")) == (0, 1)


def test_in_tree_backends_find_public_names_and_no_class_that_would_not_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(vars(build_meta), "build_wheel", raising=False)  # not looked up yet
    assert set(SETUPTOOLS.__all__) <= set(dir(build_meta))
    namespace: dict[str, object] = {}
    exec("from source_tree_lock.build_meta import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(SETUPTOOLS.__all__)
    assert namespace["build_wheel"] == build_meta.build_wheel
    for name in vars(SETUPTOOLS):
        if not name.startswith("_"):
            assert hasattr(build_meta, name), name
    assert build_meta.SetupRequirementsError is SETUPTOOLS.SetupRequirementsError
    with pytest.raises(AttributeError, match=r"takes the lock with source_tree_lock\(\)"):
        _ = build_meta._BuildMetaBackend


@pytest.mark.parametrize("name", long_after(1, [BACKEND, f"{BACKEND}:__legacy__"]))
def test_every_hook_runs_under_the_lock(tree: Path, tmp_path: Path, name: str) -> None:
    witness = Witness(tree)
    write_project(tree, witness.setup)
    if name.endswith("__legacy__"):
        (tree / "beside.py").touch()  # which only the legacy backend finds
        write_project(tree, f"import beside\n{witness.setup}")
    call_all_hooks(BuildBackendHookCaller(str(tree), name), tmp_path)
    assert witness.report() == {f"{command} locked" for command in ALL_COMMANDS}
    assert is_free(source_tree_lock(tree).lock_file)


def test_a_process_that_goes_on_holds_the_tree_for_a_hook_and_not_for_its_life(tree: Path) -> None:
    """As the one that tox keeps, which calls by keyword."""
    write_project(tree)
    script = f"""
    from {BACKEND} import build_wheel
    tell(build_wheel(wheel_directory="..", config_settings=None, metadata_directory=None))
    heard()
    """
    with Child(script, cwd=tree) as child:
        wait_until(lambda: child.line() == "sample-1-py3-none-any.whl")
        assert is_free(source_tree_lock(tree).lock_file)


# Waiting


def test_a_hook_that_waits_says_for_what_and_that_it_is_over(tree: Path) -> None:
    write_project(tree)
    hook = f"import {BACKEND} as backend; print(backend.get_requires_for_build_wheel())"
    with held_elsewhere(tree) as holder:
        process = start(sys.executable, "-c", hook, cwd=tree)
        assert process.stdout is not None
        line = process.stdout.readline()
    assert line.startswith("source-tree-lock: waiting ")
    assert f"(pid {holder.pid}) to leave {tree}\n" in line
    output, _ = process.communicate(timeout=LIMIT)
    assert (process.returncode, output[-3:]) == (0, "[]\n")
    over = rf"^source-tree-lock: waited .* for {re.escape(str(tree))}$"
    assert re.search(over, output, re.MULTILINE)
    assert "waiting" not in output


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


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("SOURCE_TREE_LOCK_TIMEOUT", "0", r"for source tree '{tree}', held by .* \(pid {pid}\)"),
        ("SOURCE_TREE_LOCK_DIR", "/dev/null", "/dev/null"),
        ("SOURCE_TREE_LOCK_DIR", "a/b", "'a/b'"),
    ],
)
def test_a_hook_that_cannot_get_in_says_so_in_one_line_without_a_traceback(
    variable: str, value: str, said: str, tree: Path
) -> None:
    """The line is what the frontend shows of the hook, as of an error of setuptools."""
    write_project(tree)
    call = (
        "from pyproject_hooks import BuildBackendHookCaller\n"
        f"BuildBackendHookCaller('.', {BACKEND!r}).get_requires_for_build_wheel()"
    )
    with held_elsewhere(tree) as holder:
        process = start(sys.executable, "-c", call, cwd=tree, **{variable: value})
        output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode != 0
    of_hook = output.partition("Traceback")[0]  # that of pyproject_hooks, in its process
    [line] = of_hook.splitlines()
    assert line.startswith("source-tree-lock: ")
    assert re.search(said.format(tree=tree, pid=holder.pid), line)
