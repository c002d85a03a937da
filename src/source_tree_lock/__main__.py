"""The command line: any command under the lock of a source tree, and who holds it."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress

from ._lock import SourceTreeLock, source_tree_lock
from ._options import FROM_ENVIRONMENT
from ._system import CAN_HAND_DOWN as POSIX
from ._system import block_signals as take_no_signals
from .errors import LockUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path
    from typing import Final, NoReturn

    from ._holder.holder import Holder

# Exit statuses: those of <sysexits.h>, and those that a shell gives for a command.
BAD_USAGE: Final = 2
UNAVAILABLE: Final = 69
TIMED_OUT: Final = 75
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
SIGNALLED: Final = 128

#: How often a wait is told of, in seconds.
_TELL_EVERY: Final = 10.0

_RUN = """Run a command while no other process builds in TREE: make, pip, a shell script.

The command is handed the lock, so that a build inside it that takes the same lock does not
wait for its own wrapper. uv cannot be handed it: uv is refused as the command, and inside of
another one it waits for its wrapper, unless the project's build-backend is
source_tree_lock.build_meta. While a command has to wait, stderr says whom for."""
_RUN_EXITS = """exit status: the command's own; 128 + n when signal n ended it; 127 not found;
126 not executable; 75 timed out; 69 lock unavailable; 2 bad usage or no such tree"""
_STATUS = "Tell whether TREE is free or held, by whom and since when. Takes no lock."
_STATUS_EXITS = "exit status: 0 free; 1 held; 69 cannot tell; 2 bad usage or no such tree"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    _occupy_standard_descriptors()
    try:
        try:
            return _main(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        return SIGNALLED + signal.SIGINT
    except OSError as error:
        # What is left in the buffer would fail once more when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            return UNAVAILABLE  # whoever has stopped reading knows
        return _fail(UNAVAILABLE, str(error))


def _main(given: list[str]) -> int:
    command: list[str] | None = None
    if "--" in given:
        end = given.index("--")
        given, command = given[:end], given[end + 1 :]
    parser = _parser()
    options, rest = parser.parse_known_args(given)
    if rest and options.action == "run" and command is None:
        parser.error("put -- before the command: source-tree-lock run TREE -- COMMAND...")
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if options.action == "run":
            return _run(options, _checked_command(parser, command))
        if command is not None:
            parser.error("status takes no command")
        return _status(options)
    except LockUnavailable as error:
        return _fail(UNAVAILABLE, f"{error.strerror}: {error.filename!r}")
    except (FileNotFoundError, NotADirectoryError) as error:
        return _fail(BAD_USAGE, f"{error.strerror}: {error.filename!r}")
    except (ValueError, TypeError) as error:
        return _fail(BAD_USAGE, str(error))


class _Parser(argparse.ArgumentParser):
    """One that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        raise SystemExit(_fail(BAD_USAGE, f"{message} (see {self.prog} --help)"))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="source-tree-lock",
        description="One process at a time in a source tree, so that concurrent setuptools builds "
        "do not break each other. It is the lock that uv takes.",
    )
    parser.add_argument("--version", action=_Version)
    actions = parser.add_subparsers(dest="action", required=True, metavar="run|status")
    run = actions.add_parser(
        "run",
        help="run a command under the lock",
        usage="%(prog)s [-h] [--timeout S] [--lock-dir D] TREE -- COMMAND...",
        description=_RUN,
        epilog=_RUN_EXITS,
    )
    run.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        default=FROM_ENVIRONMENT,
        help="wait at most S seconds (default: SOURCE_TREE_LOCK_TIMEOUT, else for ever)",
    )
    status = actions.add_parser(
        "status", help="tell who holds the lock", description=_STATUS, epilog=_STATUS_EXITS
    )
    status.add_argument("--json", action="store_true", help="for scripts")
    for each in (run, status):
        each.add_argument(
            "--lock-dir",
            metavar="D",
            help="directory of the lock file (default: SOURCE_TREE_LOCK_DIR, else uv's)",
        )
        each.add_argument("tree", metavar="TREE", help="the source tree, a directory")
    return parser


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("source-tree-lock")
        except PackageNotFoundError:
            number = "of an unknown version: it was not installed, but copied"
        print(parser.prog, number)
        parser.exit()


def _checked_command(parser: argparse.ArgumentParser, command: list[str] | None) -> list[str]:
    if not command or not command[0]:
        parser.error("name the command behind --: source-tree-lock run TREE -- COMMAND...")
    words = [os.path.basename(word).removesuffix(".exe") for word in command]
    if words[0] in ("uv", "uvx") or words[1:3] == ["-m", "uv"]:
        parser.error(
            "uv takes this lock by itself, and would wait for its own wrapper: run it bare"
        )
    return command


def _occupy_standard_descriptors() -> None:
    """Keep the numbers 0 to 2 off our files: a command would write to the lock file."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _fail(status: int, message: str) -> int:
    _say(f"source-tree-lock: {message}\n")
    return status


def _say(text: str) -> None:
    """Say something on stderr. Where nobody listens, that changes nothing."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        # Else the interpreter tries again when it ends, and changes the exit status.
        sys.stderr = None


# status


def _status(options: argparse.Namespace) -> int:
    lock = source_tree_lock(options.tree, lock_dir=options.lock_dir)
    held = lock.is_held()
    holder = lock.holder() if held else None
    if options.json:
        names = ("pid", "program", "host", "since")
        fields = {
            "tree": str(lock.tree),
            "lock_file": str(lock.lock_file),
            "held": held,
            "holder": holder and {name: getattr(holder, name) for name in names},
        }
        print(json.dumps(fields))
    else:
        state = f"held by {_shown(holder or 'an unknown process')}" if held else "free"
        print(f"{_shown(lock.tree)}: {state}")
        print(f"lock file: {_shown(lock.lock_file)}")
    return int(held)


