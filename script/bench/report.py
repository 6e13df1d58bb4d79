"""What a benchmark run leaves behind: a table for the terminal and a JSON for the record, with the machine it ran
on.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from agent.files import atomic_write
from script.bench.measure import Figure

FORMAT, FORMAT_VERSION = "d2ppo-benchmark", 1
PACKAGES = ("torch", "mujoco", "robosuite", "gymnasium", "numba", "numpy")
HEADER = ("figure", "value", "yardstick", "ratio", "quartiles", "bar", "n")


def number(value: float | None) -> str:
    """Three or four significant digits, no exponent for ordinary sizes; '-' for None, 'nan' for NaN."""
    if value is None:
        return "-"
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}"


def align(rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to equal width, the first one to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def table(figures: Sequence[Figure], skipped: dict[str, str]) -> str:
    """The table of all figures, then the tables inside the figures, the notes, and what was skipped and why."""
    rows: list[Sequence[str]] = [HEADER]
    for figure in figures:
        quartiles = "-" if figure.ratio_quartiles is None else "..".join(map(number, figure.ratio_quartiles))
        verdict = {None: "", True: " met", False: " MISSED"}[figure.met]
        sign = ">=" if figure.better == "higher" else "<="
        rows.append(
            (
                figure.name,
                f"{number(figure.value)} {figure.unit}",
                f"{number(figure.yardstick_value)} {figure.yardstick}" if figure.yardstick else "-",
                number(figure.ratio),
                quartiles,
                "-" if figure.bar is None else f"{sign} {figure.bar:g}{verdict}",
                str(figure.repeats),
            )
        )
    parts = [align(rows)] if figures else []
    for figure in figures:
        parts += [f"{title}\n{_inner_table(content)}" for title, content in figure.tables.items()]
    notes = [f"{figure.name}: {figure.note}" for figure in figures if figure.note]
    parts += ["\n".join(notes)] if notes else []
    parts += [f"skipped {name}: {reason}" for name, reason in skipped.items()]
    return "\n\n".join(parts)


def line(figure: Figure) -> str:
    """A figure in one line, as progress."""
    return f"{figure.name}: {number(figure.value)} {figure.unit}, ratio {number(figure.ratio)}"


def _inner_table(content: dict[str, dict[str, float]]) -> str:
    columns = list(dict.fromkeys(column for row in content.values() for column in row))
    rows: list[Sequence[str]] = [["", *columns]]
    rows += [[name, *(number(row.get(column)) for column in columns)] for name, row in content.items()]
    return align(rows)


def machine() -> dict[str, Any]:
    """Processor, cores, load, versions and commit: what a figure means nothing without."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {
        "processor": _processor(),
        "system": platform.platform(),
        "cores": usable_cores(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "versions": versions,
        "commit": _commit(),
    }


def usable_cores() -> int:
    """Cores this process may run on, which in a container or under ``taskset`` is less than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit that was measured, with '+changes' where the work tree differs; None outside a git checkout."""
    root = Path(__file__).resolve().parents[2]
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
        status = ["git", "status", "--porcelain", "--untracked-files=no"]
        return head + (
            "+changes" if subprocess.run(status, cwd=root, capture_output=True, text=True, check=True).stdout else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def document(
    figures: Sequence[Figure], skipped: dict[str, str], arguments: dict[str, Any], before: dict[str, Any]
) -> dict[str, Any]:
    """Everything about a run as plain JSON material; ``before`` is ``machine()`` as it was when the run began."""
    after = list(os.getloadavg()) if hasattr(os, "getloadavg") else None
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "arguments": arguments,
        "machine": before,
        "load_average_after": after,
        "skipped": skipped,
        "figures": [{**asdict(figure), "met": figure.met} for figure in figures],
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write all or nothing: an interrupted run never leaves half a record. NaN becomes null."""
    with atomic_write(path) as file:
        file.write((json.dumps(_without_nan(content), indent=1) + "\n").encode())


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
