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
from configparser import RawConfigParser
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from types import FrameType

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
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    handler_codes = [code for each in handlers if (code := getattr(each, "__code__", None))]
    chain = [error]  # setuptools makes a SystemExit of most errors
    for each in chain:
        for cause in (each.__cause__, each.__context__):
            if cause is not None and all(cause is not known for known in chain):
                chain.append(cause)
    failed = [each for each in chain if isinstance(each, subprocess.CalledProcessError)]
    return (
        any(isinstance(each, (KeyboardInterrupt, MemoryError)) for each in chain)
        or any(isinstance(each, OSError) and each.errno in _CUT_WRITES for each in chain)
        or any(each.returncode < 0 for each in failed)
        or any(frame.f_code in handler_codes for each in chain for frame in _frames(each))
        or (
            any(type(each).__name__ in ("LinkError", "LibError") for each in chain)
            and not (failed and all(_has_no_output(each.cmd) for each in failed))
        )
    )


def _frames(error: BaseException) -> Iterator[FrameType]:
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _has_no_output(command: list[str]) -> bool:
    return "-o" in command and not os.path.lexists(command[command.index("-o") + 1])


@contextmanager
def build_anew(*, only_metadata: bool) -> Generator[None, None, None]:
    """Have setuptools build everything anew, wherever it builds, or the metadata only.

    The option ``force`` is set by a configuration file, which also reaches the child processes of
    a setup.py. What it does not reach is removed when the command that writes it begins:
    directories in which archives are composed, and the objects of static libraries.
    """
    distribution: Any = importlib.import_module("distutils.dist").Distribution  # setuptools' own
    run_command = distribution.run_command

    def run_command_anew(self: Any, name: str) -> None:
        if not self.have_run.get(name) and (name == "egg_info" or not only_metadata):
            paths: list[str] = []
            with suppress(Exception):  # setuptools meets the same error below
                command = self.get_command_obj(name)
                command.ensure_finalized()
                if name in _COMMANDS:
                    command.force = True  # [tool.distutils] counts for more than any other file
                paths = _left_over(command, name)
            for path in paths:
                _remove(path)
        run_command(self, name)

    with ExitStack() as stack:
        stack.callback(setattr, distribution, "run_command", run_command)
        distribution.run_command = run_command_anew
        if not only_metadata:
            with suppress(Exception):  # no temporary directory, or a user's file with mistakes
                stack.enter_context(_forcing_config())
        yield


def _left_over(command: Any, name: str) -> list[str]:
    """What a command would use of an earlier build, and makes again without it."""
    if name == "bdist_wheel":
        return [command.bdist_dir]
    if name == "sdist":
        return [command.distribution.get_fullname()]
    if name == "egg_info":  # its temporary files would be packed
        return glob.glob(os.path.join(glob.escape(command.egg_info), "tmp????????"))
    if name == "build_clib":
        compilers: Any = importlib.import_module("distutils.ccompiler")
        compiler = compilers.new_compiler(compiler=command.compiler)
        paths: list[str] = []
        for library, details in command.libraries or ():
            paths += compiler.object_filenames(details["sources"], output_dir=command.build_temp)
            paths.append(compiler.library_filename(library, output_dir=command.build_clib))
        return paths
    return []


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)


@contextmanager
def _forcing_config() -> Generator[None, None, None]:
    """Name a configuration file that forces builds, and says besides what the user's own says."""
    config = RawConfigParser()
    config.optionxform = str  # type: ignore[assignment,method-assign]
    own = os.environ.get(_EXTRA_CONFIG)
    if own and os.path.isfile(own):
        with open(own, encoding="utf-8") as file:
            config.read_file(file)
    for section in _COMMANDS:
        if not config.has_section(section):
            config.add_section(section)
        config.set(section, "force", "1")
    with tempfile.TemporaryDirectory(prefix="source-tree-lock-") as directory:
        path = os.path.join(directory, "setup.cfg")
        with open(path, "w", encoding="utf-8") as file:
            config.write(file)
        os.environ[_EXTRA_CONFIG] = path
        try:
            yield
        finally:
            if own is None:
                os.environ.pop(_EXTRA_CONFIG, None)
            else:
                os.environ[_EXTRA_CONFIG] = own
