"""The command line: any command under the lock of a source tree, and who holds it."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

from ..errors import LockUnavailable
from .messages import BAD_USAGE, SIGNALLED, UNAVAILABLE, fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    _occupy_standard_descriptors()
    try:
        try:
            return _main(sys.argv[1:] if arguments is None else arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        return SIGNALLED + signal.SIGINT
    except OSError as error:
        # What is left in the buffer would fail once more when the interpreter ends.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            return UNAVAILABLE  # whoever has stopped reading knows
        return fail(UNAVAILABLE, str(error))


def _main(arguments: Sequence[str]) -> int:
    from .options import parse

    options = parse(arguments)
    try:
        if options.action == "run":
            from .run import run

            return run(options)
        from .status import status

        return status(options)
    except LockUnavailable as error:
        return fail(UNAVAILABLE, f"{error.strerror}: {error.filename!r}")
    except (FileNotFoundError, NotADirectoryError) as error:
        return fail(BAD_USAGE, f"{error.strerror}: {error.filename!r}")
    except (ValueError, TypeError) as error:
        options.parser.error(str(error))


def _occupy_standard_descriptors() -> None:
    """Keep the numbers 0 to 2 off our files: a command would write to the lock file."""
    # Pipes are there where /dev/null is not. These are not inherited.
    while min(pipe := os.pipe()) <= 2:
        pass
    for descriptor in pipe:
        os.close(descriptor)
