"""Both locks on every file system that can be mounted here, or the documented degradation."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import own_mounts, wait_until_blocked

from source_tree_lock import LockTimeout, source_tree_lock

from .crew import BECOME_NOBODY, Crew, Member

_HOLD = """
    os.umask(0o077)
    try:
        with source_tree_lock(sys.argv[1], timeout=eval(sys.argv[2])) as lock:
            tell("held", lock.lock_file)
            heard()
        tell("released")
    except LockTimeout as error:
        tell("timed out", error.holder.pid if error.holder else 0)
    except LockUnavailable as error:
        tell("refused", error.errno)
"""

_IMAGE = "truncate -s 512M {at}.image && {make} -q {at}.image && mount -o loop {at}.image {at}"
_FILE_SYSTEMS = {
    "tmpfs": "mount -t tmpfs none {at}",
    "ext4": _IMAGE.replace("{make}", "mkfs.ext4"),
    "btrfs": _IMAGE.replace("{make}", "mkfs.btrfs"),
    "vfat": "truncate -s 64M {at}.image && mkfs.vfat {at}.image && mount -o loop {at}.image {at}",
    "overlay": "mount -t tmpfs none {at} && cd {at} && mkdir lower upper work && mount -t overlay "
    "overlay -o lowerdir=lower,upperdir=upper,workdir=work {at}",
    "fuse": "mkdir {at}.below && bindfs {at}.below {at}",
}


class Place:
    """A directory where file systems are mounted, for the crew alone."""

    def __init__(self, crew: Crew, directory: Path) -> None:
        self.path = directory
        self._crew = crew

    def run(self, command: str) -> str:
        """What a shell command in the crew's mount namespace complains of, if it fails."""
        script = """
            run = subprocess.run(sys.argv[1], shell=True, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            tell(run.returncode and " ".join(run.stdout.split() or ["it fails"]))
        """
        with self._crew.start(script, command) as member:
            line = member.line()
        return "" if line == "0" else line

    def must(self, command: str) -> None:
        assert self.run(command) == ""

    def hold(
        self, tree: Path, *, seconds: float | None = None, environ: dict[str, str] | None = None
    ) -> Member:
        return self._crew.start(_HOLD, tree, seconds, environ=environ)

    def seen_from_here(self, path: Path) -> Path:
        """The same file, by a path from outside of the crew's mount namespace."""
        return Path(f"/proc/{self._crew.pid}/root", path.relative_to("/"))

    def is_locked(self, path: Path) -> bool:
        """Whether a stranger to the library is kept out."""
        descriptor = os.open(self.seen_from_here(path), os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


@pytest.fixture(scope="module")
def crew_apart() -> Iterator[Crew]:
    with Crew(prefix=own_mounts()) as crew:
        yield crew


@pytest.fixture
def place(crew_apart: Crew, tmp_path: Path) -> Iterator[Place]:
    directory = tmp_path / "mounted"
    directory.mkdir()
    place = Place(crew_apart, directory)
    yield place
    crew_apart.end_children()
    while not place.run(f"umount {directory}"):
        pass


@pytest.fixture(params=_FILE_SYSTEMS)
def mounted(request: pytest.FixtureRequest, place: Place) -> Place:
    name = request.param
    error = place.run(_FILE_SYSTEMS[name].format(at=place.path))
    if error:
        pytest.skip(f"no {name} can be mounted here: {error}")
    return place


@pytest.mark.parametrize("what", ["tree", "lock file"])
def test_both_locks_are_taken_wherever_they_are(
    mounted: Place, tree: Path, tmp_path: Path, what: str, request: pytest.FixtureRequest
) -> None:
    directory = mounted.path / "locks" if what == "lock file" else tmp_path / "locks"
    if what == "tree":
        tree = mounted.path / "tree"
        mounted.must(f"mkdir {tree}")
    environ = {"SOURCE_TREE_LOCK_DIR": str(directory)}
    holder = mounted.hold(tree, environ=environ)
    lock_file = Path(_told(holder, "held"))
    assert lock_file.parent == directory
    assert mounted.is_locked(lock_file)
    assert mounted.is_locked(tree)
    if "vfat" not in request.node.name:
        assert stat.S_IMODE(mounted.seen_from_here(lock_file).stat().st_mode) == 0o666
    assert os.listdir(mounted.seen_from_here(directory)) == [lock_file.name]
    # By another lock file, the tree itself keeps out, and the right holder is named.
    for options in (environ, {}):
        other = mounted.hold(tree, seconds=0.05, environ=options)
        assert int(_told(other, "timed out")) in (holder.pid, 0)
    waiter = mounted.hold(tree, environ=environ)
    wait_until_blocked(waiter.pid)
    holder.kill()
    _told(waiter, "held")
    waiter.say("leave")
    waiter.expect("released")
    assert not mounted.seen_from_here(lock_file).read_bytes().strip()


@pytest.mark.parametrize("made_before", [False, True])
def test_a_read_only_lock_directory_serves_if_the_lock_file_is_there(
    place: Place, tree: Path, made_before: bool
) -> None:
    place.must(f"mount -t tmpfs none {place.path}")
    environ = {"SOURCE_TREE_LOCK_DIR": str(place.path)}
    if made_before:
        lock_file = source_tree_lock(tree, lock_dir=place.path).lock_file
        place.must(f"echo private > {lock_file}")
    place.must(f"mount -o remount,ro {place.path}")
    holder = place.hold(tree, environ=environ)
    if not made_before:
        assert int(_told(holder, "refused")) == errno.EROFS
        return
    _told(holder, "held")
    assert place.is_locked(lock_file)
    _told(place.hold(tree, seconds=0.05, environ=environ), "timed out")
    assert place.seen_from_here(lock_file).read_text() == "private\n"


@pytest.mark.parametrize("mode", [0o755, 0o711])
def test_a_tree_that_only_another_user_may_write_is_locked_if_it_can_be_read(
    crew: Crew, shared: Path, mode: int
) -> None:
    tree = shared.parent / "tree"
    tree.mkdir()
    tree.chmod(mode)
    member = crew.start(BECOME_NOBODY + textwrap.dedent(_HOLD), tree, 1)
    if mode == 0o711:
        assert int(_told(member, "refused")) == errno.EACCES
    else:
        _told(member, "held")
        with pytest.raises(LockTimeout), source_tree_lock(tree, timeout=0.05):
            pass


def _told(member: Member, word: str) -> str:
    """What it tells after this word."""
    line = member.line()
    assert line.startswith(word), line
    return line.removeprefix(word).strip()
