"""Poetry: the source tree is held while one of its hooks runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._shared import replace, stop_if_interrupted

if TYPE_CHECKING:
    from typing import Any

    COMMAND: str
    ApplicationPlugin = object
else:
    from cleo.events.console_events import COMMAND
    from poetry.plugins.application_plugin import ApplicationPlugin

#: The input and output of the running command.
_io: Any


class LockBuilds(ApplicationPlugin):
    """Lock what Poetry builds."""

    def activate(self, application: Any) -> None:
        """Listen for the start of a command.

        Poetry calls this before a command has imported what it builds with.
        """
        application.event_dispatcher.add_listener(COMMAND, _lock_builds)


def _lock_builds(event: Any, *_: object) -> None:
    global _io
    _io = event.io
    replace("poetry", "build:ProjectBuilder", "from_isolated_env", _locked)


def _locked(make: classmethod[Any, Any, Any]) -> classmethod[Any, Any, Any]:
    """Return the class method that makes Poetry's builders, with a locked runner of hooks."""

    def from_isolated_env(cls: type, env: object, source_dir: object, runner: Any = None) -> object:
        # Imported when something is built: most commands of Poetry build nothing.
        from ..adapters import locked_runner

        runner = locked_runner(runner, say=_say, while_waiting=stop_if_interrupted)
        return make.__func__(cls, env, source_dir, runner)

    return classmethod(from_isolated_env)


def _say(sentence: str) -> None:
    escaped = sentence.replace("<", r"\<")  # Poetry reads markup
    _io.write_error_line(f"<warning>{escaped}</>")
