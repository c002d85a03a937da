"""What locked_runner and locked_hooks promise alike: options, errors, messages."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from support import held_elsewhere, is_free
from ways import WAYS, Way

from source_tree_lock import LockTimeout, LockUnavailable, Wait, source_tree_lock
from source_tree_lock.adapters import locked_hooks, locked_runner

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
    for adapter in (locked_runner, partial(locked_hooks, object())):
        with pytest.raises(error, match=name):
            adapter(**options)


@either
def test_an_error_before_the_hook_has_run_is_told_apart_from_the_hook_s(
    run_hook: Way, tree: Path, tmp_path: Path
) -> None:
    """By its class, even where the hook raises an OSError: a frontend need not know if it ran."""
    hook = Mock(side_effect=FileNotFoundError(2, "no such command", "cc"))
    no_directory = tmp_path / "a file"
    no_directory.touch()
    with pytest.raises(LockUnavailable):
        run_hook(tree, hook, lock_dir=no_directory)
    with held_elsewhere(tree), pytest.raises(LockTimeout):
        run_hook(tree, hook, timeout=0)
    hook.assert_not_called()
    with pytest.raises(FileNotFoundError) as caught:
        run_hook(tree, hook)
    assert caught.value is hook.side_effect


@either
@pytest.mark.parametrize("answer", [True, False])
def test_any_other_rule_may_say_which_trees_are_locked(
    run_hook: Way, answer: bool, tree: Path
) -> None:
    seen: list[object] = []

    def rule(path: str) -> bool:
        seen.append(Path(path))
        return answer

    lock_file = source_tree_lock(tree).lock_file
    run_hook(tree, lambda: seen.append(is_free(lock_file)), when=rule)
    assert seen == [tree, not answer]


@either
@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING], ids=logging.getLevelName)
def test_all_that_the_library_says_goes_where_one_argument_says(
    run_hook: Way, level: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The start and the end of a wait, and a warning: of a lock directory of everybody's."""
    caplog.set_level(level, "source_tree_lock")
    tree, lock_dir = tmp_path / "red \033[31m\n", tmp_path / "everybody's"
    tree.mkdir()
    lock_dir.mkdir()
    lock_dir.chmod(0o777)
    said: list[str] = []
    waits: list[Wait] = []
    with held_elsewhere(tree, environ={"SOURCE_TREE_LOCK_DIR": str(lock_dir)}) as holder:

        def tell(wait: Wait) -> None:
            waits.append(wait)
            holder.say()

        options = {"lock_dir": lock_dir, "on_wait": tell, "after_wait": waits.append}
        run_hook(tree, lambda: None, say=said.append, **options)
    warning, start, end = said
    assert str(lock_dir) in warning
    assert start == str(waits[0])
    assert f"(pid {holder.pid})" in start
    assert end.startswith("acquired ")
    assert r"red \x1b[31m\n' after " in end  # a terminal does not obey a path
    assert len(waits) == 2
    assert caplog.records == []
    # Afterwards, and of others, the log hears as before.
    logging.getLogger("source_tree_lock").warning("of others")
    assert [each.getMessage() for each in caplog.records] == ["of others"]
