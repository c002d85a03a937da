"""The command on a real pseudo-terminal: keys, signals and the line that ticks."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
from support import LIMIT, held_elsewhere, is_free, wait_until, wait_until_blocked

from source_tree_lock import source_tree_lock
from source_tree_lock._command import messages

from .driver import (
    COMMAND,
    LEADERS,
    NOTE,
    WIDE,
    Terminal,
    both_free,
    noted,
    python,
    wait_for_the_pids,
)

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


def test_a_terminal_that_tells_no_width_is_taken_for_a_usual_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hung_up(descriptor: int) -> os.terminal_size:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "get_terminal_size", hung_up)
    assert messages.columns() == 80
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((0, 0)))
    assert messages.columns() == 80


# A wait


@pytest.fixture
def deep_tree(tmp_path: Path) -> Path:
    """A source tree with a path that is longer than most terminals are wide."""
    tree = tmp_path / "a-directory-of-a-user" / "with-many-projects-in-it" / "project"
    tree.mkdir(parents=True)
    return tree


def waits_of(terminal: Terminal) -> list[str]:
    """What the first line of the screen has said of the wait, one after the other."""
    lines = dict.fromkeys(frame[0] for frame in terminal.frames())
    return [line for line in lines if "waiting" in line]


WIDTHS = [50, 80, 200]
#: As a screen shows it.
DOUBLED = "".join(2 * each for each in WIDE)


@pytest.mark.parametrize("columns", WIDTHS)
def test_a_wait_is_one_line_that_ticks_each_second_and_leaves_nothing_behind(
    columns: int, deep_tree: Path
) -> None:
    command = [*COMMAND, "run", deep_tree, "--", "echo", "inside"]
    with held_elsewhere(deep_tree) as child, Terminal(*command, columns=columns) as terminal:
        terminal.until(r"(?s)(?:waiting \d+ s for .*){3}")
        child.say()
        assert terminal.end() == 0
    assert terminal.screen() == ["inside"]
    told = waits_of(terminal)
    assert len(told) >= 3
    assert max(map(len, told)) < columns
    prefix = "source-tree-lock: " if columns >= 80 else ""
    last = -1
    for line in told:
        found = re.fullmatch(
            rf"{prefix}waiting (?:(\d+) s )?for \S+ \(pid {child.pid}\) to leave (…?)(.*)", line
        )
        assert found is not None, line
        seconds, is_shortened, path = found.groups()
        assert seconds is not None or last == -1  # a busy machine may be late for the first
        assert int(seconds or 0) > last  # a second may be skipped where the machine is busy
        last = int(seconds or 0)
        assert str(deep_tree).endswith(path)
        assert (path == str(deep_tree)) == (not is_shortened) == (len(line) < columns - 1)
    assert "\n" not in terminal.shown.partition("inside")[0]


@pytest.mark.parametrize("columns", WIDTHS)
def test_a_path_of_wide_letters_fits_as_well_and_leaves_nothing_behind(
    columns: int, tmp_path: Path
) -> None:
    tree = tmp_path / (WIDE * 6)
    tree.mkdir()
    environ = {"PYTHONIOENCODING": "utf-8"}
    command = [*COMMAND, "run", tree, "--", "echo", "inside"]
    with (
        held_elsewhere(tree) as child,
        Terminal(*command, columns=columns, environ=environ) as terminal,
    ):
        terminal.until(r"waiting \d+ s")
        child.say()
        assert terminal.end() == 0
    assert terminal.screen() == ["inside"]
    told = waits_of(terminal)
    assert told
    for line in told:
        # One column is left free, and another one where a letter of two does not fit.
        assert columns - 2 <= len(line) < columns or line.endswith(f"{tmp_path}/" + DOUBLED * 6)
        assert line.endswith(DOUBLED[-2:])


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize(
    ("ending", "status"),
    [("\x03", 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["Ctrl-C", "SIGTERM", "SIGHUP"],
)
def test_a_wait_that_is_ended_leaves_nothing_behind(
    ending: str | signal.Signals, status: int, columns: int, deep_tree: Path
) -> None:
    command = [*COMMAND, "run", deep_tree, "--", "echo", "inside"]
    with held_elsewhere(deep_tree) as child:
        with Terminal(*command, columns=columns) as terminal:
            terminal.until(r"waiting \d+ s")
            if isinstance(ending, str):
                terminal.type(ending)
            else:
                terminal.process.send_signal(ending)
            assert terminal.end() == status
            assert terminal.screen() == []
        child.say()
        child.expect("released")
    assert both_free(deep_tree)


def test_a_wait_whose_time_is_up_leaves_one_line_behind(tree: Path) -> None:
    command = [*COMMAND, "run", "--timeout", "1.2", tree, "--", "echo", "inside"]
    with held_elsewhere(tree) as child, Terminal(*command, columns=200) as terminal:
        assert terminal.end() == 75
        (line,) = terminal.screen()
    words = rf"source-tree-lock: timed out after \d+ s: '{tree}' is held by "
    assert re.match(words, line), line
    assert f"(pid {child.pid})" in line


def test_a_terminal_that_gets_narrower_gets_a_shorter_line(deep_tree: Path) -> None:
    command = [*COMMAND, "run", deep_tree, "--", "echo", "inside"]
    columns = len(str(deep_tree)) + 100
    with held_elsewhere(deep_tree), Terminal(*command, columns=columns) as terminal:
        terminal.until(re.escape(str(deep_tree)))
        terminal.resize(50)
        terminal.until("…")
        assert len(terminal.frames()[-1][0]) == 49


def test_a_terminal_without_the_letter_gets_another_in_its_place(deep_tree: Path) -> None:
    command = [*COMMAND, "run", deep_tree, "--", "echo", "inside"]
    environ = {"PYTHONIOENCODING": "ascii"}
    with (
        held_elsewhere(deep_tree),
        Terminal(*command, columns=50, environ=environ) as terminal,
    ):
        terminal.until("waiting 1 s")
        for line in waits_of(terminal):
            found = re.search(r" to leave \?(\S+)$", line)
            assert found is not None, line
            assert str(deep_tree).endswith(found.group(1))


@pytest.mark.parametrize("name", ["dumb", ""])
def test_a_terminal_that_cannot_write_over_a_line_gets_plain_ones(name: str, tree: Path) -> None:
    command = [*COMMAND, "run", tree, "--", "echo", "inside"]
    with (
        held_elsewhere(tree) as child,
        Terminal(*command, columns=200, environ={"TERM": name}) as terminal,
    ):
        terminal.until("waiting .*for")  # on a busy machine it may have waited for a second
        child.say()
        assert terminal.end() == 0
    first, last = terminal.screen()
    assert first.startswith("source-tree-lock: waiting ")
    assert last == "inside"
    assert "\x1b" not in terminal.shown


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_job_in_the_background_does_not_write_over_what_the_user_sees(tree: Path) -> None:
    script = f"set -m; {' '.join(COMMAND)} run '{tree}' -- echo inside & read line; echo \"$line\""
    with (
        held_elsewhere(tree) as child,
        Terminal("bash", "-c", script, columns=200) as terminal,
    ):
        terminal.until(r"source-tree-lock: waiting .*for \S+ \(pid \d+\) to leave \S+\r\n")
        assert "\x1b" not in terminal.shown
        child.say()
        terminal.until("inside")
        terminal.type("done\n")
        assert terminal.end() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="an ancestor is found in /proc")
def test_a_warning_of_the_library_stands_above_the_line(tree: Path) -> None:
    nest = """
        import signal, subprocess
        from source_tree_lock import source_tree_lock
        with source_tree_lock(sys.argv[1]):
            process = subprocess.Popen(sys.argv[2:])
            signal.signal(signal.SIGTERM, lambda *_: process.terminate())
            sys.exit(process.wait())
    """
    command = python(nest, tree, *COMMAND, "run", tree, "--", "true")
    with Terminal(*command, columns=800) as terminal:
        terminal.until("waiting 1 s")
        assert len(terminal.screen()) == 2
        terminal.process.terminate()
        assert terminal.end() == 143
        [warning] = terminal.screen()
    assert warning.startswith("source-tree-lock: Waiting for source tree")
    assert "SOURCE_TREE_LOCK_HELD" in warning


def test_quiet_says_nothing_of_a_wait(tree: Path) -> None:
    command = [*COMMAND, "run", "--quiet", tree, "--", "echo", "inside"]
    with held_elsewhere(tree) as child, Terminal(*command) as terminal:
        if sys.platform == "linux":
            wait_until_blocked(terminal.process.pid)
        child.say()
        assert terminal.end() == 0
    assert terminal.shown == "inside\r\n"
