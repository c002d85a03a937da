"""The protocol as a model of which every state is looked at, breadth first.

A process holds a tree twice, and hands its first hold to two children that outlive it. A stranger
wants in as well. The holder may leave or be killed at any moment, and the lock file be deleted. A
model that refutes nothing proves nothing: it is also run on protocols that leave something out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import pytest

HOLDER, CHILDREN, STRANGER = 0, (1, 2), 3
TREE, INNER = "tree", "inner lock file"
#: What a process does, in this order, and what it may not do at the outermost level.
ENTERS = ("open", "lock file", "lock tree", "write record", "probe", "check file", "inside")
LEAVES = {"inside": "unlock tree", "unlock tree": "blank", "blank": "unlock file"}
#: Below the hold of another process.
BELOW = ("open inner", "lock inner", "check outer", "inside below")
OVER = ("not started", "out", "dead")


class Rules(NamedTuple):
    """The protocol, and what may be left out of it."""

    locks_tree: bool = True
    checks_file: bool = True
    probes: bool = True  # whether somebody is inside a hold that is over
    records_before_probe: bool = True
    checks_outer: bool = True  # once more, after the inner lock is granted
    compares_token: bool = True
    asks_tree: bool = True  # who has it, where no record can be read

    def enters(self) -> tuple[str, ...]:
        late = (*ENTERS[:3], *ENTERS[4:6], *ENTERS[3:4], *ENTERS[6:])
        return ENTERS if self.records_before_probe else late


class World(NamedTuple):
    """Where each process is, which has which lock, and what may yet happen.

    A deleted lock file is the next generation: the path leads to another file then.
    """

    steps: tuple[str, ...] = ("open", "not started", "not started", "open")
    opened: tuple[int, ...] = (0, 0, 0, 0)
    locks: frozenset[tuple[object, int]] = frozenset()
    records: tuple[int, ...] = (0, 0)  # tokens, by generation
    generation: int = 0
    holds: int = 1  # which hold of the holder it is
    kills: int = 1
    deletions: int = 1

    def owner(self, what: object) -> int | None:
        return next((owner for locked, owner in self.locks if locked == what), None)

    def goes_to(self, who: int, step: str) -> World:
        steps = (*self.steps[:who], step, *self.steps[who + 1 :])
        return self._replace(steps=steps)

    def locked(self, who: int, what: object) -> World:
        return self._replace(locks=self.locks | {(what, who)})

    def unlocked(self, who: int, *what: object) -> World:
        """Without these locks of a process, or without all that it has."""
        kept = (each for each in self.locks if each[1] != who or (what and each[0] not in what))
        return self._replace(locks=frozenset(kept))

    def written(self, who: int, token: int) -> World:
        records = list(self.records)
        records[self.opened[who]] = token
        return self._replace(records=tuple(records))

    def lasts(self, rules: Rules) -> bool:
        """Whether a child believes that the first hold lasts."""
        owner, record = self.owner(self.generation), self.records[self.generation]
        if record and rules.compares_token:
            return record == 1 and owner == HOLDER
        on_tree = self.owner(TREE) if rules.asks_tree else None
        return (owner if on_tree is None else on_tree) == HOLDER


def _step(world: World, who: int, rules: Rules) -> Iterator[World]:
    """What one process can do next."""
    step, file = world.steps[who], world.opened[who]
    names = rules.enters()
    after = names[names.index(step) + 1] if step in names[:-1] else ""
    if step == "open":
        opened = (*world.opened[:who], world.generation, *world.opened[who + 1 :])
        yield world._replace(opened=opened).goes_to(who, "lock file")
    elif step in ("lock file", "lock tree"):
        what = file if step == "lock file" else TREE
        if what == TREE and not rules.locks_tree:
            yield world.goes_to(who, after)
        elif world.owner(what) is None:
            yield world.locked(who, what).goes_to(who, after)
        elif who in CHILDREN and world.lasts(rules):
            yield world.unlocked(who).goes_to(who, "open inner")
    elif step == "write record":
        yield world.written(who, world.holds if who == HOLDER else 10 + who).goes_to(who, after)
    elif step == "probe" and (world.owner(INNER) is None or not rules.probes):
        yield world.goes_to(who, after)
    elif step == "check file":
        is_replaced = rules.checks_file and file != world.generation
        yield world.unlocked(who).goes_to(who, "open") if is_replaced else world.goes_to(who, after)
    elif step in LEAVES:
        if step == "unlock tree":
            world = world.unlocked(who, TREE)
        elif step == "blank":
            world = world.written(who, 0)
        yield world.goes_to(who, LEAVES[step])
    elif step == "unlock file":
        yield world.unlocked(who).goes_to(who, "out")
    elif step == "open inner" or (step == "lock inner" and world.owner(INNER) is None):
        if step == "lock inner":
            world = world.locked(who, INNER)
        yield world.goes_to(who, BELOW[BELOW.index(step) + 1])
    elif step == "check outer":
        is_over = rules.checks_outer and not world.lasts(rules)
        yield world.unlocked(who).goes_to(who, "open") if is_over else world.goes_to(who, BELOW[3])
    elif step == "inside below":
        yield world.unlocked(who).goes_to(who, "out")


def _moves(world: World, rules: Rules) -> Iterator[tuple[str, World]]:
    for who in range(4):
        for following in _step(world, who, rules):
            yield f"{who}: {world.steps[who]}", following
    step = world.steps[HOLDER]
    if step == "inside" and world.holds == 1:
        for child in CHILDREN:
            if world.steps[child] == "not started":
                yield f"{child}: starts", world.goes_to(child, "open")
    if step == "out" and world.holds == 1:
        yield "0: enters again", world._replace(holds=2).goes_to(HOLDER, "open")
    if world.kills and step not in OVER:
        killed = world.unlocked(HOLDER).goes_to(HOLDER, "dead")
        yield "0: is killed", killed._replace(kills=world.kills - 1)
    # What a child of the first hold believes of the second is a matter of the record.
    if world.deletions and world.holds == 1:
        deleted = world._replace(generation=world.generation + 1, deletions=world.deletions - 1)
        yield "the lock file is deleted", deleted


def _two_inside(world: World) -> bool:
    inside = {who for who in range(4) if world.steps[who].startswith("inside")}
    if HOLDER in inside and world.holds == 1:  # one child may be inside its hold
        inside -= {child for child in CHILDREN if world.steps[child] == "inside below"}
        below = world.steps.count("inside below")
        return len(inside) > 1 or below > 1
    return len(inside) > 1


def _refute(world: World, rules: Rules) -> tuple[int, list[str]]:
    """The number of states, and the moves to the first bad one, or to one without a way on."""
    before: dict[World, tuple[World, str] | None] = {world: None}
    to_see = deque([world])
    while to_see:
        state = to_see.popleft()
        moves = list(_moves(state, rules))
        if _two_inside(state) or not (moves or all(step in OVER for step in state.steps)):
            names: list[str] = []
            while (origin := before[state]) is not None:
                state, name = origin
                names.insert(0, name)
            return len(before), names or ["at the start"]
        for name, following in moves:
            if following not in before:
                before[following] = (state, name)
                to_see.append(following)
    return len(before), []


@pytest.mark.parametrize(("kills", "deletions"), [(1, 0), (0, 1)], ids=["killed", "deleted"])
def test_two_are_never_inside_and_somebody_can_always_go_on(
    kills: int, deletions: int, long_run: bool
) -> None:
    world = World(kills=1, deletions=1) if long_run else World(kills=kills, deletions=deletions)
    if deletions and not long_run:  # one child: the second makes it take ten times as long
        world = world.goes_to(CHILDREN[1], "out")
    states, moves = _refute(world, Rules())
    assert not moves
    assert states > 1000, "the model is too small to show anything"


@pytest.mark.parametrize(
    ("left_out", "kills", "deletions"),
    [
        (["locks_tree"], 0, 1),
        (["locks_tree", "checks_file"], 0, 1),
        (["probes"], 1, 0),
        (["records_before_probe"], 0, 0),
        (["checks_outer"], 1, 0),
        (["compares_token"], 0, 0),
        (["asks_tree"], 0, 1),
    ],
)
def test_the_model_refutes_a_protocol_that_leaves_something_out(
    left_out: list[str], kills: int, deletions: int
) -> None:
    rules = Rules(**dict.fromkeys(left_out, False))
    assert _refute(World(kills=kills, deletions=deletions), rules)[1]
