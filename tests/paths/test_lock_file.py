"""From a tree to its lock file: where it is, how it is opened and made, and what goes wrong."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from support import WITHOUT_ROOTS_RIGHTS, Child, held_elsewhere, is_free, own_mounts

from source_tree_lock import LockUnavailable, source_tree_lock

pytestmark = pytest.mark.usefixtures("no_leaks")
MonkeyPatch = pytest.MonkeyPatch


@pytest.fixture
def lock_file(tree: Path) -> Path:
    """The lock file of the tree, not made yet."""
    return source_tree_lock(tree).lock_file


def failing(name: str) -> Mock:
    """A system call that fails."""
    return Mock(side_effect=OSError(getattr(errno, name), os.strerror(getattr(errno, name))))


@pytest.mark.parametrize(
    ("given", "variable", "expected"),
    [
        # Python's tempfile would look at TEMP and TMP, and for a directory that exists.
        ("", "TMPDIR={here}/missing/", "missing"),
        ("", "TMPDIR=", ""),
        ("", "TMPDIR=some/where", "some/where"),
        ("", "TMPDIR=link/..", "link/.."),
        ("", "SOURCE_TREE_LOCK_DIR={here}/set/too", "set/too"),
        ("", "SOURCE_TREE_LOCK_DIR=", "temp"),
        ("{here}/given/made for it", "SOURCE_TREE_LOCK_DIR={here}/set", "given/made for it"),
        ("locks", "SOURCE_TREE_LOCK_DIR={here}/set", "locks"),
    ],
)
def test_the_lock_directory_is_the_argument_or_a_variable_or_tmpdir_and_is_made_where_named(
    given: str, variable: str, expected: str, tree: Path, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    lock = source_tree_lock(tree, lock_dir=os.fsencode(given.format(here=tmp_path)) or None)
    name, _, value = variable.partition("=")
    monkeypatch.setenv(name, value.format(here=tmp_path))
    monkeypatch.chdir(tmp_path)
    assert lock.lock_file.parent == tmp_path / expected
    if name != "TMPDIR":
        with lock:
            monkeypatch.chdir(tree)  # the working directory that counts is the one at entry
            assert lock.lock_file.parent == tmp_path / expected
            assert lock.lock_file.is_file()


@pytest.mark.parametrize(
    ("variable", "text"),
    [("SOURCE_TREE_LOCK_DIR", "locks")]
    + [("SOURCE_TREE_LOCK_TIMEOUT", text) for text in ("soon", "-1", "nan", "1 s")],
)
def test_a_variable_that_makes_no_sense_is_an_error_that_names_it(
    variable: str, text: str, tree: Path, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"{variable}.*{text}"):
        source_tree_lock(tree).acquire()
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "temp", tree]


def test_a_digest_of_ones_own_gets_the_canonical_path_and_names_the_file(
    tree: Path, tmp_path: Path
) -> None:
    names = {tree.resolve(): "any-name_1.2"}
    with source_tree_lock(f"{tmp_path}/./tree/", digest=names.__getitem__) as lock:
        assert lock.lock_file.name == "uv-setuptools-any-name_1.2.lock"


@pytest.mark.parametrize(
    ("target", "what"),
    [("nowhere", "not a directory; .*SOURCE_TREE_LOCK_DIR"), ("named", "circle; remove the link")],
)
def test_a_directory_that_somebody_named_is_an_error_if_it_is_a_link_that_leads_nowhere(
    target: str, what: str, tree: Path, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    named = tmp_path / "named"
    named.symlink_to(target)
    monkeypatch.setenv("SOURCE_TREE_LOCK_DIR", str(named))
    for lock in (source_tree_lock(tree, lock_dir=named), source_tree_lock(tree)):
        with pytest.raises(LockUnavailable, match=what) as caught:
            lock.acquire()
        assert caught.value.filename == str(lock.lock_file)
    assert not named.exists()
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


@pytest.mark.parametrize(
    ("link", "fchmod"),
    [(None, None), ("EPERM", "EPERM")]
    + [(name, None) for name in ("EPERM", "EACCES", "EXDEV", "ENOSYS", "EMLINK", "ENOSPC")],
)
def test_a_new_lock_file_has_mode_0666_whatever_the_umask_and_also_where_links_are_refused(
    link: str | None, fchmod: str | None, tree: Path, lock_file: Path, monkeypatch: MonkeyPatch
) -> None:
    # EPERM is vfat's answer, EACCES Android's; others are those of FUSE and SMB file systems.
    def checked_link(source: str, target: str) -> None:
        assert stat.S_IMODE(os.stat(source).st_mode) == 0o666  # before it can be seen
        os_link(source, target)

    os_link = os.link
    monkeypatch.setattr(os, "link", failing(link) if link else checked_link)
    if fchmod:
        monkeypatch.setattr(os, "fchmod", failing(fchmod))
    with ExitStack() as stack:
        stack.callback(os.umask, os.umask(0o077))
        stack.enter_context(source_tree_lock(tree, timeout=0))
        assert fchmod or stat.S_IMODE(lock_file.stat().st_mode) == 0o666
        assert not is_free(lock_file)
    status = lock_file.stat()
    assert status.st_nlink == 1
    with source_tree_lock(tree, timeout=0):
        assert lock_file.stat().st_ino == status.st_ino, "a lock file is never deleted"
    assert list(lock_file.parent.iterdir()) == [lock_file]


@pytest.mark.parametrize("links", [True, False], ids=["linked", "in place"])
def test_a_lock_file_that_appears_while_ours_is_made_is_the_one_that_is_locked(
    links: bool, tree: Path, lock_file: Path, monkeypatch: MonkeyPatch
) -> None:
    def too_late(source: str, target: str) -> None:
        others.rename(lock_file)
        os_link(source, target) if links else failing("EPERM")()

    others = lock_file.with_name("others")
    others.touch()
    inode = others.stat().st_ino
    os_link = os.link
    monkeypatch.setattr(os, "link", too_late)
    with source_tree_lock(tree, timeout=0):
        assert not is_free(lock_file)
    assert lock_file.stat().st_ino == inode
    assert list(lock_file.parent.iterdir()) == [lock_file]


def test_a_lock_file_that_exists_is_opened_without_o_creat(
    tree: Path, lock_file: Path, monkeypatch: MonkeyPatch
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
    ("make", "name"),
    [
        (lambda path: path.symlink_to("private"), "ELOOP"),
        (lambda path: path.symlink_to("nowhere"), "ELOOP"),
        (os.mkdir, "EISDIR"),
        (os.mkfifo, "EINVAL"),
    ],
)
def test_what_is_no_regular_file_is_refused_and_not_touched(
    make: Callable[[Path], None], name: str, tree: Path, lock_file: Path
) -> None:
    private = lock_file.with_name("private")
    private.write_text("private")
    make(lock_file)
    before = sorted((path, path.lstat().st_ino) for path in lock_file.parent.iterdir())
    with pytest.raises(LockUnavailable) as caught:
        source_tree_lock(tree).acquire()
    assert (caught.value.errno, caught.value.filename) == (getattr(errno, name), str(lock_file))
    assert before == sorted((path, path.lstat().st_ino) for path in lock_file.parent.iterdir())
    assert private.read_text() == "private"
    assert (is_free(private), is_free(tree)) == (True, True)


def test_a_file_with_another_name_is_locked_but_never_written_to(
    tree: Path, lock_file: Path
) -> None:
    private = lock_file.with_name("private")
    private.write_text("private")
    os.link(private, lock_file)
    with source_tree_lock(tree, timeout=0):
        assert not is_free(private)
        assert private.read_text() == "private"
    assert private.read_text() == "private"


def test_a_lock_file_on_a_read_only_file_system_is_locked(tree: Path, lock_file: Path) -> None:
    lock_file.touch()
    mount = 'mount --bind -o ro "$0" "$0" && exec "$@"'
    prefix = (*own_mounts(), "sh", "-c", mount, str(lock_file.parent))
    with held_elsewhere(tree, prefix=prefix):
        assert not is_free(lock_file)


#: Errors of opening a lock file, or of making one, and what to do.
ADVICE = [
    ("open", "EACCES EPERM", "mode 0666 .* SOURCE_TREE_LOCK_DIR"),
    ("open", "ELOOP EMLINK", "symbolic link"),
    ("open", "EISDIR ENXIO ENODEV EINVAL", "not a regular file; remove it"),
    ("open", "EIO ESTALE ENOMEM", "cannot be opened; .* SOURCE_TREE_LOCK_DIR"),
    ("make", "EACCES EPERM", "mode 1777, or .* SOURCE_TREE_LOCK_DIR"),
    ("make", "EROFS ENOSPC ENOMEM", "cannot be made .* SOURCE_TREE_LOCK_DIR"),
    *((what, "EMFILE ENFILE", "close some files") for what in ("open", "make")),
]


@pytest.mark.parametrize(
    ("what", "name", "advice"),
    [(what, name, advice) for what, names, advice in ADVICE for name in names.split()],
)
def test_each_error_says_what_to_do(
    what: str, name: str, advice: str, tree: Path, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    def refuse(path: str, flags: int, *rest: Any, **options: Any) -> int:
        if "uv-setuptools-" in str(path):
            failing("ENOENT" if what == "make" and not flags & os.O_CREAT else name)()
        return os_open(path, flags, *rest, **options)

    # Nobody gets in by the tree alone because this process has no memory or descriptors left.
    is_own_limit = name in ("EMFILE", "ENFILE", "ENOMEM")
    lock = source_tree_lock(tree, lock_dir=None if is_own_limit else tmp_path)
    os_open = os.open
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(LockUnavailable, match=advice) as caught:
        lock.acquire()
    number = getattr(errno, name)
    assert (caught.value.errno, caught.value.filename) == (number, str(lock.lock_file))
    assert os.strerror(number) in str(caught.value)
    assert is_free(tree)


@pytest.mark.parametrize(
    ("directory", "file"),
    [(0o000, None), (0o000, 0o666), (0o600, None), (0o600, 0o666), (0o755, 0)],
)
def test_where_there_may_be_a_lock_file_and_permission_is_missing_nobody_gets_in(
    directory: int, file: int | None, tree: Path, lock_file: Path, temp_dir: Path
) -> None:
    script = """
        from source_tree_lock import LockUnavailable, source_tree_lock
        try:
            source_tree_lock(sys.argv[1]).acquire()
        except LockUnavailable as error:
            tell(error.errno, error)
        heard()
    """
    if file is not None:
        lock_file.touch(mode=file)
    temp_dir.chmod(directory)
    with Child(script, tree, prefix=WITHOUT_ROOTS_RIGHTS) as child:
        assert re.match(rf"{errno.EACCES} .*lock_dir or SOURCE_TREE_LOCK_DIR", child.line())
        assert is_free(tree)
