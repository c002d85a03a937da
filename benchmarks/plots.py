"""The pictures: SVG by matplotlib, on a white ground of their own, so that dark pages show them too.

The same numbers give the same bytes, and text is drawn as shapes: every reader sees it alike.
"""

from __future__ import annotations

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from measure import number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

matplotlib.rcParams.update(
    {
        "svg.hashsalt": "source-tree-lock",
        "svg.fonttype": "path",
        "figure.facecolor": "white",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "legend.frameon": False,
    }
)

# Okabe and Ito's colours, which colour-blind people can tell apart, and greys.
BLUE, SKY, GREEN, ORANGE, VERMILION, PINK = "#0072b2 #56b4e9 #00795a #c98a00 #d55e00 #b3518c".split()
DARK, GREY, LIGHT = "#50575e #767f88 #a3abb3".split()
_MARKERS = "osD^vP*X"
_PLAIN = FuncFormatter(lambda value, _: number(value))


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="svg", metadata={"Date": None})
    lines = path.read_text(encoding="utf-8").splitlines()  # some end with spaces
    path.write_text("".join(f"{line.rstrip()}\n" for line in lines), encoding="utf-8")


def _axes(title: str, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.2, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, pad=12, x=0.0)
    return figure, axes


def bars(
    title: str,
    axis: str,
    rows: Mapping[str, Sequence[float]],
    parts: Mapping[str, str],
    *,
    colours: Sequence[str] | None = None,
    goal: tuple[str, float] | None = None,
) -> Figure:
    """One bar for each row, from zero, divided among the parts (a name and a colour each).

    A single part may have a colour for each bar. The goal is a dashed line with a name.
    """
    figure, axes = _axes(title, 1.4 + 0.42 * len(rows) + 0.25 * (len(parts) > 1 or goal is not None))
    starts = [0.0] * len(rows)
    longest = max(map(sum, rows.values()))
    for index, (part, colour) in enumerate(parts.items()):
        values = [row[index] for row in rows.values()]
        drawn = axes.barh(list(rows), values, left=starts, color=colours or colour, label=part)
        starts = [start + value for start, value in zip(starts, values, strict=True)]
        if len(parts) == 1:
            axes.bar_label(drawn, [number(value) for value in values], padding=5)
        else:
            inside = [number(value) if value > 0.03 * longest else "" for value in values]
            axes.bar_label(drawn, inside, label_type="center", color="white", weight="bold")
    if goal is not None:
        axes.axvline(goal[1], color=DARK, dashes=(5, 3), label=f"goal: {goal[0]}")
    if len(parts) > 1 or goal is not None:
        figure.legend(loc="outside lower left", ncols=len(parts) + 1)
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.1)
    axes.set_xlabel(axis)
    axes.tick_params(axis="y", length=0)
    return figure


def lines(
    title: str,
    axes_names: tuple[str, str],
    series: Mapping[str, Mapping[float, float]],
    colours: Sequence[str],
    *,
    goal: float | None = None,
    from_zero: bool = False,
) -> Figure:
    """One line for each series, on logarithmic scales; the upward one may be plain, from zero."""
    figure, axes = _axes(title, 4.2)
    for (name, values), colour, marker in zip(series.items(), colours, _MARKERS, strict=False):
        width = 2.8 if colour in (BLUE, SKY) else 1.6
        axes.plot(
            list(values), list(values.values()), color=colour, label=name, marker=marker, lw=width
        )
    if goal is not None:
        axes.axhline(goal, color=DARK, dashes=(5, 3), label=f"goal: at most {number(goal)}")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted({x for each in series.values() for x in each})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(_PLAIN)
    if from_zero:
        axes.set_ylim(0, 1.3 * max(value for each in series.values() for value in each.values()))
    else:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(_PLAIN)
    axes.grid(axis="y", color="#d8dde2")
    axes.set_xlabel(f"{axes_names[0]} (log scale)")
    axes.set_ylabel(f"{axes_names[1]}\n({'' if from_zero else 'log scale, '}lower is better)")
    figure.legend(loc="outside right center")
    return figure
