"""The command in a real pseudo-terminal: keys, signals, and the text that ticks."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import Child, held_elsewhere, long_after, wait_until, waiters

from source_tree_lock import source_tree_lock

from .driver import COMMAND, Terminal, both_free, linux_only

#: With job control, the command is a group of its own, in the foreground.
SHELL = """
set -m
"$0" "$@"
status=$?
if test $(kill -l $status) = TSTP; then echo stopped; fg; status=$?; fi
exit $status
"""


@pytest.mark.parametrize(
    "leader", [[], ["bash", "-c", SHELL]], ids=["leads the session", "a shell's job"]
)
def test_the_terminal_is_the_commands_and_ctrl_c_ends_it(leader: list[str], tree: Path) -> None:
    # A command in the background would be stopped when it reads.
    command = ["sh", "-c", 'test -t 0 && read text && echo "got $text"; exec sleep 1000']
    with Terminal(*leader, *COMMAND, "run", tree, "--", *command) as terminal:
        terminal.type("something\n")
        terminal.until("got something")
        if leader:
            terminal.type("\x1a")  # Ctrl-Z: the shell continues the job
            terminal.until("stopped")
        terminal.type("\x03")
        assert terminal.end() == 130
        assert "Traceback" not in terminal.shown
    assert both_free(tree)


@contextmanager
def waiting(tree: Path, *options: object, columns: int = 300) -> Iterator[tuple[Child, Terminal]]:
    """`run` in a terminal, for a tree that another process holds."""
    command = [*COMMAND, "run", *options, tree, "--", "echo", "inside"]
    with held_elsewhere(tree) as child, Terminal(*command, columns=columns) as terminal:
        yield child, terminal


@pytest.mark.parametrize("columns", long_after(1, [50, 80, 250]))
def test_a_wait_is_one_text_that_ticks_each_second_and_leaves_nothing_behind(
    columns: int, tree: Path
) -> None:
    with waiting(tree, columns=columns) as (child, terminal):
        terminal.until(r"(?s)(?:waiting \d+ s for .*){3}")
        child.say()
        assert terminal.end() == 0
    assert terminal.left() == "inside\n"
    prefix = "source-tree-lock: " if columns >= 80 else ""
    pattern = rf"{prefix}waiting (?:(\d+) s )?for \S+ \(pid {child.pid}\) to leave (…?)(.*)"
    last = -1
    for text in terminal.texts():
        [(seconds, is_shortened, path)] = re.findall(f"^{pattern}$", text)
        assert last < int(seconds or 0)  # a second may be skipped where the machine is busy
        last = int(seconds or 0)
        assert str(tree).endswith(path)
        assert len(text) < columns
        assert (path == str(tree)) == (not is_shortened) == (len(text) < columns - 1)


@pytest.mark.parametrize("option", [[], ["--quiet"]], ids=["telling", "quiet"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_a_wait_ends_it_with_its_status_and_leaves_nothing_behind(
    number: signal.Signals, option: list[str], tree: Path
) -> None:
    with waiting(tree, *option) as (child, terminal):
        if option:
            wait_until(lambda: terminal.process.pid in waiters(source_tree_lock(tree).lock_file))
        else:
            terminal.until("waiting")
        terminal.process.send_signal(number)
        assert (terminal.end(), terminal.left()) == (128 + number, "")
        child.say()
        child.expect("released")
    assert both_free(tree)


def test_a_wait_whose_time_is_up_leaves_one_message_behind(tree: Path) -> None:
    with waiting(tree, "--timeout", "1.2") as (child, terminal):
        assert terminal.end() == 75
    pattern = rf"source-tree-lock: waited \d+\.\d s for .*\(pid {child.pid}\).*\n"
    assert re.fullmatch(pattern, terminal.left())


def test_a_terminal_that_gets_narrower_gets_a_shorter_text(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")  # which has no "…"
    with waiting(tree, columns=len(str(tree)) + 100) as (_, terminal):
        terminal.until(re.escape(str(tree)))
        terminal.resize(50)
        terminal.until(r"leave \?.*\x1b")
        assert len(terminal.texts()[-1]) == 49


@pytest.mark.parametrize(
    ("behind", "term"), [("", "dumb"), (' & read text; echo "$text"', "xterm")]
)
def test_where_no_text_can_be_taken_back_a_wait_is_said_as_in_a_log(
    behind: str, term: str, tree: Path
) -> None:
    """In the background, it would write over what the user sees of another job."""
    command = ["bash", "-c", f"set -m; {' '.join(COMMAND)} run '{tree}' -- echo inside{behind}"]
    with (
        held_elsewhere(tree) as child,
        Terminal(*command, columns=300, environ={"TERM": term}) as terminal,
    ):
        terminal.until(r"source-tree-lock: waiting .*for \S+ \(pid \d+\) to leave \S+\r\n")
        child.say()
        terminal.until(rf"source-tree-lock: acquired {tree} after \d+ s\r\ninside")
        assert "\x1b" not in terminal.shown
        terminal.type("done\n")
        assert terminal.end() == 0


@linux_only
@pytest.mark.parametrize("option", [[], ["--quiet"]], ids=["telling", "quiet"])
def test_a_warning_of_the_library_stands_above_the_text(
    option: list[str], tree: Path, tmp_path: Path
) -> None:
    script = """
        from source_tree_lock import source_tree_lock
        with source_tree_lock(sys.argv[1]):
            tell("held")
            heard()
            source_tree_lock(sys.argv[2]).acquire(timeout=60)
    """
    inner = [*COMMAND, "run", *option, tree, "--", "true"]
    with Child(script, tree, tmp_path) as child:
        child.expect("held")
        with Terminal(*COMMAND, "run", tmp_path, "--", *inner, columns=2000) as terminal:
            wait_until(lambda: not both_free(tmp_path))
            child.say()
            terminal.until("wait for each other" if option else r"(?s)each other.*waiting \d")
            terminal.type("\x03")
            assert terminal.end() == 130
    left = terminal.left().replace("^C", "")
    assert re.fullmatch("source-tree-lock: [^\n]* wait for each other[^\n]*\n", left), left
    assert bool(terminal.texts()) == (not option)
