"""Builds that are cut short: which errors are signs of one, and how the next build is made anew."""

from __future__ import annotations

import errno
import glob
import importlib
import os
import shutil
import signal
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from configparser import RawConfigParser
from contextlib import ExitStack, suppress
from typing import Any

#: What a file system answers when half a file is written.
_CUT_WRITES = (errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC)
#: setuptools' commands that have an option ``force``.
_COMMANDS = ("build", "build_clib", "build_ext", "build_py", "build_scripts")
#: The variable that names a configuration file for setuptools to read after all others.
_EXTRA_CONFIG = "DIST_EXTRA_CONFIG"


def may_have_left_half_a_file(error: BaseException) -> bool:
    """Whether a build that ended in this error may have left half a file behind.

    Compilers and linkers that fail remove what they have written, and those that are killed do not.
    """
    chain: list[BaseException] = []  # setuptools makes a SystemExit of most errors
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    handler_codes = [getattr(signal.getsignal(n), "__code__", None) for n in signal.valid_signals()]
    frames = [frame for each in chain for frame, _ in traceback.walk_tb(each.__traceback__)]
    failed = [each for each in chain if isinstance(each, subprocess.CalledProcessError)]
    links = any(type(each).__name__ in ("LinkError", "LibError") for each in chain)
    return (
        any(isinstance(each, (KeyboardInterrupt, MemoryError)) for each in chain)
        or any(isinstance(each, OSError) and each.errno in _CUT_WRITES for each in chain)
        or any(frame.f_code in handler_codes for frame in frames)
        or any(each.returncode < 0 for each in failed)
        or (links and not (failed and all(_has_no_output(each.cmd) for each in failed)))
    )


def _has_no_output(command: list[str]) -> bool:
    return "-o" in command and not os.path.lexists(command[command.index("-o") + 1])


def build_anew(stack: ExitStack, only_metadata: bool, say: Callable[[str], None]) -> dict[str, str]:
    """Have setuptools build everything anew, wherever it builds, or the metadata only.

    The option ``force`` is set by a configuration file, which also reaches the child processes of
    a setup.py. What it does not reach is removed when the command that writes it begins:
    directories in which archives are composed, and the objects of static libraries.

    Args:
        stack: undoes it at its end.
        only_metadata: whether nothing but the metadata is built anew.
        say: called with one sentence, unless it is the metadata only.

    Returns:
        What has to be added to the environment.
    """
    distribution: Any = importlib.import_module("distutils.dist").Distribution  # setuptools' own
    run_command = distribution.run_command

    def run_command_anew(self: Any, name: str) -> None:
        if not self.have_run.get(name) and (name == "egg_info" or not only_metadata):
            for path in _force(self, name):
                if os.path.isdir(path) and not os.path.islink(path):
                    shutil.rmtree(path)
                elif os.path.lexists(path):
                    os.unlink(path)
        run_command(self, name)

    stack.callback(setattr, distribution, "run_command", run_command)
    distribution.run_command = run_command_anew
    if not only_metadata:
        say(f"the last build in {os.getcwd()} was cut short, so all is built anew")
        with suppress(Exception):  # no temporary directory, or a user's file with mistakes
            temporary = tempfile.TemporaryDirectory(prefix="source-tree-lock-")
            return {_EXTRA_CONFIG: _forcing_config(stack.enter_context(temporary))}
    return {}


def _force(distribution: Any, name: str) -> Iterator[str]:
    """Force a command; give what it would still use of an earlier build, and makes again."""
    with suppress(Exception):  # setuptools meets the same error when it runs the command
        command = distribution.get_command_obj(name)
        command.ensure_finalized()
        if name in _COMMANDS:
            command.force = True  # [tool.distutils] counts for more than any other file
        if name == "bdist_wheel":
            yield command.bdist_dir
        elif name == "sdist":
            yield distribution.get_fullname()
        elif name == "egg_info":  # its temporary files would be packed
            yield from glob.glob(os.path.join(glob.escape(command.egg_info), "tmp????????"))
        elif name == "build_clib":
            compilers: Any = importlib.import_module("distutils.ccompiler")
            compiler = compilers.new_compiler(compiler=command.compiler)
            objects, libraries = command.build_temp, command.build_clib
            for library, details in command.libraries or ():
                yield from compiler.object_filenames(details["sources"], output_dir=objects)
                yield compiler.library_filename(library, output_dir=libraries)


def _forcing_config(directory: str) -> str:
    """Make a configuration file that forces builds, and says besides what the user's own says."""
    config = RawConfigParser()
    config.optionxform = str  # type: ignore[assignment,method-assign]
    config.read(os.environ.get(_EXTRA_CONFIG, ""), encoding="utf-8")  # if there is such a file
    config.read_dict({each: {"force": "1"} for each in _COMMANDS})
    path = os.path.join(directory, "setup.cfg")
    with open(path, "w", encoding="utf-8") as file:
        config.write(file)
    return path
