"""What keys of ``train`` mean that an algorithm counts in other units here."""

from __future__ import annotations

from typing import Any

from agent.compat import keys
from agent.compat.notes import Notes


def translate_algorithm(tree: dict[str, Any], learner: str, notes: Notes) -> None:
    """What an algorithm's keys mean here."""
    train, n_envs = tree["train"], tree["env"].get("n_envs")
    if learner in keys.BUFFER_OF_ROWS and not notes.given("train.buffer_size"):
        rows = train.get("buffer_size")
        if type(rows) is int and type(n_envs) is int:
            train["buffer_size"] = rows * n_envs
            notes.add(
                "translated", "train.buffer_size", f"{rows} steps of {n_envs} environments -> {rows * n_envs} chunks"
            )
    if learner == "IDQL":
        pairs = (("num_sample", "eval_sample_num"), ("eval_deterministic",) * 2)
        pairs += (("expectile_exploration", "use_expectile_exploration"),)
        tree["model"] |= {ours: train[theirs] for ours, theirs in pairs if theirs in train}


def count_pairs(tree: dict[str, Any], notes: Notes) -> None:
    """``train.batch_size`` counted chunks (each with all its tuned steps) up to DPPO's v0.5, and in all of D2PPO; here, and in DPPO from v0.6
    on, it counts pairs of a chunk and a step. A number that is larger than an iteration has chunks counts pairs."""
    train, steps = tree["train"], tree["model"].get("ft_denoising_steps")
    number, rollout = train.get("batch_size"), (train.get("n_steps"), tree["env"].get("n_envs"))
    if notes.given("train.whole_chains") or any(type(count) is not int for count in (number, steps, *rollout)):
        return
    if number > rollout[0] * rollout[1]:
        return
    train |= {"batch_size": number * steps, "whole_chains": True}
    notes.add(
        "translated",
        "train.batch_size",
        f"{number} chunks of {steps} denoising steps -> {number * steps} pairs in whole chains (a file for DPPO v0.6 or later counts "
        "pairs itself: give train.whole_chains=false)",
    )
