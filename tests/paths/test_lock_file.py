"""From a tree to its lock file: where it is, how it is opened and made, and what goes wrong."""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def failing(name: str) -> Callable[..., Any]:
    """A system call that fails."""

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    return fail


# Where it is


@pytest.mark.parametrize(
    ("tmpdir", "expected"),
    [
        pytest.param(
            None,
            "/tmp",
            marks=pytest.mark.skipif(sys.platform == "darwin", reason="there it is the user's"),
        ),
        ("{here}/missing/", "{here}/missing"),
        ("", "{here}"),
        ("some/where", "{here}/some/where"),
        ("link/..", "{here}/link/.."),
    ],
    ids=str,
)
def test_tmpdir_is_taken_as_it_stands_as_uv_does(
    tmpdir: str | None,
    expected: str,
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Python's tempfile would look at TEMP and TMP, and for a directory that exists.
    if tmpdir is None:
        monkeypatch.delenv("TMPDIR")
    else:
        monkeypatch.setenv("TMPDIR", tmpdir.format(here=tmp_path))
    monkeypatch.chdir(tmp_path)
    assert source_tree_lock(tree).lock_file.parent == Path(expected.format(here=tmp_path))


@pytest.mark.parametrize(
    ("argument", "variable", "expected"),
    [
        ("given/made for it", None, "given/made for it"),
        (None, "set/too", "set/too"),
        ("given", "set", "given"),
        (None, "", "temp"),
    ],
)
def test_a_lock_directory_is_named_by_an_argument_or_else_by_the_environment_and_made(
    argument: str | None,
    variable: str | None,
    expected: str,
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if variable is not None:
        monkeypatch.setenv("SOURCE_TREE_LOCK_DIR", str(tmp_path / variable) if variable else "")
    given = None if argument is None else os.fsencode(tmp_path / argument)
    with source_tree_lock(tree, lock_dir=given) as lock:
        assert lock.lock_file.parent == tmp_path / expected
        assert lock.lock_file.is_file()


def test_a_relative_lock_dir_is_below_the_working_directory_at_entry(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = source_tree_lock(tree, lock_dir="locks")
    monkeypatch.chdir(tmp_path)
    with lock:
        monkeypatch.chdir(tree)
        assert lock.lock_file.parent == tmp_path / "locks"


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


def a_file(path: Path) -> None:
    path.write_text("text")


@pytest.mark.parametrize("named", ["lock_dir", "environment"])
@pytest.mark.parametrize(
    ("make", "below", "what"),
    [
        (a_file, "", "not a directory"),
        (a_file, "below", "not a directory"),
        (lambda path: path.symlink_to("nowhere"), "", "not a directory"),
        (lambda path: path.symlink_to(path.name), "", "in a circle"),
    ],
    ids=["a file", "below a file", "a dangling link", "a circle of links"],
)
def test_a_directory_that_somebody_named_works_or_is_an_error_that_says_what_to_do(
    named: str,
    make: Callable[[Path], None],
    below: str,
    what: str,
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = tmp_path / "named" / below
    make(tmp_path / "named")
    before = sorted(tmp_path.rglob("*"))
    if named == "environment":
        monkeypatch.setenv("SOURCE_TREE_LOCK_DIR", str(directory))
    lock = source_tree_lock(tree, lock_dir=directory if named == "lock_dir" else None)
    with pytest.raises(LockUnavailable, match=what) as caught:
        lock.acquire()
    assert caught.value.filename == str(lock.lock_file)
    assert "remove the link" in str(caught.value) or "SOURCE_TREE_LOCK_DIR" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.errno == caught.value.__cause__.errno
    assert sorted(tmp_path.rglob("*")) == before
    assert is_free(tree)


@pytest.mark.parametrize("name", ["locks", "locks/missing"])
def test_a_lock_directory_that_is_not_writable_is_an_error_that_says_what_to_do(
    name: str, tree: Path, tmp_path: Path
) -> None:
    tmp_path.joinpath("locks").mkdir(mode=0o555)
    with Child(REFUSED, tree, tmp_path / name, prefix=WITHOUT_ROOTS_RIGHTS) as child:
        told = child.line()
        assert told.startswith(f"refused {errno.EACCES} ")
        assert "lock_dir or SOURCE_TREE_LOCK_DIR" in told
        assert is_free(tree)
    assert list(tmp_path.joinpath("locks").iterdir()) == []


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
    with umask(0o077), source_tree_lock(tree, timeout=0):
        if "fchmod" not in refused:
            assert stat.S_IMODE(lock_file.stat().st_mode) == 0o666
        assert lock_file.stat().st_nlink == 1
        assert list(temp_dir.iterdir()) == [lock_file]
        assert not is_free(lock_file)
    assert is_free(lock_file)


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


def test_a_lock_file_is_never_deleted(tree: Path, lock_file: Path, temp_dir: Path) -> None:
    inodes = set()
    for _ in range(3):
        with source_tree_lock(tree, timeout=0):
            inodes.add(lock_file.stat().st_ino)
        inodes.add(lock_file.stat().st_ino)
    assert len(inodes) == 1
    assert list(temp_dir.iterdir()) == [lock_file]


# Opening the lock file


def test_a_lock_file_that_exists_is_opened_without_o_creat(tree: Path, lock_file: Path) -> None:
    # fs.protected_regular makes the kernel refuse O_CREAT on another user's file in /tmp.
    script = """
        import os
        from source_tree_lock import source_tree_lock
        opened = []
        def hook(event, arguments):
            if event == "open" and str(arguments[0]).startswith(sys.argv[2]):
                opened.append(arguments[2])
        sys.addaudithook(hook)
        with source_tree_lock(sys.argv[1]):
            tell(len(opened), any(flags & os.O_CREAT for flags in opened))
    """
    lock_file.write_text("")
    with Child(script, tree, lock_file) as child:
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


DEVICE = stat.S_IFCHR | 0o666


def a_symlink(path: Path) -> None:
    path.with_name("private").write_text("private")
    path.symlink_to("private")


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


@pytest.mark.parametrize(
    ("make", "number", "hint"),
    [
        (a_symlink, errno.ELOOP, "symbolic link"),
        (lambda path: path.symlink_to("nowhere"), errno.ELOOP, "symbolic link"),
        (os.mkdir, errno.EISDIR, "not a regular file"),
        (getattr(os, "mkfifo", None), errno.EINVAL, "not a regular file"),
        (lambda path: os.mkfifo(path, 0o444), errno.EINVAL, "not a regular file"),
        (a_socket, errno.ENXIO, "not a regular file"),
        (lambda path: os.mknod(path, DEVICE, os.makedev(1, 3)), errno.EINVAL, "not a regular"),
    ],
    ids="symlink dangling directory fifo read-only-fifo socket device".split(),
)
def test_what_is_no_regular_file_is_refused_and_not_touched(
    make: Callable[[Path], None],
    number: int,
    hint: str,
    tree: Path,
    lock_file: Path,
    temp_dir: Path,
) -> None:
    try:
        make(lock_file)
    except PermissionError:
        pytest.skip("only root makes devices")
    before = sorted((path.name, path.lstat().st_ino) for path in temp_dir.iterdir())
    with Child(REFUSED, tree, prefix=WITHOUT_ROOTS_RIGHTS) as child:
        told = child.line()
        assert told.startswith(f"refused {number} ")
        assert hint in told
        assert str(lock_file) in told
        assert before == sorted((path.name, path.lstat().st_ino) for path in temp_dir.iterdir())
        if make is a_symlink:
            assert lock_file.read_text() == "private"
            assert is_free(lock_file)
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


@pytest.mark.skipif(sys.platform != "linux", reason="leases are Linux's")
@pytest.mark.parametrize("way", ["with", "async with"])
def test_a_lease_on_the_lock_file_is_waited_for(way: str, tree: Path, lock_file: Path) -> None:
    lease = """
        import fcntl, os, signal
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
        descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        tell("leased")
        signal.sigwait([signal.SIGIO])  # the kernel asks for it (fcntl(2))
        tell("asked")
        heard()
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        tell("given back")
    """
    wait = f"""
        import asyncio
        from source_tree_lock import source_tree_lock
        tell(source_tree_lock(sys.argv[1]).acquire(blocking=False))
        async def enter():
            {way} source_tree_lock(sys.argv[1]):
                tell("held")
                heard()
        asyncio.run(enter())
    """
    with Child(lease, lock_file) as owner:
        owner.expect("leased")  # which nobody gets on a file that another process has open
        with Child(wait, tree) as waiter:
            owner.expect("asked")
            waiter.expect("False")
            owner.say()
            owner.expect("given back")
            waiter.expect("held")
            assert not is_free(lock_file)


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
    ("directory", "file"),
    [(0o000, None), (0o600, None), (0o000, 0o666), (0o600, 0o666), (0o755, 0)],
)
def test_where_a_lock_file_may_be_that_cannot_be_opened_nobody_gets_in(
    directory: int, file: int | None, tree: Path, lock_file: Path, temp_dir: Path
) -> None:
    if file is not None:
        lock_file.touch(mode=file)
    temp_dir.chmod(directory)
    try:
        with Child(REFUSED, tree, prefix=WITHOUT_ROOTS_RIGHTS) as child:
            assert child.line().startswith(f"refused {errno.EACCES} ")
            assert is_free(tree)
    finally:
        temp_dir.chmod(0o700)
