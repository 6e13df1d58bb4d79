"""Honest timing on a machine that others use too: turns, pairwise ratios, medians.

Two contestants timed one after the other see two different machines: another job starts, the clock frequency drops.
Here they run A B A B ..., each ratio compares neighbours in time, and the median of those ratios is what a row
reports. Beside the wall clock every turn also counts CPU seconds, which other jobs disturb far less.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Contestant:
    """One side of a comparison.

    ``run`` does the work and returns how much of it was done (control steps, training steps, iterations).
    ``prepare`` puts the contestant back to its start and is not timed. ``cpu_clock`` returns the CPU seconds
    consumed so far; contestants that work in child processes pass one that counts them.
    """

    run: Callable[[], float]
    prepare: Callable[[], None] | None = None
    cpu_clock: Callable[[], float] = time.process_time


@dataclass
class Samples:
    """Every turn of one contestant: amount of work, wall seconds and CPU seconds, in the order they were taken."""

    work: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def rates(self) -> np.ndarray:
        """Work per wall second of each turn, (R,)."""
        return np.divide(self.work, self.wall)

    @property
    def cpu_rates(self) -> np.ndarray:
        """Work per CPU second of each turn, (R,); NaN where the CPU clock did not move."""
        cpu = np.asarray(self.cpu)
        return np.divide(self.work, np.where(cpu > 0, cpu, np.nan))

    @property
    def cpu_seconds_each(self) -> np.ndarray:
        """CPU seconds per unit of work of each turn, (R,)."""
        return np.divide(self.cpu, self.work)

    @property
    def seconds_each(self) -> np.ndarray:
        """Wall seconds per unit of work of each turn, (R,)."""
        return np.divide(self.wall, self.work)


def interleave(
    contestants: Mapping[str, Contestant],
    repeats: int,
    tick: Callable[[str], None] = lambda name: None,
    warm_up: bool = True,
) -> dict[str, Samples]:
    """Time the contestants in turn, ``repeats`` times each: A B A B ...; ``tick(name)`` is called after each turn.

    ``warm_up`` runs each once beforehand, untimed: compilation, page faults and lazy set-up belong to the start-up
    rows. Raises ValueError when there is nothing to repeat.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, found {repeats}")
    samples = {name: Samples() for name in contestants}
    for turn in range(-1 if warm_up else 0, repeats):
        for name, contestant in contestants.items():
            if contestant.prepare is not None:
                contestant.prepare()
            wall, cpu = time.perf_counter(), contestant.cpu_clock()
            work = contestant.run()
            wall, cpu = time.perf_counter() - wall, contestant.cpu_clock() - cpu
            if turn >= 0:
                samples[name].work.append(work)
                samples[name].wall.append(wall)
                samples[name].cpu.append(cpu)
            tick(name)
    return samples


def paired_ratio(ours: np.ndarray, yardstick: np.ndarray) -> tuple[float, float, float]:
    """Median and quartiles of ``ours / yardstick``, turn by turn, both (R,)."""
    ratios = np.asarray(ours, float) / np.asarray(yardstick, float)
    low, high = np.quantile(ratios, (0.25, 0.75))
    return statistics.median(ratios.tolist()), float(low), float(high)


@dataclass
class Figure:
    """One line of the table: a value, the yardstick measured beside it, and their ratio (always ``value /
    yardstick_value``).

    ``better`` says which way the value should go; ``bar`` is what the ratio has to reach, if anything was promised.
    ``tables`` holds further numbers (seconds per phase, say) that go under the table and into the JSON: title ->
    row -> column -> number.
    """

    name: str
    value: float
    unit: str
    yardstick: str = ""
    yardstick_value: float | None = None
    ratio: float | None = None
    ratio_quartiles: tuple[float, float] | None = None
    better: str = "higher"
    bar: float | None = None
    repeats: int = 1
    note: str = ""
    tables: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise ValueError(f"better must be 'higher' or 'lower', found {self.better!r}")

    @property
    def met(self) -> bool | None:
        """Whether the ratio reaches the bar; None where there is no bar or no ratio."""
        if self.bar is None or self.ratio is None:
            return None
        return self.ratio >= self.bar if self.better == "higher" else self.ratio <= self.bar


def compare(
    name: str,
    unit: str,
    ours: np.ndarray,
    yardstick_name: str,
    yardstick: np.ndarray,
    *,
    better: str = "higher",
    bar: float | None = None,
    note: str = "",
) -> Figure:
    """A ``Figure`` from the turns of both sides, (R,) each: medians, and the median of the turn-by-turn ratios."""
    ratio, low, high = paired_ratio(ours, yardstick)
    return Figure(
        name=name,
        value=float(np.median(ours)),
        unit=unit,
        yardstick=yardstick_name,
        yardstick_value=float(np.median(yardstick)),
        ratio=ratio,
        ratio_quartiles=(low, high),
        better=better,
        bar=bar,
        repeats=len(ours),
        note=note,
    )
