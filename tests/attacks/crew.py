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
from collections.abc import Mapping
from contextlib import suppress

from support import LIMIT, Teller, listed_locks, wait_until
from typing_extensions import Self

# The server. It is single-threaded, so that a fork of it is as good as a new process.
_SERVER = """
import asyncio, contextlib, ctypes, gc, json, logging, os, pwd, random, select, signal, socket
import subprocess, sys, threading, time, traceback, warnings
from source_tree_lock import LockTimeout, LockUnavailable, SourceTreeLockError, source_tree_lock
from source_tree_lock import _deadlocks, _handover, _lock, _paths, _proc, _queue, _wait

libc = ctypes.CDLL(None)

def child(connection, request):
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: no child outlives the tests
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    output, lines = connection.makefile("w"), connection.makefile("r")
    def tell(*words):
        print(*words, file=output, flush=True)
    def heard():
        line = lines.readline()
        if not line:
            os._exit(0)  # the test has ended
        return line.strip()
    heard()
    os.environ.update(request["environ"])
    sys.argv = ["attack", *request["arguments"]]
    exec(request["script"], {**globals(), "tell": tell, "heard": heard, "connection": connection})

signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the children are not waited for
server = socket.socket(fileno=int(sys.argv[1]))
while True:
    data, descriptors, _, _ = socket.recv_fds(server, 1 << 18, 1)
    if not data:
        break
    pid = os.fork()
    if pid == 0:
        try:
            server.close()
            child(socket.socket(fileno=descriptors[0]), json.loads(data))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(descriptors[0])
    server.send(str(pid).encode())
"""


class Member(Teller):
    """One child of the crew: `support.Child` in a hurry."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        super().__init__(pid, connection.fileno())
        self._connection = connection
        self._life = open(os.pidfd_open(pid), "rb", buffering=0)  # noqa: SIM115

    def say(self, word: str = "") -> None:
        """Tell the child something: `heard` returns it."""
        self._connection.sendall(word.encode() + b"\n")

    def wait(self) -> None:
        """Until the child is dead, with all its files closed."""
        assert select.select([self._life], [], [], LIMIT)[0], "the child is alive"

    def kill(self) -> None:
        """SIGKILL, and see it dead."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._life.fileno(), signal.SIGKILL)
        self.wait()

    def close(self) -> None:
        if not self._life.closed:
            self.kill()
        self._connection.close()
        self._life.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Crew:
    """Starts children that run at once."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = theirs.fileno()
            self._server = subprocess.Popen(
                [sys.executable, "-c", _SERVER, str(number)],
                pass_fds=[number],
                stdin=subprocess.DEVNULL,
            )
        self._members: list[Member] = []

    def start(
        self, script: str, *arguments: object, environ: Mapping[str, str] | None = None
    ) -> Member:
        request = {
            "script": textwrap.dedent(script),
            "arguments": list(map(str, arguments)),
            "environ": {**os.environ, **(environ or {})},
        }
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._socket, [json.dumps(request).encode()], [theirs.fileno()])
        assert select.select([self._socket], [], [], LIMIT)[0], "the crew does not answer"
        member = Member(int(self._socket.recv(64)), ours)
        self._members.append(member)
        member.say()  # it did not run before, so that its end cannot be missed
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


def wait_until_blocked_or_tells(member: Member) -> None:
    """Until the kernel lists it as waiting for an flock, or it told something, or has ended."""

    def is_blocked() -> bool:
        return any(line[1] == "->" and line[5] == str(member.pid) for line in listed_locks())

    wait_until(lambda: member.has_told() or is_blocked())
