"""What a benchmark found, kept as JSON and pictures, and written into the README beside this file."""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

import plots
from measure import number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from matplotlib.figure import Figure

RESULTS = Path(__file__).with_name("results")
README = Path(__file__).with_name("README.md")
_PACKAGES = "source-tree-lock portalocker filelock fasteners build pip setuptools uv".split()
_BLOCK = re.compile(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", re.DOTALL)


class MissingToolError(Exception):
    """A benchmark needs a tool that this machine does not have."""


@dataclass
class Goal:
    """A number that is to be reached.

    Attributes:
        what: the number, in words.
        measured: what it is here.
        limit: what it may be at most.
        reason: why a user cares, in a line.
        unit: of both; empty for a ratio.
    """

    what: str
    measured: float
    limit: float
    reason: str
    unit: str = ""


@dataclass
class Section:
    """The outcome of one benchmark.

    Attributes:
        tables: a caption, the names of the columns, and the rows of each.
        figures: the picture for each file name.
        goals: what it was to reach.
    """

    tables: list[tuple[str, list[str], list[list[str]]]] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)

    def publish(self, name: str, results: Path) -> str:
        """Keep it in ``results`` under this name, and give it as Markdown."""
        results.mkdir(parents=True, exist_ok=True)
        for file, figure in self.figures.items():
            plots.save(figure, results / file)
        kept = {
            "machine": machine(),
            "tables": self.tables,
            "figures": list(self.figures),
            "goals": [asdict(goal) for goal in self.goals],
        }
        text = json.dumps(kept, indent=1, ensure_ascii=False) + "\n"
        (results / f"{name}.json").write_text(text, encoding="utf-8")
        return "\n".join([_tables(kept), *([_goals(kept["goals"])] if self.goals else [])])


def write_readme() -> None:
    """Put what is kept in ``results`` between the markers of the README."""
    kept = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(RESULTS.glob("*.json"))
    }
    blocks = {name: _tables(each) + _pictures(each) for name, each in kept.items()}
    blocks["goals"] = _goals([goal for each in kept.values() for goal in each["goals"]])
    machines: dict[str, list[str]] = {}
    for name, each in kept.items():
        machines.setdefault(each["machine"], []).append(name)
    blocks["machine"] = "".join(f"- {each} ({', '.join(of)})\n" for each, of in machines.items())

    def block(found: re.Match[str]) -> str:
        name = found[1]
        content = blocks.get(name) or f"Not measured yet: `python benchmarks/speed.py {name}`\n"
        return f"<!-- {name} -->\n\n{content}\n<!-- /{name} -->"

    text = README.read_text(encoding="utf-8")
    README.write_text(_BLOCK.sub(block, text), encoding="utf-8")


def _tables(kept: dict[str, Any]) -> str:
    return "\n".join(
        f"{caption}\n\n{_table(columns, rows)}" for caption, columns, rows in kept["tables"]
    )


def _pictures(kept: dict[str, Any]) -> str:
    return "".join(f"\n![{Path(file).stem}](results/{file})\n" for file in kept["figures"])


def _goals(goals: list[dict[str, Any]]) -> str:
    rows = []
    for goal in (Goal(**each) for each in goals):
        unit = goal.unit and f" {goal.unit}"
        verdict = "reached" if goal.measured <= goal.limit else "**missed**"
        numbers = [f"{number(goal.limit)}{unit}", f"{number(goal.measured)}{unit}"]
        rows.append([goal.what, *numbers, verdict, goal.reason])
    return _table(["goal", "at most", "measured", "verdict", "why"], rows)


def _table(columns: list[str], rows: list[list[str]]) -> str:
    alignment = ["---" if each in (columns[0], "why") else "---:" for each in columns]
    return "".join(f"| {' | '.join(row)} |\n" for row in [columns, alignment, *rows])


def machine() -> str:
    """The machine, the system and the versions, in one sentence."""
    versions = ", ".join(f"{name} {version}" for name in _PACKAGES if (version := _version(name)))
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    return (
        f"{_processor()}, {os.cpu_count()} logical CPUs; {system}; "
        f"{platform.python_implementation()} {platform.python_version()}; {versions}"
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()
