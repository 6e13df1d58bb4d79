"""What came out of runs, as lines with an interval each: every evaluation, means over seeds, differences on the same episodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from agent.eval.statistics import Estimate, paired_return, paired_success, probability_of_improvement, student_mean
from agent.report.runs import Group, Outcome, Run

_EVALUATED = {"before": "before fine-tuning", "after": "after fine-tuning", "evaluation": "evaluation"}


@dataclass(frozen=True)
class Row:
    """One line: an estimate, drawn on the scale of its task, from ``-scale`` (of a difference) or 0 to ``scale``."""

    number: int  # of the group: its colour
    name: str
    note: str
    estimate: Estimate
    scale: float
    solvable: bool
    mean: bool = False  # over training seeds
    difference: bool = False

    @property
    def text(self) -> str:
        """Value and interval; of a rate they stay where rates are."""
        bounded = np.clip(self.estimate, -1.0 if self.difference else 0.0, 1.0) if self.solvable else self.estimate
        value, low, high = (number(float(x), self.solvable, self.difference) for x in bounded)
        return value if np.isnan(self.estimate.low) else f"{value} [{low}, {high}]"

    @property
    def bar(self) -> tuple[float, float, float]:
        """Value, low and high in percent of the width."""
        known = np.where(np.isnan(self.estimate), self.estimate.value, self.estimate) / self.scale
        value, low, high = 100 * np.clip((known + 1) / 2 if self.difference else known, 0, 1)
        return float(value), float(low), float(high)


def number(value: float | None, rate: bool = False, signed: bool = False) -> str:
    """For people: three digits of a rate, few of anything else."""
    if value is None or np.isnan(value):
        return "–"
    sign = "+" if signed else ""
    return f"{value:{sign}.3f}" if rate else f"{value:{sign},.0f}" if abs(value) >= 100 else f"{value:{sign}.3g}"


def evaluations(groups: Sequence[Group]) -> Iterator[Row]:
    """Every evaluation, and the mean over the seeds of a group where it has several."""
    scales = _scales(groups)
    for group in groups:
        for what in dict.fromkeys(name for run in group.runs for name in run.outcomes):
            known = [(run, run.outcomes[what]) for run in group.runs if what in run.outcomes]
            shared = (scales[group.task], known[0][1].solvable)
            for run, outcome in known:
                note = f"{_EVALUATED[what]} · {len(outcome.seeds)} episodes, {outcome.lengths.mean():.0f} steps long"
                note += f", {outcome.n_invalid} invalid" if outcome.n_invalid else ""
                yield Row(group.number, f"{run.name}, seed {run.seed}", note, Estimate(*outcome.score), *shared)
            if len(known) > 1:
                mean = student_mean([outcome.score[0] for _, outcome in known])
                note = f"{_EVALUATED[what]} · mean of {len(known)} training seeds, Student's t"
                yield Row(group.number, group.label, note, mean, *shared, mean=True)


def differences_of(groups: Sequence[Group]) -> Iterator[Row]:
    """Fine-tuned policies against what they were; and of each task and stage, every group against the first. On the same episodes only."""
    scales = _scales(groups)
    firsts: dict[tuple[str, str], Group] = {}
    for group in groups:
        pairs = [(run.outcomes["before"], run.outcomes["after"]) for run in group.runs if "before" in run.outcomes]
        if pairs:
            yield _difference(group, "before fine-tuning", pairs, scales[group.task])
        first = firsts.setdefault((group.stage, group.task), group)
        ours, theirs = ({run.seed: run.outcome for run in g.runs if run.outcome} for g in (group, first))
        pairs = [(theirs[s], ours[s]) for s in ours if s in theirs and ours[s].seeds == theirs[s].seeds]
        if group is first or not pairs:
            continue
        more = ""
        if len(ours) > 1 and len(theirs) > 1:
            scores = [{group.task: [outcome.score[0] for outcome in side.values()]} for side in (theirs, ours)]
            better = probability_of_improvement(*scores)
            more = f" · better with probability {better.value:.2f}"
            more += f" [{better.low:.2f}, {better.high:.2f}]" if better.low < better.high else ""
        yield _difference(group, first.label, pairs, scales[group.task], more)


def _difference(
    group: Group, reference: str, pairs: Sequence[tuple[Outcome, Outcome]], scale: float, more: str = ""
) -> Row:
    """Of pairs of evaluations on the same episodes, one pair for each training seed."""
    solvable = any(outcome.solvable for pair in pairs for outcome in pair)
    a, b = pairs[0]
    how = f"the same {len(a.seeds)} episodes"
    if len(pairs) > 1:
        estimate = student_mean([b.score[0] - a.score[0] for a, b in pairs])
        how += f" of {len(pairs)} training seeds, Student's t"
    elif solvable:
        found = paired_success(a.successes, b.successes)
        estimate = Estimate(found.difference, *found.interval)
        how += f": {found.only_b} solved by this one only, {found.only_a} by that one only; McNemar p = {found.p_value:.2g}"
    else:
        estimate = paired_return(a.returns, b.returns)
    return Row(
        group.number, group.label, f"against {reference} · {how}{more}", estimate, scale, solvable, difference=True
    )


def _scales(groups: Sequence[Group]) -> dict[str, float]:
    """Of every task the largest value that is drawn."""
    scales: dict[str, float] = {}
    for group in groups:
        for outcome in (outcome for run in group.runs for outcome in run.outcomes.values()):
            high = 1.0 if outcome.solvable else 1.05 * max(abs(x) for x in outcome.score)
            scales[group.task] = max(scales.get(group.task, 1e-9), high)
    return scales


def failures_by_seed(runs: Sequence[Run]) -> Iterator[tuple[str, list[int], list[tuple[Run, list[int]]], list[int]]]:
    """Which episodes which policies fail, where several met the same: task, seeds, of each run the positions of its failures (episodes that
    few fail first), and the seeds that all fail."""
    kinds: dict[tuple[str, tuple[int, ...]], list[Run]] = {}
    for run in runs:
        if run.outcome is not None and run.outcome.solvable:
            kinds.setdefault((run.task, tuple(run.outcome.seeds)), []).append(run)
    for (task, seeds), some in kinds.items():
        if len(some) > 1:
            failed = np.stack([~run.outcome.successes for run in some])
            order = np.argsort(failed.sum(axis=0), kind="stable")
            rows = [(run, np.flatnonzero(row[order]).tolist()) for run, row in zip(some, failed, strict=True)]
            yield task, list(seeds), rows, [seeds[i] for i in np.flatnonzero(failed.all(axis=0))]
