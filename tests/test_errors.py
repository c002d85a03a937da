"""What the errors tell, here and in another process."""

from __future__ import annotations

import copy
import errno
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from support import held_elsewhere

from source_tree_lock import (
    Holder,
    LockTimeout,
    LockUnavailable,
    SourceTreeLockError,
    source_tree_lock,
)


def test_a_timeout_names_the_tree_the_time_and_the_holder(tree: Path, no_leaks: object) -> None:
    with held_elsewhere(tree) as child:
        with pytest.raises(LockTimeout) as caught:
            source_tree_lock(f"{tree}/.", timeout=0.01).__enter__()
        error = caught.value
        assert isinstance(error, TimeoutError)
        assert isinstance(error, SourceTreeLockError)
        assert error.tree == str(tree.resolve())
        assert error.waited >= 0.01
        assert error.holder is not None
        assert error.holder.pid == child.pid
        assert str(tree.resolve()) in str(error)
        assert str(child.pid) in str(error)


@pytest.mark.parametrize("copied", [copy.copy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_timeout_can_be_sent_to_another_process(
    copied: Callable[[LockTimeout], LockTimeout],
) -> None:
    holder = Holder(17, "build", "here", 1.5)
    error = LockTimeout("waited", tree="/tree", waited=2.5, holder=holder)
    again = copied(error)
    assert type(again) is LockTimeout
    assert (str(again), again.tree, again.waited, again.holder) == (
        "waited",
        "/tree",
        2.5,
        holder,
    )


@pytest.mark.parametrize("copied", [copy.copy, lambda each: pickle.loads(pickle.dumps(each))])
def test_an_unavailable_lock_is_an_os_error_that_can_be_sent_to_another_process(
    copied: Callable[[LockUnavailable], LockUnavailable],
) -> None:
    error = LockUnavailable(errno.EROFS, "read-only; name another", "/lock/file")
    for each in (error, copied(error)):
        assert isinstance(each, OSError)
        assert isinstance(each, SourceTreeLockError)
        assert (each.errno, each.filename) == (errno.EROFS, "/lock/file")
        assert "read-only; name another" in str(each)
        assert "/lock/file" in str(each)
