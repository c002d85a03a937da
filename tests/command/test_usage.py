"""Arguments, help, versions, and output that nobody takes."""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

from .driver import MODULE, complaint, run

HELP = "(see source-tree-lock --help)"
HELP_OF_RUN = "(see source-tree-lock run --help)"
HELP_OF_STATUS = "(see source-tree-lock status --help)"
WRITE = f"write source-tree-lock run TREE -- COMMAND... {HELP_OF_RUN}"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ("", 2, f"name an action: run or status {HELP}"),
        ("walk", 2, "invalid choice"),
        ("--verbose", 2, f"unrecognized option: --verbose {HELP}"),
        ("run", 2, WRITE),
        ("run {tree}", 2, WRITE),
        ("run {tree} -- ", 2, WRITE),  # an empty word
        ("run {tree} make -j4", 2, WRITE),
        ("run -- true", 2, WRITE),
        ("run --what 5 {tree} -- x", 2, f"unrecognized option: --what {HELP_OF_RUN}"),
        ("run --what -- true", 2, f"unrecognized option: --what {HELP_OF_RUN}"),
        ("run --time 1 {tree} -- x", 2, f"unrecognized option: --time {HELP_OF_RUN}"),
        ("run {tree}/missing -- true", 2, "'{tree}/missing'"),
        ("run {tree}/file -- true", 2, "'{tree}/file'"),
        ("run --lock-dir {tree}/file {tree} -- true", 69, "Not a directory): '{tree}/file/"),
        ("run {tree} -- {tree}", 126, "cannot execute '{tree}': Permission denied"),
        ("run {tree} -- {tree}/file", 126, "cannot execute '{tree}/file': Exec format error"),
        ("run {tree} -- no-such-command", 127, "command not found: 'no-such-command'"),
        ("status {tree} -- true", 2, f"status takes one TREE and no command {HELP_OF_STATUS}"),
        ("status --timeout=1 {tree}", 2, f"unrecognized option: --timeout {HELP_OF_STATUS}"),
        ("status {tree}/missing", 2, "'{tree}/missing'"),
        ("status --lock-dir {tree}/missing", 2, "no such lock directory: '{tree}/missing'"),
    ],
)
def test_what_cannot_be_done_has_a_status_of_its_own_and_one_message(
    arguments: str, status: int, words: str, tree: Path
) -> None:
    (tree / "file").write_text("\1")
    (tree / "file").chmod(0o755)
    ended = run(*(arguments.format(tree=tree).split(" ") if arguments else []))
    assert (ended.returncode, ended.stdout) == (status, b"")
    assert words.format(tree=tree) in complaint(ended)
    assert [path.name for path in tree.iterdir()] == ["file"]


@pytest.mark.parametrize("text", ["5", "5s", "0.5", "0", "10m", "1h"])
def test_a_time_is_in_seconds_minutes_or_hours(text: str, tree: Path) -> None:
    ended = run("run", f"--timeout={text}", tree, "--", "true")
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.parametrize("text", ["soon", "nan", "inf", "-1", "5d", "1h30m", "1e3", "٣"])
def test_a_time_that_makes_no_sense_is_answered_with_what_can_be_written(text: str) -> None:
    ended = run("run", f"--timeout={text}", ".", "--", "true")
    assert ended.returncode == 2
    assert f"{text!r} is not a time: write seconds (5 or 5s), minutes" in complaint(ended)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--help", "run status --version"),
        ("run --help", "--timeout --lock-dir --quiet 2 69 75 126 127 130 143 128"),
        ("status --help", "--json --lock-dir 0 1 2 69"),
    ],
)
def test_help_says_what_there_is_and_every_exit_status(arguments: str, words: str) -> None:
    said = run(*arguments.split(), environ={"PYTHONIOENCODING": "ascii"}).stdout.decode()
    assert set(words.split()) <= set(re.findall(r"[\w-]+", said))


def test_the_version_and_the_entry_point_are_those_of_the_distribution() -> None:
    assert run("--version").stdout.decode() == f"source-tree-lock {version('source-tree-lock')}\n"
    [script] = entry_points(group="console_scripts", name="source-tree-lock")
    assert script.value == "source_tree_lock.__main__:main"


#: Names of modules that a project may well have, and that the command or the library import.
SHADOWS = (
    "argparse ctypes errno fcntl gettext importlib json locale logging pathlib re select shlex "
    "shutil signal socket string subprocess textwrap threading time traceback types typing weakref"
).split()


@pytest.mark.parametrize(
    "arguments", [["status"], ["run", ".", "--", "echo", "inside"], ["--help"]], ids=" ".join
)
def test_a_tree_with_modules_of_its_own_gets_none_of_them_imported(
    arguments: list[str], tree: Path
) -> None:
    # Python itself imports some, and so does the package before it runs.
    (tree / "empty.py").write_text("import sys, typing; print(*sys.modules)")
    there = run(command=[sys.executable, "-m", "empty"], cwd=tree).stdout.decode().split()
    for name in set(SHADOWS) - set(there):
        (tree / f"{name}.py").write_text("raise SystemExit(f'imported {__name__}')\n")
    ended = run(*arguments, command=MODULE, cwd=tree)
    assert (ended.returncode, ended.stderr) == (0, b"")
    # A directory that the user put first stays first.
    options = ["-P"] if sys.version_info >= (3, 11) else []
    command = [sys.executable, *options, *MODULE[1:]]
    ended = run(*arguments, command=command, cwd=tree, environ={"PYTHONPATH": str(tree)})
    assert ended.stderr.startswith(b"imported ")


@pytest.mark.parametrize("arguments", [["status", "."], ["status", "--json", "."], ["--help"]])
def test_output_that_nobody_reads_or_takes_is_69_without_a_traceback(
    arguments: list[str], tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed, open("/dev/full", "wb") as full:
        unread, untaken = (run(*arguments, cwd=tree, stdout=each) for each in (closed, full))
    assert (unread.returncode, untaken.returncode, unread.stderr) == (69, 69, b"")
    assert "No space left on device" in complaint(untaken)
