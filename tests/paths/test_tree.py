"""From a path to the tree: its canonical path, and what is no source tree."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from support import is_free

from source_tree_lock import LockUnavailable, SourceTreeLockError, cache_digest, source_tree_lock

pytestmark = pytest.mark.usefixtures("no_leaks")


def test_every_spelling_of_a_path_leads_to_one_lock_file(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The kernel goes on from where a link leads, not from where it stands.
    for name in ("other", "deeper"):
        tmp_path.joinpath(name).mkdir()
    tmp_path.joinpath("deeper", "away").symlink_to("../other")
    tmp_path.joinpath("link").symlink_to("tree")
    monkeypatch.chdir(tmp_path)
    relative = "tree ./tree/ ../{0}//tree/. other/../tree link link/../tree deeper/away/../tree"
    canonical = tree.resolve()
    for path in relative.format(tmp_path.name).split():
        for spelling in (path, f"{tmp_path}/{path}", os.fsencode(path)):
            with source_tree_lock(spelling) as lock:
                assert lock.tree == canonical
                assert lock.lock_file.name == f"uv-setuptools-{cache_digest(canonical)}.lock"


def test_a_path_is_followed_anew_at_each_entry(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "link"
    locks = [source_tree_lock(), source_tree_lock("."), source_tree_lock(link)]
    for directory in (tmp_path, tree):
        monkeypatch.chdir(directory)
        link.unlink(missing_ok=True)
        link.symlink_to(directory)
        for lock in locks:
            with lock:
                assert lock.tree == directory.resolve()
                assert lock.lock_file == source_tree_lock(directory).lock_file


@pytest.mark.parametrize("kind", [str, os.fsencode])
@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("{tree}/missing/too", FileNotFoundError, "missing/too"),
        ("{tree}/dangling", FileNotFoundError, "dangling"),
        ("", FileNotFoundError, "''"),
        ("{tree}/file", NotADirectoryError, "file"),
        ("{tree}/file/below", NotADirectoryError, "file/below"),
        ("{tree}\0x", ValueError, r"tree\\x00x"),
        ("{tree}/circle", LockUnavailable, "circle"),
        pytest.param("{tree}" + "/deep" * 1000, LockUnavailable, "source tree .*/deep", id="deep"),
    ],
)
def test_a_path_that_leads_to_no_tree_is_an_error_that_names_it_and_its_cause(
    path: str, error: type[Exception], message: str, kind: Any, tree: Path, temp_dir: Path
) -> None:
    tree.joinpath("file").touch()
    tree.joinpath("dangling").symlink_to("nowhere")
    tree.joinpath("circle").symlink_to("circle")
    given = path.format(tree=tree)
    with pytest.raises(error, match=message) as caught:
        source_tree_lock(kind(given)).acquire()
    if isinstance(caught.value, OSError):
        assert caught.value.filename == given
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.errno == caught.value.__cause__.errno
    assert isinstance(caught.value, SourceTreeLockError) is (error is LockUnavailable)
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"digest": lambda _, it=it: it}, repr(it)) for it in ("", "a/b", "..", ".", "a?")),
        *(({"digest": lambda _, it=it: it}, repr(it)) for it in ("a\\b", "a\0b", 17, b"x", None)),
        ({"digest": lambda _: "x" * 240}, "xxx"),
        ({"lock_dir": "a\0b"}, r"a\x00b"),
    ],
)
def test_a_digest_or_directory_that_gives_no_path_is_an_error_that_names_it(
    options: dict[str, Any], message: str, tree: Path, temp_dir: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        source_tree_lock(tree, **options).acquire()
    assert list(temp_dir.iterdir()) == []
    assert is_free(tree)
