"""What `run` runs, passes on, hands over, returns, and writes to a log."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from itertools import pairwise
from pathlib import Path
from subprocess import PIPE

import pytest
from support import LIMIT, held_elsewhere, is_free, wait_until

from source_tree_lock import source_tree_lock

from . import driver
from .driver import COMMAND, HASTY, both_free, complaint, linux_only, noted, run, started, waiting

KILLED = "HUP INT QUIT ABRT KILL USR1 SEGV PIPE TERM XFSZ".split()
SCRIPTS = {f"exit {each}": each for each in (0, 1, 2, 75, 127, 255)} | {
    f"kill -{name} $$": 128 + getattr(signal, f"SIG{name}") for name in KILLED
}


@pytest.mark.parametrize(("script", "status"), SCRIPTS.items())
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
        ("./interpreter-is-missing", 127, "not found"),
        ("./plain", 126, "Permission denied"),
        (".", 126, "Permission denied"),
        ("./no-format", 126, "Exec format error"),
    ],
)
def test_what_cannot_be_run_is_127_or_126(
    name: str, status: int, words: str, tree: Path, tmp_path: Path
) -> None:
    texts = {"interpreter-is-missing": "#!/no/such/interpreter\n", "plain": "", "no-format": "\1"}
    for path, text in texts.items():
        (tmp_path / path).write_text(text)
        (tmp_path / path).chmod(0o755 if text else 0o644)
    ended = run("run", tree, "--", name, cwd=tmp_path)
    assert ended.returncode == status
    assert words in complaint(ended)
    assert repr(name) in complaint(ended)
    assert both_free(tree)


@pytest.mark.parametrize(
    ("command", "backend", "is_warned"),
    [
        ("uv build", "setuptools.build_meta", True),
        ("uv --directory . pip install .", "setuptools.build_meta:__legacy__", True),
        ("bin/uv.exe sync", "", True),
        ("python3 -m uv build", "setuptools.build_meta", True),
        ("uv build", "source_tree_lock.build_meta", False),
        ("uv build --lock-dir", "setuptools.build_meta", False),
        ("uv --version", "setuptools.build_meta", False),
        ("echo uv build", "setuptools.build_meta", False),
    ],
)
def test_uv_is_run_with_a_warning_where_it_would_wait_for_its_wrapper(
    command: str, backend: str, is_warned: bool, tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("uv", "uv.exe", "python3", "echo"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\nexit 7\n")
        (tmp_path / "bin" / name).chmod(0o755)
    table = f'[build-system]\nrequires = []\nbuild-backend = "{backend}"\n' if backend else ""
    (tree / "pyproject.toml").write_text(table)
    options = ["--lock-dir", tmp_path] if "--lock-dir" in command else []
    environ = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    ended = run("run", *options, tree, "--", *command.split(), cwd=tmp_path, environ=environ)
    warning = b"source-tree-lock: warning: uv takes this lock"
    assert ended.returncode == 7
    assert ended.stderr[: len(warning)] == (warning if is_warned else b"")


@pytest.mark.parametrize(
    ("options", "limit", "waited"),
    [
        (["--timeout", "0"], None, r"0\.\d s"),
        ([], "0.1", r"\d\.\d s"),
        (["--timeout", "0.1"], "1000", r"\d\.\d s"),
        (["--quiet", "--timeout", "1m"], None, r"\d\d\.\d s"),  # the clock is hasty
        (["--quiet", "--timeout", "0.02h"], None, r"\d\d\.\d s"),
    ],
)
def test_a_timeout_is_75_and_names_the_holder(
    options: list[str], limit: str | None, waited: str, tree: Path
) -> None:
    environ = {"SOURCE_TREE_LOCK_TIMEOUT": limit} if limit else {}
    with held_elsewhere(tree) as child:
        command = HASTY if "--quiet" in options else COMMAND
        ended = run("run", *options, tree, "--", "echo", command=command, environ=environ)
    assert (ended.returncode, ended.stdout) == (75, b"")
    if "--quiet" in options:
        complaint(ended)  # one message
    last = ended.stderr.decode().splitlines()[-1]
    pattern = rf"source-tree-lock: waited {waited} for .*{tree}.*\(pid {child.pid}\)"
    assert re.match(pattern, last), last


def test_a_timeout_in_the_environment_that_makes_no_sense_is_named(tree: Path) -> None:
    environ = {"SOURCE_TREE_LOCK_TIMEOUT": "soon"}
    ended = run("run", tree, "--", "true", environ=environ)
    assert ended.returncode == 2
    assert re.search("SOURCE_TREE_LOCK_TIMEOUT.*soon", complaint(ended))


def test_a_lock_that_cannot_be_had_is_69(tree: Path, tmp_path: Path) -> None:
    bad = tmp_path / "a file"
    bad.touch()
    ended = run("run", "--lock-dir", bad, tree, "--", "echo", "inside")
    assert (ended.returncode, ended.stdout) == (69, b"")
    assert str(bad) in complaint(ended)


def test_the_command_has_the_input_directory_and_environment_and_the_tree_is_held(
    tree: Path, tmp_path: Path
) -> None:
    lock_dir, data = tmp_path / "made when missing", bytes(range(256)) * 4000
    lock_file = lock_dir / source_tree_lock(tree).lock_file.name
    script = 'echo "$SOME_VARIABLE $PWD"; '
    script += f"flock -n '{lock_file}' true || flock -n '{tree}' true || cat"
    command = ["run", "--lock-dir", lock_dir, tree, "--", "sh", "-c", script]
    ended = run(*command, stdin=data, environ={"SOME_VARIABLE": "it"}, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ended.stdout == f"it {tmp_path}\n".encode() + data
    assert both_free(tree)


def test_inherited_descriptors_reach_the_command(tree: Path) -> None:
    # make's jobserver, for one, hands two of them down.
    open_3 = ["sh", "-c", 'exec 3>&1; exec "$0" "$@"', *COMMAND]
    ended = run("run", tree, "--", "sh", "-c", "echo hello >&3", command=open_3)
    assert (ended.returncode, ended.stdout) == (0, b"hello\n")


@linux_only
@pytest.mark.parametrize("ignored", ["", "HUP", "INT QUIT"])
def test_the_command_has_the_signals_as_it_would_have_without_the_wrapper(
    ignored: str, tree: Path
) -> None:
    look = ["grep", "^Sig[BIC]", "/proc/self/status"]
    trap = ["sh", "-c", f'trap "" {ignored}; exec "$0" "$@"' if ignored else 'exec "$0" "$@"']
    bare, wrapped = (
        subprocess.run([*trap, *command, *look], stdout=PIPE, check=True).stdout
        for command in ([], [*COMMAND, "run", str(tree), "--"])
    )
    # Two signals behind these are the C library's own: posix_spawn(3) ignores them.
    masks = [[int(w, 16) % 2**31 for w in each.split()[1::2]] for each in (bare, wrapped)]
    assert len(masks[0]) == 3
    assert masks[0] == masks[1]


@pytest.mark.parametrize(("closed", "left"), [("<&-", "12"), (">&- 2>&-", "0"), ("2>&-", "01")])
def test_closed_standard_descriptors_are_closed_for_the_command(
    closed: str, left: str, tree: Path, tmp_path: Path
) -> None:
    # Were the lock file opened in their place, the command would write to it.
    look = 'for n in 0 1 2; do eval "(: 9<&$n)" && printf $n >> seen; done; exit 7'
    close = ["sh", "-c", f'exec "$0" "$@" {closed}', *COMMAND]
    ended = run("run", tree, "--", "sh", "-c", look, command=close, cwd=tmp_path)
    assert (ended.returncode, (tmp_path / "seen").read_text()) == (7, left)


# "-" as with kill(1): to the group, as from a terminal. The last signal would come behind a second
# copy of the one before.
@pytest.mark.parametrize(
    "sent", ["TERM HUP", "HUP TERM", "INT QUIT TERM", "-INT TERM", "-QUIT TERM"]
)
def test_signals_reach_the_command_once_and_do_not_end_its_wrapper(
    sent: str, tree: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    expected: list[str] = []
    with started("run", tree, "--", *driver.python(driver.NOTE, log)) as process:
        pid, _ = driver.wait_for_the_pids(log)
        for word in sent.split():
            name = "SIG" + word.lstrip("-")
            (os.killpg if word[0] == "-" else os.kill)(process.pid, signal.Signals[name])
            if word not in ("INT", "QUIT"):
                expected.append(name)
            wait_until(lambda: noted(log) == expected)
        assert not is_free(source_tree_lock(tree).lock_file)
        os.kill(pid, signal.SIGUSR1)
        assert process.wait(LIMIT) == 5
    assert both_free(tree)


@pytest.mark.parametrize("option", [[], ["--quiet"]], ids=["telling", "quiet"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_a_wait_ends_it_with_its_status(
    number: signal.Signals, option: list[str], tree: Path
) -> None:
    with waiting(tree, *option) as (child, process):
        if not option:
            assert b"waiting" in process.stderr.readline()
        process.send_signal(number)
        assert process.wait(LIMIT) == 128 + number
        assert (process.stdout.read(), process.stderr.read()) == (b"", b"")
        child.say()
        child.expect("released")
    assert both_free(tree)


def test_a_killed_wrapper_leaves_the_tree_locked_until_the_command_is_done(tree: Path) -> None:
    # What the command starts has inherited the locks as well.
    script = "echo ready; cat; true"
    with started("run", tree, "--", "sh", "-c", script, stdin=PIPE, stdout=PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.kill()
        process.wait(LIMIT)
        for each in source_tree_lock(tree).lock_file, tree:
            assert not is_free(each)
        told = run("status", tree).stdout.decode()
        assert re.match(rf"{tree}: held by (an unknown process|sh )", told)
        process.stdin.close()
        assert process.stdout.read() == b""  # until all that wrote to it have ended
        wait_until(lambda: both_free(tree))


def test_a_daemon_that_the_command_leaves_behind_keeps_nothing_locked(tree: Path) -> None:
    script = "sleep 1000 >&- 2>&- <&- & echo"
    with started("run", tree, "--", "sh", "-c", script, stdout=PIPE) as process:
        assert process.wait(LIMIT) == 0
        assert both_free(tree)


# What is inside takes turns


RUN = [*COMMAND, "run", "--timeout", "20", "{tree}", "--"]
NESTED = {
    "a command": [*RUN, "echo", "inside"],
    "through a shell": ["sh", "-c", f"{' '.join(RUN)} echo inside"],
    "without the environment": ["env", "-i", *RUN, "echo", "inside"],
    "without an ancestor": ["sh", "-c", f"({' '.join(RUN)} echo inside &) | cat"],
    "twice": [*RUN, *RUN, "echo", "inside"],
    "and the hold lasts": [*RUN, "sh", "-c", "flock -n {tree} true || echo inside"],
}


@linux_only  # ancestry
@pytest.mark.parametrize("command", NESTED.values(), ids=NESTED)
def test_what_locks_the_tree_inside_of_the_command_does_not_wait_for_its_wrapper(
    command: list[str], tree: Path
) -> None:
    ended = run("run", tree, "--", *(each.format(tree=tree) for each in command))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"inside\n", b"")
    assert both_free(tree)


def test_the_jobs_of_make_below_run_are_inside_one_at_a_time(tree: Path) -> None:
    # mkdir fails where another one is inside.
    job = f"{' '.join(COMMAND)} run . -- sh -c 'mkdir inside && sleep 0.05 && rmdir inside'"
    (tree / "Makefile").write_text(f"all: 1 2 3 4\n1 2 3 4:\n\t{job}\n")
    made = run("run", ".", "--", "make", "-j4", cwd=tree)
    assert made.returncode == 0, made.stderr.decode()
    assert made.stdout.count(b"mkdir") == 4


# What a log has of a wait


def seconds_in(words: str) -> int:
    units = {"h": 3600, "min": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+) (h|min|s)", words))


def test_a_log_has_the_wait_at_once_then_ever_more_rarely_and_its_end(tree: Path) -> None:
    with waiting(tree, command=HASTY) as (child, process):
        told = [process.stderr.readline().decode() for _ in range(5)]
        child.say()
        assert process.wait(LIMIT) == 7
        *more, last = process.stderr.read().decode().splitlines()
    pattern = rf"source-tree-lock: waiting (.*)for \S+ \(pid {child.pid}\) to leave {tree}\n?"
    found = [re.fullmatch(pattern, each) for each in told + more]
    waited = [-1 if each is None else seconds_in(each[1]) for each in found]
    assert waited[0] >= 0
    assert waited[1] >= 10
    assert all(later >= 2 * earlier for earlier, later in pairwise(waited))
    ended = re.fullmatch(rf"source-tree-lock: acquired {tree} after (.*)", last)
    assert ended is not None, last
    assert seconds_in(ended[1]) >= waited[-1]
