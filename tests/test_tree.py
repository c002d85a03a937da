"""From a path to its lock file: uv's temporary directory, the canonical path, and bad input."""

from __future__ import annotations

import ctypes
import errno
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import WITHOUT_ROOTS_RIGHTS, Child, is_free, open_descriptors

from source_tree_lock import (
    LockUnavailable,
    SourceTreeLockError,
    _tree,
    cache_digest,
    source_tree_lock,
)

posix_only = pytest.mark.skipif(os.name != "posix", reason="the rule is of POSIX systems")


# The temporary directory that Rust's std::env::temp_dir gives


@posix_only
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has a directory for each user")
def test_without_tmpdir_the_lock_file_is_in_tmp(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python's tempfile would look at TEMP and TMP, which Rust does not.
    monkeypatch.delenv("TMPDIR")
    assert os.environ["TMP"]
    assert source_tree_lock(tree).lock_file.parent == Path("/tmp")


@posix_only
def test_tmpdir_is_taken_as_it_stands(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It need not exist or be writable: tempfile would look for another one.
    monkeypatch.setenv("TMPDIR", f"{tmp_path}/missing/")
    assert source_tree_lock(tree).lock_file.parent == tmp_path / "missing"
    with pytest.raises(LockUnavailable, match="missing") as caught, source_tree_lock(tree):
        pass
    assert caught.value.errno == errno.ENOENT
    assert not tmp_path.joinpath("missing").exists()


@posix_only
def test_an_empty_tmpdir_means_the_working_directory(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "")
    monkeypatch.chdir(tmp_path)
    assert source_tree_lock(tree).lock_file.parent == tmp_path


@posix_only
def test_a_relative_tmpdir_is_below_the_working_directory(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "some/where")
    monkeypatch.chdir(tmp_path)
    assert source_tree_lock(tree).lock_file.parent == tmp_path / "some" / "where"


@posix_only
def test_a_relative_tmpdir_is_not_normalised(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The kernel follows a symlink before it goes up, and so does uv (tried with uv 0.13.9).
    tmp_path.joinpath("elsewhere", "sub").mkdir(parents=True)
    tmp_path.joinpath("link").symlink_to("elsewhere/sub")
    monkeypatch.setenv("TMPDIR", "link/..")
    monkeypatch.chdir(tmp_path)
    with source_tree_lock(tree) as lock:
        assert tmp_path.joinpath("elsewhere", lock.lock_file.name).exists()


@posix_only
def test_a_relative_lock_directory_in_a_deleted_working_directory_is_an_error_of_ours(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(LockUnavailable, match="relative/dir") as caught:
        source_tree_lock(tree, lock_dir="relative/dir").acquire()
    assert isinstance(caught.value.__cause__, FileNotFoundError)


@posix_only
@pytest.mark.parametrize(
    ("confstr", "expected"),
    [
        (lambda name: {65537: "/var/folders/zz/T/"}[name], "/var/folders/zz/T"),
        # POSIX: None for a name that is known and has no value.
        (lambda name: None, "/tmp"),
        (lambda name: os.close(-1), "/tmp"),
    ],
    ids=["known", "without a value", "failing"],
)
def test_macos_has_a_temporary_directory_for_each_user(
    confstr: Callable[[int], str | None], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TMPDIR")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "confstr", confstr)
    assert Path(_tree.temp_dir()) == Path(expected)


@posix_only
def test_macos_prefers_tmpdir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/set/by/hand")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert _tree.temp_dir() == "/set/by/hand"


@posix_only
def test_macos_tells_the_canonical_path_of_what_is_open(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def f_getpath(descriptor: int, command: int, buffer: bytes) -> bytes:
        # fcntl(2) of macOS: 50 is F_GETPATH, the buffer has MAXPATHLEN bytes.
        assert (command, len(buffer)) == (50, 1024)
        assert os.path.samestat(os.fstat(descriptor), os.stat(tree))
        return b"/Private/Tree".ljust(1024, b"\0")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_GETPATH", 50, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", f_getpath)
    opened = _tree.open_tree(tree)
    opened.close()
    assert opened.path == "/Private/Tree"


def kernel32(temp_dir: str, *functions: str) -> Any:
    """Windows' library of that name, of which only these functions give the directory."""

    def get_temp_path(size: int, buffer: Any) -> int:
        if not temp_dir:
            return 0
        assert size > len(temp_dir)
        buffer.value = temp_dir
        return len(temp_dir)

    return SimpleNamespace(kernel32=SimpleNamespace(**dict.fromkeys(functions, get_temp_path)))


@pytest.mark.parametrize("functions", [("GetTempPath2W",), ("GetTempPathW",)])
def test_windows_names_its_temporary_directory(
    functions: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tree, "POSIX", False)
    windows = kernel32("C:\\Users\\me\\Temp\\", *functions)
    monkeypatch.setattr(ctypes, "windll", windows, raising=False)
    assert _tree.temp_dir() == "C:\\Users\\me\\Temp\\"


def test_windows_without_a_temporary_directory_has_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tree, "POSIX", False)
    monkeypatch.setattr(ctypes, "windll", kernel32("", "GetTempPathW"), raising=False)
    with pytest.raises(LockUnavailable, match="temporary"):
        _tree.temp_dir()


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


# The lock directory


def test_lock_dir_is_made_when_missing(tree: Path, tmp_path: Path) -> None:
    directory = tmp_path / "made" / "for it"
    with source_tree_lock(tree, lock_dir=directory) as lock:
        assert lock.lock_file.parent == directory
        assert lock.lock_file.is_file()


def test_the_environment_names_a_lock_dir_and_an_argument_wins(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_TREE_LOCK_DIR", str(tmp_path / "set"))
    with source_tree_lock(tree) as lock:
        assert lock.lock_file.parent == tmp_path / "set"
    given = os.fsencode(tmp_path / "given")
    assert source_tree_lock(tree, lock_dir=given).lock_file.parent == tmp_path / "given"


def test_an_empty_variable_names_no_lock_dir(
    tree: Path, temp_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_TREE_LOCK_DIR", "")
    assert source_tree_lock(tree).lock_file.parent == temp_dir


@posix_only
def test_a_relative_lock_dir_is_below_the_working_directory_at_entry(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = source_tree_lock(tree, lock_dir="locks")
    monkeypatch.chdir(tmp_path)
    with lock:
        monkeypatch.chdir("/")
        assert lock.lock_file.parent == tmp_path / "locks"
    assert is_free(tmp_path / "locks" / lock.lock_file.name)


# The digest


def test_a_digest_of_ones_own_gets_the_canonical_path_and_names_the_file(
    tree: Path, tmp_path: Path
) -> None:
    seen: list[Path] = []

    def digest(path: Path) -> str:
        seen.append(path)
        return "any-name_1.2"

    with source_tree_lock(f"{tmp_path}/./tree/", digest=digest) as lock:
        assert lock.lock_file.name == "uv-setuptools-any-name_1.2.lock"
    assert set(seen) == {tree.resolve()}


def test_an_error_in_a_digest_of_ones_own_leaves_nothing_behind(
    tree: Path, temp_dir: Path, no_leaks: object
) -> None:
    def digest(path: Path) -> str:
        raise KeyError(path)

    with pytest.raises(KeyError):
        source_tree_lock(tree, digest=digest).acquire()
    assert list(temp_dir.iterdir()) == []


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


@pytest.mark.parametrize("below", ["", "below"])
def test_a_lock_directory_that_is_a_file_is_an_error_that_says_what_to_do(
    below: str, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    for lock in (
        source_tree_lock(tree, lock_dir=file / below),
        source_tree_lock(tree),
    ):
        monkeypatch.setenv("SOURCE_TREE_LOCK_DIR", str(file / below))
        with pytest.raises(LockUnavailable) as caught:
            lock.acquire()
        assert repr(str(file))[1:-1] in str(caught.value)
        assert "SOURCE_TREE_LOCK_DIR" in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.errno == caught.value.__cause__.errno
    assert file.read_text() == "text"
    monkeypatch.delenv("SOURCE_TREE_LOCK_DIR")
    with source_tree_lock(tree, timeout=0):
        pass


@posix_only
@pytest.mark.parametrize("missing", [False, True])
def test_a_lock_directory_that_is_not_writable_is_an_error_that_says_what_to_do(
    missing: bool, tree: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "locks"
    directory.mkdir()
    directory.chmod(0o555)
    script = """
        from source_tree_lock import LockUnavailable, source_tree_lock
        lock = source_tree_lock(sys.argv[1], lock_dir=sys.argv[2])
        try:
            lock.acquire()
        except LockUnavailable as error:
            tell(error.errno, error.filename == str(lock.lock_file), error)
        heard()
    """
    chosen = directory / "sub" if missing else directory
    with Child(script, tree, chosen, prefix=WITHOUT_ROOTS_RIGHTS) as child:
        number, named, message = child.line().split(" ", 2)
        assert (int(number), named) == (errno.EACCES, "True")
        assert "lock_dir or SOURCE_TREE_LOCK_DIR" in message
        assert is_free(tree)
    assert list(directory.iterdir()) == []


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


def test_of_the_paths_that_were_met_only_so_many_are_remembered(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tree, "_MOST_MET", 0)
    before = set(_tree._met)
    for _ in range(2):
        with source_tree_lock(tree) as lock:
            assert lock.tree == tree.resolve()
    assert _tree._met == before


@posix_only
@pytest.mark.parametrize("named", ["lock_dir", "environment"])
def test_a_lock_directory_that_is_a_dangling_symlink_is_said_to_be_none(
    named: str, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    if named == "environment":
        monkeypatch.setenv("SOURCE_TREE_LOCK_DIR", str(link))
    with pytest.raises(LockUnavailable, match="lock directory") as caught:
        source_tree_lock(tree, lock_dir=link if named == "lock_dir" else None).acquire()
    assert caught.value.filename is not None
    assert caught.value.filename.startswith(str(link))
    assert not (tmp_path / "nowhere").exists()


def test_two_trees_with_one_lock_file_are_not_held_by_one_owner(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    one = source_tree_lock(tree, digest=lambda _: "all")
    two = source_tree_lock(other, digest=lambda _: "all")
    with one, pytest.raises(RuntimeError, match="same lock file"):
        two.acquire()
    spelled = source_tree_lock(other, digest=lambda _: "all", lock_dir=f"{one.lock_file.parent}/.")
    with one, pytest.raises(RuntimeError, match="same lock file"):
        spelled.acquire()
    with source_tree_lock(tree):
        tree.rename(tmp_path / "moved")
        tree.mkdir()
        with pytest.raises(RuntimeError, match="same lock file"):
            source_tree_lock(tree).acquire()
    with source_tree_lock(tree, timeout=0):
        pass
