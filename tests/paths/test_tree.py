"""From a path to the tree: its canonical path, and what is no source tree."""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import Child, is_free, open_descriptors

from source_tree_lock import (
    LockUnavailable,
    SourceTreeLockError,
    cache_digest,
    source_tree_lock,
)

posix_only = pytest.mark.skipif(os.name != "posix", reason="the rule is of POSIX systems")


# The canonical path


def make_symlink(link: Path, target: Path) -> None:
    try:
        link.symlink_to(target.name, target_is_directory=True)
    except OSError as error:  # Windows asks for a privilege
        pytest.skip(f"no symlinks here: {error}")
    if not link.exists():
        pytest.skip("no symlinks here: Wine only pretends to make one")


@pytest.mark.parametrize(
    "spelling",
    [
        "{tree}",
        "{tree}/",
        "{parent}//tree/.",
        "{parent}/other/../tree",
        "{parent}/link",
        "{parent}/link/",
        "{parent}/link/../tree",
        "tree",
        "./tree/",
        "other/../tree",
        "link",
    ],
)
def test_every_spelling_of_a_path_leads_to_one_lock_file(
    spelling: str, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.joinpath("other").mkdir()
    if "link" in spelling:
        make_symlink(tmp_path / "link", tree)
    monkeypatch.chdir(tmp_path)
    lock = source_tree_lock(spelling.format(tree=tree, parent=tmp_path))
    canonical = tree.resolve()
    assert lock.tree == canonical
    assert lock.lock_file.name == f"uv-setuptools-{cache_digest(canonical)}.lock"
    with lock:
        assert lock.tree == canonical


@posix_only
def test_dots_after_a_symlink_lead_where_the_kernel_goes(tree: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.joinpath("sub").mkdir(parents=True)
    tree.joinpath("link").symlink_to("../elsewhere/sub")
    assert source_tree_lock(f"{tree}/link/..").tree == elsewhere


@pytest.mark.parametrize("path", [".", b"."])
def test_the_working_directory_is_the_one_at_entry(
    path: str | bytes, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lock = source_tree_lock(path)
    default = source_tree_lock()
    monkeypatch.chdir(tree)
    with lock, default:
        assert lock.tree == default.tree == tree.resolve()


def test_a_path_may_be_bytes_or_path_like(tree: Path) -> None:
    expected = source_tree_lock(str(tree)).lock_file
    assert source_tree_lock(os.fsencode(tree)).lock_file == expected
    assert source_tree_lock(tree).lock_file == expected


@posix_only
@pytest.mark.parametrize("path", [".", "", "..", "sub"])
def test_a_deleted_working_directory_is_no_source_tree(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(FileNotFoundError, match=r"no such source tree"):
        source_tree_lock(path).acquire()


@posix_only
def test_the_name_of_a_deleted_directory_is_not_taken_from_the_kernel(tmp_path: Path) -> None:
    # /proc/self/fd names it "tree (deleted)", which may exist as well.
    named_so = tmp_path / "tree (deleted)"
    named_so.mkdir()
    assert source_tree_lock(named_so).tree == named_so


def test_a_symlink_that_comes_onto_a_path_is_seen_at_the_next_entry(
    tree: Path, tmp_path: Path
) -> None:
    with source_tree_lock(tree) as lock:
        before = lock.lock_file
    moved = tmp_path / "moved"
    tree.rename(moved)
    make_symlink(tree, moved)
    assert source_tree_lock(tree).tree == moved
    with source_tree_lock(tree) as lock:
        assert lock.tree == moved
        assert lock.lock_file == source_tree_lock(moved).lock_file != before


# Bad input: the right error, and nothing created or left locked


Make = Callable[[Path], Any]


def a_file(tree: Path) -> Path:
    path = tree / "a file"
    path.write_text("")
    return path


def digest_of(value: object) -> Make:
    return lambda tree: source_tree_lock(tree, digest=lambda path: value)  # type: ignore[arg-type,return-value]


BAD_PATHS: dict[str, tuple[Make, type[Exception], str]] = {
    "missing": (lambda tree: source_tree_lock(tree / "no"), FileNotFoundError, "no"),
    "in a missing one": (lambda tree: source_tree_lock(tree / "a/b"), FileNotFoundError, r"a\W+b"),
    "empty": (lambda tree: source_tree_lock(""), FileNotFoundError, "''"),
    "a file": (lambda tree: source_tree_lock(a_file(tree)), NotADirectoryError, "a file"),
    "below a file": (
        lambda tree: source_tree_lock(a_file(tree) / "x"),
        NotADirectoryError if os.name == "posix" else FileNotFoundError,
        "a file.+x",
    ),
    "NUL": (lambda tree: source_tree_lock(f"{tree}\0x"), ValueError, r"tree\\x00x"),
    "NUL in bytes": (
        lambda tree: source_tree_lock(os.fsencode(tree) + b"\0x"),
        ValueError,
        r"tree\\x00x",
    ),
}


BAD_OPTIONS: dict[str, tuple[Make, type[Exception], str]] = {
    "digest ''": (digest_of(""), ValueError, "tree.*''"),
    "digest 'a/b'": (digest_of("a/b"), ValueError, "tree.*'a/b'"),
    "digest '..'": (digest_of(".."), ValueError, r"tree.*'\.\.'"),
    "digest '.'": (digest_of("."), ValueError, r"tree.*'\.'"),
    "digest with NUL": (digest_of("a\0b"), ValueError, r"tree.*'a\\x00b'"),
    "digest with a backslash": (digest_of("a\\b"), ValueError, r"tree.*'a\\\\b'"),
    "digest 17": (digest_of(17), ValueError, "tree.*17"),
    "digest b'x'": (digest_of(b"x"), ValueError, "tree.*b'x'"),
    "digest None": (digest_of(None), ValueError, "tree.*None"),
    "timeout -1": (lambda tree: source_tree_lock(tree, timeout=-1), ValueError, "timeout.*-1"),
    "timeout NaN": (
        lambda tree: source_tree_lock(tree, timeout=math.nan),
        ValueError,
        "timeout.*nan",
    ),
    "timeout '5'": (
        lambda tree: source_tree_lock(tree, timeout="5"),  # type: ignore[arg-type]
        TypeError,
        "timeout.*'5'",
    ),
    "path 7": (lambda tree: source_tree_lock(7), TypeError, "7"),  # type: ignore[arg-type]
    "path None": (lambda tree: source_tree_lock(None), TypeError, "None"),  # type: ignore[arg-type]
    "lock_dir 7": (lambda tree: source_tree_lock(tree, lock_dir=7), TypeError, "7"),  # type: ignore[arg-type]
    "lock_dir False": (
        lambda tree: source_tree_lock(tree, lock_dir=False),  # type: ignore[arg-type]
        TypeError,
        "lock_dir.*False",
    ),
    "lock_dir ''": (
        lambda tree: source_tree_lock(tree, lock_dir=""),
        ValueError,
        "lock_dir.*empty",
    ),
    "digest 'a?'": (digest_of("a?"), ValueError, r"tree.*'a\?'"),
    "a digest too long for a file name": (digest_of("x" * 240), ValueError, "tree.*xxx"),
    "lock_dir with NUL": (
        lambda tree: source_tree_lock(tree, lock_dir="a\0b"),
        ValueError,
        r"a\\x00b",
    ),
}


BAD_INPUT = BAD_PATHS | BAD_OPTIONS


@pytest.mark.parametrize("what", BAD_INPUT)
def test_bad_input_gets_its_error_and_nothing_is_made_or_left_locked(
    what: str, tree: Path, temp_dir: Path, tmp_path: Path
) -> None:
    make, error, message = BAD_INPUT[what]
    before = open_descriptors()
    with pytest.raises(error, match=f"(?s){message}") as caught:
        make(tree).acquire()
    assert not isinstance(caught.value, SourceTreeLockError)
    assert open_descriptors() <= before
    assert list(temp_dir.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"temp", "tree"}
    if os.name == "posix":
        assert is_free(tree)
    with source_tree_lock(tree, timeout=0):
        pass


@pytest.mark.parametrize("what", ["missing", "a file"])
def test_the_error_for_a_bad_path_names_it_and_its_cause(what: str, tree: Path) -> None:
    make, error, _ = BAD_PATHS[what]
    with pytest.raises(error) as caught:
        make(tree).acquire()
    assert isinstance(caught.value, OSError)
    assert Path(caught.value.filename) in (tree / "no", tree / "a file")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.errno == caught.value.__cause__.errno


@posix_only
def test_a_dangling_symlink_is_no_source_tree(tree: Path) -> None:
    tree.joinpath("dangling").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match="dangling"):
        source_tree_lock(tree / "dangling").acquire()
    assert not tree.joinpath("nowhere").exists()


@posix_only
def test_a_loop_of_symlinks_cannot_be_locked(tree: Path) -> None:
    tree.joinpath("loop").symlink_to("loop")
    with pytest.raises(LockUnavailable, match="loop") as caught:
        source_tree_lock(tree / "loop").acquire()
    assert caught.value.errno == errno.ELOOP


@pytest.mark.parametrize(
    ("text", "error"),
    [("soon", ValueError), ("-1", ValueError), ("nan", ValueError), ("1 s", ValueError)],
)
def test_a_timeout_in_the_environment_that_makes_no_sense_is_an_error_that_names_the_variable(
    text: str, error: type[Exception], tree: Path, temp_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_TREE_LOCK_TIMEOUT", text)
    with pytest.raises(error, match=f"SOURCE_TREE_LOCK_TIMEOUT.*{re.escape(text)}"):
        source_tree_lock(tree).acquire()
    assert list(temp_dir.iterdir()) == []


@posix_only
@pytest.mark.parametrize("way", ["by its whole path", "as the working directory", "from inside"])
def test_a_path_deeper_than_the_system_allows_is_blamed_itself(way: str, tree: Path) -> None:
    script = """
        import os
        from source_tree_lock import LockUnavailable, source_tree_lock
        os.chdir(sys.argv[1])
        for _ in range(25):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
        os.mkdir("e" * 200)
        whole = sys.argv[1] + ("/" + "d" * 200) * 25
        way = sys.argv[2]
        given = {"by its whole path": whole, "as the working directory": "."}.get(way, "e" * 200)
        try:
            source_tree_lock(given).acquire()
        except LockUnavailable as error:
            tell(error.errno, error.filename in (given, whole), error)
        heard()
    """
    with Child(script, tree, way) as child:
        number, is_named, message = child.line().split(" ", 2)
        assert (int(number), is_named) == (errno.ENAMETOOLONG, "True")
        assert "source tree" in message
        assert "lock file" not in message
        assert is_free(tree)
