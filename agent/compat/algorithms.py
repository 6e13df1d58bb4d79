"""What keys of ``train`` mean that an algorithm counts in other units here."""

from __future__ import annotations

from typing import Any

from agent.compat import keys, targets
from agent.compat.notes import Notes


def move_to_train(tree: dict[str, Any]) -> None:
    """What was the policy's and is the algorithm's: how many steps it tunes as time goes by."""
    if isinstance(tree.get("model"), dict):
        for key in ("ft_denoising_steps_d", "ft_denoising_steps_t"):
            if tree["model"].get(key):
                tree["train"][key] = tree["model"].pop(key)


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
    if isinstance(tree.get("offline_dataset"), dict):
        tree["offline_dataset"]["_target_"] = targets.TRANSITIONS
    if "n_eval_episode" in train:
        train["eval_episodes"] = train.pop("n_eval_episode")
        notes.add("translated", "train.n_eval_episode", f"{train['eval_episodes']} -> train.eval_episodes")
    if learner in keys.LEARN_AFTER_STEPS:
        _group_steps(train, notes)
    if "n_episode_per_epoch" in train:
        episodes, chunks = train.pop("n_episode_per_epoch"), tree["env"].get("max_episode_steps", 1)
        train["n_steps"] = max(1, episodes * chunks // (tree.get("act_steps") or 1))
        notes.add("translated", "train.n_episode_per_epoch", f"{episodes} episodes -> n_steps {train['n_steps']}")


def _group_steps(train: dict[str, Any], notes: Notes) -> None:
    """An iteration was one step, and every ``log_freq``-th was logged: here an iteration is what is logged, and learning goes on within it."""
    group, counts = train.get("log_freq"), ("n_train_itr", "val_freq", "save_model_freq")
    if train.get("n_steps") != 1 or type(group) is not int or group < 2 or any(map(notes.given, ("train.n_steps",))):
        return
    train["n_steps"] = group
    for key in counts:
        if type(train.get(key)) is int and not notes.given(f"train.{key}"):
            train[key] = max(1, train[key] // group)
    if isinstance(train.get("render"), dict) and type(train["render"].get("freq")) is int:
        train["render"]["freq"] = max(1, train["render"]["freq"] // group)
    notes.add(
        "translated",
        "train.n_steps",
        f"1 -> {group}, the steps between two lines of the log; what counts iterations, divided by it",
    )


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
