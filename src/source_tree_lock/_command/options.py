"""What can be written behind ``source-tree-lock``, and the help for it."""

from __future__ import annotations

import argparse
import os

from .messages import BAD_USAGE, PROGRAM, fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final, NoReturn

_DESCRIPTION: Final = """\
One process at a time in a source tree, so that concurrent setuptools builds do not break each
other. It is the lock that uv takes."""

_RUN: Final = """\
Run a command while no other process builds in TREE: make, pip, a shell script.

It runs in the present working directory: run does not change to TREE. What the shell alone knows
(cd, &&, *) needs one: source-tree-lock run . -- sh -c 'cd src && make'

The command is handed the lock: a build inside it that takes the same lock does not wait for its
own wrapper. uv cannot be handed it. So uv is refused as the command, and inside another command
it waits for its wrapper, unless the project's build-backend is source_tree_lock.build_meta.

While it waits, stderr says who holds TREE. Ctrl-C ends the wait."""
_RUN_END: Final = """\
signals: SIGTERM and SIGHUP are passed on to the command. Ctrl-C and Ctrl-\\ reach it from the
terminal; a SIGINT or SIGQUIT that is sent to run alone is not passed on: send SIGTERM. The tree
stays locked until the command has ended, even if run was killed.

exit status: the command's own, or
   2  bad usage, or no such tree
  69  the tree cannot be locked
  75  timed out: somebody else held the tree
 126  the command cannot be executed
 127  the command was not found
 130  Ctrl-C ended the wait (143: SIGTERM did)
 128 + n  signal n ended the command"""
_STATUS: Final = """\
Say whether TREE is free or held, by whom and since when, who waits for it, and what to do.
It takes no lock where the system tells who holds one, as Linux does."""
_STATUS_END: Final = """\
exit status:
   0  free
   1  held
   2  bad usage, or no such tree or lock directory
  69  cannot tell"""


class Options:
    """What was asked for.

    Attributes:
        action: ``run`` or ``status``.
        tree: the source tree, as it was written.
        lock_dir: directory of the lock file; ``None`` for the default.
        timeout: how long to wait, in seconds; ``None`` where nothing was said of it.
        is_quiet: whether to say nothing of a wait.
        is_json: whether the status is for a script.
        command: what to run; empty for ``status``.
        parser: what tells of an error in the words of the action.
    """

    def __init__(self, found: argparse.Namespace, command: list[str], parser: Parser) -> None:
        self.action: str = found.action
        self.tree: str = found.tree
        self.lock_dir: str | None = found.lock_dir
        self.timeout: float | None = getattr(found, "timeout", None)
        self.is_quiet: bool = getattr(found, "quiet", False)
        self.is_json: bool = getattr(found, "json", False)
        self.command = command
        self.parser = parser


class Parser(argparse.ArgumentParser):
    """One that reports an error in one line, and points to the help of its action."""

    def __init__(self, **options: Any) -> None:
        # What is abbreviated today may mean two things tomorrow.
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Say it, and end with status 2."""
        raise SystemExit(fail(BAD_USAGE, f"{message} (see {self.prog} --help)"))


def parse(given: Sequence[str]) -> Options:
    """The options that were given.

    Raises:
        SystemExit: they make no sense, which was said; or help was asked for, and given.
    """
    # Here, not by argparse: what it makes of ``--`` differs from one Python to another.
    given = list(given)
    end = given.index("--") if "--" in given else None
    command = [] if end is None else given[end + 1 :]
    parser, actions = _parser()
    found, rest = parser.parse_known_args(given[:end])
    parser = actions[found.action]
    if found.action == "status":
        if rest or end is not None:
            parser.error(f"status takes one TREE and no command: {' '.join(rest or command)}")
    elif rest and end is None and not rest[0].startswith("--"):
        parser.error(f"put -- before the command: {PROGRAM} run TREE -- COMMAND...")
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    else:
        _check_command(parser, command)
    return Options(found, command, parser)


def _parser() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(prog=PROGRAM, description=_DESCRIPTION)
    parser.add_argument("--version", action=_Version)
    actions = parser.add_subparsers(dest="action", required=True, metavar="run|status")
    run = actions.add_parser(
        "run",
        help="run a command under the lock",
        usage="%(prog)s [-h] [--timeout S] [--lock-dir D] [--quiet] TREE -- COMMAND...",
        description=_RUN,
        epilog=_RUN_END,
    )
    run.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help="wait at most S seconds (default: SOURCE_TREE_LOCK_TIMEOUT, else for ever)",
    )
    run.add_argument("--quiet", action="store_true", help="do not say that it waits, and for whom")
    status = actions.add_parser(
        "status",
        help="say who holds the lock and who waits",
        description=_STATUS,
        epilog=_STATUS_END,
    )
    status.add_argument("--json", action="store_true", help="the same for a script")
    for each in (run, status):
        each.add_argument(
            "--lock-dir",
            metavar="D",
            help="directory of the lock file (default: SOURCE_TREE_LOCK_DIR, else uv's)",
        )
    run.add_argument("tree", metavar="TREE", help="the source tree, a directory")
    status.add_argument(
        "tree",
        metavar="TREE",
        nargs="?",
        default=".",
        help="the source tree (default: the working directory)",
    )
    return parser, {"run": run, "status": status}


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


def _check_command(parser: Parser, command: list[str]) -> None:
    if not command or not command[0]:
        parser.error(f"name the command behind --: {PROGRAM} run TREE -- COMMAND...")
    words = [os.path.basename(word).removesuffix(".exe") for word in command]
    if words[0] in ("uv", "uvx") or words[1:3] == ["-m", "uv"]:
        parser.error(
            "uv takes this lock by itself, and would wait for its own wrapper: run it bare"
        )
