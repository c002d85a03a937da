"""Ctrl-C at every line: nothing is held once the lock object is released or dropped."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import LIMIT

from .crew import Crew

# Enters and leaves all the time, for short whiles, until it is told to end.
_RIVAL = """
    lock = source_tree_lock(sys.argv[1])
    tell("ready")
    while not select.select([connection], [], [], 0)[0]:
        with lock:
            time.sleep(random.random() * 0.001)
        time.sleep(random.random() * 0.0005)
"""
# A signal handler runs between two byte codes. Here, an error comes before each line of the library
# in turn; by the clock, the machine's load would choose the lines. An interruption of an entry or
# exit may leave the tree held until the lock object is released or dropped, as with every lock of
# Python: then it is released here. A line that starts with `with` is left out: it is traced once
# more before `__exit__` is called, where no signal handler runs; an error there would skip it.
_INTERRUPTED = """
    import linecache
    tree, step = sys.argv[1], int(sys.argv[2])
    warnings.simplefilter("ignore", ResourceWarning)  # it was dropped while it held the tree

    def interrupt(frame, event, argument):
        global lines
        if event == "call" and "source_tree_lock" not in frame.f_code.co_filename:
            return None
        code = linecache.getline(frame.f_code.co_filename, frame.f_lineno).split()
        if event == "line" and code[:1] != ["with"]:
            lines -= 1
            if lines == 0:
                raise KeyboardInterrupt
        return interrupt

    def enter_and_leave():
        lock = source_tree_lock(tree)
        try:
            sys.settrace(interrupt)
            with lock:
                pass
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        if lock.is_owner():
            lock.release()
        assert not lock.is_owner()

    for number in range(1, 10_000, step):
        lines = number
        enter_and_leave()
        gc.collect()
        with source_tree_lock(tree, timeout=120):  # a lock that was left would keep it out
            pass
        if lines > 0:
            break
    tell("interrupted", number > 100)
"""


@pytest.mark.timeout(5 * LIMIT)
@pytest.mark.parametrize("contended", [False, True], ids=["free", "busy"])
def test_interrupted_at_any_line_it_leaves_nothing_held(
    crew: Crew, tree: Path, long_run: bool, contended: bool
) -> None:
    if contended:
        crew.start(_RIVAL, tree).expect("ready")
    member = crew.start(_INTERRUPTED, tree, 1 if long_run or not contended else 7)
    assert member.line(3 * LIMIT) == "interrupted True"
