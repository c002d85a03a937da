"""Arguments, help, versions, and output that nobody takes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path
from subprocess import PIPE

import pytest
from support import LIMIT

from .driver import COMMAND, MODULE, complaint, run


@pytest.mark.parametrize("command", [COMMAND, MODULE], ids=["installed", "module"])
def test_the_command_is_there_by_name_and_as_a_module(command: list[str], tree: Path) -> None:
    ended = run("run", tree, "--", "sh", "-c", "echo out; exit 7", command=command)
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, b"out\n", b"")
    (script,) = entry_points(group="console_scripts", name="source-tree-lock")
    assert script.value == "source_tree_lock.__main__:main"


WRITE = "write source-tree-lock run TREE -- COMMAND..."


@pytest.mark.parametrize(
    ("arguments", "words", "help_of"),
    [
        ([], "run or status", ""),
        (["walk"], "invalid choice", ""),
        (["--verbose"], "unrecognized option: --verbose (", ""),
        (["run"], WRITE, " run"),
        (["run", "{tree}"], WRITE, " run"),
        (["run", "{tree}", "--", ""], WRITE, " run"),
        (["run", "{tree}", "make", "-j4"], WRITE, " run"),
        (["run", "--", "true"], WRITE, " run"),
        (["run", "--what", "{tree}", "--", "true"], "unrecognized option: --what (", " run"),
        (["run", "--what", "5", "{tree}", "--", "x"], "unrecognized option: --what (", " run"),
        (["run", "--what", "--", "true"], "unrecognized option: --what (", " run"),
        (["run", "--time", "1", "{tree}", "--", "x"], "unrecognized option: --time (", " run"),
        (["run", "{tree}/missing", "--", "true"], "'{tree}/missing'", None),
        (["run", "{tree}/file", "--", "true"], "'{tree}/file'", None),
        (["status", "{tree}", "--", "true"], "status takes one TREE and no command", " status"),
        (["status", "--timeout=1", "{tree}"], "unrecognized option: --timeout (", " status"),
        (["status", "{tree}/missing"], "'{tree}/missing'", None),
        (["status", "--lock-dir", "{tree}/missing"], "no such lock directory: '{tree}/m", None),
    ],
)
def test_bad_usage_is_2_and_one_message_that_points_to_the_help(
    arguments: list[str], words: str, help_of: str | None, tree: Path
) -> None:
    (tree / "file").touch()
    ended = run(*(each.format(tree=tree) for each in arguments))
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert words.format(tree=tree) in complaint(ended)
    if help_of is not None:
        assert complaint(ended).endswith(f"(see source-tree-lock{help_of} --help)")
    assert not (tree / "missing").exists()


@pytest.mark.parametrize("text", "5 5s 0.5 0 10m 1h soon nan inf -1 5d 1h30m 1e3 ٣".split())
def test_a_time_is_in_seconds_minutes_or_hours_and_a_mistake_is_answered_with_what_can_be_written(
    text: str, tree: Path
) -> None:
    ended = run("run", f"--timeout={text}", tree, "--", "true")
    if text in ("5", "5s", "0.5", "0", "10m", "1h"):
        assert (ended.returncode, ended.stderr) == (0, b"")
    else:
        assert ended.returncode == 2
        assert f"{text!r} is not a time: write seconds (5 or 5s), minutes" in complaint(ended)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("", "run status --version uv"),
        (
            "run",
            "--timeout,T,10m --lock-dir --quiet signals: SIGINT 128,+,n 127 126 75 69 2 130 143",
        ),
        ("status", "--json --lock-dir 0,free 1,held 2,bad,usage 69,cannot,tell"),
    ],
)
def test_help_says_what_there_is_and_every_exit_status(action: str, words: str) -> None:
    environ = {"PYTHONIOENCODING": "ascii", "COLUMNS": "100"}
    told = run(*action.split(), "--help", environ=environ).stdout.decode()
    parts = [[*map(re.escape, each.split(","))] for each in words.split()]
    assert [each for each in parts if not re.search(r"[\s\S]*?".join(each), told)] == []


def test_the_version_is_that_of_the_distribution() -> None:
    ended = run("--version")
    assert ended.returncode == 0
    assert ended.stdout.decode() == f"source-tree-lock {version('source-tree-lock')}\n"


#: Names of modules that a project may well have, and that the command or the library import.
SHADOWS = (
    "argparse contextlib2 ctypes errno fcntl gettext importlib json locale logging pathlib "
    "portalocker re select shlex shutil signal socket string subprocess textwrap threading "
    "time traceback types typing typing_extensions weakref"
).split()


@pytest.mark.parametrize(
    "arguments", [["status"], ["run", ".", "--", "echo", "inside"], ["--help"]], ids=" ".join
)
def test_a_tree_with_modules_of_its_own_gets_none_of_them_imported(
    arguments: list[str], tree: Path
) -> None:
    # Python itself imports some, and so does the package before it runs.
    (tree / "empty.py").write_text("import sys, typing; print(*sys.modules)")
    bare = [sys.executable, "-m", "empty"]
    there = subprocess.run(bare, cwd=tree, stdout=PIPE, text=True, timeout=LIMIT).stdout.split()
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
    with os.fdopen(writer, "wb") as closed:
        process = subprocess.run(
            [*COMMAND, *arguments], cwd=tree, stdout=closed, stderr=PIPE, timeout=LIMIT
        )
    assert (process.returncode, process.stderr) == (69, b"")
    to_full = ["sh", "-c", 'exec "$0" "$@" >/dev/full', *COMMAND]
    ended = run(*arguments, cwd=tree, command=to_full)
    assert ended.returncode == 69
    assert "No space left on device" in complaint(ended)
