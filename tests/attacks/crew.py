"""A crew: one process that has imported everything forks children that are ready at once.

A Python that starts anew takes 50 ms, a fork 2 ms: that is what makes thousands of cases
affordable. Each child runs a script like those of `support.Child`, with the same two verbs.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from support import LIMIT, Teller
from typing_extensions import Self

# The server. It is single-threaded, so that a fork of it is as good as a new process.
_SERVER = """
import contextlib, ctypes, json, os, signal, socket, sys, time, traceback
from source_tree_lock import LockTimeout, LockUnavailable, SourceTreeLockError, source_tree_lock
from source_tree_lock import _paths as making
if sys.argv[2] == "warm":
    import asyncio, gc, json, logging, pwd, random, subprocess, threading
    from source_tree_lock import _deadlocks, _handover, _lock, _proc, _queue, _wait

libc = ctypes.CDLL(None)

def child(connection, request):
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: nobody outlives the tests
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pipe = connection.makefile("rw")
    def tell(*words):
        print(*words, file=pipe, flush=True)
    def heard():
        line = pipe.readline()
        if not line:
            os._exit(0)  # the test has ended
        return line.strip()
    heard()
    os.environ.update(request["environ"])
    if request["cwd"]:
        os.chdir(request["cwd"])
    sys.argv = ["attack", *request["arguments"]]
    names = {name: value for name, value in globals().items() if not name.startswith("_")}
    names.update(tell=tell, heard=heard, connection=connection, __name__="__main__")
    exec(compile(request["script"], "<attack>", "exec"), names)

def main():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
    server = socket.socket(fileno=int(sys.argv[1]))
    while True:
        data, descriptors, _, _ = socket.recv_fds(server, 1 << 18, 1)
        if not data:
            return
        pid = os.fork()
        if pid:
            os.close(descriptors[0])
            server.send(str(pid).encode())
            continue
        status = 1
        try:
            server.close()
            child(socket.socket(fileno=descriptors[0]), json.loads(data))
            status = 0
        except SystemExit:
            raise
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)

main()
"""


class Member(Teller):
    """One child of the crew: `support.Child` in a hurry."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        super().__init__(pid, connection.fileno())
        self._connection = connection
        try:
            self._life: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            self._life = None

    def say(self, word: str = "") -> None:
        """Tell the child something: `heard` returns it."""
        self._connection.sendall(word.encode() + b"\n")

    def wait(self, seconds: float = LIMIT) -> None:
        """Until the child is dead, with all its files closed."""
        if self._life is not None and not select.select([self._life], [], [], seconds)[0]:
            raise AssertionError(f"the child was alive after {seconds} s")

    def is_dead(self) -> bool:
        return self._life is None or bool(select.select([self._life], [], [], 0)[0])

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; SIGKILL also waits for the end."""
        if self._life is not None:
            try:
                signal.pidfd_send_signal(self._life, number)
            except ProcessLookupError:
                return
            if number == signal.SIGKILL:
                self.wait()

    def close(self) -> None:
        self.kill()
        self._connection.close()
        if self._life is not None:
            os.close(self._life)
            self._life = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Crew:
    """Starts children that run at once."""

    def __init__(self, *, warm: bool = True, prefix: Sequence[str] = ()) -> None:
        """A crew, ready.

        Args:
            warm: with all imports done that the library may ever need.
            prefix: the command that starts the interpreter, such as unshare(1).
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [
                    *prefix,
                    sys.executable,
                    "-c",
                    _SERVER,
                    str(theirs.fileno()),
                    "warm" if warm else "cold",
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._socket = ours
        self.pid = self._server.pid
        self._members: list[Member] = []

    def start(
        self,
        script: str,
        *arguments: object,
        environ: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        paused: bool = False,
    ) -> Member:
        """A child that runs ``script``; with ``paused``, once it is told the first word."""
        ours, theirs = socket.socketpair()
        request = {
            "script": textwrap.dedent(script),
            "arguments": [
                os.fsdecode(each) if isinstance(each, os.PathLike) else str(each)
                for each in arguments
            ],
            "environ": {**os.environ, **(environ or {})},
            "cwd": os.fspath(cwd) if cwd is not None else None,
        }
        with theirs:
            socket.send_fds(self._socket, [json.dumps(request).encode()], [theirs.fileno()])
        if not select.select([self._socket], [], [], LIMIT)[0]:
            raise AssertionError("the crew does not answer")
        member = Member(int(self._socket.recv(64)), ours)
        self._members.append(member)
        if not paused:
            member.say()
        return member

    def end_children(self) -> None:
        for member in self._members:
            member.close()
        self._members.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end_children()
        self._socket.close()
        self._server.wait(LIMIT)


#: The beginning of a script of another user. setpriv(1) could not start an interpreter that only
#: root may read, as pyenv's often is. By its last call the process may look at itself in /proc.
BECOME_NOBODY = """
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE
"""


def wait_until_blocked_or_tells(member: Member) -> None:
    """Until the kernel lists it as waiting for an flock, or it told something, or has ended."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline and not member.has_told():
        waiting = (line.split() for line in Path("/proc/locks").read_text().splitlines())
        if any(fields[1] == "->" and fields[5] == str(member.pid) for fields in waiting):
            return
        time.sleep(0.001)
