"""What `run` runs, passes on, hands over, returns, and writes to a log."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import sys
from itertools import pairwise
from pathlib import Path
from subprocess import PIPE

import pytest
from projects import content, make_project
from support import LIMIT, held_elsewhere, is_free, wait_until

from source_tree_lock import source_tree_lock

from .driver import COMMAND, HASTY, both_free, complaint, python, run, started, waiting

KILLED = "HUP INT QUIT ABRT KILL USR1 SEGV PIPE TERM XFSZ".split()
SCRIPTS = {f"exit {each}": each for each in (0, 1, 2, 75, 127, 255)} | {
    f"kill -{name} $$": 128 + getattr(signal, f"SIG{name}") for name in KILLED
}
SCRIPTS["sleep 30 <&- >&- 2>&- &"] = 0  # a daemon keeps nothing locked


@pytest.mark.parametrize(("script", "status"), SCRIPTS.items())
def test_the_status_is_the_commands_own_or_128_and_its_signal(
    script: str, status: int, tree: Path
) -> None:
    ended = run("run", tree, "--", "sh", "-c", f"ulimit -c 0; {script}")
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, b"", b"")
    assert both_free(tree)


def test_the_status_is_known_where_sigchld_is_ignored(tree: Path) -> None:
    ignoring = ["env", "--ignore-signal=CHLD", *COMMAND]
    assert run("run", tree, "--", "sh", "-c", "exit 7", command=ignoring).returncode == 7


@pytest.mark.parametrize(
    ("command", "backend", "is_warned"),
    [
        ("bin/uv build", "setuptools.build_meta", True),
        ("bin/uv --directory . pip install .", "setuptools.build_meta:__legacy__", True),
        ("bin/uv.exe sync", "setuptools.build_meta", True),
        ("bin/python3 -m uv build", "setuptools.build_meta", True),
        ("bin/uv build", "source_tree_lock.build_meta", False),
        ("bin/uv build --lock-dir", "setuptools.build_meta", False),
        ("bin/uv --version", "setuptools.build_meta", False),
        ("bin/uvx ruff", "setuptools.build_meta", False),
        ("bin/echo uv build", "setuptools.build_meta", False),
    ],
)
def test_uv_is_run_with_a_warning_where_it_would_wait_for_its_wrapper(
    command: str, backend: str, is_warned: bool, tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("uv", "uv.exe", "uvx", "python3", "echo"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\nexit 7\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tree / "pyproject.toml").write_text(f'[build-system]\nbuild-backend = "{backend}"\n')
    options = ["--lock-dir", tmp_path] if "--lock-dir" in command else []
    ended = run("run", *options, tree, "--", *command.split(), cwd=tmp_path)
    assert ended.returncode == 7
    assert ended.stderr.startswith(b"source-tree-lock: warning: uv takes this l") == is_warned
    assert bool(ended.stderr) == is_warned


@pytest.mark.parametrize(
    ("options", "environ"),
    [
        ("--timeout 0", {}),
        ("--timeout 0.1s", {"SOURCE_TREE_LOCK_TIMEOUT": "1000"}),
        ("", {"SOURCE_TREE_LOCK_TIMEOUT": "0.1"}),
        ("--quiet --timeout 1m", {}),
        ("--quiet --timeout 0.02h", {}),
    ],
)
def test_a_timeout_is_75_and_names_the_holder(
    options: str, environ: dict[str, str], tree: Path
) -> None:
    is_quiet = "--quiet" in options
    command = HASTY if is_quiet else COMMAND
    with held_elsewhere(tree) as child:
        ended = run("run", *options.split(), tree, "--", "echo", command=command, environ=environ)
    assert (ended.returncode, ended.stdout) == (75, b"")
    *before, last = ended.stderr.decode().splitlines()
    assert not before or not is_quiet
    found = re.match(rf"source-tree-lock: waited (\d+).*{tree}.*\(pid {child.pid}\)", last)
    assert found is not None, last
    assert int(found[1]) >= (60 if is_quiet else 0)


def test_a_timeout_in_the_environment_that_makes_no_sense_is_named(tree: Path) -> None:
    # Also where there is nothing to wait for; but an option, or `status`, does without it.
    soon = {"SOURCE_TREE_LOCK_TIMEOUT": "soon"}
    assert run("status", tree, environ=soon).returncode == 0
    assert run("run", "--timeout", "0", tree, "--", "true", environ=soon).returncode == 0
    ended = run("run", tree, "--", "true", environ=soon)
    assert ended.returncode == 2
    assert re.search("SOURCE_TREE_LOCK_TIMEOUT.*soon", complaint(ended))


def test_the_command_has_the_input_directory_and_environment_and_the_tree_is_held(
    tree: Path, tmp_path: Path
) -> None:
    lock_dir, data = tmp_path / "made when missing", bytes(range(256)) * 4000
    script = f"""
        printf '%s %s\n' "$SOME_VARIABLE" "$PWD"
        flock -n '{lock_dir}'/*.lock true || flock -n '{tree}' true || cat
    """
    command = ["run", "--lock-dir", lock_dir, tree, "--", "sh", "-c", script]
    ended = run(*command, input=data, cwd=tmp_path, environ={"SOME_VARIABLE": "it"})
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ended.stdout == f"it {tmp_path}\n".encode() + data
    assert both_free(tree)


def test_inherited_descriptors_reach_the_command(tree: Path) -> None:
    # make's jobserver, for one, hands two of them down.
    inheriting = ["sh", "-c", 'exec "$0" "$@" 5>heard', *COMMAND]
    ended = run("run", tree, "--", "sh", "-c", "echo hello >&5", command=inheriting, cwd=tree)
    assert (ended.returncode, (tree / "heard").read_text()) == (0, "hello\n")


@pytest.mark.parametrize(
    "state", ["trap '' HUP", "trap '' INT QUIT", "exec <&-", "exec >&- 2>&-", "exec 2>&-"]
)
def test_the_command_has_signals_and_streams_as_it_would_have_without_the_wrapper(
    state: str, tree: Path, tmp_path: Path
) -> None:
    # Were the lock file opened in the place of a closed stream, the command would write to it.
    look = """
        grep -s '^Sig[BIC]' /proc/self/status >> seen
        for n in 0 1 2; do eval "(: 9<&$n)" && echo $n >> seen; done
        exit 7
    """
    found = []
    for wrapper in ([], [*COMMAND, "run", str(tree), "--"]):
        command = ["sh", "-c", f'{state}; exec "$@"', "sh", *wrapper, "sh", "-c", look]
        assert run(command=command, cwd=tmp_path).returncode == 7
        words = (tmp_path / "seen").read_text().split()
        (tmp_path / "seen").unlink()
        # Two signals behind these are the C library's own: its posix_spawn(3) ignores them, and
        # what started this process may have used it.
        found.append([each if each.endswith(":") else int(each, 16) % 2**31 for each in words])
    assert found[0] == found[1]


#: Tells the signals that it gets, each as it comes: a handler of Python's would see two as one.
TELLS_SIGNALS = """
    import os, signal
    signal.alarm(120)  # the test has failed
    awaited = [signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    tell(os.getpid())
    while (number := signal.sigwait(awaited)) != signal.SIGUSR1:
        tell(signal.Signals(number).name)
    os._exit(5)
"""


# "-" as with kill(1): to the group, as from a terminal. The last signal would come behind a second
# copy of the one before.
@pytest.mark.parametrize(
    "sent", ["TERM HUP", "HUP TERM", "INT QUIT TERM", "-INT TERM", "-QUIT TERM"]
)
def test_signals_reach_the_command_once_and_do_not_end_its_wrapper(sent: str, tree: Path) -> None:
    with started("run", tree, "--", *python(TELLS_SIGNALS), stdout=PIPE) as process:
        pid = int(process.stdout.readline())
        for word in sent.split():
            name = "SIG" + word.lstrip("-")
            (os.killpg if word[0] == "-" else os.kill)(process.pid, signal.Signals[name])
            if word not in ("INT", "QUIT"):
                assert process.stdout.readline().decode() == f"{name}\n"
        assert not is_free(source_tree_lock(tree).lock_file)
        os.kill(pid, signal.SIGUSR1)
        assert process.wait(LIMIT) == 5
    assert both_free(tree)


def test_a_killed_wrapper_leaves_the_tree_locked_until_the_command_is_done(tree: Path) -> None:
    # What the command starts has inherited the locks as well.
    script = "echo ready; cat; true"
    with started("run", tree, "--", "sh", "-c", script, stdin=PIPE, stdout=PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.kill()
        process.wait(LIMIT)
        assert not is_free(source_tree_lock(tree).lock_file)
        assert not is_free(tree)
        told = run("status", tree)
        assert told.returncode == 1
        assert re.match(rf"{tree}: held by (an unknown process|sh )", told.stdout.decode())
        process.stdin.close()
        assert process.stdout.read() == b""  # until all that wrote to it have ended
        wait_until(lambda: both_free(tree))


def test_what_locks_the_tree_inside_of_the_command_is_let_in_and_the_hold_lasts(tree: Path) -> None:
    # The environment hands over the hold: there is no ancestor.
    inner = [*COMMAND, "run", "--timeout", "20", tree, "--", "sh", "-c"]
    inner.append(f"flock -n {tree} true || echo inside")
    ended = run("run", tree, "--", "sh", "-c", '("$0" "$@" &) | cat', *inner)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"inside\n", b"")
    assert both_free(tree)


@pytest.mark.once
@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")
def test_make_with_four_jobs_builds_one_tree_four_times_below_run(
    tree: Path, tmp_path: Path
) -> None:
    package = make_project(tree, "source_tree_lock.build_meta") / "src" / "sample"
    options = "wheel --quiet --no-build-isolation --no-deps --no-index --no-cache-dir".split()
    wheel = " ".join([sys.executable, "-m", "pip", *options, "-w", f"{tmp_path}/$@", "."])
    targets = "wheel1 wheel2 wheel3 wheel4"
    (tree / "Makefile").write_text(f"all: {targets}\n{targets}:\n\t{wheel}\n")
    made = run("run", ".", "--", "make", "-j4", "--keep-going", cwd=tree)
    assert made.returncode == 0, made.stderr.decode()
    expected = {
        f"sample/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in package.iterdir()
    }
    wheels = [content(wheel) for wheel in tmp_path.glob("wheel?/*")]
    for each in wheels:
        assert {name: each[name] for name in each if name.startswith("sample/")} == expected
    assert wheels == [wheels[0]] * 4


# What a log has of a wait


def seconds_in(words: str) -> float:
    """What a duration in words is, in seconds."""
    units = {"h": 3600, "min": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+) (h|min|s)", words))


def test_a_log_has_the_wait_at_once_then_ever_more_rarely_and_its_end(tree: Path) -> None:
    with waiting(tree, command=HASTY) as (child, process):
        told = [process.stderr.readline() for _ in range(5)]
        child.say()
        assert process.wait(LIMIT) == 7
        *lines, last = b"".join([*told, process.stderr.read()]).decode().splitlines()
    pattern = rf"source-tree-lock: waiting (.*)for \S+ \(pid {child.pid}\) to leave {tree}"
    waited = [seconds_in(words) for line in lines for words in re.findall(pattern, line)]
    assert len(waited) == len(lines)
    assert waited[1] >= 10
    assert all(later >= 2 * earlier for earlier, later in pairwise(waited))
    [ended] = re.findall(f"source-tree-lock: acquired {tree} after (.*)", last)
    assert seconds_in(ended) >= waited[-1]


@pytest.mark.parametrize(
    "around",
    ['trap "" HUP; exec "$0" "$@"', 'exec "$0" "$@" 2>/dev/full', 'exec "$0" "$@" 2>&-'],
    ids=["below nohup", "stderr is full", "stderr is closed"],
)
def test_a_wait_goes_on_when_the_terminal_hangs_up_or_nothing_can_be_told(
    around: str, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is left in a buffer would change the exit status.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    with waiting(tree, command=["sh", "-c", around, *HASTY]) as (child, process):
        if "HUP" in around:
            process.send_signal(signal.SIGHUP)
        child.say()
        assert process.wait(LIMIT) == 7
