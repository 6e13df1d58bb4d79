"""Two finished runs on the same episodes: what differs in what came out, and in the configurations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from agent.errors import UsageError
from agent.eval.statistics import paired_return, paired_success
from agent.report.runs import Outcome, Run, differences

_SHOWN = 20  # seeds of one kind in the table; the JSON has all


def compare(a: Run, b: Run | None = None, level: float = 0.95) -> dict[str, Any]:
    """A paired comparison of the policies of two runs, plain enough for JSON. Without ``b``: of ``a`` before and after its fine-tuning.

    Raises:
        UsageError: not finished, no evaluation in it, another task, or other seeds.
    """
    if b is None:
        first, second = (_outcome(a, name) for name in ("before", "after"))
        named = ((a, "before"), (a, "after"))
    else:
        first, second = _outcome(a), _outcome(b)
        named = ((a, None), (b, None))
    b = b or a
    if a.task != b.task:
        raise UsageError(f"{b.path}: its task is {b.task}, that of {a.path} is {a.task}; there is nothing to compare")
    if first.seeds != second.seeds:
        raise UsageError(
            f"{b.path}: evaluated on seeds {_range(second)}, but {a.path} on {_range(first)}. A paired comparison needs the same episodes: "
            f"evaluate both with n_episodes={len(first.seeds)} eval_seed={min(first.seeds)}"
        )
    success = paired_success(first.successes, second.successes, level)
    apart = first.successes != second.successes
    return {
        "task": a.task,
        "level": level,
        "episodes": len(first.seeds),
        "a": _described(*named[0], first),
        "b": _described(*named[1], second),
        "solvable": first.solvable or second.solvable,
        "success": asdict(success),
        "return": paired_return(first.returns, second.returns, level)._asdict(),
        "length": paired_return(first.lengths, second.lengths, level)._asdict(),
        "seeds_only_a": [s for s, x, y in zip(first.seeds, apart, first.successes, strict=True) if x and y],
        "seeds_only_b": [s for s, x, y in zip(first.seeds, apart, second.successes, strict=True) if x and y],
        "configuration": _configurations(a, b),
    }


def lines(found: dict[str, Any]) -> Iterator[str]:
    """``compare``'s answer for a person."""
    for side in ("a", "b"):
        yield f"{side}: {found[side]['name']}   {found[side]['path']}"
    yield f"{found['task']}, the same {found['episodes']} episodes; intervals cover {found['level']:.0%}"
    yield ""
    success = found["success"]
    rows = [("return", "return", found["return"]), ("length", "length", found["length"])]
    if found["solvable"]:
        low, high = success["interval"]
        rows.insert(0, ("success", "success", {"value": success["difference"], "low": low, "high": high}))
    yield f"{'':10}{'a':>10}{'b':>10}{'b - a':>12}   interval"
    for name, key, difference in rows:
        values = "".join(f"{_number(found[side][key]):>10}" for side in ("a", "b"))
        low, high = (_number(difference[bound], "+") for bound in ("low", "high"))
        yield f"{name:10}{values}{_number(difference['value'], '+'):>12}   [{low}, {high}]"
    if found["solvable"]:
        yield ""
        yield (
            f"solved by both {success['both']}, only a {success['only_a']}, only b {success['only_b']}, neither {success['neither']}; "
            f"exact McNemar test of no difference: p = {success['p_value']:.2g}"
        )
        for side in ("a", "b"):
            seeds = found[f"seeds_only_{side}"]
            if seeds:
                more = f" and {len(seeds) - _SHOWN} more" if len(seeds) > _SHOWN else ""
                yield f"seeds only {side} solves: {', '.join(map(str, seeds[:_SHOWN]))}{more}"
    yield ""
    if found["a"]["path"] == found["b"]["path"]:
        return
    yield (
        "the configurations differ in"
        if found["configuration"]
        else "the configurations are the same but for places and seeds"
    )
    width = max(map(len, found["configuration"]), default=0)
    for key, (left, right) in found["configuration"].items():
        yield f"  {key:<{width}}  {left} -> {right}"


def _configurations(a: Run, b: Run) -> dict[str, list[Any]]:
    """What differs. Of an evaluation beside a training run, what its policy was trained with counts, as far as that is known."""
    if a.stage == b.stage:
        return differences([a.settings, b.settings])
    both = [a.policy_settings, b.policy_settings]
    return differences(both) if all(both) else {}


def _outcome(run: Run, which: str | None = None) -> Outcome:
    if run.result is None:
        raise UsageError(f"{run.path}: not finished, it has no result.json")
    found = run.outcome if which is None else run.outcomes.get(which)
    if found is None:
        raise UsageError(
            f"{run.path}: its result holds no evaluation{f' {which!r}' if which else ''} (it is a run of stage {run.stage}). "
            "Evaluate its checkpoint first, with a configuration of stage eval"
        )
    return found


def _described(run: Run, which: str | None, outcome: Outcome) -> dict[str, Any]:
    about = {
        "name": run.name + (f", {which}" if which else ""),
        "path": str(run.path),
        "checkpoint": str(run.checkpoint),
    }
    success, score = outcome.success, outcome.mean_return
    return about | {
        "success": success[0],
        "success_interval": success[1:],
        "return": score[0],
        "return_interval": score[1:],
        "length": float(outcome.lengths.mean()),
        "invalid": outcome.n_invalid,
    }


def _range(outcome: Outcome) -> str:
    return f"{min(outcome.seeds)} to {max(outcome.seeds)} ({len(outcome.seeds)} of them)"


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}" if abs(value) < 10 else f"{value:{sign},.0f}"
