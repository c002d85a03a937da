"""Every state that a small model can reach, breadth first: the shortest way to a bad one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, NamedTuple, TypeVar

S = TypeVar("S", bound=Hashable)


class Verdict(NamedTuple):
    """What was found.

    Attributes:
        states: how many states there are, up to the bad one.
        story: the moves to the first bad state; empty if there is none.
    """

    states: int
    story: list[str]


class Model(Generic[S]):
    """A first state, the moves from each, and what must never be."""

    def __init__(
        self,
        first: S,
        moves: Callable[[S], Iterable[tuple[str, S]]],
        is_bad: Callable[[S], bool],
        is_over: Callable[[S], bool],
    ) -> None:
        self._first = first
        self._moves = moves
        self._is_bad = is_bad
        self._is_over = is_over

    def explore(self) -> Verdict:
        """Look at every state. A state that is not over and has no way on is bad as well."""
        before: dict[S, tuple[S, str] | None] = {self._first: None}
        to_see = deque([self._first])
        while to_see:
            state = to_see.popleft()
            moves = list(self._moves(state))
            if self._is_bad(state) or not (moves or self._is_over(state)):
                return Verdict(len(before), self._story(state, before))
            for name, following in moves:
                if following not in before:
                    before[following] = (state, name)
                    to_see.append(following)
        return Verdict(len(before), [])

    def _story(self, state: S, before: dict[S, tuple[S, str] | None]) -> list[str]:
        story: list[str] = []
        while (step := before[state]) is not None:
            state, name = step
            story.insert(0, name)
        return story
