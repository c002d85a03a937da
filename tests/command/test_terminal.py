"""The command in a real pseudo-terminal: keys, signals, and the text that ticks."""

from __future__ import annotations

import os
import re
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
from support import LIMIT, held_elsewhere, is_free, wait_until, wait_until_blocked

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
            assert terminal.until(r"status (\d+)")[1] == "5"
        else:
            assert terminal.process.wait(LIMIT) == 5


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
        if leader:
            assert terminal.until(r"status (\d+)")[1] == "130"
        else:
            assert terminal.process.wait(LIMIT) == 130
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


ENDINGS = {"granted": None, "Ctrl-C": "\x03", "SIGTERM": signal.SIGTERM, "SIGHUP": signal.SIGHUP}


@pytest.mark.parametrize("columns", [50, 80, 250])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_wait_is_one_text_that_ticks_each_second_and_leaves_nothing_behind(
    ending: str, columns: int, deep_tree: Path, long_run: bool
) -> None:
    if ending != "granted" and columns != 80 and not long_run:
        pytest.skip("needs --long")
    how, ticks = ENDINGS[ending], 3 if ending == "granted" else 1
    command = [*COMMAND, "run", deep_tree, "--", "echo", "inside"]
    with held_elsewhere(deep_tree) as child, Terminal(*command, columns=columns) as terminal:
        terminal.until(rf"(?s)(?:waiting \d+ s for .*){{{ticks}}}")
        if how is None:
            child.say()
        elif isinstance(how, str):
            terminal.type(how)
        else:
            terminal.process.send_signal(how)
        expected = {"granted": 0, "Ctrl-C": 130, "SIGTERM": 143, "SIGHUP": 129}
        assert terminal.end() == expected[ending]
    assert terminal.screen() == (["inside"] if how is None else [""])
    if how is not None:
        return  # a terminal shows the key, ^C
    told = [row for row in dict.fromkeys(f[0] for f in terminal.frames()) if "waiting" in row]
    assert len(told) >= ticks
    prefix = "source-tree-lock: " if columns >= 80 else ""
    last = -1
    for text in told:
        pattern = rf"{prefix}waiting (?:(\d+) s )?for \S+ \(pid {child.pid}\) to leave (…?)(.*)"
        found = re.fullmatch(pattern, text)
        assert found is not None, text
        seconds, is_shortened, path = found.groups()
        assert last < int(seconds or 0)  # a second may be skipped where the machine is busy
        last = int(seconds or 0)
        assert str(deep_tree).endswith(path)
        assert len(text) < columns
        assert (path == str(deep_tree)) == (not is_shortened) == (len(text) < columns - 1)


def test_a_wait_whose_time_is_up_leaves_one_message_behind(tree: Path) -> None:
    command = [*COMMAND, "run", "--timeout", "1.2", tree, "--", "echo", "inside"]
    with held_elsewhere(tree) as child, Terminal(*command, columns=300) as terminal:
        assert terminal.end() == 75
        (text,) = terminal.screen()
    assert text.startswith("source-tree-lock: ")
    assert f"(pid {child.pid})" in text


def test_a_terminal_that_gets_narrower_gets_a_shorter_text(deep_tree: Path) -> None:
    command = [*COMMAND, "run", deep_tree, "--", "echo", "inside"]
    environ = {"PYTHONIOENCODING": "ascii"}  # which has no "…"
    columns = len(str(deep_tree)) + 100
    with (
        held_elsewhere(deep_tree),
        Terminal(*command, columns=columns, environ=environ) as terminal,
    ):
        terminal.until(re.escape(str(deep_tree)))
        terminal.resize(50)
        terminal.until(r"leave \?")
        assert len(terminal.frames()[-1][0]) == 49


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
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
def test_a_warning_of_the_library_stands_above_the_text(tree: Path) -> None:
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
        terminal.until("(?s)environ.*waiting 2 s")
        assert len(terminal.screen()) == 2
        terminal.process.terminate()
        assert terminal.end() == 143
        [warning] = terminal.screen()
    assert warning.startswith("source-tree-lock: ")


def test_quiet_says_nothing_of_a_wait(tree: Path) -> None:
    command = [*COMMAND, "run", "--quiet", tree, "--", "echo", "inside"]
    with held_elsewhere(tree) as child, Terminal(*command) as terminal:
        wait_until_blocked(terminal.process.pid)
        child.say()
        assert terminal.end() == 0
    assert terminal.shown == "inside\r\n"
