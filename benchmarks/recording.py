"""Record a wait in a terminal, for the README: a holder, a waiter, and what the user sees.

    python -m pip install pyte && python benchmarks/recording.py

One `make` holds a source tree; the user asks who it is, and starts another. What a terminal shows
becomes `results/waiting.svg`, a picture that moves, and that shows the wait where it cannot move.
"""

import os
import pty
import re
import select
import subprocess
import sys
import tempfile
import time
from html import escape
from pathlib import Path

import pyte

COLUMNS, ROWS, LETTER, LINE = 80, 13, 8.4, 19
FIRST, SECOND, REST = 7, 1, 3.0  # seconds: the holder's build, the waiter's, and the last frame
OUT = Path(__file__).parent / "results" / "waiting.svg"
MAKEFILE = f"SECONDS = {SECOND}\nwheel:\n\t@sleep $(SECONDS) && echo built by make\n"
TITLE = "A terminal: status names make as the holder; run waits for it, then builds"

Frame = tuple[float, list[str]]


class Recorder:
    """A shell on a terminal, and each state of its screen with the time when it came."""

    def __init__(self, directory: str) -> None:
        self._screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self._screen)
        self._started = time.monotonic()
        self.frames: list[Frame] = []
        self._terminal, theirs = pty.openpty()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environ = {"PATH": path, "TERM": "xterm", "PS1": "$ ", "LANG": "C.UTF-8"}
        subprocess.run(f"stty rows {ROWS} cols {COLUMNS}", shell=True, stdin=theirs, check=True)
        self._shell = subprocess.Popen(
            ["setsid", "--ctty", "sh", "-i"], cwd=directory, env=self.environ,
            stdin=theirs, stdout=theirs, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)

    def until(self, pattern: str) -> None:
        """Record until the screen shows it."""
        deadline = time.monotonic() + 60
        while not re.search(pattern, "\n".join(self._lines())):
            if time.monotonic() > deadline:
                raise SystemExit(f"the terminal never showed {pattern!r}: {self._lines()}")
            self.record(0.1)

    def record(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (rest := end - time.monotonic()) > 0:
            if select.select([self._terminal], [], [], rest)[0]:
                self._stream.feed(os.read(self._terminal, 65536))
                self.frames.append((time.monotonic() - self._started, self._lines()))

    def type(self, line: str) -> None:
        for letter in line:
            os.write(self._terminal, letter.encode())
            self.record(0.03)
        self.record(0.3)
        os.write(self._terminal, b"\n")

    def end(self) -> None:
        os.close(self._terminal)
        self._shell.wait(60)

    def _lines(self) -> list[str]:
        return [line.rstrip() for line in self._screen.display]


def record(directory: str) -> list[Frame]:
    Path(directory, "Makefile").write_text(MAKEFILE)
    recorder = Recorder(directory)
    recorder.until(r"\$")
    command = ["source-tree-lock", "run", ".", "--", "make", "wheel", f"SECONDS={FIRST}"]
    with subprocess.Popen(command, cwd=directory, env=recorder.environ, stdout=subprocess.DEVNULL):
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
    """Each line in the time in which it is shown; the last state of the wait where none moves."""
    still = max(i for i, (_, lines) in enumerate(frames) if "waiting" in "".join(lines))
    length, width, height = frames[-1][0] + REST, COLUMNS * LETTER + 32, ROWS * LINE + 32
    ends = [*(start for start, _ in frames[1:]), length]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" role="img">',
        f'<title>{TITLE}</title>\n<desc>{escape(" ".join(frames[still][1]))}</desc>',
        f'<rect width="{width:g}" height="{height}" rx="8" fill="#1f2328"/>',
        '<g font-family="monospace" font-size="14" fill="#e6edf3">',
    ]  # fmt: skip
    for row in range(ROWS):
        shown: list[list[object]] = []  # text, from and to which frame
        for index, (_, lines) in enumerate(frames):
            if shown and shown[-1][0] == lines[row]:
                shown[-1][2] = index
            else:
                shown.append([lines[row], index, index])
        for text, first, last in shown:
            if not text:
                continue
            start, end = (frames[first][0] if first else 0) / length, ends[last] / length
            size = f'textLength="{len(text) * LETTER:g}" lengthAdjust="spacingAndGlyphs"'
            parts.append(
                f'<text x="16" y="{row * LINE + 30}" {size} xml:space="preserve" '
                f'visibility="{"visible" if first <= still <= last else "hidden"}">{escape(text)}'
                f'<animate attributeName="visibility" calcMode="discrete" dur="{length:.2f}s" '
                f'repeatCount="indefinite" values="hidden;visible;hidden" '
                f'keyTimes="0;{start:.4f};{min(end, 1):.4f}"/></text>'
            )
    return "\n".join([*parts, "</g>\n</svg>\n"])


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="project-") as directory:
        frames = record(directory)
    following = [*(start for start, _ in frames[1:]), float("inf")]
    # A letter that was typed, or half a screen, is no frame of its own.
    kept = [each for each, end in zip(frames, following, strict=True) if end - each[0] > 0.05]
    OUT.write_text(picture(kept), "utf-8")
    print(f"{OUT}: {OUT.stat().st_size:,} bytes, {frames[-1][0]:.1f} s")


if __name__ == "__main__":
    main()