def _shown(what: Path | Holder | str) -> str:
    """A path or a holder as every terminal and every encoding can show it."""
    text = str(what)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text if text.isprintable() and _can_encode(text, encoding) else ascii(text)


def _can_encode(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


# run


def _run(options: argparse.Namespace, command: list[str]) -> int:
    waiting = _Waiting()
    sys.argv[:1] = command[:1]  # whom others wait for is the command, not its wrapper
    lock = source_tree_lock(
        options.tree,
        timeout=options.timeout,
        lock_dir=options.lock_dir,
        on_wait=lambda wait: waiting.begin(lock, wait.holder),
    )
    try:
        entered = lock.acquire()
    finally:
        waiting.end()
    if not entered:
        holder = lock.holder() or "an unknown process"
        return _fail(TIMED_OUT, f"timed out: {str(lock.tree)!r} is held by {holder}")
    with _signals_blocked() as mask:
        try:
            environ, descriptors = lock._hand_over(with_descriptors=POSIX)
            return _run_command(command, {**os.environ, **environ}, descriptors, mask)
        finally:
            # Before a signal that came too late ends this process: what the command left
            # behind would keep the lock.
            lock.release()


class _Waiting:
    """Says on stderr whom a wait is for: at once, and then every ten seconds."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._in_place = sys.stderr is not None and sys.stderr.isatty()
        self._over = threading.Event()
        self._teller: threading.Thread | None = None

    def begin(self, lock: SourceTreeLock, holder: Holder | None) -> None:
        self._tell(lock, holder)
        # A Ctrl-C in the middle of a start could end in an error of threading's own.
        with _signals_blocked():
            self._teller = threading.Thread(target=self._go_on, args=(lock,), daemon=True)
            self._teller.start()

    def _go_on(self, lock: SourceTreeLock) -> None:
        take_no_signals()
        # What is wrong with the tree meanwhile is for the thread that waits to report.
        with suppress(OSError):
            while not self._over.wait(_TELL_EVERY):
                self._tell(lock, lock.holder())

    def _tell(self, lock: SourceTreeLock, holder: Holder | None) -> None:
        waited = time.monotonic() - self._started
        line = (
            f"source-tree-lock: waiting, {waited:.0f} s so far; held by "
            f"{holder or 'an unknown process'}: {str(lock.tree)!r}"
        )
        # A line that is wider than the terminal could not be written over.
        _say(f"\r\033[K{line[: _width() - 1]}" if self._in_place else f"{line}\n")

    def end(self) -> None:
        if self._teller is None:
            return
        self._over.set()
        # Where signals cannot be blocked, a Ctrl-C may have kept it from starting.
        if self._teller.is_alive():
            self._teller.join()
        if self._in_place:
            _say("\r\033[K")


def _width() -> int:
    try:
        return os.get_terminal_size(2).columns or 80
    except OSError:
        return 80


@contextmanager
def _signals_blocked() -> Generator[set[int], None, None]:
    """What is forwarded waits, with the end of the command, to be asked for; gives the old mask.

    It is not handled, because only sigwaitinfo(2) tells a Ctrl-C at the terminal, which the
    command gets by itself, from a kill(1).
    """
    if not POSIX:
        yield set()
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _awaited())
    try:
        yield set(before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _awaited() -> set[signal.Signals]:
    return {signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD}


def _run_command(
    command: list[str],
    environ: dict[str, str],
    descriptors: list[int],
    mask: set[int],
) -> int:
    try:
        if POSIX:
            return _run_posix(command, environ, descriptors, mask)
        return _run_windows(command, environ)
    except FileNotFoundError:
        return _fail(NOT_FOUND, f"command not found: {command[0]!r}")
    except OSError as error:
        return _fail(NOT_EXECUTABLE, f"cannot execute {command[0]!r}: {error.strerror}")


def _run_posix(
    command: list[str],
    environ: dict[str, str],
    descriptors: list[int],
    mask: set[int],
) -> int:
    for descriptor in descriptors:
        os.set_inheritable(descriptor, True)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.posix_spawnp(
        command[0],
        command,
        environ,
        setsigmask=mask,
        # Python ignores these two, and its children would inherit that.
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
    )
    while True:
        number, from_terminal = _next_signal(_awaited())
        if number == signal.SIGCHLD:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                return SIGNALLED - code if code < 0 else code
        elif not from_terminal:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _next_signal(signals: set[signal.Signals]) -> tuple[int, bool]:
    """The next of these signals, and whether it comes from the terminal to the whole job."""
    if sys.platform == "linux":
        info = signal.sigwaitinfo(signals)
        # A terminal that hangs up tells the leader of its session alone (setsid(2)).
        to_us_alone = info.si_signo == signal.SIGHUP and os.getsid(0) == os.getpid()
        return info.si_signo, info.si_code > 0 and not to_us_alone
    number = signal.sigwait(signals)
    return number, number in (signal.SIGINT, signal.SIGQUIT) and _is_in_foreground()


def _is_in_foreground() -> bool:
    try:
        with open("/dev/tty", "rb") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _run_windows(command: list[str], environ: dict[str, str]) -> int:
    import subprocess

    with subprocess.Popen(command, env=environ) as process:
        while True:
            # Ctrl-C reaches the command by itself: all of a console's processes get it.
            with suppress(KeyboardInterrupt):
                return process.wait()


if __name__ == "__main__":
    raise SystemExit(main())
