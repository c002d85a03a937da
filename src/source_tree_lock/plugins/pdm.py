"""PDM: every hook that it runs is under the lock of its source tree."""

from __future__ import annotations

import functools

from ._shared import is_on, listen_for_ctrl_c, say_unlocked, stop_if_interrupted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pdm.builders.base import EnvBuilder
    from pdm.core import Core

    from .. import Wait


def lock_builds(_: Core) -> None:
    """Put the lock around ``EnvBuilder.subprocess_runner``, through which PDM runs every hook."""
    if not is_on():
        return
    try:
        from pdm.builders.base import EnvBuilder

        run = EnvBuilder.subprocess_runner
    except (ImportError, AttributeError) as error:
        say_unlocked("pdm", error)
        return
    if run.__module__ == __name__:
        return  # this process has started PDM before

    @functools.wraps(run, assigned=("__name__", "__doc__"))
    def subprocess_runner(
        self: EnvBuilder,
        cmd: Sequence[str],
        cwd: str | None = None,
        extra_environ: Mapping[str, str] | None = None,
    ) -> None:
        from rich.markup import escape

        from ..adapters import locked_runner

        def tell(wait: Wait) -> None:
            self._env.project.core.ui.info(escape(str(wait)))

        locked = locked_runner(
            functools.partial(run, self), on_wait=tell, while_waiting=stop_if_interrupted
        )
        locked(cmd, cwd, extra_environ)

    listen_for_ctrl_c()
    EnvBuilder.subprocess_runner = subprocess_runner
