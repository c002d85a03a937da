"""The command ``source-tree-lock``: its arguments, and what becomes of errors."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from contextlib import suppress
from typing import Any, NoReturn

from .. import __version__
from ..errors import LockTimeout, LockUnavailable
from .output import BAD_USAGE, PROGRAM, SIGNALLED, TIMED_OUT, UNAVAILABLE, fail
from .run import run
from .status import status

_DESCRIPTION = "Let one process at a time build in a source tree. It is the lock that uv takes."
_RUN = """\
Run COMMAND while no other process builds in TREE. It runs in the current directory, not in TREE.
Shell syntax (cd, &&, *) needs a shell: source-tree-lock run . -- sh -c 'cd src && make'

Builds that COMMAND starts do not wait for this program, and take turns among themselves. uv cannot
be let in: it waits for this program, unless the build-backend is source_tree_lock.build_meta.

While it waits, stderr says which process holds TREE. Ctrl-C ends the wait."""
_RUN_END = """\
signals: SIGTERM and SIGHUP are passed on to COMMAND. Ctrl-C and Ctrl-\\ reach it from the
terminal; a SIGINT or SIGQUIT that is sent to run alone is not passed on: send SIGTERM. TREE stays
locked until COMMAND has ended, even if run was killed.

exit status: that of COMMAND, or
   2  bad usage, or no such tree
  69  the tree cannot be locked
  75  timed out: another process held the tree
 126  COMMAND cannot be executed
 127  COMMAND was not found
 130  Ctrl-C ended the wait (143: SIGTERM did)
 128 + n  signal n ended COMMAND"""
_RUN_HELP = "run a command under the lock"
_STATUS = "Say whether TREE is free or held, by which process, and which processes wait."
_STATUS_END = "exit status: 0 free, 1 held, 2 bad usage or no such tree, 69 cannot tell"
_STATUS_HELP = "say who holds the lock"
_TIMEOUT = "wait at most 5 (seconds), 5s, 10m or 1h (default: SOURCE_TREE_LOCK_TIMEOUT)"
_LOCK_DIR = "directory of the lock file (default: SOURCE_TREE_LOCK_DIR, else that of uv)"


def main() -> int:
    """Run the command with the arguments of this process.

    Returns:
        The exit status.

    Raises:
        SystemExit: with the exit status, where the arguments or a signal end it.
    """
    # Where 0, 1 or 2 are closed, no lock file may get their number: the command would use it.
    while os.open(os.devnull, os.O_RDONLY) <= 2:
        pass
    try:
        try:
            options = _parse(sys.argv[1:])
            return run(options) if options.action == "run" else status(options)
        finally:
            print(end="", flush=True)  # has no effect where stdout is closed
    except KeyboardInterrupt:
        return SIGNALLED + signal.SIGINT
    except LockTimeout as error:
        return fail(TIMED_OUT, str(error))
    except (LockUnavailable, FileNotFoundError, NotADirectoryError) as error:
        number = UNAVAILABLE if isinstance(error, LockUnavailable) else BAD_USAGE
        return fail(number, f"{error.strerror}: {error.filename!r}")
    except ValueError as error:
        return fail(BAD_USAGE, str(error))
    except OSError as error:
        # At its end the interpreter would try once more to write what is left in the buffer.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            return UNAVAILABLE  # the reader has gone
        return fail(UNAVAILABLE, str(error))


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options, with `command` among them; a mistake ends the program."""
    parser = _Parser(prog=PROGRAM, description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    actions = parser.add_subparsers(dest="action", metavar="run|status")
    add = actions.add_parser
    usage = "%(prog)s [-h] [--timeout T] [--lock-dir D] [--quiet] TREE -- COMMAND..."
    for_run = add("run", help=_RUN_HELP, usage=usage, description=_RUN, epilog=_RUN_END)
    for_status = add("status", help=_STATUS_HELP, description=_STATUS, epilog=_STATUS_END)
    for_run.add_argument("--timeout", type=_seconds, metavar="T", help=_TIMEOUT)
    for_run.add_argument("--quiet", action="store_true", help="do not show that it waits")
    for_status.add_argument("--json", action="store_true", help="print it for a program")
    for each in (for_run, for_status):
        each.add_argument("--lock-dir", metavar="D", help=_LOCK_DIR)
    for_run.add_argument("tree", metavar="TREE", nargs="?", help="the source tree")
    for_status.add_argument("tree", metavar="TREE", nargs="?", default=".", help="(default: .)")

    # Split here: what argparse does with "--" differs from one version of Python to another.
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options, rest = parser.parse_known_args(arguments[:end])
    options.command = arguments[end + 1 :]
    parser = actions.choices.get(options.action, parser)
    if rest and rest[0].startswith("-"):
        parser.error(f"unrecognized option: {rest[0].partition('=')[0]}")
    if options.action is None:
        parser.error("name an action: run or status")
    if options.action == "status" and (rest or end < len(arguments)):
        parser.error("status takes one TREE and no command")
    if options.action == "run" and (rest or not options.tree or not any(options.command[:1])):
        parser.error(f"write {PROGRAM} run TREE -- COMMAND...")
    return options


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one sentence."""

    def __init__(self, **options: Any) -> None:
        # An abbreviation that is unique today may not be tomorrow.
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(formatter_class=raw, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Report a mistake and end with status 2."""
        raise SystemExit(fail(BAD_USAGE, f"{message} (see {self.prog} --help)"))


def _seconds(text: str) -> float:
    """Return a duration in seconds: ``5``, ``5s``, ``2.5``, ``10m`` or ``1h``."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)([smh]?)", text, re.ASCII)
    if found is None:
        message = f"{text!r} is not a time: write seconds (5 or 5s), minutes (10m) or hours (1h)"
        raise argparse.ArgumentTypeError(message)
    return float(found[1]) * {"m": 60, "h": 3600}.get(found[2], 1)
