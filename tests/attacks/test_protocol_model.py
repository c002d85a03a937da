"""The protocol of the two locks and of handing over, as models of which every state is looked at.

A model that refutes nothing proves nothing: each is also run on the variants that people write
first, and must refute them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from .explorer import Model, Verdict

# The two locks


class Rules(NamedTuple):
    """The protocol, and what may be left out of it."""

    locks_tree: bool = True
    checks_file: bool = True
    checks_tree: bool = True
    unlinks_at_release: bool = False


class Process(NamedTuple):
    """One that wants in.

    Attributes:
        kind: "ours", or "uv", which locks the file only and never looks again.
        directory: which of the lock directories it uses.
        step: what it does next, or "inside", or "out" for good.
        file: inode of the lock file that it opened.
        tree: inode of the tree that it opened; inside, of the one that it works in.
    """

    kind: str
    directory: int
    step: str = "open"
    file: int = 0
    tree: int = 0


class World(NamedTuple):
    """Processes, what paths lead to (0: nothing), who has which lock, and what may yet happen."""

    processes: tuple[Process, ...]
    files: tuple[int, ...] = (0, 0)
    tree: int = 1
    locks: frozenset[tuple[int, int]] = frozenset()
    inodes: int = 1
    unlinks: int = 0
    replaces: int = 0
    kills: int = 0

    def owner(self, inode: int) -> int | None:
        return next((owner for locked, owner in self.locks if locked == inode), None)

    def is_quiet(self) -> bool:
        """Nobody is inside, or has looked at the file, or is a uv that would not look again."""
        return not any(
            each.step in ("check tree", "inside", "unlink", "release file")
            or (each.kind == "uv" and each.step == "lock file")
            for each in self.processes
        )


def _update(world: World, number: int, **changes: Any) -> World:
    processes = list(world.processes)
    processes[number] = processes[number]._replace(**changes)
    return world._replace(processes=tuple(processes))


def _unlock(world: World, number: int, inode: int | None = None) -> World:
    """Without one lock, or without all that it has."""
    kept = (lock for lock in world.locks if lock[1] != number or inode not in (None, lock[0]))
    return world._replace(locks=frozenset(kept))


def _step(world: World, number: int, rules: Rules) -> Iterator[tuple[str, World]]:
    """What one process can do next."""
    process = world.processes[number]

    def goes_to(step: str, world: World = world, **changes: Any) -> tuple[str, World]:
        return process.step, _update(world, number, step=step, **changes)

    def restarted(world: World) -> tuple[str, World]:
        return goes_to("open", _unlock(world, number), file=0, tree=0)

    def entered() -> tuple[str, World]:
        return goes_to("inside", tree=world.tree if not rules.checks_tree else process.tree)

    if process.step == "open":
        yield goes_to("open file", tree=world.tree)
    elif process.step == "open file":
        if not world.files[process.directory]:
            files = list(world.files)
            files[process.directory] = world.inodes + 1
            world = world._replace(files=tuple(files), inodes=world.inodes + 1)
        yield goes_to("lock file", world, file=world.files[process.directory])
    elif process.step == "lock file" and world.owner(process.file) is None:
        world = world._replace(locks=world.locks | {(process.file, number)})
        after = "lock tree" if rules.locks_tree else "check file"
        yield goes_to(after if process.kind == "ours" else "inside", world)
    elif process.step == "lock tree" and world.owner(process.tree) is None:
        yield goes_to("check file", world._replace(locks=world.locks | {(process.tree, number)}))
    elif process.step == "check file":
        if rules.checks_file and world.files[process.directory] != process.file:
            yield restarted(world)
        else:
            yield goes_to("check tree")
    elif process.step == "check tree":
        if rules.checks_tree and world.tree != process.tree:
            yield restarted(world)
        else:
            yield entered()
    elif process.step == "inside":
        after = "unlink" if rules.unlinks_at_release else "release file"
        yield goes_to(
            after if process.kind == "ours" else "release file",
            _unlock(world, number, process.tree),
        )
    elif process.step == "unlink":
        kept = [
            0 if directory == process.directory else file
            for directory, file in enumerate(world.files)
        ]
        yield goes_to("release file", world._replace(files=tuple(kept)))
    elif process.step == "release file":
        yield goes_to("out", _unlock(world, number), file=0, tree=0)
    if process.step in ("lock file", "lock tree") and process.kind == "ours":
        _, given_up = goes_to("out", _unlock(world, number), file=0, tree=0)
        yield "times out", given_up


def _moves(world: World, rules: Rules) -> Iterator[tuple[str, World]]:
    for number, process in enumerate(world.processes):
        for name, following in _step(world, number, rules):
            yield f"{process.kind} {number}: {name}", following
        if world.kills and process.step not in ("open", "out"):
            killed = _update(_unlock(world, number), number, step="out", file=0, tree=0)
            yield f"kill {number}", killed._replace(kills=world.kills - 1)


def _adversary(world: World, *, when_quiet: bool) -> Iterator[tuple[str, World]]:
    """Deletes lock files, and puts another tree in the place of the tree."""
    for directory, file in enumerate(world.files):
        if file and world.unlinks and (world.is_quiet() or not when_quiet):
            files = list(world.files)
            files[directory] = 0
            yield (
                f"delete lock file {directory}",
                world._replace(files=tuple(files), unlinks=world.unlinks - 1),
            )
    if world.replaces:
        inode = world.inodes + 1
        yield "replace tree", world._replace(tree=inode, inodes=inode, replaces=world.replaces - 1)


def _two_inside(world: World) -> bool:
    """Two in one tree. (A uv takes the path for the tree: it is in what the path leads to.)"""
    inside = [each.tree for each in world.processes if each.step == "inside"]
    return len(inside) > len(set(inside))


def _check(world: World, rules: Rules, *, when_quiet: bool = False) -> Verdict:
    def moves(world: World) -> Iterator[tuple[str, World]]:
        yield from _moves(world, rules)
        yield from _adversary(world, when_quiet=when_quiet)

    def is_over(world: World) -> bool:
        return all(each.step == "out" for each in world.processes)

    return Model(world, moves, _two_inside, is_over).explore()


#: Two with one temporary directory and one with another; files and the tree are pulled away.
_PULLED_AWAY = World(
    (Process("ours", 0), Process("ours", 0), Process("ours", 1)), unlinks=1, replaces=1
)
#: On a file system where trees cannot be locked; files are deleted when nobody is inside.
_LOCK_FILE_ALONE = World((Process("ours", 0),) * 3, unlinks=2, kills=1)
#: With uv, which does not look again after waiting.
_WITH_UV = World((Process("ours", 0), Process("ours", 0), Process("uv", 0)), unlinks=1, kills=1)


@pytest.mark.parametrize(
    ("world", "rules", "when_quiet"),
    [
        pytest.param(_PULLED_AWAY, Rules(), False, id="pulled-away"),
        pytest.param(_LOCK_FILE_ALONE, Rules(locks_tree=False), True, id="lock-file-alone"),
        pytest.param(_WITH_UV, Rules(), True, id="with-uv"),
    ],
)
def test_two_are_never_inside_and_somebody_can_always_go_on(
    world: World,
    rules: Rules,
    when_quiet: bool,
    count_cases: Callable[[int], None],
    long_run: bool,
) -> None:
    if long_run:
        world = world._replace(kills=2, unlinks=2)
    verdict = _check(world, rules, when_quiet=when_quiet)
    assert not verdict.story
    assert verdict.states > 1000, "the model is too small to show anything"
    count_cases(verdict.states)


@pytest.mark.parametrize(
    ("world", "rules", "when_quiet"),
    [
        pytest.param(_PULLED_AWAY, Rules(locks_tree=False), False, id="no-lock-on-the-tree"),
        pytest.param(_PULLED_AWAY, Rules(checks_tree=False), False, id="no-look-at-the-tree"),
        pytest.param(
            _LOCK_FILE_ALONE,
            Rules(locks_tree=False, checks_file=False),
            True,
            id="no-look-at-the-lock-file",
        ),
        pytest.param(_WITH_UV, Rules(checks_file=False), True, id="no-look-at-the-lock-file-uv"),
        pytest.param(
            _WITH_UV._replace(unlinks=0),
            Rules(unlinks_at_release=True),
            True,
            id="unlink-at-release",
        ),
    ],
)
def test_the_model_refutes_a_protocol_that_leaves_something_out(
    world: World, rules: Rules, when_quiet: bool
) -> None:
    assert _check(world, rules, when_quiet=when_quiet).story


# Handing over


class Belief(NamedTuple):
    """When a child believes the token that it was handed."""

    asks_the_kernel: bool = True
    reads_again: bool = True


class Hold(NamedTuple):
    """A parent that hands its hold to a child, and a stranger that may get in between.

    Attributes:
        owner: who has the lock of the lock file: "", "parent", "child" or "stranger".
        record: the token in the lock file: "", "first", "second" or "stranger's".
        parent: "out", "in the first", "released", "in the second", "another program" or "dead".
        child: "" (not started), "tries", "has read", "has asked", "inside by token" or "inside".
        stranger: "out", "locked" or "inside".
        faults: how many more writes may fail.
    """

    owner: str = ""
    record: str = ""
    parent: str = "out"
    child: str = ""
    stranger: str = "out"
    faults: int = 1


def _written(hold: Hold, record: str) -> Iterator[Hold]:
    """The record is written, or not: it is a courtesy."""
    yield hold._replace(record=record)
    if hold.faults and hold.record != record:
        yield hold._replace(faults=hold.faults - 1)


def _parents_moves(hold: Hold) -> Iterator[tuple[str, Hold]]:
    # A parent that lets go while a child of its is inside breaks the rule of handing over. The
    # child is inside from the moment that it asks, if it then finds the token a second time.
    may_let_go = hold.child not in ("inside by token", "has asked")
    for before, during, after, token in (
        ("out", "in the first", "released", "first"),
        ("released", "in the second", "dead", "second"),
    ):
        if hold.parent == before and not hold.owner:
            for following in _written(hold._replace(owner="parent", parent=during), token):
                yield f"parent locks: {following.record}", following
        if hold.parent == during and may_let_go:
            for following in _written(hold, ""):
                yield "parent lets go", following._replace(owner="", parent=after)
            for end in ("another program", "dead"):
                yield f"parent becomes {end}", hold._replace(owner="", parent=end)
    if hold.parent == "in the first" and hold.record == "first" and not hold.child:
        yield "parent starts the child", hold._replace(child="tries")


def _strangers_moves(hold: Hold) -> Iterator[tuple[str, Hold]]:
    if hold.stranger == "out" and not hold.owner:
        yield "stranger locks", hold._replace(owner="stranger", stranger="locked")
    if hold.stranger == "locked":
        # It may have no right to write, which is no fault.
        for record in {hold.record, "stranger's"}:
            yield "stranger enters", hold._replace(record=record, stranger="inside")
    if hold.stranger == "inside":
        record = "" if hold.record == "stranger's" else hold.record
        yield "stranger leaves", hold._replace(owner="", record=record, stranger="out")


def _childs_moves(hold: Hold, belief: Belief) -> Iterator[tuple[str, Hold]]:
    lives = hold.parent not in ("dead", "out")
    if hold.child == "tries" and not hold.owner:
        yield "child locks", hold._replace(owner="child", child="inside")
    if hold.child == "tries" and hold.owner and hold.record == "first":
        yield "child reads the token", hold._replace(child="has read")
    if hold.child == "has read":
        good = hold.owner == "parent" if belief.asks_the_kernel else lives
        after = "has asked" if belief.reads_again else "inside by token"
        yield "child asks who holds it", hold._replace(child=after if good else "tries")
    if hold.child == "has asked":
        good = hold.record == "first"
        yield "child reads again", hold._replace(child="inside by token" if good else "tries")
    if hold.child == "inside by token":
        yield "child leaves", hold._replace(child="gone")
    if hold.child == "inside":
        yield "child leaves", hold._replace(child="gone", owner="")


def _enters_a_hold_that_is_over(hold: Hold) -> bool:
    others = hold.stranger == "inside" or hold.parent == "in the second"
    return hold.child.startswith("inside") and others


def _check_handover(belief: Belief) -> Verdict:
    def moves(hold: Hold) -> Iterator[tuple[str, Hold]]:
        yield from _parents_moves(hold)
        yield from _strangers_moves(hold)
        yield from _childs_moves(hold, belief)

    def is_over(hold: Hold) -> bool:
        return True  # who waits for whom is the other model's business

    return Model(Hold(), moves, _enters_a_hold_that_is_over, is_over).explore()


def test_a_child_enters_by_its_token_only_while_the_hold_lasts(
    count_cases: Callable[[int], None],
) -> None:
    verdict = _check_handover(Belief())
    assert not verdict.story
    assert verdict.states > 100, "the model is too small to show anything"
    count_cases(verdict.states)


@pytest.mark.parametrize("belief", [Belief(asks_the_kernel=False), Belief(reads_again=False)])
def test_the_model_refutes_a_token_that_is_believed_too_easily(belief: Belief) -> None:
    """Because its writer lives, or because it was there a moment before."""
    assert _check_handover(belief).story
