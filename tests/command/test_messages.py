"""What the command says: usage, help, waits in a pipe, warnings, in every encoding."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import entry_points, version
from pathlib import Path
from subprocess import PIPE

import pytest
from support import LIMIT, Child, held_elsewhere, own_mounts, wait_until, waiters

import source_tree_lock
from source_tree_lock import Holder, Wait
from source_tree_lock._command import waiting

from .driver import COMMAND, MODULE, SCRIPT, both_free, complaint, linux_only, run, started


@pytest.mark.parametrize("command", [COMMAND, MODULE], ids=["installed", "module"])
def test_the_command_is_there_by_name_and_as_a_module(command: list[str], tree: Path) -> None:
    ended = run("run", tree, "--", "sh", "-c", "echo out; exit 7", command=command)
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, b"out\n", b"")


def test_the_installed_command_is_this_one() -> None:
    (script,) = entry_points(group="console_scripts", name="source-tree-lock")
    assert script.value == "source_tree_lock.__main__:main"
    assert SCRIPT.exists()


@pytest.mark.parametrize(
    ("arguments", "words", "help_of"),
    [
        ([], "run|status", ""),
        (["walk"], "invalid choice", ""),
        (["--verbose", "status"], "--verbose", " status"),
        (["run"], "TREE", " run"),
        (["run", "{tree}"], "behind --", " run"),
        (["run", "{tree}", "--"], "behind --", " run"),
        (["run", "{tree}", "--", ""], "behind --", " run"),
        (["run", "{tree}", "true"], "put -- before the command", " run"),
        (["run", "{tree}", "make", "-j4"], "put -- before the command", " run"),
        (["run", "--", "true"], "TREE", " run"),
        (["run", "--what", "{tree}", "--", "true"], "--what", " run"),
        (["run", "--time", "1", "{tree}", "--", "true"], "--time", " run"),
        (["run", "--q", "{tree}", "--", "true"], "--q", " run"),
        (["run", "--timeout", "soon", "{tree}", "--", "true"], "soon", " run"),
        (["run", "--timeout", "nan", "{tree}", "--", "true"], "nan", " run"),
        (["run", "--timeout=-1", "{tree}", "--", "true"], "-1", " run"),
        (["run", "{tree}/missing", "--", "true"], "{tree}/missing", None),
        (["run", "{tree}/file", "--", "true"], "{tree}/file", None),
        (["run", "{tree}/file/inside", "--", "true"], "{tree}/file/inside", None),
        (["status", "{tree}", "true"], "status takes one TREE", " status"),
        (["status", "{tree}", "--", "true"], "no command", " status"),
        (["status", "--timeout", "1", "{tree}"], "--timeout", " status"),
        (["status", "--js"], "--js", " status"),
        (["status", "{tree}/missing"], "{tree}/missing", None),
        (["status", "{tree}/file"], "{tree}/file", None),
        (["status", "--lock-dir", "{tree}/missing"], "no such lock directory", None),
        (["status", "--lock-dir", "{tree}/file"], "no such lock directory", None),
    ],
)
def test_bad_usage_is_2_and_one_line_that_points_to_the_help(
    arguments: list[str], words: str, help_of: str | None, tree: Path
) -> None:
    (tree / "file").touch()
    ended = run(*(each.format(tree=tree) for each in arguments))
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert words.format(tree=tree) in complaint(ended)
    if help_of is not None:
        assert complaint(ended).endswith(f"(see source-tree-lock{help_of} --help)")


HINTS = {
    "a builtin": (
        ["cd", "src"],
        127,
        "is known to the shell alone; write source-tree-lock run {tree} -- sh -c 'cd src'",
    ),
    "a file here": (["build.sh"], 127, "is a file here; write ./build.sh"),
    "a file here, not executable": (["plain.sh"], 127, "chmod +x ./plain.sh"),
    "not executable": (["./plain.sh"], 126, "chmod +x ./plain.sh"),
    "no first line": (["./binary"], 126, "as in: sh ./binary"),
    "a missing interpreter": (["./lost.sh"], 127, "not the interpreter that its first line names"),
    "in the tree, not here": (["./inside.sh"], 127, "run does not change directory"),
    "one word": (["make wheel"], 127, "is one word; leave the quotes out"),
    "a directory": (["./src"], 126, "it is a directory"),
}


@pytest.mark.parametrize(("command", "status", "hint"), HINTS.values(), ids=HINTS)
def test_a_command_that_cannot_be_run_comes_with_a_hint(
    command: list[str], status: int, hint: str, tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "src").mkdir()
    for path, mode, text in (
        ("build.sh", 0o755, "#!/bin/sh\n"),
        ("plain.sh", 0o644, "#!/bin/sh\n"),
        ("binary", 0o755, "\1\2\3"),
        ("lost.sh", 0o755, "#!/no/such/interpreter\n"),
        ("tree/inside.sh", 0o755, "#!/bin/sh\n"),
    ):
        (tmp_path / path).write_text(text)
        (tmp_path / path).chmod(mode)
    # Some systems have a program of the name of a builtin.
    ended = run("run", tree, "--", *command, cwd=tmp_path, environ={"PATH": "/nonexistent"})
    assert ended.returncode == status
    assert hint.format(tree=tree) in complaint(ended)
    assert repr(command[0]) in complaint(ended)
    assert both_free(tree)


#: Names of modules that a project may well have, and that the command or the library import.
SHADOWS = (
    "argparse contextlib2 ctypes errno fcntl gettext importlib json locale logging pathlib "
    "portalocker re redis select shlex shutil signal socket string subprocess textwrap threading "
    "time traceback types typing typing_extensions weakref"
).split()


@pytest.mark.parametrize(
    "arguments", [["status"], ["run", ".", "--", "echo", "inside"], ["--help"], ["--version"]]
)
def test_a_tree_with_modules_of_its_own_gets_none_of_them_imported(
    arguments: list[str], tree: Path
) -> None:
    bare = [sys.executable, "-m", "empty"]
    (tree / "empty.py").write_text("import sys; print(*sys.modules)")
    there = subprocess.run(bare, cwd=tree, stdout=PIPE, text=True, timeout=LIMIT).stdout.split()
    for name in SHADOWS:
        # What Python itself imports before it runs any module is no matter of ours.
        if name not in there:
            (tree / f"{name}.py").write_text("raise SystemExit(f'imported {__name__}')\n")
    assert len(list(tree.iterdir())) > len(SHADOWS) // 2
    ended = run(*arguments, command=MODULE, cwd=tree)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_directory_that_the_user_put_first_stays_first(tree: Path) -> None:
    (tree / "json.py").write_text("raise SystemExit('imported')\n")
    options = ["-P"] if sys.version_info >= (3, 11) else []
    command = [sys.executable, *options, "-m", "source_tree_lock"]
    ended = run("status", command=command, cwd=tree, environ={"PYTHONPATH": str(tree)})
    assert ended.stderr == b"imported\n"


@pytest.mark.skipif(sys.platform != "linux", reason="hides /dev in a mount namespace")
def test_where_there_is_no_dev_null_it_runs_all_the_same(tree: Path) -> None:
    script = 'mount -t tmpfs none /dev; test ! -e /dev/null && "$@" <&-'
    command = [*own_mounts(), "sh", "-c", script, "sh", *COMMAND]
    ended = run("run", tree, "--", "echo", "inside", command=command)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"inside\n", b"")
    ended = run("status", tree, command=command)
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_help_says_what_there_is_and_every_exit_status(encoding: str) -> None:
    environ = {"PYTHONIOENCODING": encoding, "COLUMNS": "100"}
    told = {
        name: run(*name.split(), "--help", environ=environ).stdout.decode(encoding)
        for name in ("", "run", "status")
    }
    for word in ("run", "status", "--version", "uv"):
        assert word in told[""]
    usage = "source-tree-lock run [-h] [--timeout S] [--lock-dir D] [--quiet] TREE -- COMMAND..."
    assert usage in told["run"]
    assert "run does not change to TREE" in told["run"]
    signals = " ".join(told["run"].partition("signals: ")[2].split())
    assert signals.startswith("SIGTERM and SIGHUP are passed on to the command. Ctrl-C and Ctrl-")
    assert "a SIGINT or SIGQUIT that is sent to run alone is not passed on" in signals
    for status in ("128 + n", "127  ", "126  ", "75  timed", "69  ", "2  bad usage", "130", "143"):
        assert status in told["run"]
    for status in ("0  free", "1  held", "69  cannot tell", "2  bad usage"):
        assert status in told["status"]


def test_a_copy_that_was_never_installed_has_no_version(tmp_path: Path) -> None:
    package = Path(source_tree_lock.__file__).parent
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


@pytest.mark.parametrize("arguments", [["status", "."], ["status", "--json", "."], ["--help"]])
def test_output_that_nobody_reads_or_takes_is_69_without_a_traceback(
    arguments: list[str], tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    reader, writer = os.pipe()
    os.close(reader)  # before it starts: on a busy machine it may be done before we go on
    with (
        os.fdopen(writer, "wb") as stdout,
        started(*arguments, cwd=tree, stdout=stdout, stderr=PIPE) as process,
    ):
        assert process.stderr is not None
        assert process.wait(LIMIT) == 69
        assert process.stderr.read() == b""
    if Path("/dev/full").exists():
        ended = run(
            *arguments, cwd=tree, command=["sh", "-c", 'exec "$0" "$@" >/dev/full', *COMMAND]
        )
        assert ended.returncode == 69
        assert "No space left on device" in complaint(ended)


# Waits in a pipe


#: The command with a clock that runs sixty times as fast in what it says of a wait.
HASTY = [
    sys.executable,
    "-c",
    """if True:
    from source_tree_lock import Wait
    from source_tree_lock._command import main, waiting
    tell = waiting.Teller.tell
    def hasty(self, wait):
        tell(self, Wait(wait.tree, wait.lock_file, wait.holder, wait.waited * 60))
    waiting.Teller.tell = hasty
    raise SystemExit(main())
    """,
]


def seconds_in(words: str) -> float:
    """What a duration in words is, in seconds."""
    units = {"h": 3600, "min": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+) (h|min|s)", words))


def test_in_a_pipe_a_wait_is_said_at_once_and_then_ever_more_rarely(tree: Path) -> None:
    with (
        held_elsewhere(tree) as child,
        started(
            *("run", tree, "--", "sh", "-c", "echo inside; exit 7"),
            command=HASTY,
            stdout=PIPE,
            stderr=PIPE,
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stderr.readline().decode() for _ in range(6)]
        child.say()
        assert process.wait(LIMIT) == 7
        assert process.stdout.read() == b"inside\n"
        assert process.stderr.read() == b""  # once it is inside, it says no more
    who = rf"\S+ \(pid {child.pid}\) to leave {tree}\n"
    said = [re.fullmatch(f"source-tree-lock: waiting (.*)for {who}", line) for line in lines]
    assert all(said), lines
    found = [0 if each is None else seconds_in(each.group(1)) for each in said]
    for seconds, due in zip(found, (0, 10, 30, 60, 120, 240), strict=True):
        assert due <= seconds


def test_the_times_at_which_a_pipe_hears_of_a_wait(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(waiting, "_say_warnings", lambda teller: None)
    teller = waiting.Teller(is_quiet=False)
    heard = []
    for quarter in range(4 * 1000):
        teller.tell(Wait("/tree", "/lock", Holder(1), quarter / 4))
        if capsys.readouterr().err:
            heard.append(quarter / 4)
    assert heard == [0, 10, 30, 60, 120, 240, 480, 960]


def test_quiet_says_nothing_of_a_wait_in_a_pipe(tree: Path) -> None:
    with held_elsewhere(tree):
        ended = run("run", "--quiet", "--timeout", "0.6", tree, "--", "true")
    assert ended.returncode == 75
    assert re.match(r"timed out( after \d+ s)?: ", complaint(ended))


@linux_only
@pytest.mark.parametrize("option", [[], ["--quiet"]], ids=["telling", "quiet"])
def test_warnings_of_the_library_carry_the_program_s_name_and_are_said_once(
    option: list[str], tree: Path
) -> None:
    nest = """
        import subprocess
        from source_tree_lock import source_tree_lock
        with source_tree_lock(sys.argv[1]):
            process = subprocess.Popen(sys.argv[2:], stderr=subprocess.PIPE, text=True)
            lines = []
            while not any("SOURCE_TREE_LOCK_HELD" in line for line in lines):
                lines.append(process.stderr.readline())
            tell("said")
            heard()
            process.terminate()
            lines += process.stderr.readlines()
        warnings = [line for line in lines if "SOURCE_TREE_LOCK_HELD" in line]
        tell(process.wait(), len(warnings), warnings[0].partition(" for ")[0])
    """
    command = [*COMMAND, "run", *option, str(tree), "--", "true"]
    with Child(nest, tree, *command) as child:
        child.expect("said")
        wait_until(lambda: bool(waiters(source_tree_lock.source_tree_lock(tree).lock_file)))
        child.say()
        child.expect("143 1 source-tree-lock: Waiting")


@pytest.mark.parametrize("where", ["closed pipe", "full device", "closed"])
def test_a_wait_that_cannot_be_told_of_goes_on(
    where: str, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is left in a buffer would change the exit status.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    if where == "full device" and not Path("/dev/full").exists():
        pytest.skip("there is no such device")
    command = [*HASTY, "run", str(tree), "--", "sh", "-c", "echo inside; exit 7"]
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
            lock_file = source_tree_lock.source_tree_lock(tree).lock_file
            wait_until(lambda: bool(waiters(lock_file)))
        time.sleep(0.6)  # a few tellings long; more or fewer make no difference
        child.say()
        assert process.stdout.read() == b"inside\n"
        assert process.wait(LIMIT) == 7
