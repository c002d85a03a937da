"""Poetry: every hook that it runs is under the lock of its source tree."""

from __future__ import annotations

from ._shared import replace, stop_if_interrupted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    COMMAND: str
    ApplicationPlugin = object
else:
    from cleo.events.console_events import COMMAND
    from poetry.plugins.application_plugin import ApplicationPlugin

#: Where the running command writes to.
_io: Any


class LockBuilds(ApplicationPlugin):
    """Locks what Poetry builds."""

    def activate(self, application: Any) -> None:
        """Wait until the command has imported what it needs: Poetry calls this before."""
        application.event_dispatcher.add_listener(COMMAND, _lock_builds)


def _lock_builds(event: Any, *_: object) -> None:
    global _io
    _io = event.io
    replace("poetry", "build:ProjectBuilder", "from_isolated_env", _locked)


def _locked(make: classmethod[Any, Any, Any]) -> classmethod[Any, Any, Any]:
    """What makes the builders of Poetry, which gives them a runner of hooks: that is locked."""

    def from_isolated_env(cls: type, env: object, source_dir: object, runner: Any = None) -> object:
        from ..adapters import locked_runner

        runner = locked_runner(runner, say=_say, while_waiting=stop_if_interrupted)
        return make.__func__(cls, env, source_dir, runner)

    return classmethod(from_isolated_env)


def _say(sentence: str) -> None:
    plain = sentence.replace("<", r"\<")  # no markup
    _io.write_error_line(f"<warning>{plain}</>")
