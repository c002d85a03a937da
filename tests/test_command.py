"""The command line, through the installed command: what it runs, forwards, tells and returns."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from importlib.metadata import entry_points, version
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from projects import content, make_project
from support import (
    HOLD,
    LIMIT,
    PRELUDE,
    Child,
    held_elsewhere,
    is_free,
    stop_for_good,
    uv_build,
    wait_until,
    write_project,
)
from typing_extensions import Self

from source_tree_lock import __main__, _process, source_tree_lock

if sys.platform != "win32":
    import fcntl
    import pty
    import struct
    import termios

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, terminals and descriptors")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")

MODULE = [sys.executable, "-m", "source_tree_lock"]
_script = Path(sys.executable).with_name("source-tree-lock")
#: The installed command; where a checkout is tested without an installation, the module.
COMMAND = [str(_script)] if _script.exists() else MODULE

#: The command with a telling every tenth of a second.
IMPATIENT = [
    sys.executable,
    "-c",
    "import source_tree_lock.__main__ as m; m._TELL_EVERY = 0.1; raise SystemExit(m.main())",
]

#: Writes down the signals that it gets; SIGUSR1 ends it. Arguments: where.
NOTE = """
    import os, signal, sys
    signal.alarm(120)  # the test has failed
    # Each as it comes: a handler of Python's would see two as one.
    awaited = [signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    log = open(sys.argv[1], "a", buffering=1)
    print(os.getpid(), os.getppid(), file=log)
    while True:
        number = signal.sigwait(awaited)
        if number == signal.SIGUSR1:
            os._exit(5)
        print(signal.Signals(number).name, file=log)
"""


def python(script: str, *arguments: object) -> list[str]:
    """The command that runs a script."""
    return [sys.executable, "-c", PRELUDE + textwrap.dedent(script), *map(str, arguments)]


def run(
    *arguments: object,
    command: Sequence[str] = COMMAND,
    stdin: bytes = b"",
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """The command line, to its end."""
    return subprocess.run(
        [*command, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        env={**os.environ, **(environ or {})},
        cwd=cwd,
        timeout=LIMIT,
    )


def complaint(ended: subprocess.CompletedProcess[bytes]) -> str:
    """The one line on stderr, without a traceback."""
    text = ended.stderr.decode()
    assert text.startswith("source-tree-lock: ")
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert "Traceback" not in text
    return text.removeprefix("source-tree-lock: ").rstrip("\n")


@contextmanager
def started(
    *arguments: object, command: Sequence[str] = COMMAND, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """The command line, in a session of its own, ended with all that it has started."""
    process: subprocess.Popen[bytes] = subprocess.Popen(  # pyright: ignore[reportAssignmentType]
        [*command, *map(str, arguments)], start_new_session=True, **options
    )
    try:
        yield process
    finally:
        stop_for_good(process)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def both_free(tree: Path) -> bool:
    """Whether flock(1) gets the lock file and the tree itself."""
    return is_free(source_tree_lock(tree).lock_file) and is_free(tree)


# What it returns


@pytest.mark.parametrize("command", [COMMAND, MODULE], ids=["installed", "module"])
def test_the_command_is_there_by_name_and_as_a_module(command: list[str], tree: Path) -> None:
    ended = run("run", tree, "--", "sh", "-c", "echo out; exit 7", command=command)
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, b"out\n", b"")


def test_the_installed_command_is_this_one() -> None:
    (script,) = entry_points(group="console_scripts", name="source-tree-lock")
    assert script.value == "source_tree_lock.__main__:main"
    assert _script.exists()


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 2", 2),
        ("exit 75", 75),
        ("exit 127", 127),
        ("exit 255", 255),
        ("kill -HUP $$", 129),
        ("kill -INT $$", 130),
        ("kill -QUIT $$", 131),
        ("kill -ABRT $$", 134),
        ("kill -KILL $$", 137),
        ("kill -USR1 $$", 138),
        ("kill -SEGV $$", 139),
        ("kill -PIPE $$", 141),
        ("kill -TERM $$", 143),
        ("kill -XFSZ $$", 128 + signal.SIGXFSZ),
    ],
)
def test_the_status_is_the_commands_own_or_128_and_its_signal(
    script: str, status: int, tree: Path
) -> None:
    ended = run("run", tree, "--", "sh", "-c", f"ulimit -c 0; {script}")
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, b"", b"")
    assert both_free(tree)


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("no-such-command-anywhere", 127, "not found"),
        ("./missing", 127, "not found"),
        ("./interpreter-is-missing", 127, "not found"),
        ("./plain", 126, "Permission denied"),
        (".", 126, "Permission denied"),
        ("./plain/inside", 126, "Not a directory"),
        ("./no-format", 126, "Exec format error"),
    ],
)
def test_what_cannot_be_run_is_127_or_126(
    name: str, status: int, words: str, tree: Path, tmp_path: Path
) -> None:
    for path, mode, text in (
        ("plain", 0o644, "text"),
        ("no-format", 0o755, "\1\2\3"),
        ("interpreter-is-missing", 0o755, "#!/no/such/interpreter\n"),
    ):
        (tmp_path / path).write_text(text)
        (tmp_path / path).chmod(mode)
    ended = run("run", tree, "--", name, cwd=tmp_path)
    assert ended.returncode == status
    assert words in complaint(ended)
    assert repr(name) in complaint(ended)
    assert both_free(tree)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "run|status"),
        (["walk"], "invalid choice"),
        (["run"], "TREE"),
        (["run", "{tree}"], "behind --"),
        (["run", "{tree}", "--"], "behind --"),
        (["run", "{tree}", "--", ""], "behind --"),
        (["run", "{tree}", "true"], "put -- before the command"),
        (["status", "{tree}", "true"], "unrecognized arguments: true"),
        (["run", "--", "true"], "TREE"),
        (["run", "--what", "{tree}", "--", "true"], "--what"),
        (["run", "--timeout", "soon", "{tree}", "--", "true"], "soon"),
        (["run", "--timeout", "nan", "{tree}", "--", "true"], "nan"),
        (["run", "--timeout=-1", "{tree}", "--", "true"], "-1"),
        (["run", "{tree}/missing", "--", "true"], "{tree}/missing"),
        (["run", "{tree}/file", "--", "true"], "{tree}/file"),
        (["run", "{tree}/file/inside", "--", "true"], "{tree}/file/inside"),
        (["status"], "TREE"),
        (["status", "{tree}", "--", "true"], "no command"),
        (["status", "--timeout", "1", "{tree}"], "--timeout"),
        (["status", "{tree}/missing"], "{tree}/missing"),
        (["status", "{tree}/file"], "{tree}/file"),
    ],
)
def test_bad_usage_is_2_and_one_line(arguments: list[str], words: str, tree: Path) -> None:
    (tree / "file").touch()
    ended = run(*(each.format(tree=tree) for each in arguments))
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert words.format(tree=tree) in complaint(ended)


@pytest.mark.parametrize(
    "command",
    [
        ["uv", "build"],
        ["uvx", "--from", "build", "pyproject-build"],
        ["/opt/bin/uv", "pip", "install", "."],
        ["uv.exe", "build"],
        ["python", "-m", "uv", "build"],
        ["/usr/bin/python3.12", "-m", "uv", "sync"],
    ],
    ids=" ".join,
)
def test_uv_is_refused_with_the_reason(command: list[str], tree: Path) -> None:
    ended = run("run", tree, "--", *command)
    assert ended.returncode == 2
    assert "uv takes this lock by itself, and would wait for its own wrapper" in complaint(ended)
    assert not source_tree_lock(tree).lock_file.exists()


def test_status_names_a_holder_whom_the_encoding_cannot(tree: Path, tmp_path: Path) -> None:
    script = tmp_path / "schläfer"
    script.write_text(PRELUDE + textwrap.dedent(HOLD))
    with subprocess.Popen([sys.executable, script, tree], stdin=PIPE, stdout=PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        ended = run("status", tree, environ={"PYTHONIOENCODING": "ascii"})
        holder.communicate(b"go\n", timeout=LIMIT)
    assert (ended.returncode, ended.stderr) == (1, b"")
    assert b"held by 'schl\\xe4fer (pid" in ended.stdout


@pytest.mark.parametrize("command", [["uvicorn"], ["echo", "uv"], ["sh", "-c", "uv"]], ids=" ".join)
def test_what_is_only_called_like_uv_is_not_refused(
    command: list[str], tree: Path, tmp_path: Path
) -> None:
    for name in ("uvicorn", "uv"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert run("run", tree, "--", *command, environ=environ).returncode == 0


@pytest.mark.parametrize(
    ("options", "environ"),
    [
        (["--timeout", "0"], {}),
        (["--timeout", "0.1"], {}),
        ([], {"SOURCE_TREE_LOCK_TIMEOUT": "0.1"}),
        (["--timeout", "0.1"], {"SOURCE_TREE_LOCK_TIMEOUT": "1000"}),
    ],
    ids=["none", "short", "from the environment", "option before environment"],
)
def test_a_timeout_is_75_and_names_the_holder(
    options: list[str], environ: dict[str, str], tree: Path
) -> None:
    with held_elsewhere(tree) as child:
        ended = run("run", *options, tree, "--", "echo", "inside", environ=environ)
        *_, last = ended.stderr.decode().splitlines()
        assert (ended.returncode, ended.stdout) == (75, b"")
        assert last.startswith(f"source-tree-lock: timed out: '{tree}' is held by ")
        assert f"(pid {child.pid})" in last


@pytest.mark.parametrize("action", [["run", "--timeout", "0"], ["status"]], ids=["run", "status"])
def test_a_timeout_in_the_environment_that_makes_no_sense_is_named(
    action: list[str], tree: Path
) -> None:
    # Also where nobody is to be waited for; an option makes it irrelevant, and so does a look.
    environ = {"SOURCE_TREE_LOCK_TIMEOUT": "soon"}
    command = [] if action == ["status"] else ["--", "true"]
    assert run(*action, tree, *command, environ=environ).returncode == 0
    ended = run("run", tree, "--", "true", environ=environ)
    assert ended.returncode == 2
    assert "SOURCE_TREE_LOCK_TIMEOUT" in complaint(ended)
    assert "soon" in complaint(ended)


@pytest.mark.parametrize("way", ["option", "environment"])
def test_a_lock_that_cannot_be_had_is_69(way: str, tree: Path, tmp_path: Path) -> None:
    bad = tmp_path / "a file"
    bad.touch()
    options = ["--lock-dir", bad] if way == "option" else []
    environ = {"SOURCE_TREE_LOCK_DIR": str(bad)} if way == "environment" else {}
    ended = run("run", *options, tree, "--", "echo", "inside", environ=environ)
    assert (ended.returncode, ended.stdout) == (69, b"")
    assert str(bad) in complaint(ended)


def test_the_lock_directory_is_the_one_that_is_named(tree: Path, tmp_path: Path) -> None:
    lock_dir = tmp_path / "made when missing"
    script = f"ls '{lock_dir}' && ! flock -n '{lock_dir}'/* true"
    ended = run("run", "--lock-dir", lock_dir, tree, "--", "sh", "-c", script)
    assert ended.returncode == 0
    assert ended.stdout.decode().strip() == source_tree_lock(tree).lock_file.name


# What the command finds


def test_the_command_runs_while_the_tree_is_held(tree: Path) -> None:
    lock_file = source_tree_lock(tree).lock_file
    script = f"! flock -n '{lock_file}' true && ! flock -n '{tree}' true && echo kept out"
    assert run("run", tree, "--", "sh", "-c", script).stdout == b"kept out\n"
    assert both_free(tree)


def test_standard_input_and_output_are_the_commands_own(tree: Path) -> None:
    data = bytes(range(256)) * 4000
    ended = run("run", tree, "--", "cat", stdin=data)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, data, b"")


def test_inherited_descriptors_reach_the_command(tree: Path) -> None:
    # make's jobserver, for one, hands two of them down.
    reader, writer = os.pipe()
    try:
        script = "import os; os.write(int(sys.argv[1]), b'hello\\n')"
        with started("run", tree, "--", *python(script, writer), pass_fds=[writer]) as process:
            assert process.wait(LIMIT) == 0
        assert os.read(reader, 100) == b"hello\n"
    finally:
        os.close(reader)
        os.close(writer)


def test_the_environment_and_the_directory_are_the_commands_own(tree: Path, tmp_path: Path) -> None:
    script = 'printf "%s %s" "$SOME_VARIABLE" "$PWD"'
    ended = run(
        "run", tree, "--", "sh", "-c", script, environ={"SOME_VARIABLE": "it"}, cwd=tmp_path
    )
    assert ended.stdout.decode() == f"it {tmp_path}"


@linux_only
@pytest.mark.parametrize("ignored", ["", "HUP", "INT QUIT"])
def test_the_command_has_the_signals_as_it_would_have_without_the_wrapper(
    ignored: str, tree: Path
) -> None:
    # Python ignores SIGPIPE and SIGXFSZ, and the wrapper blocks what it forwards.
    look = ["grep", "^Sig[BIC]", "/proc/self/status"]
    trap = ["sh", "-c", f'trap "" {ignored}; exec "$0" "$@"' if ignored else 'exec "$0" "$@"']
    bare, wrapped = (
        subprocess.run([*trap, *command, *look], stdout=PIPE, check=True).stdout
        for command in ([], [*COMMAND, "run", str(tree), "--"])
    )
    masks = [[int(word, 16) for word in each.split()[1::2]] for each in (bare, wrapped)]
    assert len(masks[0]) == 3
    # Two signals behind these are the C library's own: its posix_spawn(3) ignores them.
    assert [mask % 2**31 for mask in masks[1]] == masks[0]


def test_a_command_that_writes_to_nobody_ends_by_sigpipe(tree: Path) -> None:
    with started("run", tree, "--", "yes", stdout=PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert process.wait(LIMIT) == 128 + signal.SIGPIPE


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors_are_closed_for_the_command(
    closed: str, tree: Path, tmp_path: Path
) -> None:
    # Were the lock file opened in their place, the command would write to it.
    look = """
        import os
        opened = []
        for number in range(3):
            try:
                os.fstat(number)
                opened.append(str(number))
            except OSError:
                pass
        with open(sys.argv[1], "w") as file:
            file.write(" ".join(opened))
        os._exit(7)
    """
    seen = tmp_path / "seen"
    close = ["sh", "-c", f'exec "$0" "$@" {closed}', *COMMAND]
    ended = run("run", tree, "--", *python(look, seen), command=close)
    assert ended.returncode == 7
    numbers = {"<&-": "0", ">&-": "1", "2>&-": "2"}
    expected = {"0", "1", "2"} - {numbers[each] for each in closed.split()}
    assert set(seen.read_text().split()) == expected


# Signals


def noted(log: Path) -> list[str]:
    """What the command has got."""
    return log.read_text().split()[2:]


def wait_for_the_pids(log: Path) -> tuple[int, int]:
    """The command and its wrapper."""
    wait_until(lambda: log.exists() and log.read_text().endswith("\n"))
    pid, wrapper = map(int, log.read_text().split()[:2])
    return pid, wrapper


SIGNALS = [signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_forwarded_once(number: signal.Signals, tree: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    other = SIGNALS[SIGNALS.index(number) - 1]
    with started("run", tree, "--", *python(NOTE, log)) as process:
        pid, _ = wait_for_the_pids(log)
        process.send_signal(number)
        wait_until(lambda: noted(log) == [number.name])
        # Were the first one forwarded twice, the second copy would come before this one.
        process.send_signal(other)
        wait_until(lambda: len(noted(log)) >= 2)
        os.kill(pid, signal.SIGUSR1)
        assert process.wait(LIMIT) == 5
    assert noted(log) == [number.name, other.name]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_ends_the_command_is_in_the_status(
    number: signal.Signals, tree: Path
) -> None:
    script = "ulimit -c 0; echo ready; exec cat"
    with started(
        *("run", tree, "--", "sh", "-c", script), stdin=PIPE, stdout=PIPE, stderr=PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.wait(LIMIT) == 128 + number
        assert process.stderr.read() == b""
    assert both_free(tree)


def test_a_signal_from_the_whole_group_does_not_end_the_wrapper_before_the_command(
    tree: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with started("run", tree, "--", *python(NOTE, log)) as process:
        pid, _ = wait_for_the_pids(log)
        os.killpg(process.pid, signal.SIGTERM)
        wait_until(lambda: "SIGTERM" in noted(log))
        assert not is_free(source_tree_lock(tree).lock_file)
        os.kill(pid, signal.SIGUSR1)
        assert process.wait(LIMIT) == 5


@linux_only
def test_a_thread_that_waits_in_line_takes_no_signal(tree: Path) -> None:
    # It would end the process, though the signal is blocked and waited for, as here it is.
    script = """
        import signal
        from source_tree_lock import source_tree_lock
        lock = source_tree_lock(sys.argv[1])
        while not (waits := len(os.listdir("/proc/self/task")) > 1):
            assert not lock.acquire(timeout=0.05)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        tell("ready")
        tell(signal.sigwait([signal.SIGTERM]).name)
        heard()
    """
    with held_elsewhere(tree), Child("import os" + textwrap.dedent(script), tree) as child:
        child.expect("ready")
        child.process.terminate()
        child.expect("SIGTERM")


@linux_only
def test_the_thread_that_tells_of_a_wait_takes_no_signal(tree: Path) -> None:
    # It may still be on its way out while the wrapper waits for its command's end.
    with (
        held_elsewhere(tree),
        started("run", tree, "--", "true", command=IMPATIENT, stderr=PIPE) as process,
    ):
        assert process.stderr is not None
        process.stderr.readline()
        process.stderr.readline()  # which the other thread tells
        tasks = {each.name: each for each in Path(f"/proc/{process.pid}/task").iterdir()}
        tasks.pop(str(process.pid))
        assert tasks
        for task in tasks.values():
            blocked = re.search(r"SigBlk:\s(\w+)", (task / "status").read_text())
            assert blocked is not None
            for number in (*SIGNALS, signal.SIGCHLD):
                assert int(blocked.group(1), 16) & 1 << number - 1


# Terminals


#: Makes a terminal its own, as the leader of a session, and becomes a command. Arguments: the
#: terminal, the command.
ON_TERMINAL = """
import fcntl, os, sys, termios
terminal = os.open(sys.argv[1], os.O_RDWR)
fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
for each in range(3):
    os.dup2(terminal, each)
if terminal > 2:
    os.close(terminal)
os.execvp(sys.argv[2], sys.argv[2:])
"""

#: What a shell with job control does: the command is a group of its own, in the foreground.
SHELL = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
def to_foreground():
    os.setpgrp()
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
job = subprocess.Popen(sys.argv[1:], preexec_fn=to_foreground)
while True:
    _, status = os.waitpid(job.pid, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        break
    if os.WSTOPSIG(status) == signal.SIGTSTP:
        print("stopped", flush=True)
        os.killpg(job.pid, signal.SIGCONT)
os.tcsetpgrp(0, os.getpgrp())
print("status", os.waitstatus_to_exitcode(status), flush=True)
"""


class Terminal:
    """A pseudo-terminal with a command on it, which leads its session."""

    def __init__(self, *command: object) -> None:
        self.ours, theirs = pty.openpty()
        arguments = [ON_TERMINAL, os.ttyname(theirs), *map(str, command)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", *arguments], start_new_session=True, stdin=subprocess.DEVNULL
        )
        self._theirs = theirs
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def until(self, pattern: str) -> re.Match[str]:
        """Read until the terminal has shown it."""
        os.set_blocking(self.ours, False)
        found: list[re.Match[str]] = []

        def look() -> bool:
            with suppress(BlockingIOError):
                self.shown += os.read(self.ours, 65536).decode()
            found.extend(re.finditer(pattern, self.shown))
            return bool(found)

        wait_until(look)
        return found[0]

    def hang_up(self) -> None:
        os.close(self._theirs)
        os.close(self.ours)
        self.ours = self._theirs = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        stop_for_good(self.process)
        if self.ours >= 0:
            self.hang_up()


LEADERS = {"leads the session": [], "a shell's job": [sys.executable, "-c", SHELL]}
either_way = pytest.mark.parametrize("leader", LEADERS.values(), ids=LEADERS)


@either_way
def test_ctrl_c_at_the_terminal_reaches_the_command_exactly_once(
    leader: list[str], tree: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"

    def is_last(name: str) -> bool:
        return noted(log)[-1:] == [name]

    with Terminal(*leader, *COMMAND, "run", tree, "--", *python(NOTE, log)) as terminal:
        pid, wrapper = wait_for_the_pids(log)
        for key, name in (("\x03", "SIGINT"), ("\x1c", "SIGQUIT")):
            # Else a second copy could come so soon that the kernel makes one of the two.
            os.kill(wrapper, signal.SIGSTOP)
            terminal.type(key)
            wait_until(partial(is_last, name))
            os.kill(wrapper, signal.SIGCONT)
            # That copy would come before this one.
            os.kill(wrapper, signal.SIGTERM)
            wait_until(partial(is_last, "SIGTERM"))
        assert noted(log) == ["SIGINT", "SIGTERM", "SIGQUIT", "SIGTERM"]
        assert not is_free(source_tree_lock(tree).lock_file)
        os.kill(pid, signal.SIGUSR1)
        if leader:
            assert terminal.until(r"status (\d+)").group(1) == "5"
        else:
            assert terminal.process.wait(LIMIT) == 5


@either_way
def test_ctrl_c_ends_a_command_that_does_not_care(leader: list[str], tree: Path) -> None:
    command = ["sh", "-c", "echo ready; exec sleep 1000"]
    with Terminal(*leader, *COMMAND, "run", tree, "--", *command) as terminal:
        terminal.until("ready")
        terminal.type("\x03")
        if leader:
            assert terminal.until(r"status (\d+)").group(1) == "130"
        else:
            assert terminal.process.wait(LIMIT) == 130
        assert "Traceback" not in terminal.shown
    assert both_free(tree)


@either_way
def test_the_terminal_stays_the_commands_own(leader: list[str], tree: Path) -> None:
    # A command in the background would be stopped when it reads.
    command = ["sh", "-c", 'test -t 0 && test -t 1 && test -t 2 && read line && echo "got $line"']
    with Terminal(*leader, *COMMAND, "run", tree, "--", *command) as terminal:
        terminal.type("something\n")
        terminal.until("got something")


def test_ctrl_z_stops_the_command_and_it_goes_on(tree: Path) -> None:
    command = ["sh", "-c", 'echo ready; read line; echo "got $line"; exit 3']
    shell = LEADERS["a shell's job"]
    with Terminal(*shell, *COMMAND, "run", tree, "--", *command) as terminal:
        terminal.until("ready")
        terminal.type("\x1a")
        terminal.until("stopped")
        terminal.type("line\n")
        terminal.until("got line")
        assert terminal.until(r"status (\d+)").group(1) == "3"


@either_way
def test_a_terminal_that_hangs_up_reaches_the_command_exactly_once(
    leader: list[str], tree: Path, tmp_path: Path
) -> None:
    # To the leader of a session alone; when that ends, to all that is in the foreground.
    log = tmp_path / "log"
    with Terminal(*leader, *COMMAND, "run", tree, "--", *python(NOTE, log)) as terminal:
        pid, wrapper = wait_for_the_pids(log)
        terminal.hang_up()
        wait_until(lambda: noted(log) == ["SIGHUP"])
        os.kill(wrapper, signal.SIGTERM)
        wait_until(lambda: noted(log)[1:] == ["SIGTERM"])
        os.kill(pid, signal.SIGUSR1)


def test_ctrl_c_during_a_wait_is_130_and_leaves_nothing_locked(tree: Path) -> None:
    with held_elsewhere(tree) as child:
        command = [*COMMAND, "run", tree, "--", "echo", "inside"]
        with Terminal(*LEADERS["a shell's job"], *command) as terminal:
            terminal.until("waiting")
            terminal.type("\x03")
            assert terminal.until(r"status (\d+)").group(1) == "130"
            assert "Traceback" not in terminal.shown
            assert "inside" not in terminal.shown
        child.say()
        child.expect("released")
    assert both_free(tree)


_INTERRUPTED_WHILE_A_THREAD_STARTS = """
import os, signal, threading
import source_tree_lock.__main__ as command

start = threading.Thread.start
def interrupted(self):
    INTERRUPT
    start(self)
    os.write(1, b"started")

threading.Thread.start = interrupted
raise SystemExit(command.main())
"""


@pytest.mark.parametrize(
    ("interrupt", "told"),
    [
        pytest.param("raise KeyboardInterrupt", b"", id="where signals cannot be blocked"),
        pytest.param("signal.raise_signal(signal.SIGINT)", b"started", id="where they can"),
    ],
)
def test_ctrl_c_at_the_very_start_of_a_wait_is_130_without_a_traceback(
    interrupt: str, told: bytes, tree: Path
) -> None:
    script = _INTERRUPTED_WHILE_A_THREAD_STARTS.replace("INTERRUPT", interrupt)
    with held_elsewhere(tree):
        ended = run("run", tree, "--", "echo", command=[sys.executable, "-c", script])
    assert (ended.returncode, ended.stdout) == (130, told)
    assert complaint(ended).startswith("waiting")


def test_a_terminal_that_tells_no_width_is_taken_for_a_usual_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hung_up(descriptor: int) -> os.terminal_size:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "get_terminal_size", hung_up)
    assert __main__._width() == 80
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((0, 0)))
    assert __main__._width() == 80


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_a_wait_ends_it(number: signal.Signals, tree: Path) -> None:
    with held_elsewhere(tree) as child:
        with started("run", tree, "--", "echo", "inside", stdout=PIPE, stderr=PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert b"waiting" in process.stderr.readline()
            process.send_signal(number)
            assert process.wait(LIMIT) == -number
            assert (process.stdout.read(), process.stderr.read()) == (b"", b"")
        child.say()
        child.expect("released")
    assert both_free(tree)


# Until when the tree is locked


@linux_only
def test_a_daemon_that_the_command_leaves_behind_keeps_nothing_locked(tree: Path) -> None:
    script = "sleep 1000 >&- 2>&- <&- & echo $!"
    with started("run", tree, "--", "sh", "-c", script, stdout=PIPE) as process:
        assert process.stdout is not None
        daemon = int(process.stdout.readline())
        assert process.wait(LIMIT) == 0
        inherited = {_inode(each) for each in Path(f"/proc/{daemon}/fd").iterdir()}
        assert {_inode(source_tree_lock(tree).lock_file), _inode(tree)} <= inherited
        assert both_free(tree)


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def test_a_killed_wrapper_leaves_the_tree_locked_until_the_command_is_done(tree: Path) -> None:
    # The command of the command has it as well.
    script = "echo ready; cat; true"
    with started("run", tree, "--", "sh", "-c", script, stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.kill()
        process.wait(LIMIT)
        lock_file = source_tree_lock(tree).lock_file
        assert not is_free(lock_file)
        assert not is_free(tree)
        process.stdin.close()
        assert process.stdout.read() == b""  # until all that wrote to it have ended
        wait_until(lambda: both_free(tree))


@contextmanager
def running_cat(tree: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The wrapper of a cat(1) that is known to run."""
    with started("run", tree, "--", "cat", stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"ready\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"ready\n"
        yield process


def test_the_holder_is_called_by_the_command_s_name(tree: Path) -> None:
    with running_cat(tree) as process:
        holder = source_tree_lock(tree).holder()
        assert holder is not None
        assert (holder.pid, holder.program) == (process.pid, "cat")


@linux_only
def test_the_command_is_named_as_the_holder_once_its_wrapper_was_killed(tree: Path) -> None:
    with running_cat(tree) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        process.kill()
        process.wait(LIMIT)
        holder = source_tree_lock(tree).holder()
        assert holder is not None
        assert (holder.pid, holder.program) == (int(children), "cat")


# The hold is handed over


NESTED = {
    "a command": [*COMMAND, "run", "--timeout", "5", "{tree}", "--", "echo", "inside"],
    "through a shell": ["sh", "-c", f"{' '.join(COMMAND)} run --timeout 5 {{tree}} -- echo inside"],
    # Python closes the descriptors of its children, where it is not told otherwise.
    "through Python": [
        *(sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:], check=True)"),
        *(*COMMAND, "run", "--timeout", "5", "{tree}", "--", "echo", "inside"),
    ],
    "twice": [
        *(*COMMAND, "run", "--timeout", "5", "{tree}", "--"),
        *(*COMMAND, "run", "--timeout", "5", "{tree}", "--", "echo", "inside"),
    ],
    "the library": [
        *(sys.executable, "-c"),
        (
            "import sys; from source_tree_lock import source_tree_lock\n"
            "with source_tree_lock(sys.argv[1], timeout=5): print('inside')"
        ),
        "{tree}",
    ],
}


@pytest.mark.parametrize("command", NESTED.values(), ids=NESTED)
def test_what_locks_the_tree_inside_of_the_command_does_not_wait_for_its_wrapper(
    command: list[str], tree: Path
) -> None:
    ended = run("run", tree, "--", *(each.format(tree=tree) for each in command))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"inside\n", b"")
    assert both_free(tree)


def test_the_hold_lasts_when_what_is_inside_has_left_it(tree: Path) -> None:
    inner = f"{' '.join(COMMAND)} run --timeout 5 '{tree}' -- true"
    lock_file = source_tree_lock(tree).lock_file
    script = f"{inner} && ! flock -n '{lock_file}' true && ! flock -n '{tree}' true"
    assert run("run", tree, "--", "sh", "-c", script).returncode == 0


def test_a_build_that_locks_its_tree_builds_in_the_command(tree: Path, tmp_path: Path) -> None:
    write_project(
        tree,
        """
        from source_tree_lock import source_tree_lock
        with source_tree_lock(timeout=5):
            pass
        """,
    )
    ended = run("run", tree, "--", *pip_wheel(tmp_path / "out"), cwd=tree)
    assert ended.returncode == 0, ended.stderr
    assert len(list((tmp_path / "out").glob("*.whl"))) == 1


def pip_wheel(out: Path) -> list[str]:
    options = "wheel --quiet --no-build-isolation --no-deps --no-index --no-cache-dir".split()
    return [sys.executable, "-m", "pip", *options, "--wheel-dir", str(out), "."]


def test_make_with_four_jobs_builds_one_tree_four_times(tree: Path, tmp_path: Path) -> None:
    make_project(tree, modules=12)
    out = tmp_path / "out"
    wrapper = " ".join(COMMAND)
    targets = [f"wheel{number}" for number in range(4)]
    (tree / "Makefile").write_text(
        f"all: {' '.join(targets)}\n{' '.join(targets)}:\n"
        f"\t{wrapper} run . -- {' '.join(pip_wheel(out / '$@'))}\n"
    )
    made = subprocess.run(
        ["make", "-j4", "--keep-going"], cwd=tree, capture_output=True, timeout=LIMIT
    )
    assert made.returncode == 0, made.stderr.decode()
    wheels = [wheel for target in targets for wheel in (out / target).glob("*.whl")]
    assert len(wheels) == 4
    alone = subprocess.run(pip_wheel(out / "alone"), cwd=tree, timeout=LIMIT)
    assert alone.returncode == 0
    (right,) = (out / "alone").glob("*.whl")
    assert [content(wheel) for wheel in wheels] == [content(right)] * 4


# Telling


LINE = r"source-tree-lock: waiting, (\d+) s so far; held by (.*): '(.*)'\n"


def test_a_wait_is_told_of_at_once_and_then_again_and_again(tree: Path) -> None:
    with (
        held_elsewhere(tree) as child,
        started(
            *("run", tree, "--", "sh", "-c", "echo inside; exit 7"),
            command=IMPATIENT,
            stdout=PIPE,
            stderr=PIPE,
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        found = [re.fullmatch(LINE, process.stderr.readline().decode()) for _ in range(4)]
        child.say()
        assert process.wait(LIMIT) == 7
        assert process.stdout.read() == b"inside\n"
        # Once it is inside, it says no more.
        rest = process.stderr.read().decode()
        assert re.fullmatch(f"({LINE})*", rest), rest
    for line in found:
        assert line is not None
        assert f"(pid {child.pid})" in line.group(2)
        assert line.group(3) == str(tree)
    assert found[0] is not None
    assert found[0].group(1) == "0"


def test_a_wait_is_told_of_every_ten_seconds(tree: Path, long_run: bool) -> None:
    if not long_run:
        pytest.skip("takes 21 s")
    with (
        held_elsewhere(tree),
        started("run", tree, "--", "true", stderr=PIPE) as process,
    ):
        assert process.stderr is not None
        for seconds in (0, 10, 20):
            line = re.fullmatch(LINE, process.stderr.readline().decode())
            assert line is not None
            assert int(line.group(1)) in (seconds, seconds + 1)


@linux_only
def test_a_wait_for_an_ancestor_is_warned_of_once_however_often_it_is_told_of(tree: Path) -> None:
    nest = """
        import os, subprocess
        from source_tree_lock import source_tree_lock
        with source_tree_lock(sys.argv[1]):
            ended = subprocess.run(sys.argv[2:], stderr=subprocess.PIPE, text=True)
        told = ended.stderr
        tell(ended.returncode, told.count("SOURCE_TREE_LOCK_HELD"), told.count("so far") > 2)
    """
    command = [*IMPATIENT, "run", "--timeout", "1", str(tree), "--", "true"]
    with Child(nest, tree, *command) as child:
        child.expect("75 1 True")


def test_on_a_terminal_a_wait_is_told_of_in_place(tree: Path) -> None:
    with (
        held_elsewhere(tree) as child,
        Terminal(*IMPATIENT, "run", tree, "--", "echo", "inside") as terminal,
    ):
        size = struct.pack("HHHH", 24, 50, 0, 0)
        fcntl.ioctl(terminal.ours, termios.TIOCSWINSZ, size)
        terminal.until(r"(?s)(\r\x1b\[K[^\r]+){4}")
        child.say()
        terminal.until("inside")
        assert terminal.process.wait(LIMIT) == 0
    before, _, after = terminal.shown.rpartition("\r\x1b[K")
    assert "\n" not in before
    # The place is blank again before the command writes.
    assert after == "inside\r\n"
    told = before.split("\r\x1b[K")[2:]
    assert told
    for line in told:
        assert re.match(r"source-tree-lock: waiting, \d+ s so far; held by ", line)
        assert len(line) == 49  # what is wider than the terminal could not be written over


@pytest.mark.parametrize("where", ["closed pipe", "full device", "closed"])
def test_a_wait_that_cannot_be_told_of_goes_on(
    where: str, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is left in a buffer would change the exit status.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    if where == "full device" and not Path("/dev/full").exists():
        pytest.skip("there is no such device")
    command = [*IMPATIENT, "run", str(tree), "--", "sh", "-c", "echo inside; exit 7"]
    redirect = {"closed pipe": "", "full device": "2>/dev/full", "closed": "2>&-"}[where]
    with (
        held_elsewhere(tree) as child,
        started(
            command=["sh", "-c", f'exec "$0" "$@" {redirect}', *command], stdout=PIPE, stderr=PIPE
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        if where == "closed pipe":
            process.stderr.close()
        if sys.platform == "linux":
            _wait_for_a_waiter(tree)
        time.sleep(0.3)  # a few tellings long; more or fewer make no difference
        child.say()
        assert process.stdout.read() == b"inside\n"
        assert process.wait(LIMIT) == 7


def _wait_for_a_waiter(tree: Path) -> None:
    """Until somebody waits for the lock file in the kernel's queue."""
    inode = f":{source_tree_lock(tree).lock_file.stat().st_ino} "

    def look() -> bool:
        lines = Path("/proc/locks").read_text().splitlines()
        return any("->" in line and inode in line for line in lines)

    wait_until(look)


# status


def test_status_of_a_free_tree_is_0(tree: Path) -> None:
    ended = run("status", tree)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ended.stdout.decode().splitlines() == [
        f"{tree}: free",
        f"lock file: {source_tree_lock(tree).lock_file}",
    ]


def test_status_of_a_held_tree_is_1_and_says_by_whom_and_since_when(tree: Path) -> None:
    with held_elsewhere(tree) as child:
        ended = run("status", tree)
    assert (ended.returncode, ended.stderr) == (1, b"")
    first, second = ended.stdout.decode().splitlines()
    assert re.fullmatch(rf"{tree}: held by \S+ \(pid {child.pid}\) for \d+ s", first), first
    assert second == f"lock file: {source_tree_lock(tree).lock_file}"


def test_status_for_scripts_is_json(tree: Path) -> None:
    expected = {"tree": str(tree), "lock_file": str(source_tree_lock(tree).lock_file)}
    free = run("status", "--json", tree)
    assert free.returncode == 0
    assert json.loads(free.stdout) == {**expected, "held": False, "holder": None}
    before = time.time()
    with held_elsewhere(tree) as child:
        held = run("status", tree, "--json")
    assert held.returncode == 1
    found = json.loads(held.stdout)
    holder = found.pop("holder")
    assert found == {**expected, "held": True}
    assert set(holder) == {"pid", "program", "host", "since"}
    assert (holder["pid"], holder["host"]) == (child.pid, os.uname().nodename)
    assert before - 1 < holder["since"] < time.time() + 1


def test_status_looks_where_run_locks(tree: Path, tmp_path: Path) -> None:
    lock_dir = tmp_path / "locks"
    script = [*COMMAND, "status", "--lock-dir", str(lock_dir), str(tree)]
    ended = run("run", "--lock-dir", lock_dir, tree, "--", *script)
    assert ended.returncode == 1
    assert f"lock file: {lock_dir}/uv-setuptools-" in ended.stdout.decode()


@linux_only
def test_status_names_a_real_uv_and_leaves_it_alone(tree: Path, tmp_path: Path) -> None:
    go, inside = tmp_path / "go", tmp_path / "inside"
    os.mkfifo(go)
    write_project(
        tree,
        f"""
        import os, sys
        if "bdist_wheel" in sys.argv and not os.path.exists({str(inside)!r}):
            open({str(inside)!r}, "w").close()
            open({str(go)!r}).close()
        """,
    )
    process = uv_build(tree)
    try:
        wait_until(inside.exists)
        ended = run("status", tree)
        assert ended.returncode == 1
        first = ended.stdout.decode().splitlines()[0]
        assert first == f"{tree}: held by uv (pid {process.pid})"
        with open(go, "w"):
            pass
        assert process.wait(LIMIT) == 0
    finally:
        process.kill()
        process.wait(LIMIT)


@pytest.mark.skipif(
    sys.platform != "linux" or _process.pid_namespace() != 0xEFFFFFFC,
    reason="a pid namespace hides who holds a lock",
)
@pytest.mark.parametrize("state", ["free", "held", "never locked"])
def test_status_takes_no_lock_and_makes_nothing(state: str, tree: Path, tmp_path: Path) -> None:
    lock = source_tree_lock(tree)
    if state != "never locked":
        with lock:
            pass
    trace = tmp_path / "trace"
    traced = ["strace", "-f", "-qq", "-e", "trace=flock,fcntl,mkdir", "-o", str(trace), *COMMAND]
    with held_elsewhere(tree) if state == "held" else nullcontext():
        ended = run("status", tree, command=traced)
    if ended.returncode not in (0, 1):
        pytest.skip(f"strace does not run here: {ended.stderr.decode()}")
    assert ended.returncode == (state == "held")
    calls = trace.read_text()
    assert "fcntl" in calls  # Python itself asks for flags, so that the trace shows what there is
    assert "flock(" not in calls
    assert "LK" not in calls  # F_SETLK, F_OFD_SETLK and their kin
    assert "mkdir" not in calls
    assert lock.lock_file.exists() == (state != "never locked")


@pytest.mark.parametrize(
    "name", [b"caf\xe9", b"red \033[31m", b"two\nlines", "bäcker".encode()], ids=repr
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_every_path_can_be_shown_in_every_encoding(
    name: bytes, encoding: str, tmp_path: Path
) -> None:
    tree = os.path.join(os.fsencode(tmp_path), name)
    try:
        os.mkdir(tree)
    except OSError:
        pytest.skip("the file system takes no such name")
    ended = subprocess.run(
        [*map(os.fsencode, COMMAND), b"status", tree],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        timeout=LIMIT,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    text = ended.stdout.decode(encoding)
    assert len(text.splitlines()) == 2
    assert "\033" not in text
    as_it_is = name.decode(errors="replace")
    if as_it_is == "bäcker" and encoding == "utf-8":
        assert f"/{as_it_is}: free" in text
    told = subprocess.run(
        [*map(os.fsencode, COMMAND), b"status", b"--json", tree], stdout=PIPE, timeout=LIMIT
    )
    assert os.fsencode(json.loads(told.stdout)["tree"]) == tree


@pytest.mark.parametrize("arguments", [["status", "."], ["status", "--json", "."], ["--help"]])
def test_output_that_nobody_reads_or_takes_is_69_without_a_traceback(
    arguments: list[str], tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    with started(*arguments, cwd=tree, stdout=PIPE, stderr=PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(LIMIT) == 69
        assert process.stderr.read() == b""
    if Path("/dev/full").exists():
        ended = run(
            *arguments, cwd=tree, command=["sh", "-c", 'exec "$0" "$@" >/dev/full', *COMMAND]
        )
        assert ended.returncode == 69
        assert "No space left on device" in complaint(ended)


# A newcomer


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_help_says_what_there_is_and_every_exit_status(encoding: str) -> None:
    environ = {"PYTHONIOENCODING": encoding, "COLUMNS": "100"}
    told = {
        name: run(*name.split(), "--help", environ=environ).stdout.decode(encoding)
        for name in ("", "run", "status")
    }
    for word in ("run", "status", "--version", "uv"):
        assert word in told[""]
    assert "source-tree-lock run [-h] [--timeout S] [--lock-dir D] TREE -- COMMAND" in told["run"]
    for status in ("128 + n", "127", "126", "75", "69", "2 bad usage"):
        assert status in told["run"]
    for status in ("0 free", "1 held", "69 cannot tell", "2 bad usage"):
        assert status in told["status"]


def test_a_copy_that_was_never_installed_has_no_version(tmp_path: Path) -> None:
    package = Path(_process.__file__).parent
    shutil.copytree(package, tmp_path / package.name)
    arguments = ["-S", "-P"] if sys.version_info >= (3, 11) else ["-S"]
    ended = subprocess.run(
        [sys.executable, *arguments, "-m", package.name, "--version"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        timeout=LIMIT,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"unknown version" in ended.stdout


def test_the_version_is_that_of_the_distribution() -> None:
    ended = run("--version")
    assert ended.returncode == 0
    assert ended.stdout.decode() == f"source-tree-lock {version('source-tree-lock')}\n"
