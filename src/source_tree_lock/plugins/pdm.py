"""PDM: the source tree is held while one of its hooks runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ._shared import replace, stop_if_interrupted

#: PDM's core object, which has the terminal.
_core: Any


def lock_builds(core: object) -> None:
    """Lock what PDM builds. PDM calls this with its core object when it starts."""
    global _core
    _core = core
    replace("pdm", "pdm.builders.base:EnvBuilder", "subprocess_runner", _locked)


def _locked(run: Callable[..., None]) -> Callable[..., None]:
    """Return the method through which PDM runs every hook, under the lock."""

    def subprocess_runner(builder: object, *args: Any, **kwargs: Any) -> None:
        # Imported when something is built: most commands of PDM build nothing.
        from ..adapters import locked_runner

        runner = functools.partial(run, builder)
        locked_runner(runner, say=_say, while_waiting=stop_if_interrupted)(*args, **kwargs)

    return subprocess_runner


def _say(sentence: str) -> None:
    _core.ui.info(sentence.replace("[", r"\["))  # escaped: PDM reads markup
