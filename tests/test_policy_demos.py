"""Demonstrations of locomotion: what is recorded is what the engine does, and the shipped policies are as good as they say."""

import json

import numpy as np
import pytest

from agent.behaviour import load_behaviour
from agent.dataset.demos import read_demos
from agent.eval import evaluate
from env.normalizer import Normalizer
from env.registry import make_vector_env
from script import collect_demos
from script.policy_demos import MEDIUM, POLICIES

TASKS = sorted(MEDIUM)
MAX_BYTES = 300_000


def collect(folder, *arguments: str):
    collect_demos.main(
        ["--task=hopper", "--episodes=7", "--steps=211", "--n-envs=3", "--seed=5", f"--out={folder}", *arguments]
    )
    target = folder / "gym" / "hopper-medium-v2"
    return target, read_demos(target / "train.npz"), Normalizer.load(target / "normalization.npz")


def test_recorded_episodes_replay_in_the_engine(tmp_path):
    target, demos, bounds = collect(tmp_path)
    lengths, about = demos["traj_lengths"], json.loads((target / "about.json").read_text())
    assert len(lengths) == about["episodes"] == 7
    assert about["transitions"] == lengths.sum() == len(demos["states"])
    assert "Not D4RL's" in about["made_by"]
    ends = np.cumsum(lengths) - 1
    assert not demos["terminals"][np.setdiff1d(np.arange(lengths.sum()), ends)].any()
    assert [bool(over) for over in demos["terminals"][ends]] == [n < 211 for n in lengths]
    assert np.abs(demos["actions"]).max() <= 1

    actions, states = bounds.unnormalize_action(demos["actions"]), bounds.unnormalize_obs(demos["states"])
    venv = make_vector_env({"name": "hopper-medium-v2", "n_envs": 1, "act_steps": 1, "max_episode_steps": 211})
    obs = venv.reset([collect_demos.first_seed(5) + k for k in range(7)])
    # rounding of float32 on disk grows in contact: the first steps of each episode are the same, and all of its beginning
    for start in ends - lengths + 1:
        for t in range(start, start + 10):
            np.testing.assert_allclose(obs["state"][0, 0], states[t], atol=1e-3)
            result = venv.step(actions[t][None, None])
            np.testing.assert_allclose(result.reward[0], demos["rewards"][t], atol=1e-3)
            obs = result.obs
        obs = venv.skip(np.array([0]))
    venv.close()


def test_same_seed_same_data_and_what_does_not_fit_is_refused(tmp_path, capsys):
    _, one, _ = collect(tmp_path / "a")
    _, two, _ = collect(tmp_path / "b")
    assert all(np.array_equal(one[key], two[key]) for key in one)
    with pytest.raises(SystemExit):
        collect(tmp_path / "a")
    assert "--overwrite replaces it" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        collect(tmp_path / "c", "--images")
    assert "not for hopper" in capsys.readouterr().err


@pytest.mark.parametrize("task", TASKS)
def test_shipped_policies_say_where_they_come_from(task):
    path = POLICIES / f"{task}.safetensors"
    policy = load_behaviour(path)
    assert path.stat().st_size < MAX_BYTES
    assert {"seed", "env_steps", "trained", "what", "return_noisy", "first_seed", "versions"} <= set(policy.about)
    assert policy.about["task"] == f"{task}-medium-v2"


def test_a_shipped_policy_is_as_good_as_it_says():
    policy = load_behaviour(POLICIES / "hopper.safetensors")
    about = policy.about
    env = {"name": "hopper-medium-v2", "n_envs": 20, "act_steps": 1, "max_episode_steps": 1000}
    venv = make_vector_env(env, policy.normalizer)
    result = evaluate(policy, venv, about["episodes"], about["first_seed"], deterministic=False)
    venv.close()
    # chaotic contact: another machine's last bits make other episodes of the same kind
    low, high = about["return_noisy_interval"]
    margin = high - low
    assert low - margin < result.mean_return < high + margin
