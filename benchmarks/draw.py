"""Draw the pictures of README.md from the results: SVG whose text is text.

    python benchmarks/draw.py

They bring a white background, so that dark pages show them as well, and say all in words and
numbers, so that colours are not needed.
"""

import json
import math
from html import escape
from typing import Any

from measure import RESULTS

WIDTH, LEFT, ROW = 760, 250, 34
INK, SOFT, RULE = "#1f2328", "#59636e", "#d1d9e0"
#: Fill and ink of parts of a bar: they also differ in grey.
FAILED, WRONG, RIGHT = ("#c6cdd5", INK), ("#8a2c0d", "#ffffff"), ("#9fd0f0", INK)
BLUE = "#0a5a94"


class Picture:
    """An SVG of rows."""

    def __init__(self, title: str, description: str, height: int) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<desc>{escape(description)}</desc>",
            f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>',
            '<g font-family="system-ui, sans-serif" font-size="14">',
        ]
        self.text(20, 30, title, weight="bold", size=16)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        anchor: str = "start",
        fill: str = INK,
        weight: str = "normal",
        size: int = 14,
    ) -> None:
        style = "" if weight == "normal" else f' font-weight="{weight}"'
        style += "" if size == 14 else f' font-size="{size}"'
        style += "" if anchor == "start" else f' text-anchor="{anchor}"'
        self._parts.append(f'<text x="{x:g}" y="{y:g}" fill="{fill}"{style}>{escape(words)}</text>')

    def box(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        size = f'width="{width:.1f}" height="{height:g}"'
        self._parts.append(f'<rect x="{x:.1f}" y="{y:g}" {size} fill="{fill}"/>')

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str) -> None:
        ends = f'x1="{x1:.1f}" y1="{y1:g}" x2="{x2:.1f}" y2="{y2:g}"'
        self._parts.append(f'<line {ends} stroke="{colour}" stroke-width="1.5"/>')

    def dot(self, x: float, y: float, fill: str) -> None:
        self._parts.append(f'<circle cx="{x:.1f}" cy="{y:g}" r="5.5" fill="{fill}"/>')

    def save(self, name: str) -> None:
        text = "\n".join([*self._parts, "</g>\n</svg>\n"])
        (RESULTS / name).write_text(text, "utf-8")
        print(f"{RESULTS / name}: {len(text.encode()):,} bytes")


def concurrent_builds(numbers: dict[str, Any]) -> None:
    parts = {"failed": FAILED, "wrong wheel": WRONG, "right": RIGHT}
    said = "; ".join(
        f"{label}: {', '.join(f'{n} {part}' for n, part in zip(counts, parts, strict=True))}"
        for label, counts in numbers["counts"].items()
    )
    picture = Picture(f"{numbers['times']} at once", said.capitalize() + ".", 160)
    for row, (label, counts) in enumerate(numbers["counts"].items()):
        x, y, unit = 160.0, 48 + 42 * row, (WIDTH - 180) / sum(counts)
        picture.text(20, y + 21, label)
        for count, (part, (fill, ink)) in zip(counts, parts.items(), strict=True):
            if count:
                words = f"{count} {part}" if count * unit > 90 else str(count)
                picture.box(x, y, count * unit - 1, 32, fill)
                picture.text(x + count * unit / 2, y + 21, words, anchor="middle", fill=ink)
            x += count * unit
    picture.text(20, 147, numbers["frontend"], fill=SOFT, size=12)
    picture.save("concurrent-builds.svg")


def build_cost(numbers: dict[str, Any]) -> None:
    ratios = {what.replace("`", ""): each for what, each in numbers["ratios"].items()}
    said = "; ".join(f"{what} {middle:.3f}" for what, (_, middle, _) in ratios.items())
    title = "One build with the lock: time, ÷ without"
    picture = Picture(title, f"Medians: {said}.", 96 + ROW * len(ratios))
    low = min(0.95, *(math.floor(20 * each[0]) / 20 for each in ratios.values()))
    high = max(1.10, *(math.ceil(20 * each[2]) / 20 for each in ratios.values()))

    def place(ratio: float) -> float:
        return LEFT + (WIDTH - LEFT - 100) * (ratio - low) / (high - low)

    bottom = 52 + ROW * len(ratios)
    for step in range(round(20 * low), round(20 * high) + 1):
        picture.line(place(step / 20), 46, place(step / 20), bottom, SOFT if step == 20 else RULE)
        picture.text(place(step / 20), bottom + 18, f"{step / 20:.2f}", anchor="middle", fill=SOFT)
    for row, (what, (first, middle, third)) in enumerate(ratios.items()):
        y = 66 + ROW * row
        fresh = ", fresh" if row < 2 else ""
        picture.text(20, y + 5, what.replace(" with locked_runner", " (locked_runner)") + fresh)
        picture.line(place(first), y, place(third), y, BLUE)
        picture.dot(place(middle), y, BLUE)
        picture.text(WIDTH - 75, y + 5, f"{middle:.3f}", weight="bold")
    note = "Dots: medians of pairs; lines: quartiles. Fresh: a new environment for each build."
    picture.text(20, bottom + 38, note, fill=SOFT, size=12)
    picture.save("build-cost.svg")


def main() -> None:
    for name, draw in (("concurrent_builds", concurrent_builds), ("builds", build_cost)):
        if (path := RESULTS / f"{name}.json").exists():
            draw(json.loads(path.read_text("utf-8"))["numbers"])


if __name__ == "__main__":
    main()
