"""Record a wait in a terminal, for the README: a holder, a waiter, and what the user sees.

    python -m pip install pyte rich
    python benchmarks/recording.py

A shell runs on a pseudo-terminal. One `make` holds a source tree; the user asks who it is, and
starts another. All that the terminal shows, and when, becomes `results/waiting.svg`: a picture that
moves, and that shows the wait where it cannot move.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

import pyte
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

COLUMNS, ROWS = 80, 13
#: How long the holder's build and the waiter's take, in seconds.
FIRST, SECOND = 7, 1
#: How long the last frame stays, in seconds.
REST = 3.0
LIMIT = 60.0
OUT = Path(__file__).parent / "results" / "waiting.svg"

MAKEFILE = f"""\
SECONDS = {SECOND}
wheel:
\t@sleep $(SECONDS) && echo built by make
"""

Frame = tuple[float, tuple[str, ...]]


class Recorder:
    """A shell on a terminal, and each state of its screen with the time when it came."""

    def __init__(self, directory: Path) -> None:
        self._screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self._screen)
        self._started = time.monotonic()
        self.frames: list[Frame] = []
        ours, theirs = pty.openpty()
        self._terminal = ours
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environ = {"PATH": path, "TERM": "xterm", "PS1": "$ ", "LANG": "C.UTF-8"}
        self._shell = subprocess.Popen(
            ["setsid", "--ctty", "sh", "-i"],
            cwd=directory,
            env=self.environ,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)

    def until(self, pattern: str) -> None:
        """Record until the screen shows it."""
        deadline = time.monotonic() + LIMIT
        while not re.search(pattern, "\n".join(self._lines())):
            if time.monotonic() > deadline:
                raise SystemExit(f"the terminal never showed {pattern!r}: {self._lines()}")
            self.record(0.1)

    def record(self, seconds: float) -> None:
        """Record for a while."""
        end = time.monotonic() + seconds
        while (rest := end - time.monotonic()) > 0:
            if select.select([self._terminal], [], [], rest)[0]:
                self._stream.feed(os.read(self._terminal, 65536))
                lines = self._lines()
                if not self.frames or self.frames[-1][1] != lines:
                    self.frames.append((time.monotonic() - self._started, lines))

    def type(self, line: str) -> None:
        """Type a line as a person would."""
        for letter in line:
            os.write(self._terminal, letter.encode())
            self.record(0.03)
        self.record(0.3)
        os.write(self._terminal, b"\n")

    def end(self) -> None:
        os.close(self._terminal)
        self._shell.wait(LIMIT)

    def _lines(self) -> tuple[str, ...]:
        return tuple(line.rstrip() for line in self._screen.display)


def record(directory: Path) -> list[Frame]:
    (directory / "Makefile").write_text(MAKEFILE)
    recorder = Recorder(directory)
    recorder.until(r"\$")
    with subprocess.Popen(
        ["source-tree-lock", "run", ".", "--", "make", "wheel", f"SECONDS={FIRST}"],
        cwd=directory,
        env=recorder.environ,
        stdout=subprocess.DEVNULL,
    ):
        time.sleep(0.5)  # a user comes later; what follows says whether it holds the tree
        recorder.type("source-tree-lock status")
        recorder.until(r"(?s)held by make.*\$ ?\n")
        recorder.record(0.5)
        recorder.type("source-tree-lock run . -- make wheel")
        recorder.until("waiting 2 s for make")
        recorder.until(r"(?s)built by make\n\$")
    recorder.end()
    return recorder.frames


def picture(frames: list[Frame]) -> str:
    """All frames in one SVG, each shown in its time; the last one of the wait where none moves."""
    still = max(
        i for i, (_, lines) in enumerate(frames) if any("waiting" in each for each in lines)
    )
    length = frames[-1][0] + REST
    parts = []
    for number, (start, lines) in enumerate(frames):
        end = frames[number + 1][0] if number + 1 < len(frames) else length
        svg = drawn(lines, f"frame{number}")
        times, values = [start / length, end / length], ["visible", "hidden"]
        if number == 0:
            times[0] = 0.0
        else:
            times, values = [0.0, *times], ["hidden", *values]
        parts.append(
            f'<g visibility="{"visible" if number == still else "hidden"}">'
            f'<animate attributeName="visibility" calcMode="discrete" dur="{length:.2f}s" '
            f'repeatCount="indefinite" values="{";".join(values)}" '
            f'keyTimes="{";".join(f"{each:.4f}" for each in times)}"/>{svg}</g>'
        )
    size = re.findall(r'viewBox="[^"]*"', parts[0])[0]  # the same for all of them
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    return "\n".join([head, *parts, "</svg>\n"])


#: rich's own format, without the fonts that it loads from the net.
FORMAT = re.sub(r"(?s)@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT).replace("Fira Code, ", "")


def drawn(lines: tuple[str, ...], name: str) -> str:
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, highlight=False)
        for line in lines:
            console.print(Text(line), soft_wrap=True)
        return console.export_svg(title="", code_format=FORMAT, unique_id=name)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="project-") as directory:
        frames = record(Path(directory))
    # A letter that was typed, or half a screen, is no frame of its own.
    kept = [
        frame
        for frame, after in zip(frames, [*frames[1:], (float("inf"), ())], strict=True)
        if after[0] - frame[0] > 0.05
    ]
    OUT.write_text(picture(kept))
    print(f"{len(kept)} frames, {frames[-1][0]:.1f} s: {OUT}")


if __name__ == "__main__":
    main()
