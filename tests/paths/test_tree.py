"""From a path to the tree: its canonical path, and what is no source tree."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
from support import is_free, open_descriptors

from source_tree_lock import LockUnavailable, SourceTreeLockError, cache_digest, source_tree_lock

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has tests of its own")


# The canonical path


@pytest.mark.parametrize(
    "spelling",
    "{tree} {tree}/ {parent}//tree/. {parent}/other/../tree {parent}/link {parent}/link/ "
    "{parent}/link/../tree {parent}/deeper/away/../tree tree ./tree/ other/../tree link".split(),
)
def test_every_spelling_of_a_path_leads_to_one_lock_file(
    spelling: str, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.joinpath("other").mkdir()
    # The kernel goes on from where a link leads, not from where it stands.
    tmp_path.joinpath("deeper").mkdir()
    tmp_path.joinpath("deeper", "away").symlink_to("../other")
    tmp_path.joinpath("link").symlink_to("tree")
    monkeypatch.chdir(tmp_path)
    path = spelling.format(tree=tree, parent=tmp_path)
    canonical = tree.resolve()
    for lock in (source_tree_lock(path), source_tree_lock(os.fsencode(path))):
        assert lock.tree == canonical
        assert lock.lock_file.name == f"uv-setuptools-{cache_digest(canonical)}.lock"
        with lock:
            assert lock.tree == canonical


@pytest.mark.parametrize("arguments", [(), (".",), (b".",)])
def test_the_working_directory_is_the_one_at_entry(
    arguments: tuple[Any], tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lock = source_tree_lock(*arguments)
    monkeypatch.chdir(tree)
    with lock:
        assert lock.tree == tree.resolve()


def test_a_symlink_that_comes_onto_a_path_is_seen_at_the_next_entry(
    tree: Path, tmp_path: Path
) -> None:
    with source_tree_lock(tree) as lock:
        before = lock.lock_file
    moved = tmp_path / "moved"
    tree.rename(moved)
    tree.symlink_to("moved")
    with lock:
        assert lock.tree == moved
        assert lock.lock_file == source_tree_lock(moved).lock_file != before


# Bad input: the right error, and nothing made or left locked


#: Paths that lead to no source tree, in a tree with a file, a dangling link and a circle of links.
BAD_PATHS: dict[str, tuple[type[Exception], str]] = {
    "{tree}/missing": (FileNotFoundError, "missing"),
    "{tree}/missing/too": (FileNotFoundError, "missing/too"),
    "{tree}/dangling": (FileNotFoundError, "dangling"),
    "": (FileNotFoundError, "''"),
    "{tree}/file": (NotADirectoryError, "file"),
    "{tree}/file/below": (NotADirectoryError, "file/below"),
    "{tree}\0x": (ValueError, r"tree\\x00x"),
    "{tree}/circle": (LockUnavailable, "circle"),
    "{tree}" + "/deep" * 1000: (LockUnavailable, "source tree .*/deep"),
}


@pytest.mark.parametrize("path", BAD_PATHS)
@pytest.mark.parametrize("kind", [str, os.fsencode])
def test_a_path_that_leads_to_no_tree_is_an_error_that_names_it_and_its_cause(
    path: str, kind: Any, tree: Path, temp_dir: Path
) -> None:
    tree.joinpath("file").touch()
    tree.joinpath("dangling").symlink_to("nowhere")
    tree.joinpath("circle").symlink_to("circle")
    error, message = BAD_PATHS[path]
    given = path.format(tree=tree)
    before = open_descriptors()
    with pytest.raises(error, match=message) as caught:
        source_tree_lock(kind(given)).acquire()
    if isinstance(caught.value, OSError):
        assert caught.value.filename == given
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.errno == caught.value.__cause__.errno
    assert isinstance(caught.value, SourceTreeLockError) is (error is LockUnavailable)
    assert open_descriptors() <= before
    assert list(temp_dir.iterdir()) == []
    assert is_free(tree)


def test_a_deleted_working_directory_is_no_source_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for path in (".", "", "..", "sub"):
        with pytest.raises(FileNotFoundError, match=r"no such source tree"):
            source_tree_lock(path).acquire()


_DIGESTS: list[tuple[object, str]] = [
    *((each, repr(each)) for each in ("", "a/b", "..", ".", "a?", "a\\b", 17, b"x", None)),
    ("a\0b", r"'a\x00b'"),
    ("x" * 240, "xxx"),
]
BAD_OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    *(({"digest": lambda _, it=it: it}, ValueError, words) for it, words in _DIGESTS),
    ({"digest": 17}, TypeError, "digest"),
    ({"timeout": -1}, ValueError, "-1"),
    ({"timeout": math.nan}, ValueError, "nan"),
    ({"timeout": "5"}, TypeError, "'5'"),
    ({"lock_dir": 7}, TypeError, "7"),
    ({"lock_dir": False}, TypeError, "False"),
    ({"lock_dir": ""}, ValueError, "empty"),
    ({"lock_dir": "a\0b"}, ValueError, r"a\x00b"),
    ({"path": 7}, TypeError, "7"),
    ({"path": None}, TypeError, "None"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS)
def test_an_option_that_makes_no_sense_is_an_error_that_says_it(
    options: dict[str, Any], error: type[Exception], message: str, tree: Path, temp_dir: Path
) -> None:
    arguments: dict[str, Any] = {"path": tree, **options}
    with pytest.raises(error, match=re.escape(message)) as caught:
        source_tree_lock(**arguments).acquire()
    assert not isinstance(caught.value, SourceTreeLockError)
    assert list(temp_dir.iterdir()) == []
    assert is_free(tree)


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "1 s"])
def test_a_timeout_in_the_environment_that_makes_no_sense_is_an_error_that_names_the_variable(
    text: str, tree: Path, temp_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_TREE_LOCK_TIMEOUT", text)
    with pytest.raises(ValueError, match=f"SOURCE_TREE_LOCK_TIMEOUT.*{re.escape(text)}"):
        source_tree_lock(tree).acquire()
    assert list(temp_dir.iterdir()) == []
