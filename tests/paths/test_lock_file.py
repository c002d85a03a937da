"""From a tree to its lock file: where it is, how it is opened and made, and what goes wrong."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import HOLD, WITHOUT_ROOTS_RIGHTS, Child, is_free, own_mounts

from source_tree_lock import LockUnavailable, source_tree_lock

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has tests of its own")

#: Tells the error of one attempt. Arguments: the tree, and a lock directory if one is named.
REFUSED = """
    from source_tree_lock import LockUnavailable, source_tree_lock
    try:
        source_tree_lock(sys.argv[1], lock_dir=sys.argv[2] if sys.argv[2:] else None).acquire()
    except LockUnavailable as error:
        tell("refused", error.errno, error)
    heard()
"""


@pytest.fixture
def lock_file(tree: Path) -> Path:
    """The lock file of the tree, not made yet."""
    return source_tree_lock(tree).lock_file


@pytest.fixture
def strict_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def failing(name: str) -> Callable[..., Any]:
    """A system call that fails."""

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    return fail


# Where it is


@pytest.mark.parametrize(
    ("lock_dir", "variables", "expected"),
    [
        # Python's tempfile would look at TEMP and TMP, and for a directory that exists.
        (None, {"TMPDIR": "{here}/missing/"}, "{here}/missing"),
        (None, {"TMPDIR": ""}, "{here}"),
        (None, {"TMPDIR": "some/where"}, "{here}/some/where"),
        (None, {"TMPDIR": "link/.."}, "{here}/link/.."),
        (None, {"SOURCE_TREE_LOCK_DIR": "{here}/set/too"}, "{here}/set/too"),
        (None, {"SOURCE_TREE_LOCK_DIR": ""}, "{here}/temp"),
        ("{here}/given/made for it", {}, "{here}/given/made for it"),
        ("{here}/given", {"SOURCE_TREE_LOCK_DIR": "{here}/set"}, "{here}/given"),
        ("locks", {}, "{here}/locks"),
    ],
    ids=str,
)
def test_the_lock_directory_is_the_argument_or_a_variable_or_tmpdir_and_is_made_where_named(
    lock_dir: str | None,
    variables: dict[str, str],
    expected: str,
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = None if lock_dir is None else os.fsencode(lock_dir.format(here=tmp_path))
    lock = source_tree_lock(tree, lock_dir=given)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(here=tmp_path))
    monkeypatch.chdir(tmp_path)
    expected = expected.format(here=tmp_path)
    assert lock.lock_file.parent == Path(expected)
    if "TMPDIR" not in variables:
        with lock:
            monkeypatch.chdir(tree)  # the working directory that counts is the one at entry
            assert lock.lock_file.parent == Path(expected)
            assert lock.lock_file.is_file()


def test_a_relative_lock_dir_in_the_environment_is_an_error_that_names_the_variable(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_TREE_LOCK_DIR", "locks")
    monkeypatch.chdir(tmp_path)
    lock = source_tree_lock(tree)
    for ask in (lock.acquire, lock.locked, lock.holder, lambda: lock.lock_file):
        with pytest.raises(ValueError, match=r"SOURCE_TREE_LOCK_DIR .*absolute.*'locks'"):
            ask()
    assert not (tmp_path / "locks").exists()


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


# A lock directory that somebody named, and that cannot be used


@pytest.mark.parametrize(
    ("make", "name", "what"),
    [
        (Path.touch, "named", "not a directory"),
        (Path.touch, "named/below", "not a directory"),
        (lambda path: path.symlink_to("nowhere"), "named", "not a directory"),
        (lambda path: path.symlink_to(path.name), "named", "in a circle"),
    ],
    ids=["a file", "below a file", "a dangling link", "a circle of links"],
)
def test_a_directory_that_somebody_named_works_or_is_an_error_that_says_what_to_do(
    make: Callable[[Path], None],
    name: str,
    what: str,
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make(tmp_path / "named")
    before = sorted(tmp_path.rglob("*"))
    lock = source_tree_lock(tree, lock_dir=tmp_path / name)
    monkeypatch.setenv("SOURCE_TREE_LOCK_DIR", str(tmp_path / name))
    for each in (lock, source_tree_lock(tree)):
        with pytest.raises(LockUnavailable, match=what) as caught:
            each.acquire()
        assert caught.value.filename == str(lock.lock_file)
        assert "remove the link" in str(caught.value) or "SOURCE_TREE_LOCK_DIR" in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.errno == caught.value.__cause__.errno
    assert sorted(tmp_path.rglob("*")) == before
    assert is_free(tree)


@pytest.mark.parametrize(
    ("mode", "warnings"), [(0o777, 1), (0o1777, 0), (0o755, 0), (0o775, 0), (0o703, 1)], ids=oct
)
def test_a_directory_whose_files_others_can_delete_gets_one_warning(
    mode: int, warnings: int, tree: Path, temp_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    temp_dir.chmod(mode)
    tree.joinpath("another").mkdir()
    for path in (tree, tree / "another", tree):
        with source_tree_lock(path, timeout=0):
            pass
    told = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert len(told) == warnings
    assert all(str(temp_dir) in each and "1777" in each for each in told)


# Making the lock file


@pytest.mark.parametrize(
    "refused",
    [{}, {"link": "EPERM", "fchmod": "EPERM"}]
    + [{"link": name} for name in ("EPERM", "EACCES", "EXDEV", "ENOSYS", "EMLINK", "ENOSPC")],
    ids=str,
)
def test_a_new_lock_file_has_mode_0666_whatever_the_umask_and_also_where_links_are_refused(
    refused: dict[str, str],
    tree: Path,
    lock_file: Path,
    temp_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    strict_umask: None,
    no_leaks: object,
) -> None:
    # EPERM is vfat's answer, EACCES Android's; others are those of FUSE and SMB file systems.
    def link(source: str, target: str) -> None:
        assert stat.S_IMODE(os.stat(source).st_mode) == 0o666  # before it can be seen
        os_link(source, target)

    os_link = os.link
    monkeypatch.setattr(os, "link", link)
    for call, name in refused.items():
        monkeypatch.setattr(os, call, failing(name))
    with source_tree_lock(tree, timeout=0):
        if "fchmod" not in refused:
            assert stat.S_IMODE(lock_file.stat().st_mode) == 0o666
        assert lock_file.stat().st_nlink == 1
        inode = lock_file.stat().st_ino
        assert not is_free(lock_file)
    assert is_free(lock_file)
    with source_tree_lock(tree, timeout=0):
        assert lock_file.stat().st_ino == inode, "a lock file is never deleted"
    assert list(temp_dir.iterdir()) == [lock_file]


@pytest.mark.parametrize("links", [True, False], ids=["linked", "in place"])
def test_a_lock_file_that_appears_while_ours_is_made_is_the_one_that_is_locked(
    links: bool,
    tree: Path,
    lock_file: Path,
    temp_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_leaks: object,
) -> None:
    def too_late(source: str, target: str) -> None:
        lock_file.write_text("")
        inodes.append(lock_file.stat().st_ino)
        os_link(source, target) if links else failing("EPERM")()

    inodes: list[int] = []
    os_link = os.link
    monkeypatch.setattr(os, "link", too_late)
    with source_tree_lock(tree, timeout=0):
        assert not is_free(lock_file)
        assert [lock_file.stat().st_ino] == inodes
    assert list(temp_dir.iterdir()) == [lock_file]


def test_a_lock_file_that_is_deleted_as_fast_as_it_is_made_is_an_error(
    tree: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    monkeypatch.setattr(os, "link", lambda source, target: None)
    with pytest.raises(LockUnavailable, match="stop what deletes it") as caught:
        source_tree_lock(tree).acquire()
    assert (caught.value.errno, caught.value.filename) == (errno.ESTALE, str(lock_file))
    assert is_free(tree)


# Opening the lock file


def test_a_lock_file_that_exists_is_opened_without_o_creat(
    tree: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # fs.protected_regular makes the kernel refuse O_CREAT on another user's file in /tmp.
    def opens(path: str, flags: int, *rest: Any, **options: Any) -> int:
        assert path != str(lock_file) or not flags & os.O_CREAT
        return os_open(path, flags, *rest, **options)

    lock_file.touch()
    os_open = os.open
    monkeypatch.setattr(os, "open", opens)
    with source_tree_lock(tree, timeout=0):
        assert not is_free(lock_file)


@pytest.mark.parametrize(
    ("make", "number", "hint"),
    [
        (lambda path: path.symlink_to("private"), errno.ELOOP, "symbolic link"),
        (lambda path: path.symlink_to("nowhere"), errno.ELOOP, "symbolic link"),
        (os.mkdir, errno.EISDIR, "not a regular file"),
        (getattr(os, "mkfifo", None), errno.EINVAL, "not a regular file"),
    ],
    ids=["symlink", "dangling", "directory", "fifo"],
)
def test_what_is_no_regular_file_is_refused_and_not_touched(
    make: Callable[[Path], None], number: int, hint: str, tree: Path, lock_file: Path
) -> None:
    private = lock_file.with_name("private")
    private.write_text("private")
    make(lock_file)
    before = sorted((path, path.lstat().st_ino) for path in lock_file.parent.iterdir())
    with pytest.raises(LockUnavailable, match=hint) as caught:
        source_tree_lock(tree).acquire()
    assert (caught.value.errno, caught.value.filename) == (number, str(lock_file))
    assert before == sorted((path, path.lstat().st_ino) for path in lock_file.parent.iterdir())
    assert private.read_text() == "private"
    assert is_free(private)
    assert is_free(tree)


@pytest.mark.parametrize("on_a_read_only_file_system", [False, True])
def test_a_lock_file_that_may_only_be_read_is_locked_all_the_same(
    on_a_read_only_file_system: bool, tree: Path, lock_file: Path, temp_dir: Path
) -> None:
    lock_file.write_text("theirs")
    prefix = WITHOUT_ROOTS_RIGHTS
    if on_a_read_only_file_system:
        mount = 'mount --bind -o ro "$1" "$1" && shift && exec "$@"'
        prefix = (*own_mounts(), "sh", "-c", mount, "sh", str(temp_dir))
    else:
        lock_file.chmod(0o444)
    with Child(HOLD, tree, prefix=prefix) as child:
        child.expect("held")
        assert not is_free(lock_file)
        assert lock_file.read_text() == "theirs"
        child.say()
        child.expect("released")
        assert is_free(lock_file)


def test_a_file_with_another_name_is_locked_but_never_written_to(
    tree: Path, lock_file: Path, tmp_path: Path
) -> None:
    private = tmp_path / "private"
    private.write_text("private")
    os.link(private, lock_file)
    with source_tree_lock(tree, timeout=0):
        assert not is_free(private)
        assert private.read_text() == "private"
    assert private.read_text() == "private"
    assert is_free(private)


# What went wrong, and what to do

_ELSEWHERE = "name another directory with lock_dir or SOURCE_TREE_LOCK_DIR"
#: What to do about each error, where a file is opened and where it is made.
OPENING = {
    **dict.fromkeys(("EACCES", "EPERM"), ("mode 0666", _ELSEWHERE)),
    **dict.fromkeys(("ELOOP", "EMLINK"), ("symbolic link",)),
    **dict.fromkeys(("EISDIR", "ENXIO", "ENODEV", "EINVAL"), ("not a regular file; remove it",)),
    **dict.fromkeys(("EMFILE", "ENFILE"), ("close some files",)),
    **dict.fromkeys(("EIO", "ESTALE", "ENOMEM"), ("cannot be opened", _ELSEWHERE)),
}
MAKING = {
    "ENOTDIR": ("not a directory", _ELSEWHERE),
    **dict.fromkeys(("EACCES", "EPERM"), ("mode 1777", _ELSEWHERE)),
    **dict.fromkeys(("EMFILE", "ENFILE"), ("close some files",)),
    **dict.fromkeys(("ENAMETOOLONG", "EROFS", "ENOSPC", "ENOMEM"), ("cannot be made", _ELSEWHERE)),
}
OUR_OWN_LIMITS = ("EMFILE", "ENFILE", "ENOMEM")


@pytest.mark.parametrize(
    ("making", "name"), [(False, name) for name in OPENING] + [(True, name) for name in MAKING]
)
def test_each_error_says_what_to_do(
    making: bool, name: str, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, flags: int, *rest: Any, **options: Any) -> int:
        if "uv-setuptools-" in str(path):
            failing("ENOENT" if making and not flags & os.O_CREAT else name)()
        return os_open(path, flags, *rest, **options)

    # For want of our own resources, nobody gets in by the tree alone: another process may well
    # make the file.
    lock = source_tree_lock(tree, lock_dir=None if name in OUR_OWN_LIMITS else tmp_path)
    os_open = os.open
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(LockUnavailable) as caught:
        lock.acquire()
    number = getattr(errno, name)
    assert (caught.value.errno, caught.value.filename) == (number, str(lock.lock_file))
    for words in (os.strerror(number), *(MAKING if making else OPENING)[name]):
        assert words in str(caught.value)
    assert is_free(tree)


@pytest.mark.parametrize(
    ("named", "directory", "file"),
    [
        *((None, 0o000, file) for file in (None, 0o666)),
        *((None, 0o600, file) for file in (None, 0o666)),
        (None, 0o755, 0),
        ("temp", 0o555, None),
        ("temp/missing", 0o555, None),
    ],
)
def test_where_a_lock_file_may_be_or_has_to_be_and_permission_is_missing_nobody_gets_in(
    named: str | None, directory: int, file: int | None, tree: Path, lock_file: Path, temp_dir: Path
) -> None:
    if file is not None:
        lock_file.touch(mode=file)
    temp_dir.chmod(directory)
    lock_dir = [temp_dir.parent / named] if named else []
    try:
        with Child(REFUSED, tree, *lock_dir, prefix=WITHOUT_ROOTS_RIGHTS) as child:
            told = child.line()
            assert told.startswith(f"refused {errno.EACCES} ")
            assert "lock_dir or SOURCE_TREE_LOCK_DIR" in told
            assert is_free(tree)
    finally:
        temp_dir.chmod(0o700)
    assert list(temp_dir.iterdir()) == ([lock_file] if file is not None else [])
