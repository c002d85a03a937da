"""The digest is uv's: by the pairs that uv itself computed, and by a uv that runs here."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pytest
from support import LIMIT, uv_build, write_project

from source_tree_lock import cache_digest, source_tree_lock

VECTORS = Path(__file__).parents[1] / "vectors"
UNIX = json.loads((VECTORS / "uv_cache_digest.json").read_text("utf-8"))
WINDOWS = json.loads((VECTORS / "uv_cache_digest_windows.json").read_text("utf-8"))
assert (len(UNIX), len(WINDOWS)) == (34, 19)


@pytest.mark.parametrize(("path", "digest"), UNIX)
def test_a_posix_path_has_the_digest_that_uv_gave_it(path: str, digest: str) -> None:
    assert cache_digest(PurePosixPath(path)) == digest


@pytest.mark.parametrize(("path", "digest"), WINDOWS)
def test_a_windows_path_has_the_digest_that_uv_gave_it_however_it_is_written(
    path: str, digest: str
) -> None:
    plain = path.replace("\\\\?\\UNC\\", "\\\\").replace("\\\\?\\", "")
    assert plain != path
    for spelling in (path, plain, plain.replace("\\", "/")):
        assert cache_digest(PureWindowsPath(spelling)) == digest
        assert cache_digest(PureWindowsPath(spelling.replace("C:", "c:"))) == digest


def test_a_lone_surrogate_in_a_windows_path_is_hashed_as_itself() -> None:
    surrogates = ("C:\\\ud800", "C:\\\udc00", "C:\\\ufffd", "C:\\?")
    assert len({cache_digest(PureWindowsPath(path)) for path in surrogates}) == len(surrogates)


def test_a_relative_path_has_no_digest() -> None:
    relative = ("relative\\tree", "C:relative", "\\without\\drive")
    for path in (PurePosixPath("relative/tree"), PurePosixPath(), *map(PureWindowsPath, relative)):
        with pytest.raises(ValueError, match="absolute"):
            cache_digest(path)


@pytest.mark.skipif(sys.platform == "win32", reason="file names are no bytes on Windows")
@pytest.mark.parametrize(
    "name", ["'a' tree;\nBäume \U0001f512 日本語".encode(), b"not UTF-8: \xff"]
)
def test_a_real_uv_build_leaves_the_lock_file_that_we_name(
    name: bytes, tmp_path: Path, temp_dir: Path
) -> None:
    if sys.platform == "darwin" and b"\xff" in name:
        pytest.skip("APFS takes no names that are not UTF-8")
    tree = tmp_path / "deeper" / os.fsdecode(name)
    tree.mkdir(parents=True)
    write_project(tree)
    assert uv_build(tree).wait(LIMIT) == 0
    [lock_file] = temp_dir.glob("uv-setuptools-*")
    assert source_tree_lock(tree).lock_file == lock_file


@pytest.mark.skipif(sys.platform == "win32", reason="the recipe is for POSIX")
def test_a_tree_has_one_name_wherever_it_is_mounted_when_the_digest_is_of_its_path_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the recipe in `cluster/README.md`."""
    readme = Path(__file__).parents[1].joinpath("cluster", "README.md").read_text("utf-8")
    recipe: dict[str, Any] = {}
    exec(readme.partition("```python\n")[2].partition("\n\n\nwith ")[0], recipe)
    trees = [tmp_path / place / "projects" / "a" for place in ("here", "there")]
    for tree in trees:
        tree.mkdir(parents=True)
    monkeypatch.setattr(Path, "is_mount", lambda path: path.parent == tmp_path)
    for digest, count in ((recipe["path_on_the_shared_file_system"], 1), (cache_digest, 2)):
        names = {source_tree_lock(tree, digest=digest).lock_file.name for tree in trees}
        assert len(names) == count
