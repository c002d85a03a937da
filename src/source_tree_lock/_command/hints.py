"""Why a command cannot be run, and what to write instead."""

from __future__ import annotations

import errno
import os
import shlex

from .messages import PROGRAM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

#: What is typed like a command, and is one of the shell alone.
_BUILTINS: Final = frozenset(
    ". : [[ alias bg builtin cd command declare eval exec exit export fg for if jobs let local "
    "popd pushd read readonly return set setopt shift shopt source test time times trap type "
    "ulimit umask unalias unset wait while".split()
)


def why_not_found(command: list[str], tree: str) -> str:
    """What to say when there is no such command."""
    name = command[0]
    text = f"command not found: {name!r}"
    if name in _BUILTINS:
        return f"{text} is known to the shell alone; write {_in_shell(shlex.join(command), tree)}"
    if os.path.isfile(name):
        if os.sep in name:
            return f"{text} is there, but not the interpreter that its first line names"
        if os.access(name, os.X_OK):
            return f"{text} is a file here; write ./{name}"
        return f"{text} is a file here, not executable; {_made_executable(f'./{name}')}"
    if os.sep in name and not os.path.isabs(name) and os.path.isfile(os.path.join(tree, name)):
        there = os.path.normpath(os.path.join(tree, name))
        return f"{text}; run does not change directory: write {shlex.quote(there)}"
    if len(command) == 1 and len(name.split()) > 1:
        return f"{text} is one word; leave the quotes out, or write {_in_shell(name, tree)}"
    return text


def why_not_executable(command: list[str], error: OSError) -> str:
    """What to say when there is one, and the system refuses to run it."""
    name = command[0]
    text = f"cannot execute {name!r}: {error.strerror}"
    if os.path.isdir(name):
        return f"{text}; it is a directory"
    if error.errno == errno.ENOEXEC:
        return f"{text}; name its interpreter, as in: sh {shlex.quote(name)}"
    if error.errno == errno.EACCES and os.path.isfile(name) and not os.access(name, os.X_OK):
        return f"{text}; {_made_executable(name)}"
    return text


def _in_shell(words: str, tree: str) -> str:
    return f"{PROGRAM} run {shlex.quote(tree)} -- sh -c {shlex.quote(words)}"


def _made_executable(name: str) -> str:
    name = shlex.quote(name)
    return (
        f"make it so (chmod +x {name}) and write {name}, or name its interpreter, as in: sh {name}"
    )
