"""The command in a real pseudo-terminal: keys, signals, and the text that ticks."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import LIMIT, Child, held_elsewhere, wait_until

from . import driver
from .driver import COMMAND, LEADERS, NOTE, Terminal, both_free, noted, python

either_way = pytest.mark.parametrize("leader", LEADERS.values(), ids=LEADERS)


def status_of(terminal: Terminal, leader: list[str]) -> int:
    return int(terminal.until(r"status (\d+)")[1]) if leader else terminal.process.wait(LIMIT)


@either_way
def test_ctrl_c_at_the_terminal_reaches_the_command_exactly_once(
    leader: list[str], tree: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    expected: list[str] = []
    with Terminal(*leader, *COMMAND, "run", tree, "--", *python(NOTE, log)) as terminal:
        pid, wrapper = driver.wait_for_the_pids(log)
        for key, name in (("\x03", "SIGINT"), ("\x1c", "SIGQUIT")):
            # Else a second copy could come so soon that the kernel makes one of the two.
            os.kill(wrapper, signal.SIGSTOP)
            terminal.type(key)
            expected.append(name)
            wait_until(lambda: noted(log) == expected)
            os.kill(wrapper, signal.SIGCONT)
            # That copy would come before this one.
            os.kill(wrapper, signal.SIGTERM)
            expected.append("SIGTERM")
            wait_until(lambda: noted(log) == expected)
        assert not both_free(tree)
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
        pid, wrapper = driver.wait_for_the_pids(log)
        terminal.hang_up()
        wait_until(lambda: "SIGHUP" in noted(log))
        os.kill(wrapper, signal.SIGTERM)
        wait_until(lambda: "SIGTERM" in noted(log))
        assert not both_free(tree)
        os.kill(pid, signal.SIGUSR1)


# A wait


@contextmanager
def waiting(tree: Path, *options: object, columns: int = 300) -> Iterator[tuple[Child, Terminal]]:
    """`run` in a terminal, for a tree that another process holds."""
    command = [*COMMAND, "run", *options, tree, "--", "echo", "inside"]
    with held_elsewhere(tree) as child, Terminal(*command, columns=columns) as terminal:
        yield child, terminal


@pytest.mark.parametrize("columns", [50, 80, 250])
def test_a_wait_is_one_text_that_ticks_each_second_and_leaves_nothing_behind(
    columns: int, tmp_path: Path
) -> None:
    deep_tree = tmp_path / "a-directory-of-a-user" / "with-many-projects-in-it" / "project"
    deep_tree.mkdir(parents=True)
    with waiting(deep_tree, columns=columns) as (child, terminal):
        terminal.until(r"(?s)(?:waiting \d+ s for .*){3}")
        child.say()
        assert terminal.end() == 0
    assert terminal.left() == "inside\n"
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


# In the background, it would write over what the user sees of another job.
@pytest.mark.parametrize("script", ["TERM=dumb {}", "set -m; {} & read text"])
def test_where_no_text_can_be_taken_back_a_wait_is_said_as_in_a_log(
    script: str, tree: Path
) -> None:
    script = script.format(f"{' '.join(COMMAND)} run '{tree}' -- echo inside")
    with held_elsewhere(tree) as child, Terminal("bash", "-c", script, columns=300) as terminal:
        terminal.until(r"source-tree-lock: waiting .*for \S+ \(pid \d+\) to leave \S+\r\n")
        child.say()
        terminal.until(rf"source-tree-lock: acquired {tree} after \d+ s\r\ninside")
        assert "\x1b" not in terminal.shown
        terminal.type("done\n")
        assert terminal.end() == 0
