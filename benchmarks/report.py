"""What a benchmark found, kept as JSON and SVG, and written into the README beside this file."""

import json
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import plots
from matplotlib.figure import Figure
from measure import number

RESULTS = Path(__file__).with_name("results")
_README = Path(__file__).with_name("README.md")
_PACKAGES = "source-tree-lock portalocker filelock fasteners build pip setuptools uv".split()


class Section:
    """The outcome of one benchmark."""

    def __init__(self) -> None:
        self._tables: list[Any] = []
        self._goals: list[list[str]] = []
        self._figures: dict[str, Figure] = {}

    def table(self, caption: str, columns: list[str], rows: list[list[str]]) -> None:
        self._tables.append([caption, columns, rows])

    def picture(self, file: str, figure: Figure) -> None:
        self._figures[file] = figure

    def goal(self, what: str, measured: float, limit: float, reason: str, unit: str = "") -> None:
        """``measured`` is to be at most ``limit``, for a reason that a user feels, in a line."""
        numbers = (f"{number(each, 4)} {unit}".strip() for each in (limit, measured))
        verdict = "reached" if measured <= limit else "**missed**"
        self._goals.append([what, *numbers, verdict, reason])

    def publish(self, name: str, results: Path) -> str:
        """Keep it in ``results`` under this name, and give it as Markdown."""
        for file, figure in self._figures.items():
            plots.save(figure, results / file)
        kept = {"machine": _machine(), "tables": self._tables, "goals": self._goals}
        text = json.dumps({**kept, "pictures": list(self._figures)}, indent=1, ensure_ascii=False)
        (results / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        return f"{_tables(kept)}\n{_goals(self._goals) if self._goals else ''}"


def write_readme() -> None:
    """Put what is kept in the results between the markers of the README."""
    kept = {each.stem: json.loads(each.read_text("utf-8")) for each in RESULTS.glob("*.json")}
    blocks = {name: _tables(each) + _pictures(each) for name, each in kept.items()}
    blocks["goals"] = _goals([goal for _, each in sorted(kept.items()) for goal in each["goals"]])
    blocks["machine"] = "\n".join(sorted({f"{each['machine']}." for each in kept.values()})) + "\n"

    def block(found: re.Match[str]) -> str:
        content = blocks.get(found[1], "Not measured yet.\n")
        return f"<!-- {found[1]} -->\n\n{content}\n{found[2]}"

    text = _README.read_text("utf-8")
    text = re.sub(r"<!-- (\w+) -->\n.*?(<!-- /\1 -->)", block, text, flags=re.DOTALL)
    _README.write_text(text, encoding="utf-8")


def _tables(kept: dict[str, Any]) -> str:
    return "\n".join(f"{caption}\n\n{_table(*table)}" for caption, *table in kept["tables"])


def _pictures(kept: dict[str, Any]) -> str:
    return "".join(f"\n![{Path(each).stem}](results/{each})\n" for each in kept["pictures"])


def _goals(goals: list[list[str]]) -> str:
    return _table(["goal", "at most", "measured", "verdict", "why"], goals)


def _table(columns: list[str], rows: list[list[str]]) -> str:
    alignment = ["---" if each in (columns[0], "why") else "---:" for each in columns]
    return "".join(f"| {' | '.join(row)} |\n" for row in [columns, alignment, *rows])


def _machine() -> str:
    installed = {each.name: each.version for each in metadata.distributions()}
    versions = ", ".join(f"{name} {installed[name]}" for name in _PACKAGES if name in installed)
    cpuinfo = Path("/proc/cpuinfo")
    found = cpuinfo.exists() and re.search(r"model name\s*: (.*)", cpuinfo.read_text())
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    processor = found[1] if found else platform.machine()
    return f"{processor}, {os.cpu_count()} logical CPUs; {system}; {python}; {versions}"
