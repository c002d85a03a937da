"""What `run` runs, passes on, hands over, returns, and writes to a log."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from subprocess import PIPE

import pytest
from projects import content, make_project
from support import LIMIT, held_elsewhere, is_free, wait_until

from source_tree_lock import source_tree_lock

from .driver import (
    COMMAND,
    HASTY,
    NOTE,
    both_free,
    complaint,
    linux_only,
    noted,
    python,
    run,
    started,
    wait_for_the_pids,
    waiting,
)

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
        ("uv build .", "flit_core.buildapi", False),
        ("uv build --lock-dir", "setuptools.build_meta", False),
        ("uv --version", "setuptools.build_meta", False),
        ("uvx ruff", "setuptools.build_meta", False),
        ("echo uv build", "setuptools.build_meta", False),
    ],
)
def test_uv_is_run_with_a_warning_where_it_would_wait_for_its_wrapper(
    command: str, backend: str, is_warned: bool, tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("uv", "uv.exe", "uvx", "python3", "echo"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\nexit 7\n")
        (tmp_path / "bin" / name).chmod(0o755)
    table = f'[build-system]\nrequires = []\nbuild-backend = "{backend}"\n' if backend else ""
    (tree / "pyproject.toml").write_text(table)
    options = ["--lock-dir", tmp_path] if "--lock-dir" in command else []
    environ = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    ended = run("run", *options, tree, "--", *command.split(), cwd=tmp_path, environ=environ)
    assert ended.returncode == 7
    assert ended.stderr.startswith(b"source-tree-lock: warning: uv takes this l") == is_warned
    assert bool(ended.stderr) == is_warned


@pytest.mark.parametrize(
    ("options", "limit", "waited"),
    [
        (["--timeout", "0"], None, r"0\.\d s"),
        (["--timeout", "0.1s"], None, r"\d\.\d s"),
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
    # Also where there is nothing to wait for; but an option, or `status`, does without it.
    environ = {"SOURCE_TREE_LOCK_TIMEOUT": "soon"}
    assert run("status", tree, environ=environ).returncode == 0
    assert run("run", "--timeout", "0", tree, "--", "true", environ=environ).returncode == 0
    ended = run("run", tree, "--", "true", environ=environ)
    assert ended.returncode == 2
    assert re.search("SOURCE_TREE_LOCK_TIMEOUT.*soon", complaint(ended))


@pytest.mark.parametrize("way", ["option", "environment"])
def test_a_lock_that_cannot_be_had_is_69(way: str, tree: Path, tmp_path: Path) -> None:
    bad = tmp_path / "a file"
    bad.touch()
    options = ["--lock-dir", bad] if way == "option" else []
    environ = {} if way == "option" else {"SOURCE_TREE_LOCK_DIR": str(bad)}
    ended = run("run", *options, tree, "--", "echo", "inside", environ=environ)
    assert (ended.returncode, ended.stdout) == (69, b"")
    assert str(bad) in complaint(ended)


def test_the_command_has_the_input_directory_and_environment_and_the_tree_is_held(
    tree: Path, tmp_path: Path
) -> None:
    lock_dir, data = tmp_path / "made when missing", bytes(range(256)) * 4000
    name = source_tree_lock(tree).lock_file.name
    script = f"""
        printf '%s %s\n' "$SOME_VARIABLE" "$PWD"
        flock -n '{lock_dir}/{name}' true || flock -n '{tree}' true || cat
    """
    command = ["run", "--lock-dir", lock_dir, tree, "--", "sh", "-c", script]
    ended = run(*command, stdin=data, environ={"SOME_VARIABLE": "it"}, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ended.stdout == f"it {tmp_path}\n".encode() + data
    assert both_free(tree)


def test_inherited_descriptors_reach_the_command(tree: Path) -> None:
    # make's jobserver, for one, hands two of them down.
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as pipe:
        script = "import os; os.write(int(sys.argv[1]), b'hello')"
        with started("run", tree, "--", *python(script, writer), pass_fds=[writer]) as process:
            os.close(writer)
            assert process.wait(LIMIT) == 0
        assert pipe.read() == b"hello"


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
    # Two signals behind these are the C library's own: its posix_spawn(3) ignores them, and what
    # started this process may have used it.
    masks = [[int(w, 16) % 2**31 for w in each.split()[1::2]] for each in (bare, wrapped)]
    assert len(masks[0]) == 3
    assert masks[0] == masks[1]


def test_the_status_is_known_where_sigchld_is_ignored(tree: Path) -> None:
    ignoring = ["env", "--ignore-signal=CHLD", *COMMAND]
    assert run("run", tree, "--", "sh", "-c", "exit 7", command=ignoring).returncode == 7


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
    with started("run", tree, "--", *python(NOTE, log)) as process:
        pid, _ = wait_for_the_pids(log)
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
    with waiting(*option, tree) as (child, process):
        if not option:
            assert b"waiting" in process.stderr.readline()
        process.send_signal(number)
        assert process.wait(LIMIT) == 128 + number
        assert (process.stdout.read(), process.stderr.read()) == (b"", b"")
        child.say()
        child.expect("released")
    assert both_free(tree)


def test_below_nohup_a_wait_goes_on_when_the_terminal_hangs_up(tree: Path) -> None:
    trap = ["sh", "-c", 'trap "" HUP; exec "$0" "$@"', *COMMAND]
    with waiting(tree, command=trap) as (child, process):
        process.send_signal(signal.SIGHUP)
        child.say()
        assert process.wait(LIMIT) == 7


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
    # Python closes the descriptors of its children, where it is not told otherwise.
    "through Python": [
        *(sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:], check=True)"),
        *(*RUN, "echo", "inside"),
    ],
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


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")
def test_make_with_four_jobs_builds_one_tree_four_times_below_run(
    tree: Path, tmp_path: Path, long_run: bool
) -> None:
    make_project(tree, modules=40 if long_run else 12)
    text = (tree / "pyproject.toml").read_text()
    backend = "source_tree_lock.build_meta"
    (tree / "pyproject.toml").write_text(text.replace("setuptools.build_meta", backend))
    out = tmp_path / "out"
    options = "wheel --quiet --no-build-isolation --no-deps --no-index --no-cache-dir".split()
    wheel = " ".join([sys.executable, "-m", "pip", *options, "--wheel-dir", f"{out}/$@", "."])
    targets = " ".join(f"wheel{number}" for number in range(4))
    (tree / "Makefile").write_text(f"all: {targets}\n{targets} alone:\n\t{wheel}\n")
    for command in (["make", "alone"], ["make", "-j4", "--keep-going"]):
        made = run("run", ".", "--", *command, cwd=tree)
        assert made.returncode == 0, made.stderr.decode()
    wheels = [content(wheel) for target in targets.split() for wheel in (out / target).iterdir()]
    assert wheels == [content(wheel) for wheel in (out / "alone").iterdir()] * 4


# What a log has of a wait


def seconds_in(words: str) -> float:
    """What a duration in words is, in seconds."""
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


@pytest.mark.parametrize("redirect", ["2>/dev/full", "2>&-"], ids=["full", "closed"])
def test_a_wait_that_cannot_be_told_of_goes_on(
    redirect: str, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is left in a buffer would change the exit status.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    script = ["sh", "-c", f'exec "$0" "$@" {redirect}', *HASTY]
    with waiting(tree, command=script) as (child, process):
        child.say()
        assert process.wait(LIMIT) == 7
