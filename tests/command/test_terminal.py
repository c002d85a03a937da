"""The command in a real pseudo-terminal: keys, signals, and the text that ticks."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from support import LIMIT, Child, held_elsewhere, is_free, wait_until, wait_until_blocked

from source_tree_lock import source_tree_lock

from .driver import (
    COMMAND,
    LEADERS,
    NOTE,
    Terminal,
    both_free,
    linux_only,
    noted,
    python,
    wait_for_the_pids,
)

either_way = pytest.mark.parametrize("leader", LEADERS.values(), ids=LEADERS)


def status_of(terminal: Terminal, leader: list[str]) -> int:
    return int(terminal.until(r"status (\d+)")[1]) if leader else terminal.process.wait(LIMIT)


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
        assert status_of(terminal, leader) == 5


@either_way
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
        assert status_of(terminal, leader) == 130
        assert "Traceback" not in terminal.shown
    assert both_free(tree)


@either_way
def test_a_terminal_that_hangs_up_reaches_the_command(
    leader: list[str], tree: Path, tmp_path: Path
) -> None:
    # To the leader of a session alone; when that ends, to all that is in the foreground.
    log = tmp_path / "log"
    with Terminal(*leader, *COMMAND, "run", tree, "--", *python(NOTE, log)) as terminal:
        pid, wrapper = wait_for_the_pids(log)
        terminal.hang_up()
        wait_until(lambda: "SIGHUP" in noted(log))
        os.kill(wrapper, signal.SIGTERM)
        wait_until(lambda: "SIGTERM" in noted(log))
        assert not is_free(source_tree_lock(tree).lock_file)
        os.kill(pid, signal.SIGUSR1)


# A wait


@pytest.fixture
def deep_tree(tmp_path: Path) -> Path:
    """A source tree with a path that is longer than most terminals are wide."""
    tree = tmp_path / "a-directory-of-a-user" / "with-many-projects-in-it" / "project"
    tree.mkdir(parents=True)
    return tree


@contextmanager
def waiting(
    tree: Path, *options: object, columns: int = 300, environ: Mapping[str, str] | None = None
) -> Iterator[tuple[Child, Terminal]]:
    """`run` in a terminal, for a tree that another process holds."""
    command = [*COMMAND, "run", *options, tree, "--", "echo", "inside"]
    with (
        held_elsewhere(tree) as child,
        Terminal(*command, columns=columns, environ=environ) as terminal,
    ):
        yield child, terminal


@pytest.mark.parametrize("columns", [50, 80, 250])
def test_a_wait_is_one_text_that_ticks_each_second_and_leaves_nothing_behind(
    columns: int, deep_tree: Path
) -> None:
    with waiting(deep_tree, columns=columns) as (child, terminal):
        terminal.until(r"(?s)(?:waiting \d+ s for .*){3}")
        child.say()
        assert terminal.end() == 0
    assert terminal.left() == "inside\n"
    assert len(terminal.texts()) >= 3
    prefix = "source-tree-lock: " if columns >= 80 else ""
    last = -1
    for text in terminal.texts():
        pattern = rf"{prefix}waiting (?:(\d+) s )?for \S+ \(pid {child.pid}\) to leave (…?)(.*)"
        found = re.fullmatch(pattern, text)
        assert found is not None, text
        seconds, is_shortened, path = found.groups()
        assert last < int(seconds or 0)  # a second may be skipped where the machine is busy
        last = int(seconds or 0)
        assert str(deep_tree).endswith(path)
        assert len(text) < columns
        assert (path == str(deep_tree)) == (not is_shortened) == (len(text) < columns - 1)


@pytest.mark.parametrize(
    ("ending", "status"), [("\x03", 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_wait_that_is_ended_leaves_nothing_behind(
    ending: str | signal.Signals, status: int, tree: Path
) -> None:
    with waiting(tree) as (_, terminal):
        terminal.until("waiting")
        if isinstance(ending, str):
            terminal.type(ending)
        else:
            terminal.process.send_signal(ending)
        assert (terminal.end(), terminal.left()) == (status, "")


def test_a_wait_whose_time_is_up_leaves_one_message_behind(tree: Path) -> None:
    with waiting(tree, "--timeout", "1.2") as (child, terminal):
        assert terminal.end() == 75
    pattern = rf"source-tree-lock: waited 1.\d s for .*\(pid {child.pid}\).*\n"
    assert re.fullmatch(pattern, terminal.left())


def test_a_terminal_that_gets_narrower_gets_a_shorter_text(deep_tree: Path) -> None:
    environ = {"PYTHONIOENCODING": "ascii"}  # which has no "…"
    columns = len(str(deep_tree)) + 100
    with waiting(deep_tree, columns=columns, environ=environ) as (_, terminal):
        terminal.until(re.escape(str(deep_tree)))
        terminal.resize(50)
        terminal.until(r"leave \?.*\x1b")
        assert len(terminal.texts()[-1]) == 49


@pytest.mark.parametrize("where", ["dumb", "background"])
def test_where_no_text_can_be_taken_back_a_wait_is_said_as_in_a_log(where: str, tree: Path) -> None:
    script = f"set -m; {' '.join(COMMAND)} run '{tree}' -- echo inside"
    if where == "background":  # it would write over what the user sees of another job
        script += ' & read text; echo "$text"'
    environ = {"TERM": "dumb"} if where == "dumb" else {}
    with (
        held_elsewhere(tree) as child,
        Terminal("bash", "-c", script, columns=300, environ=environ) as terminal,
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
    option: list[str], tree: Path, deep_tree: Path
) -> None:
    other = """
        from source_tree_lock import source_tree_lock
        with source_tree_lock(sys.argv[1]):
            tell("held")
            heard()
            source_tree_lock(sys.argv[2]).acquire(timeout=60)
    """
    inner = [*COMMAND, "run", *option, tree, "--", "true"]
    with Child(other, tree, deep_tree) as child:
        child.expect("held")
        with Terminal(*COMMAND, "run", deep_tree, "--", *inner, columns=2000) as terminal:
            wait_until(lambda: not both_free(deep_tree))
            child.say()
            terminal.until("wait for each other" if option else r"(?s)each other.*waiting \d")
            terminal.type("\x03")
            assert terminal.end() == 130
    left = terminal.left().replace("^C", "")
    assert re.fullmatch("source-tree-lock: [^\n]* wait for each other[^\n]*\n", left), left
    assert bool(terminal.texts()) == (not option)


def test_quiet_says_nothing_of_a_wait(tree: Path) -> None:
    with waiting(tree, "--quiet") as (child, terminal):
        wait_until_blocked(terminal.process.pid)
        child.say()
        assert terminal.end() == 0
    assert terminal.shown == "inside\r\n"
