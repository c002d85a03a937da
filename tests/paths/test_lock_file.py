"""From a tree to its lock file: where it is, how it is opened and made, and what goes wrong."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import (
    HOLD,
    WITHOUT_ROOTS_RIGHTS,
    Child,
    is_free,
    own_mounts,
)
from ways import KINDS, script

from source_tree_lock import LockUnavailable, source_tree_lock
from source_tree_lock._paths import lock_file as room
from source_tree_lock._paths.lock_file import Place, open_lock_file

posix_only = pytest.mark.skipif(os.name != "posix", reason="the rule is of POSIX systems")


#: Ways to make a lock file, best first; each must do where the one before it does not work.
MAKERS = [room._create_and_link, room._create_in_place]


@pytest.fixture
def lock_file(tree: Path) -> Path:
    """The lock file of the tree, not made yet."""
    return source_tree_lock(tree).lock_file


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


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
    with source_tree_lock(tree, timeout=0):
        assert not is_free(tree)
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


# A lock directory that somebody named


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


@posix_only
@pytest.mark.parametrize(
    ("mode", "warnings"), [(0o777, 1), (0o1777, 0), (0o755, 0), (0o775, 0), (0o703, 1)]
)
def test_a_directory_from_which_others_can_pull_files_away_gets_one_warning(
    mode: int,
    warnings: int,
    tree: Path,
    temp_dir: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    temp_dir.chmod(mode)
    other = tmp_path / "other"
    other.mkdir()
    for path in (tree, other, tree):
        with source_tree_lock(path, timeout=0):
            pass
    logged = [record for record in caplog.records if record.levelno >= logging.INFO]
    assert [record.levelname for record in logged] == ["WARNING"] * warnings
    assert all(str(temp_dir) in record.getMessage() for record in logged)


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


# Making the lock file


@posix_only
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_a_lock_file_has_mode_0666_whatever_the_umask(
    make: Callable[[str], None],
    tree: Path,
    lock_file: Path,
    temp_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "_create", make)
    with umask(0o077), source_tree_lock(tree, timeout=0):
        assert stat.S_IMODE(lock_file.stat().st_mode) == 0o666
        assert lock_file.stat().st_nlink == 1
        assert list(temp_dir.iterdir()) == [lock_file]


@posix_only
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_a_lock_file_that_somebody_else_made_first_is_not_replaced(
    make: Callable[[str], None], lock_file: Path, temp_dir: Path, no_leaks: object
) -> None:
    lock_file.write_text("theirs")
    before = lock_file.stat()
    with pytest.raises(FileExistsError):
        make(str(lock_file))
    assert (lock_file.stat().st_ino, lock_file.read_text()) == (before.st_ino, "theirs")
    assert list(temp_dir.iterdir()) == [lock_file]


@posix_only
def test_a_lock_file_that_appears_while_ours_is_made_is_the_one_that_is_locked(
    lock_file: Path, temp_dir: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    def too_late(path: str) -> None:
        lock_file.write_text("")
        create(path)

    create = room._create
    monkeypatch.setattr(room, "_create", too_late)
    lock = open_lock_file(Place(str(lock_file), is_named=False))
    assert lock.identity == (lock_file.stat().st_dev, lock_file.stat().st_ino)
    lock.close()
    assert list(temp_dir.iterdir()) == [lock_file]


@posix_only
@pytest.mark.parametrize("number", ["EPERM", "ENOSYS", "EOPNOTSUPP", "EMLINK", "EINVAL"])
def test_where_links_are_refused_the_file_is_made_in_place(
    number: str,
    tree: Path,
    lock_file: Path,
    temp_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_leaks: object,
) -> None:
    # link(2): EPERM is vfat's answer, the others are those of FUSE and SMB file systems.
    def link(*args: object, **kwargs: object) -> None:
        raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))

    monkeypatch.setattr(os, "link", link)
    with umask(0o077), source_tree_lock(tree, timeout=0):
        assert stat.S_IMODE(lock_file.stat().st_mode) == 0o666
        assert list(temp_dir.iterdir()) == [lock_file]
        assert not is_free(lock_file)
    assert is_free(lock_file)


@posix_only
def test_where_files_have_no_modes_either_the_file_is_made_all_the_same(
    tree: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "fchmod", refuse)
    with source_tree_lock(tree, timeout=0):
        assert not is_free(lock_file)


@posix_only
def test_another_error_in_making_the_file_is_not_answered_by_another_way(
    tree: Path, lock_file: Path, temp_dir: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    def link(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(LockUnavailable, match="No space") as caught:
        source_tree_lock(tree, lock_dir=temp_dir).acquire()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(lock_file))
    assert list(temp_dir.iterdir()) == []


@posix_only
def test_a_lock_file_that_is_deleted_as_fast_as_it_is_made_is_an_error(
    tree: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    monkeypatch.setattr(room, "_create", lambda path: None)
    with pytest.raises(LockUnavailable, match="stop what deletes it") as caught:
        source_tree_lock(tree).acquire()
    assert (caught.value.errno, caught.value.filename) == (errno.ESTALE, str(lock_file))
    assert is_free(tree)


@posix_only
def test_a_name_may_be_as_long_as_the_system_allows(tree: Path, temp_dir: Path) -> None:
    longest = 255 - len("uv-setuptools-.lock")
    with source_tree_lock(tree, digest=lambda _: "x" * longest, lock_dir=temp_dir) as lock:
        assert list(temp_dir.iterdir()) == [lock.lock_file]
        assert not is_free(lock.lock_file)


@posix_only
def test_a_lock_file_is_never_deleted(tree: Path, lock_file: Path, temp_dir: Path) -> None:
    inodes = set()
    for _ in range(3):
        with source_tree_lock(tree, timeout=0):
            inodes.add(lock_file.stat().st_ino)
        inodes.add(lock_file.stat().st_ino)
    assert len(inodes) == 1
    assert list(temp_dir.iterdir()) == [lock_file]


# Opening the lock file


@posix_only
def test_a_lock_file_that_exists_is_opened_without_o_creat(
    tree: Path, lock_file: Path, tmp_path: Path
) -> None:
    # fs.protected_regular makes the kernel refuse O_CREAT on another user's file in /tmp.
    script = """
        import os
        from source_tree_lock import source_tree_lock
        opened = []
        def hook(event, arguments):
            if event == "open" and str(arguments[0]).startswith(sys.argv[2]):
                opened.append(arguments[2])
        sys.addaudithook(hook)
        for _ in range(2):
            opened.clear()
            with source_tree_lock(sys.argv[1]):
                pass
            tell(len(opened), any(flags & os.O_CREAT for flags in opened))
        heard()
    """
    lock_file.write_text("")
    with Child(script, tree, lock_file) as child:
        child.expect("1 False")
        child.expect("1 False")


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="makes another user's file, as root"
)
def test_a_lock_file_of_another_user_in_a_sticky_directory_is_locked(
    tree: Path, lock_file: Path, temp_dir: Path
) -> None:
    temp_dir.chmod(0o1777)
    lock_file.write_text("")
    lock_file.chmod(0o666)
    os.chown(lock_file, 65534, 65534)
    protection = Path("/proc/sys/fs/protected_regular")
    before = protection.read_text()
    try:
        protection.write_text("2")
    except OSError as error:
        pytest.skip(f"fs.protected_regular cannot be set: {error}")
    try:
        with pytest.raises(PermissionError):
            os.close(os.open(lock_file, os.O_RDWR | os.O_CREAT))
        with source_tree_lock(tree, timeout=0):
            assert not is_free(lock_file)
    finally:
        protection.write_text(before)


def a_symlink(path: Path) -> None:
    path.with_name("private").write_text("private")
    path.symlink_to("private")


def a_dangling_symlink(path: Path) -> None:
    path.symlink_to("nowhere")


def a_directory(path: Path) -> None:
    path.mkdir()


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_read_only_fifo(path: Path) -> None:
    os.mkfifo(path)
    path.chmod(0o444)


def a_socket(path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("other systems have another error for it")
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def a_device(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root makes devices")
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))


@posix_only
@pytest.mark.parametrize(
    ("make", "number", "hint"),
    [
        (a_symlink, errno.ELOOP, "symbolic link"),
        (a_dangling_symlink, errno.ELOOP, "symbolic link"),
        (a_directory, errno.EISDIR, "directory"),
        (a_fifo, errno.EINVAL, "not a regular file"),
        (a_socket, errno.ENXIO, "not a regular file"),
        (a_device, errno.EINVAL, "not a regular file"),
    ],
)
def test_what_is_no_regular_file_is_refused_and_not_touched(
    make: Callable[[Path], None],
    number: int,
    hint: str,
    tree: Path,
    lock_file: Path,
    temp_dir: Path,
    no_leaks: object,
) -> None:
    make(lock_file)
    before = sorted((path.name, path.lstat().st_ino) for path in temp_dir.iterdir())
    with pytest.raises(LockUnavailable, match=hint) as caught:
        source_tree_lock(tree).acquire()
    assert (caught.value.errno, caught.value.filename) == (number, str(lock_file))
    assert before == sorted((path.name, path.lstat().st_ino) for path in temp_dir.iterdir())
    if make is a_symlink:
        assert lock_file.read_text() == "private"
        assert is_free(lock_file)
    assert is_free(tree)


@posix_only
@pytest.mark.parametrize("make", [a_symlink, a_read_only_fifo])
def test_what_is_no_regular_file_is_refused_when_it_may_only_be_read_too(
    make: Callable[[Path], None], tree: Path, lock_file: Path
) -> None:
    make(lock_file)
    lock_file.with_name("private").touch(mode=0o444)
    script = """
        from source_tree_lock import LockUnavailable, source_tree_lock
        try:
            source_tree_lock(sys.argv[1]).acquire()
        except LockUnavailable as error:
            tell("refused", error.errno)
        heard()
    """
    number = errno.ELOOP if make is a_symlink else errno.EINVAL
    with Child(script, tree, prefix=WITHOUT_ROOTS_RIGHTS) as child:
        child.expect(f"refused {number}")


@posix_only
def test_a_lock_file_that_may_only_be_read_is_locked_all_the_same(
    tree: Path, lock_file: Path
) -> None:
    lock_file.write_text("theirs")
    lock_file.chmod(0o444)
    with Child(HOLD, tree, prefix=WITHOUT_ROOTS_RIGHTS) as child:
        child.expect("held")
        assert not is_free(lock_file)
        assert lock_file.read_text() == "theirs"
        child.say()
        child.expect("released")
        assert is_free(lock_file)


def test_a_lock_file_on_a_read_only_file_system_is_locked_all_the_same(
    tree: Path, lock_file: Path, temp_dir: Path
) -> None:
    lock_file.write_text("theirs")
    mount = 'mount --bind -o ro "$1" "$1" && shift && exec "$@"'
    prefix = (*own_mounts(), "sh", "-c", mount, "sh", str(temp_dir))
    with Child(HOLD, tree, prefix=prefix) as child:
        child.expect("held")
        assert not is_free(lock_file)
        child.say()
        child.expect("released")
    assert lock_file.read_text() == "theirs"


@posix_only
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


@posix_only
def test_a_read_only_lock_file_that_is_deleted_while_it_is_opened_is_made_anew(
    tree: Path, lock_file: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    def deleted_after_its_refusal(path: str, flags: int, *rest: Any, **options: Any) -> int:
        if path == str(lock_file) and lock_file.exists() and not made_anew:
            lock_file.unlink()
            made_anew.append(True)
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return open_(path, flags, *rest, **options)

    made_anew: list[bool] = []
    open_ = os.open
    lock_file.touch()
    monkeypatch.setattr(os, "open", deleted_after_its_refusal)
    with source_tree_lock(tree, timeout=0):
        assert made_anew
        assert not is_free(lock_file)


# A lease: the kernel asks its owner to give it back (fcntl(2))


@pytest.mark.skipif(sys.platform != "linux", reason="leases are Linux's")
@pytest.mark.parametrize("wait", KINDS)
def test_a_lease_is_waited_for(wait: str, tree: Path, lock_file: Path) -> None:
    lease = """
        import fcntl, os, signal
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
        descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        tell("leased")
        signal.sigwait([signal.SIGIO])
        tell("asked")
        heard()
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        tell("given back")
    """
    around = """
        tell(source_tree_lock(tree).acquire(blocking=False))
        {}
    """
    with Child(lease, lock_file) as owner:
        owner.expect("leased")  # which nobody gets on a file that another process has open
        with Child(script(wait, around), tree) as waiter:
            owner.expect("asked")
            waiter.expect("False")
            owner.say()
            owner.expect("given back")
            waiter.expect("held")
            assert not is_free(lock_file)


# What went wrong, and what to do


#: A word of the advice that each error deserves: where a file is opened, and where it is made.
OPENING = {
    "EACCES": "mode 0666",
    "EPERM": "mode 0666",
    "EISDIR": "is a directory; remove it",
    "ELOOP": "symbolic link",
    "EMLINK": "symbolic link",
    "ENXIO": "not a regular file",
    "ENODEV": "not a regular file",
    "EINVAL": "not a regular file",
    "ETXTBSY": "run as a program",
    "EMFILE": "the process has too many open files",
    "ENFILE": "the system has too many open files",
    "EIO": "repair it",
    "ESTALE": "mount it again",
}
MAKING = {
    "ENOENT": "does not exist",
    "ENOTDIR": "not a directory",
    "EEXIST": "not a directory",
    "ENAMETOOLONG": "too long",
    "EACCES": "mode 1777",
    "EPERM": "mode 1777",
    "EROFS": "read-only",
    "ENOSPC": "no inode is left",
    "EDQUOT": "quota",
    "EMFILE": "the process has too many open files",
    "ENFILE": "the system has too many open files",
}
#: In the making of a directory that was named, these have tests of their own.
BY_ITSELF = ("ENOENT", "EEXIST")
#: Nobody who has these can be helped by another directory.
NOT_OF_THE_DIRECTORY = set("EISDIR ELOOP EMLINK ENXIO ENODEV EINVAL ETXTBSY EMFILE ENFILE".split())


def failing_open(monkeypatch: pytest.MonkeyPatch, number: int, *, making: bool) -> None:
    """Have the lock file be opened, or be made, with an error."""

    def refuse(path: str, flags: int, *rest: Any, **options: Any) -> int:
        if "uv-setuptools-" in str(path) and (making or not flags & os.O_CREAT):
            if making and not flags & os.O_CREAT:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            raise OSError(number, os.strerror(number), path)
        return open_(path, flags, *rest, **options)

    open_ = os.open
    monkeypatch.setattr(os, "open", refuse)


@posix_only
@pytest.mark.parametrize("making", [False, True], ids=["opening", "making"])
def test_no_error_has_advice_that_is_not_looked_at_here(making: bool) -> None:
    table = room._CANNOT_MAKE if making else room._CANNOT_OPEN
    expected = MAKING if making else OPENING
    assert set(table) == {getattr(errno, name) for name in expected}


@posix_only
@pytest.mark.parametrize(
    ("making", "name"),
    [(False, name) for name in (*OPENING, "ENOMEM", "EOVERFLOW")]
    + [(True, name) for name in (*MAKING, "EIO", "ENOMEM", "ETIMEDOUT") if name not in BY_ITSELF],
)
def test_each_error_has_advice_that_fits(
    making: bool,
    name: str,
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_leaks: object,
) -> None:
    number = getattr(errno, name)
    lock = source_tree_lock(tree, lock_dir=tmp_path)
    failing_open(monkeypatch, number, making=making)
    with pytest.raises(LockUnavailable) as caught:
        lock.acquire()
    assert (caught.value.errno, caught.value.filename) == (number, str(lock.lock_file))
    text = str(caught.value)
    assert os.strerror(number) in text
    expected = (MAKING if making else OPENING).get(name)
    assert (expected or f"the lock file cannot be {'made' if making else 'opened'}") in text
    helps = name not in NOT_OF_THE_DIRECTORY
    assert ("name another directory with lock_dir or SOURCE_TREE_LOCK_DIR" in text) is helps
    assert is_free(tree)


@posix_only
def test_a_circle_of_links_to_the_lock_directory_is_named_as_what_it_may_be(
    tree: Path, tmp_path: Path
) -> None:
    tmp_path.joinpath("loop").symlink_to("loop")
    with pytest.raises(LockUnavailable, match="in a circle") as caught:
        source_tree_lock(tree, lock_dir=tmp_path / "loop").acquire()
    assert caught.value.errno == errno.ELOOP


@posix_only
@pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "ENOMEM"])
def test_what_fails_for_want_of_ones_own_resources_lets_nobody_in_by_the_tree_alone(
    name: str, tree: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: object
) -> None:
    # Another process may well make the file, and would keep us out by it.
    failing_open(monkeypatch, getattr(errno, name), making=True)
    with pytest.raises(LockUnavailable) as caught:
        source_tree_lock(tree).acquire()
    assert caught.value.errno == getattr(errno, name)
    assert is_free(tree)


@posix_only
@pytest.mark.parametrize("mode", [0o000, 0o600], ids=["a closed directory", "not to be searched"])
@pytest.mark.parametrize("there", [False, True], ids=["no lock file", "a lock file"])
def test_where_a_lock_file_may_be_that_cannot_be_seen_nobody_gets_in(
    mode: int, there: bool, tree: Path, lock_file: Path, temp_dir: Path
) -> None:
    if there:
        lock_file.touch()
    temp_dir.chmod(mode)
    try:
        with Child(REFUSED, tree, prefix=WITHOUT_ROOTS_RIGHTS) as child:
            child.expect(f"refused {errno.EACCES}")
    finally:
        temp_dir.chmod(0o700)


@posix_only
def test_a_lock_file_that_nobody_may_open_is_an_error_though_the_tree_could_be_locked(
    tree: Path, lock_file: Path
) -> None:
    lock_file.touch()
    lock_file.chmod(0)
    with Child(REFUSED, tree, prefix=WITHOUT_ROOTS_RIGHTS) as child:
        child.expect(f"refused {errno.EACCES}")
        assert is_free(tree)


#: Tells the error of one attempt. Arguments: the tree.
REFUSED = """
    from source_tree_lock import LockUnavailable, source_tree_lock
    try:
        source_tree_lock(sys.argv[1]).acquire()
    except LockUnavailable as error:
        tell("refused", error.errno)
    heard()
"""


def test_a_relative_lock_dir_in_the_environment_is_an_error_that_names_the_variable(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_TREE_LOCK_DIR", "locks")
    monkeypatch.chdir(tmp_path)
    lock = source_tree_lock(tree)
    for ask in (lock.acquire, lock.is_held, lock.holder, lambda: lock.lock_file):
        with pytest.raises(ValueError, match=r"SOURCE_TREE_LOCK_DIR .*absolute.*'locks'"):
            ask()
    assert not (tmp_path / "locks").exists()
    given = source_tree_lock(tree, lock_dir=tmp_path / "locks")  # an argument wins
    with given:
        assert given.lock_file.parent == tmp_path / "locks"
