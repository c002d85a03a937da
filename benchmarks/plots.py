"""The pictures: SVG by matplotlib, on white, so that dark pages show them as well.

The same numbers give the same bytes, and text is drawn as shapes: every reader sees it alike.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from measure import number

mpl.rcParams.update({"svg.hashsalt": "source-tree-lock", "svg.fonttype": "path"})
mpl.rcParams.update({"figure.facecolor": "white", "legend.frameon": False})
mpl.rcParams.update({"axes.titlelocation": "left", "axes.titleweight": "bold"})
mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})

# Okabe and Ito's colours, which colour-blind people can tell apart, and greys.
BLUE, SKY, GREEN, ORANGE, RED, PINK = "#0072b2 #56b4e9 #00795a #c98a00 #d55e00 #b3518c".split()
DARK, GREY, LIGHT = "#50575e #767f88 #a3abb3".split()


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="svg", metadata={"Date": None})
    lines = path.read_text("utf-8").splitlines()  # some end with spaces
    path.write_text("".join(f"{line.rstrip()}\n" for line in lines), encoding="utf-8")


def bars(
    title: str,
    axis: str,
    rows: Mapping[str, Sequence[float]],
    parts: Mapping[str, str | list[str]],
    goal: tuple[str, float] | None = None,
) -> Figure:
    """A bar for each row, of parts (name and colour; of a single one: of each bar), and a goal."""
    figure = Figure(figsize=(8.2, 1.6 + 0.42 * len(rows)), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=axis)
    starts = [0.0] * len(rows)
    longest = max(map(sum, rows.values()))
    for index, (part, colour) in enumerate(parts.items()):
        values = [row[index] for row in rows.values()]
        drawn = axes.barh(list(rows), values, left=starts, color=colour, label=part)
        starts = [start + value for start, value in zip(starts, values, strict=True)]
        labels = [number(value) if value > 0.03 * longest else "" for value in values]
        if len(parts) == 1:
            axes.bar_label(drawn, labels, padding=5)
        else:
            axes.bar_label(drawn, labels, label_type="center", color="white", weight="bold")
    if goal is not None:
        axes.axvline(goal[1], color=DARK, dashes=(5, 3), label=f"goal: {goal[0]}")
    if len(parts) > 1:
        figure.legend(loc="outside lower left", ncols=len(parts) + 1)
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def lines(
    title: str,
    names: tuple[str, str],
    series: Mapping[str, Mapping[int, float]],
    colours: Sequence[str],
    goal: float | None = None,
) -> Figure:
    """A line for each series over named axes, on logarithmic scales, and a goal."""
    figure = Figure(figsize=(8.2, 4.2), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=f"{names[0]} (log scale)")
    axes.set_ylabel(f"{names[1]}\n(log scale, lower is better)")
    for (name, values), colour, marker in zip(series.items(), colours, "osD^vP*X", strict=False):
        width = 2.8 if colour in (BLUE, SKY) else 1.6
        steps = list(values)
        axes.plot(steps, list(values.values()), color=colour, label=name, marker=marker, lw=width)
    if goal is not None:
        axes.axhline(goal, color=DARK, dashes=(5, 3), label=f"goal: at most {number(goal)}")
    axes.loglog()
    axes.xaxis.set_major_locator(FixedLocator(steps))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for each in (axes.xaxis, axes.yaxis):
        each.set_minor_locator(NullLocator())
        each.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.grid(axis="y", color="#d8dde2")
    figure.legend(loc="outside right center")
    return figure
