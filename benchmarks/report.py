"""What a benchmark found: tables, plots and goals, as text and as Markdown."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from plots import number

_PACKAGES = (
    "source-tree-lock portalocker filelock fasteners build pip setuptools redis pyperf"
).split()


class Goal:
    """A number that is to be reached.

    Attributes:
        what: the number, in words.
        measured: what it is here.
        limit: what it may be at most.
        unit: of both; empty for a ratio.
    """

    def __init__(self, what: str, measured: float, limit: float, unit: str = "") -> None:
        self.what = what
        self.measured = measured
        self.limit = limit
        self.unit = f" {unit}" if unit else ""

    def row(self) -> list[str]:
        verdict = "reached" if self.measured <= self.limit else "**missed**"
        return [
            self.what,
            f"{number(self.limit)}{self.unit}",
            f"{number(self.measured)}{self.unit}",
            verdict,
        ]


class Section:
    """The outcome of one benchmark.

    Attributes:
        name: of its files.
        title: its heading.
        intro: what was measured, and how.
        tables: a caption, the names of the columns, and the rows of each.
        plots: file name and SVG of each.
        files: name and text of what else is to be kept.
        goals: what it was to reach.
    """

    def __init__(self, name: str, title: str, intro: str) -> None:
        self.name = name
        self.title = title
        self.intro = intro
        self.tables: list[tuple[str, list[str], list[list[str]]]] = []
        self.plots: dict[str, str] = {}
        self.files: dict[str, str] = {}
        self.goals: list[Goal] = []

    def text(self) -> str:
        """For a terminal."""
        parts = [f"\n== {self.title}"]
        for caption, columns, rows in self.tables:
            parts += [f"\n{caption}", _aligned(columns, rows)]
        return "\n".join(parts)

    def markdown(self) -> str:
        """For a page, with the plots."""
        parts = [f"# {self.title}\n", f"{self.intro}\n", f"{machine()}\n"]
        for caption, columns, rows in self.tables:
            parts += [f"{caption}\n", _markdown_table(columns, rows)]
        parts += [f"![{self.title}]({name})\n" for name in self.plots]
        return "\n".join(parts)

    def write(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{self.name}.md").write_text(self.markdown(), encoding="utf-8")
        for name, text in {**self.plots, **self.files}.items():
            (directory / name).write_text(text, encoding="utf-8")


_GOAL_COLUMNS = ["", "at most", "measured", ""]


def goals_text(sections: list[Section]) -> str:
    return _aligned(_GOAL_COLUMNS, [goal.row() for each in sections for goal in each.goals])


def goals_markdown(sections: list[Section]) -> str:
    rows = [goal.row() for each in sections for goal in each.goals]
    return f"# Goals\n\n{machine()}\n\n{_markdown_table(_GOAL_COLUMNS, rows)}"


def _aligned(columns: list[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    lines = []
    for row in [columns, *rows]:
        first, *others = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    alignment = ["---", *["---:"] * (len(columns) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in [columns, alignment, *rows])


def machine() -> str:
    """The machine, the system and the versions, in one sentence."""
    versions = ", ".join(f"{name} {version}" for name in _PACKAGES if (version := _version(name)))
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    return (
        f"{_processor()}, {os.cpu_count()} logical CPUs; {system}; "
        f"{platform.python_implementation()} {platform.python_version()}; {versions}."
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
