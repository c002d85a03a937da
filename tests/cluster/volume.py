"""A GlusterFS volume with one server and two hosts that mount it, all on this machine.

Server and hosts are namespaces: of the network, of mounts, of the host's name; the server's also
of process ids. So nothing of it is seen outside, and it is gone when this process is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from support import LIMIT, wait_until

_NET = "10.77.0"
_NAME = "trees"
#: When the server is to give a silent host up: the defaults are 42, 20 and 2 seconds. And when a
#: host is to give a silent server up: 42 seconds.
_IMPATIENT = {
    "server.tcp-user-timeout": "3",
    "server.keepalive-time": "2",
    "server.keepalive-interval": "1",
    "network.ping-timeout": "2",
}
#: A process of ours that is killed when this one dies, however that happens.
_MORTAL = ("setpriv", "--pdeathsig", "KILL")


def missing() -> str:
    """What this machine lacks for it; empty if nothing."""
    if sys.platform != "linux" or os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        return "needs Linux, root and /dev/fuse"
    programs = ("glusterd", "gluster", "glusterfs", "ip", "nsenter", "setpriv", "unshare")
    absent = [program for program in programs if shutil.which(program) is None]
    return f"needs {', '.join(absent)}" if absent else ""


class Host:
    """A machine within this one, with a temporary directory of its own.

    Attributes:
        pid: a process in it; its first, if it has process ids of its own.
        prefix: what runs a command there, in place of this process.
    """

    def __init__(
        self, name: str, directory: Path, stack: ExitStack, *, own_pids: bool = False
    ) -> None:
        self.name = name
        self.environ = {"TMPDIR": str(directory / name)}
        (directory / name).mkdir()
        flags = ["--pid", "--fork", "--kill-child", "--mount-proc"] if own_pids else []
        # Nobody waits for what ends there: without this, a dead brick would look alive.
        first = f"hostname {name}; echo; exec env --ignore-signal=CHLD sleep infinity"
        process = subprocess.Popen(
            [*_MORTAL, "unshare", "--mount", "--net", "--uts", *flags, "sh", "-c", first],
            stdout=subprocess.PIPE,
        )
        stack.callback(_end, process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n", "no namespaces can be made here"
        self.pid = process.pid
        if own_pids:
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
            self.pid = int(children.split()[0])
        pids = ("--pid",) if own_pids else ()
        self.prefix = ("nsenter", "--target", str(self.pid), "--mount", "--net", "--uts", *pids)
        self.ip("link set lo up")

    def run(self, *command: str) -> str:
        return _run(*self.prefix, *command)

    def ip(self, arguments: str) -> None:
        # The process ids in the arguments are ours: only its network is entered.
        _run("nsenter", "--target", str(self.pid), "--net", "ip", *arguments.split())

    def seen(self, path: Path) -> Path:
        """The path by which we reach what it sees at ``path``."""
        return Path(f"/proc/{self.pid}/root{path}")

    def cut_off(self) -> None:
        """Pull the cable."""
        self.ip("link set eth0 down")

    def reconnect(self) -> None:
        self.ip("link set eth0 up")


class Volume:
    """A volume that is mounted at the same place, `path`, on two hosts."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.path = directory / "volume"
        self.path.mkdir()
        self._server = server = Host("server", directory, stack, own_pids=True)
        for state in ("/var/lib/glusterd", "/var/log/glusterfs", "/run"):
            os.makedirs(state, exist_ok=True)
            server.run("mount", "-t", "tmpfs", "private", state)
        server.run("mkdir", "/run/gluster", "/run/lock")
        server.ip("link add switch type bridge")
        server.ip(f"addr add {_NET}.1/24 dev switch")
        server.ip("link set switch up")
        server.run("glusterd")
        wait_until(lambda: self._gluster("pool", "list") != "")
        (directory / "brick").mkdir()
        self._gluster("volume", "create", _NAME, f"{_NET}.1:{directory}/brick", "force")
        for option, value in _IMPATIENT.items():
            self._gluster("volume", "set", _NAME, option, value)
        self._gluster("volume", "start", _NAME)
        self.first = self._host(1, directory, stack)
        self.second = self._host(2, directory, stack)

    def _host(self, number: int, directory: Path, stack: ExitStack) -> Host:
        host = Host(f"host{number}", directory, stack)
        self._server.ip(f"link add {host.name} type veth peer name eth0 netns {host.pid}")
        self._server.ip(f"link set {host.name} master switch up")
        host.ip(f"addr add {_NET}.{10 + number}/24 dev eth0")
        host.reconnect()
        client = [*_MORTAL, *host.prefix, "glusterfs", "--no-daemon", f"--volfile-id={_NAME}"]
        client += [f"--volfile-server={_NET}.1", f"--log-file={directory}/{host.name}.log"]
        stack.callback(_end, subprocess.Popen([*client, str(self.path)]))
        mounts = Path(f"/proc/{host.pid}/mountinfo")
        wait_until(lambda: f" {self.path} " in mounts.read_text())
        return host

    def _gluster(self, *arguments: str) -> str:
        return self._server.run("gluster", "--mode=script", *arguments)

    def stop_brick(self) -> None:
        """Kill the process that keeps the files and their locks."""
        [pid_file] = self._server.seen(Path("/run/gluster/vols", _NAME)).glob("*.pid")
        pid = pid_file.read_text().strip()
        self._server.run("kill", "-KILL", pid)
        wait_until(lambda: not self._server.seen(Path("/proc", pid)).exists())

    def start_brick(self) -> None:
        """Start it again, and wait until both hosts have found it."""
        self._gluster("volume", "start", _NAME, "force")
        self.wait_until_reached()

    def wait_until_reached(self) -> None:
        for host in self.first, self.second:
            wait_until(partial(_lists, host.seen(self.path)))


def _lists(directory: Path) -> bool:
    with suppress(OSError):
        os.listdir(directory)
        return True
    return False


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, f"{command} failed: {done.stdout}{done.stderr}"
    return done.stdout


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with process:  # waits for it, and closes its pipes
        pass
