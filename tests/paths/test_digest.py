"""The digest is uv's: by the pairs that uv itself computed, and by a uv that runs here."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

import pytest
from support import LIMIT, Child, own_mounts, uv_build, write_project

from source_tree_lock import cache_digest, source_tree_lock
from source_tree_lock._paths import digest as room

VECTORS = Path(__file__).parents[1] / "vectors"


def vectors(name: str) -> list[tuple[str, str]]:
    return [(path, digest) for path, digest in json.loads((VECTORS / name).read_text("utf-8"))]


UNIX = vectors("uv_cache_digest.json")
WINDOWS = vectors("uv_cache_digest_windows.json")


def test_no_vector_is_missing() -> None:
    assert (len(UNIX), len(WINDOWS)) == (34, 19)


@pytest.mark.parametrize(("path", "digest"), UNIX)
def test_a_posix_path_has_the_digest_that_uv_gave_it(path: str, digest: str) -> None:
    assert cache_digest(PurePosixPath(path)) == digest


@pytest.mark.parametrize(("path", "digest"), WINDOWS)
def test_a_windows_path_has_the_digest_that_uv_gave_it(path: str, digest: str) -> None:
    assert cache_digest(PureWindowsPath(path)) == digest


@pytest.mark.parametrize(("path", "digest"), WINDOWS)
def test_a_windows_path_needs_no_verbatim_prefix(path: str, digest: str) -> None:
    plain = path.replace("\\\\?\\UNC\\", "\\\\").replace("\\\\?\\", "")
    assert plain != path
    assert cache_digest(PureWindowsPath(plain)) == digest
    assert cache_digest(PureWindowsPath(plain.replace("\\", "/"))) == digest


@pytest.mark.parametrize(("path", "digest"), [pair for pair in WINDOWS if "C:" in pair[0]])
def test_the_case_of_a_drive_letter_makes_no_difference(path: str, digest: str) -> None:
    assert cache_digest(PureWindowsPath(path.replace("C:", "c:"))) == digest
    assert cache_digest(PureWindowsPath(path[4:].replace("C:", "c:"))) == digest


def test_a_lone_surrogate_in_a_windows_path_is_hashed_as_itself() -> None:
    surrogates = ("C:\\\ud800", "C:\\\udc00", "C:\\\ufffd", "C:\\?")
    digests = {cache_digest(PureWindowsPath(path)) for path in surrogates}
    assert len(digests) == len(surrogates)


@pytest.mark.parametrize(
    "path",
    [
        PurePosixPath("relative/tree"),
        PurePosixPath(),
        PureWindowsPath("relative\\tree"),
        PureWindowsPath("C:relative"),
        PureWindowsPath("\\without\\drive"),
    ],
)
def test_a_relative_path_has_no_digest(path: PurePath) -> None:
    with pytest.raises(ValueError, match="absolute"):
        cache_digest(path)


def test_of_the_digests_that_were_made_only_so_many_are_remembered(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_MOST_KNOWN", 0)
    before = dict(room._known)
    for _ in range(2):
        name = source_tree_lock(tree).lock_file.name
        assert name == f"uv-setuptools-{cache_digest(tree.resolve())}.lock"
    assert room._known == before


@pytest.mark.skipif(sys.platform == "win32", reason="file names are no bytes on Windows")
@pytest.mark.parametrize(
    "name",
    [
        b"a tree with spaces, 'quotes' and ; semicolons",
        "zwölf Boxkämpfer \U0001f512 日本語".encode(),
        b"not UTF-8: \xff\xfe\xc3",
        b"a\nline\tbreak",
    ],
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
    ours = source_tree_lock(tree).lock_file
    assert [ours.name] == [path.name for path in temp_dir.glob("uv-setuptools-*")]
    assert ours.name == f"uv-setuptools-{cache_digest(tree.resolve())}.lock"
    assert ours.parent == temp_dir


#: Mounts a file system at two places, and tells by which name its tree is locked in each: by that
#: of the README's recipe, and by the one that everybody has without it.
_TWO_PLACES = """
    import subprocess, sys
    from pathlib import Path, PurePosixPath
    from source_tree_lock import cache_digest, source_tree_lock

    def path_on_the_shared_file_system(tree: Path) -> str:
        mount_point = next(path for path in (tree, *tree.parents) if path.is_mount())
        return cache_digest(PurePosixPath("/", tree.relative_to(mount_point)))

    here, there = sys.argv[1:]
    subprocess.run(["mount", "-t", "tmpfs", "shared", here], check=True)
    subprocess.run(["mount", "--bind", here, there], check=True)
    Path(here, "projects", "a").mkdir(parents=True)
    for place in (here, there):
        tree = Path(place, "projects", "a")
        tell(source_tree_lock(tree, digest=path_on_the_shared_file_system).lock_file.name)
        tell(source_tree_lock(tree).lock_file.name)
"""


def test_a_tree_has_one_name_wherever_it_is_mounted_when_the_digest_is_of_its_path_there(
    tmp_path: Path,
) -> None:
    places = [tmp_path / "here", tmp_path / "there"]
    for place in places:
        place.mkdir()
    with Child(_TWO_PLACES, *places, prefix=own_mounts()) as child:
        (recipe_here, default_here), (recipe_there, default_there) = (
            (child.line(), child.line()) for _ in places
        )
    assert recipe_here == recipe_there
    assert default_here != default_there
