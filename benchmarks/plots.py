"""Small plots as SVG, written by hand: they need no package, and suit light and dark pages."""

from __future__ import annotations

import math
from html import escape

# Okabe and Ito's colours, which colour-blind people can tell apart, on white and on black.
_STYLE = """
text { font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #57606a }
.title { font-size: 15px; font-weight: 600; fill: #1f2328 }
.on { fill: #ffffff; font-weight: 600 }
.grid { stroke: #8b949e; stroke-opacity: 0.3 } .goal { stroke: #57606a; stroke-dasharray: 5 4 }
polyline { fill: none } .line { stroke-width: 2.2 }
.good { fill: #008a64 } .bad { fill: #7d868f } .worse { fill: #d55e00 }
.ours { fill: #0072b2 } .ours-line { stroke: #0072b2; stroke-width: 3.2 }
.bounded { fill: #3ba3dd } .bounded-line { stroke: #3ba3dd; stroke-width: 3.2 }
.kernel { fill: #6b747d } .kernel-line { stroke: #6b747d }
.command { fill: #a3abb3 } .command-line { stroke: #a3abb3 }
.portalocker { fill: #c0609a } .portalocker-line { stroke: #c0609a }
.filelock { fill: #d55e00 } .filelock-line { stroke: #d55e00 }
.fasteners { fill: #c98a00 } .fasteners-line { stroke: #c98a00 }
@media (prefers-color-scheme: dark) {
text { fill: #9da7b1 } .title { fill: #e6edf3 } .on { fill: #ffffff } .goal { stroke: #9da7b1 }
.ours { fill: #2f95d8 } .ours-line { stroke: #2f95d8 }
.bounded { fill: #7cc7f2 } .bounded-line { stroke: #7cc7f2 }
}
"""

_WIDTH = 720
#: How wide a character is, on average, in units of the drawing.
_CHARACTER = 7.0


class Kind:
    """What a part of a plot stands for: its words, and its class in the style above."""

    def __init__(self, label: str, style: str) -> None:
        self.label = label
        self.style = style


def _text(x: float, y: float, words: str, *, anchor: str = "start", style: str = "") -> str:
    attributes = f' class="{style}"' if style else ""
    start = f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{attributes}>'
    return f"{start}{escape(words)}</text>"


def _rectangle(x: float, y: float, width: float, height: float, style: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{style}"/>'
    )


def _line(points: list[tuple[float, float]], style: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" class="{style}"/>'


def _document(height: float, title: str, elements: list[str]) -> str:
    size = f'viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" height="{height:.0f}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            _text(16, 26, title, style="title"),
            *elements,
            "</svg>\n",
        ]
    )


def stacked_bars(title: str, kinds: list[Kind], rows: list[tuple[str, list[int]]]) -> str:
    """One bar for each row, divided among the kinds, with the numbers in it."""
    left, bar, gap = 136, 34, 16
    elements: list[str] = []
    x = float(left)
    for kind in kinds:
        elements += [_rectangle(x, 42, 12, 12, kind.style), _text(x + 18, 53, kind.label)]
        x += 40 + _CHARACTER * len(kind.label)
    y = 70.0
    for label, amounts in rows:
        elements.append(_text(left - 12, y + bar / 2 + 5, label, anchor="end"))
        x, unit = float(left), (_WIDTH - left - 16) / max(1, sum(amounts))
        for amount, kind in zip(amounts, kinds, strict=True):
            if amount:
                middle = x + amount * unit / 2
                elements += [
                    _rectangle(x, y, amount * unit - 1, bar, kind.style),
                    _text(middle, y + bar / 2 + 5, str(amount), anchor="middle", style="on"),
                ]
            x += amount * unit
        y += bar + gap
    return _document(y, title, elements)


def bars(title: str, unit: str, rows: list[tuple[Kind, float]]) -> str:
    """One bar for each row, from zero, with its number behind it."""
    left = 32 + _CHARACTER * max(len(kind.label) for kind, _ in rows)
    room = _WIDTH - left - 90
    longest = max(value for _, value in rows) or 1.0
    elements: list[str] = []
    y = 46.0
    for kind, value in rows:
        length = max(1.0, room * value / longest)
        elements += [
            _text(left - 10, y + 15, kind.label, anchor="end"),
            _rectangle(left, y, length, 20, kind.style),
            _text(left + length + 8, y + 15, f"{number(value)} {unit}"),
        ]
        y += 28
    return _document(y + 10, title, elements)


def lines(
    title: str,
    x_title: str,
    steps: list[str],
    series: list[tuple[Kind, list[float]]],
    goal: float | None = None,
) -> str:
    """One line for each series over evenly spaced steps, on a logarithmic scale."""
    left, right, top, bottom = 60.0, 205.0, 52.0, 292.0
    values = [value for _, each in series for value in each if value > 0]
    marks = _marks(min(values), max(values))
    low, high = math.log(marks[0]), math.log(marks[-1])

    def across(step: int) -> float:
        return left + (_WIDTH - left - right) * step / max(1, len(steps) - 1)

    def up(value: float) -> float:
        return bottom - (bottom - top) * (math.log(max(value, marks[0])) - low) / (high - low)

    end = _WIDTH - right
    elements = [_text((left + end) / 2, bottom + 42, x_title, anchor="middle")]
    for mark in marks:
        elements += [
            _line([(left, up(mark)), (end, up(mark))], "grid"),
            _text(left - 8, up(mark) + 5, number(mark), anchor="end"),
        ]
    for number_of_step, step in enumerate(steps):
        elements.append(_text(across(number_of_step), bottom + 20, step, anchor="middle"))
    if goal is not None:
        elements.append(_line([(left, up(goal)), (end, up(goal))], "goal"))
    for kind, each in series:
        points = [(across(step), up(value)) for step, value in enumerate(each)]
        elements.append(_line(points, f"line {kind.style}-line"))
    elements += _labels_beside(end + 10, [(up(each[-1]), kind) for kind, each in series])
    return _document(bottom + 58, title, elements)


def _labels_beside(x: float, labels: list[tuple[float, Kind]]) -> list[str]:
    """Names of the lines at their ends, pushed apart where they would overlap."""
    elements: list[str] = []
    y = 0.0
    for wanted, kind in sorted(labels, key=lambda label: label[0]):
        y = max(wanted, y + 17)
        elements += [_rectangle(x, y - 5, 10, 10, kind.style), _text(x + 15, y + 5, kind.label)]
    return elements


def _marks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten that enclose the values; fewer where they are many."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    factors = (1, 2, 5) if high / low < 500 else (1,)
    every = [factor * 10.0**decade for decade in decades for factor in factors]
    first = max(index for index, mark in enumerate(every) if mark <= low * 1.0001)
    last = min(index for index, mark in enumerate(every) if mark >= high * 0.9999)
    return every[first : max(last, first + 1) + 1]


def number(value: float) -> str:
    """Three significant digits, never with an exponent."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
