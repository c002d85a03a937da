"""What locked_runner and locked_hooks promise alike: options, errors, messages, children."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from support import held_elsewhere, write_project
from ways import WAYS, Way

from source_tree_lock import LockTimeout, LockUnavailable, SourceTreeLockError, Wait
from source_tree_lock.adapters import locked_hooks, locked_runner

from .callers import caller, pyproject_api_frontend

#: Each runs a function as a hook of a tree.
either = pytest.mark.parametrize("run_hook", [WAYS["locked_runner"], WAYS["locked_hooks"]])


@either
def test_lock_options_are_those_of_the_lock(run_hook: Way, tree: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    run_hook(tree, lambda: None, lock_dir=elsewhere, digest=lambda _: "name")
    assert [path.name for path in elsewhere.iterdir()] == ["uv-setuptools-name.lock"]


@pytest.mark.parametrize(
    ("options", "error"),
    [({"tiemout": 1}, TypeError), ({"timeout": -1}, ValueError), ({"path": "."}, TypeError)],
)
def test_invalid_lock_options_are_refused_before_any_hook(
    options: dict[str, Any], error: type[Exception]
) -> None:
    [name] = options
    with pytest.raises(error, match=name):
        locked_runner(**options)
    with pytest.raises(error, match=name):
        locked_hooks(object(), **options)


@either
def test_an_error_before_the_hook_has_run_is_told_apart_from_the_hook_s(
    run_hook: Way, tree: Path, tmp_path: Path
) -> None:
    """By its class, even where the hook raises an OSError: a frontend need not know if it ran."""
    error = FileNotFoundError(2, "no such command", "cc")

    def hook() -> None:
        raise error

    no_directory = tmp_path / "a file"
    no_directory.touch()
    with pytest.raises(LockUnavailable):
        run_hook(tree, hook, lock_dir=no_directory)
    with held_elsewhere(tree), pytest.raises(LockTimeout):
        run_hook(tree, hook, timeout=0)
    with pytest.raises(FileNotFoundError) as caught:
        run_hook(tree, hook)
    assert caught.value is error
    assert not isinstance(error, SourceTreeLockError)


@either
@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING], ids=logging.getLevelName)
def test_all_that_the_library_says_goes_where_one_argument_says(
    run_hook: Way, level: int, tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The start and the end of a wait, and a warning: of a lock directory of everybody's."""
    caplog.set_level(level, "source_tree_lock")
    lock_dir = tmp_path / "everybody's"
    lock_dir.mkdir()
    lock_dir.chmod(0o777)
    said: list[str] = []
    told: list[Wait] = []
    ended: list[Wait] = []

    with held_elsewhere(tree, environ={"SOURCE_TREE_LOCK_DIR": str(lock_dir)}) as holder:

        def tell(wait: Wait) -> None:
            told.append(wait)
            holder.say()

        options = {"lock_dir": lock_dir, "on_wait": tell, "after_wait": ended.append}
        run_hook(tree, lambda: None, say=said.append, **options)
    warning, start, end = said
    assert str(lock_dir) in warning
    assert start == str(told[0])
    assert f"(pid {holder.pid})" in start
    assert end.startswith(f"acquired {tree} after ")
    assert (len(told), len(ended)) == (1, 1)
    assert caplog.records == []
    # Afterwards, and of others, the log hears as before.
    logging.getLogger("source_tree_lock").warning("of others")
    assert [each.getMessage() for each in caplog.records] == ["of others"]


@either
def test_no_path_controls_the_terminal_in_which_a_message_is_shown(
    run_hook: Way, tmp_path: Path
) -> None:
    tree = tmp_path / "red \033[31m\n"
    tree.mkdir()
    said: list[str] = []
    with held_elsewhere(tree) as holder:
        run_hook(tree, lambda: None, say=said.append, on_wait=lambda _: holder.say())
    assert [each[:8] for each in said] == ["waiting ", "acquired"]
    for each in said:
        assert "red \\x1b[31m\\n" in each
        assert each.isprintable()


@pytest.mark.parametrize("adapter", ["runner", "hook caller", "pyproject_api"])
def test_a_hook_that_takes_the_lock_is_let_in(tree: Path, tmp_path: Path, adapter: str) -> None:
    """By the environment, or by descent (Linux)."""
    takes_it = "from source_tree_lock import source_tree_lock\nwith source_tree_lock(timeout=30): 0"
    write_project(tree, takes_it)
    if adapter == "runner":
        caller(tree, locked_runner()).build_wheel(str(tmp_path))
    elif adapter == "hook caller":
        locked_hooks(caller(tree)).build_wheel(str(tmp_path))
    elif sys.platform == "linux":
        locked_hooks(pyproject_api_frontend(tree)).build_wheel(tmp_path)
    else:
        pytest.skip("only Linux tells a child who holds the tree on its behalf")
    assert list(tmp_path.glob("*.whl"))
