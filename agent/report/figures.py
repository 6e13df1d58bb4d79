"""Figures as SVG that lies inside a page: text stays text, and colours are the page's own, so that they follow its light or dark dress."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agent.eval.statistics import learning_band
from agent.report.features import Features
from agent.report.runs import Group, Run

N_SERIES, N_SHADES = 8, 16  # colours that the page knows: of groups and phases; of time
_WIDTH, _HEIGHT, _POINT = 380, 260, 72  # pixels of a figure as it is on a phone; pixels per inch
_INK, _FAINT = "#010101", "#020202"  # stand for colours of the page
_DASHES = ("-", "--", ":")  # beyond N_SERIES groups
_FEW = 40  # points that are marked
_SHOWN = re.compile(r"^train/.*loss$|/effective_rank$|/neighbour_agreement$")


@dataclass(frozen=True)
class Figure:
    """An SVG element and the words above and below it."""

    title: str
    svg: str
    caption: str = ""


def curves(groups: Sequence[Group]) -> list[Figure]:
    """Learning curves of fine-tuning, one figure for each task."""
    chosen = [g for g in groups if g.stage == "finetune" and any(r.rows for r in g.runs)]
    return [_progress(task, [g for g in chosen if g.task == task]) for task in dict.fromkeys(g.task for g in chosen)]


def _progress(task: str, groups: Sequence[Group]) -> Figure:
    solvable = any(o.solvable for g in groups for r in g.runs for o in r.outcomes.values())
    what, short = ("success_rate", "success") if solvable else ("episode_return", "return")
    last = max((r.rows[-1].get("env_steps") or 0) for g in groups for r in g.runs if r.rows)
    x, words = ("env_steps", "environment steps") if last else ("itr", "iteration")  # none are taken offline
    scale, unit = (1e6, "million ") if last > 2e6 else (1e3, "thousand ") if last > 2e3 else (1, "")
    keys = (x, f"eval/{what}", f"eval/{short}_ci_low", f"eval/{short}_ci_high")

    def evaluated(run: Run) -> np.ndarray:  # the last one is that of the end, on seeds of its own
        end = [[run.rows[-1][x], *run.outcome.score]] if run.outcome and run.rows else []
        table = np.concatenate([_columns(run, keys), np.reshape(end, (-1, 4))])
        table = table[np.append(np.diff(table[:, 0]) > 0, True)] if len(table) else table
        return table / [scale, 1, 1, 1]

    def draw(axis: Any) -> None:
        for group in groups:
            for run in group.runs:
                train = _columns(run, (x, f"train/{what}")) / [scale, 1]
                axis.plot(*train.T, color=_look(group)[0], lw=0.7, alpha=0.4)
        _draw_bands(axis, groups, evaluated)
        axis.set_xlabel(f"{unit}{words}")
        axis.set_ylabel("success rate" if solvable else "return")
        if solvable:
            axis.set_ylim(-0.02, 1.04)

    several = any(len(g.runs) > 1 for g in groups)
    over = "training seeds (Student's t; one seed: its episodes)" if several else "their episodes"
    caption = f"Thick: evaluations on recorded seeds; band: 95 % interval over {over}. Thin: training episodes, which explore."
    return Figure(task, _drawn(draw, f"learning curves of {task}"), caption)


def losses(groups: Sequence[Group]) -> list[Figure]:
    """Of pre-training: each part of the loss, and how spread out the features are, one figure for each and each task."""
    chosen = [g for g in groups if g.stage == "pretrain"]
    found = []
    for task in dict.fromkeys(g.task for g in chosen):
        of_task = [g for g in chosen if g.task == task]
        keys = dict.fromkeys(
            key for g in of_task for r in g.runs for row in r.rows for key in row if _SHOWN.search(key)
        )
        parts = [key for key in keys if key != "train/loss"] or list(keys)  # the total says nothing beyond its parts
        found += [_over_epochs(task, key, of_task) for key in parts]
    return found


def _over_epochs(task: str, key: str, groups: Sequence[Group]) -> Figure:
    def draw(axis: Any) -> None:
        values = np.concatenate([_columns(run, ("epoch", key))[:, 1] for g in groups for run in g.runs])
        if key.endswith("loss") and values.min() > 0:
            axis.set_yscale("log")
        _draw_bands(axis, groups, lambda run: _columns(run, ("epoch", key)))
        axis.set_xlabel("epoch")

    words = key.replace("train/", "").replace("_", " ").replace("/", ", ")
    return Figure(f"{task}: {words}", _drawn(draw, f"{words} of {task} over epochs"))


def _draw_bands(axis: Any, groups: Sequence[Group], curve_of: Callable[[Run], np.ndarray]) -> None:
    """Of every group the mean of its curves and its band. ``curve_of(run)`` has columns x, y and, optionally, y's own bounds ``(P, 2 or 4)``.

    Lines decide how high the axis goes: the band of two seeds is much higher.
    """
    bands = []
    for group in groups:
        colour, style = _look(group)
        known = [curve for curve in map(curve_of, group.runs) if len(curve)]
        if not known:
            continue
        if len(known) == 1:
            x, y, *bounds = known[0].T
        else:
            for curve in known:
                axis.plot(curve[:, 0], curve[:, 1], color=colour, lw=0.8, ls=style, alpha=0.7)
            band = learning_band([curve[:, :2].T for curve in known])
            x, y, *bounds = band.x, band.mean, band.low, band.high
        axis.plot(x, y, color=colour, lw=2, ls=style, marker="o" if len(x) < _FEW else None, ms=3.5)
        bands += [(colour, x, *bounds)] if bounds else []
    limits = axis.get_ylim()
    for colour, *band in bands:
        axis.fill_between(*band, color=colour, alpha=0.18, lw=0)
    axis.set_ylim(limits)


def maps(features: Features) -> list[tuple[str, str, str]]:
    """Method, what colours mean (time, phase) and SVG of every map."""
    shades = np.minimum((features.time * N_SHADES).astype(int), N_SHADES - 1)
    colours = {"time": [f"t{k}" for k in shades]}
    if features.phase is not None:
        colours["phase"] = [f"s{k % N_SERIES}" for k in features.phase]
    return [
        (method, what, _scatter(xy, of, f"{method}, by {what}"))
        for method, xy in features.maps.items()
        for what, of in colours.items()
    ]


def _scatter(xy: np.ndarray, classes: Sequence[str], label: str) -> str:
    """Points in the unit square, each with a class that gives it its colour."""
    at = 8 + 284 * xy * [1, -1] + [0, 284]
    points = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.3" class="{name}"/>' for (x, y), name in zip(at, classes, strict=True)
    )
    return f'<svg viewBox="0 0 300 300" role="img" aria-label="{label}">{points}</svg>'


def _columns(run: Run, keys: Sequence[str]) -> np.ndarray:
    """The rows of the metrics that have the first two of ``keys`` ``(P, len(keys))``; NaN where one of the others is absent."""
    rows = [[row.get(key) for key in keys] for row in run.rows if all(row.get(key) is not None for key in keys[:2])]
    return np.array(rows, dtype=float).reshape(-1, len(keys))


def _look(group: Group) -> tuple[str, str]:
    """Colour and dashes of its lines."""
    return f"#0300{group.number % N_SERIES:02x}", _DASHES[group.number // N_SERIES % len(_DASHES)]


def _drawn(draw: Callable[[Any], None], label: str) -> str:
    """What ``draw(axis)`` draws, as SVG with the page's colours."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import LogLocator, NullLocator

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": label,
        "font.size": 13,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "grid.color": _FAINT,
    }
    with rc_context(style):
        figure = Canvas(figsize=(_WIDTH / _POINT, _HEIGHT / _POINT), dpi=_POINT, layout="constrained")
        FigureCanvasSVG(figure)
        axis = figure.subplots()
        draw(axis)
        if axis.get_yscale() == "log":
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_minor_locator(NullLocator())
            axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(lw=0.8)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _dressed(file.getvalue(), label)


def _dressed(svg: str, label: str) -> str:
    """matplotlib's file as an element of a page: without header and size, with names of its own, colours by name."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(
        r'<svg [^>]*viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{label}">', svg, count=1
    )
    own = re.sub(r"\W+", "-", label)
    svg = re.sub(r'(\bid="|url\(#|href="#)', lambda found: f"{found[0]}{own}-", svg)
    svg = re.sub(r"font: [^;\"]*", "font-size: 13px", svg)
    svg = svg.replace(_INK, "var(--ink)").replace(_FAINT, "var(--faint)")
    return re.sub(r"#0300(\d\d)", lambda found: f"var(--s{int(found[1], 16)})", svg)
