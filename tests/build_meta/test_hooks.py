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
from projects import ALL_COMMANDS, Witness, archives, call_all_hooks
from pyproject_hooks import BuildBackendHookCaller
from support import LIMIT, Child, held_elsewhere, is_free, write_project

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


def test_setuptools_is_imported_when_a_hook_is_looked_up_and_may_offer_fewer() -> None:
    script = """
    import sys
    from source_tree_lock import build_meta
    tell(hasattr(build_meta, "__path__"), hasattr(build_meta, "__wrapped__"))
    tell("setuptools" in sys.modules)
    build_meta.build_wheel
    del sys.modules["setuptools.build_meta"].build_editable
    tell(hasattr(build_meta, "build_editable"), hasattr(build_meta, "build_wheel"))
    """
    with Child(script) as child:
        assert child.rest() == ["True False", "False", "False True"]


def test_in_tree_backends_find_public_names_and_no_class_that_would_not_lock() -> None:
    namespace: dict[str, object] = {}
    exec("from source_tree_lock.build_meta import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(SETUPTOOLS.__all__)
    for name in vars(SETUPTOOLS):
        assert name.startswith("_") or hasattr(build_meta, name), name
    assert build_meta.SetupRequirementsError is SETUPTOOLS.SetupRequirementsError
    assert set(SETUPTOOLS.__all__) <= set(dir(build_meta))
    with pytest.raises(AttributeError, match=r"takes the lock with source_tree_lock\(\)"):
        _ = build_meta._BuildMetaBackend


def test_every_hook_runs_under_the_lock(tree: Path, tmp_path: Path) -> None:
    witness = Witness(tree)
    write_project(tree, witness.setup)
    call_all_hooks(BuildBackendHookCaller(str(tree), BACKEND), tmp_path)
    assert witness.report() == {f"{command} locked" for command in ALL_COMMANDS}
    (tree / "beside.py").touch()  # which only the legacy backend finds
    write_project(tree, f"import beside\n{witness.setup}")
    BuildBackendHookCaller(str(tree), f"{BACKEND}:__legacy__").build_wheel(str(tmp_path))
    assert "bdist_wheel locked" in (report := witness.report())
    assert all(line.endswith(" locked") for line in report)
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
        command = [sys.executable, "-c", hook]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, cwd=tree, stdout=pipe, stderr=pipe, text=True)
        assert process.stderr is not None
        line = process.stderr.readline()
    assert line.startswith("source-tree-lock: waiting ")
    assert f"(pid {holder.pid}) to leave {tree}\n" in line
    stdout, stderr = process.communicate(timeout=LIMIT)
    assert (process.returncode, stdout[-3:]) == (0, "[]\n")
    over = rf"^source-tree-lock: waited .* for {re.escape(str(tree))}$"
    assert re.search(over, stderr, re.MULTILINE)
    assert "waiting" not in stderr


@pytest.mark.parametrize(
    ("variable", "value"), [("TIMEOUT", "0"), ("DIR", "{tree}/setup.py"), ("DIR", "a/b")]
)
def test_a_hook_that_cannot_get_in_says_so_in_one_line_without_a_traceback(
    variable: str, value: str, tree: Path
) -> None:
    """The line is what the frontend shows of the hook, as of an error of setuptools."""
    write_project(tree)
    value = value.format(tree=tree)
    call = (
        "from pyproject_hooks import BuildBackendHookCaller\n"
        f"BuildBackendHookCaller('.', {BACKEND!r}).get_requires_for_build_wheel()"
    )
    with held_elsewhere(tree) as holder:
        ended = subprocess.run(
            [sys.executable, "-c", call],
            cwd=tree,
            env={**os.environ, f"SOURCE_TREE_LOCK_{variable}": value},
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
    assert ended.returncode != 0
    of_hook = ended.stderr.partition("Traceback")[0]  # that of pyproject_hooks, in this process
    [line] = of_hook.splitlines()
    assert line.startswith("source-tree-lock: ")
    if variable == "TIMEOUT":
        assert f"for source tree '{tree}', held by " in line
        assert f"(pid {holder.pid})" in line
    else:
        assert value in line


def test_a_backend_that_lives_on_as_toxs_does_holds_the_tree_for_each_hook_only(
    tree: Path, tmp_path: Path
) -> None:
    witness = Witness(tree)
    write_project(tree, witness.setup)
    script = f"""
    import sys, {BACKEND} as backend
    out = sys.argv[1]
    for hook in "sdist", "wheel":
        keywords = {{f"{{hook}}_directory": out, "config_settings": None}}
        getattr(backend, f"build_{{hook}}")(**keywords)
        tell("built")
        heard()
    """
    with Child(script, tmp_path, cwd=tree) as child:
        for count in (1, 2):
            while child.line() != "built":
                pass
            assert is_free(source_tree_lock(tree).lock_file)
            assert {line.split()[1] for line in witness.report()} == {"locked"}
            assert len(archives(tmp_path)) == count
            child.say()
