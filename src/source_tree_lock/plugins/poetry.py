"""Poetry: every hook that it runs is under the lock of its source tree."""

from __future__ import annotations

from cleo.events.console_events import COMMAND
from poetry.plugins.application_plugin import ApplicationPlugin

from ._shared import is_on, listen_for_ctrl_c, say_unlocked, stop_if_interrupted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from build import ProjectBuilder
    from cleo.events.console_command_event import ConsoleCommandEvent
    from cleo.io.io import IO
    from poetry.console.application import Application

    from .. import Wait

_io: IO


class LockBuilds(ApplicationPlugin):
    """Locks the builds of each command that Poetry runs."""

    def activate(self, application: Application) -> None:
        """Wait until the command has imported what it needs: few commands build."""
        if is_on() and application.event_dispatcher is not None:
            application.event_dispatcher.add_listener(COMMAND, _lock_builds)


def _lock_builds(event: ConsoleCommandEvent, *_: object) -> None:
    """Put the lock around the runner that Poetry gives to ``ProjectBuilder.from_isolated_env``."""
    global _io
    _io = event.io
    try:
        from build import ProjectBuilder

        make = ProjectBuilder.from_isolated_env.__func__
    except (ImportError, AttributeError) as error:
        say_unlocked("poetry", error)
        return
    if make.__module__ == __name__:
        return  # this process has run a command before

    def from_isolated_env(
        cls: type[ProjectBuilder], env: Any, source_dir: Any, runner: Any = None
    ) -> ProjectBuilder:
        from ..adapters import locked_runner

        locked = locked_runner(runner, on_wait=_tell, while_waiting=stop_if_interrupted)
        return make(cls, env, source_dir, locked)

    listen_for_ctrl_c()
    ProjectBuilder.from_isolated_env = classmethod(from_isolated_env)


def _tell(wait: Wait) -> None:
    from cleo.formatters.formatter import Formatter

    _io.write_error_line(f"<warning>{Formatter.escape(str(wait))}</>")
