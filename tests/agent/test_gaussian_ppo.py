"""A Gaussian policy in the one loop: its PPO loss against plain arithmetic, that it learns from nothing, resume, and the policy files."""

import json
import math

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file, save_file

from agent import checkpoint
from agent.behaviour import load_behaviour, save_behaviour
from agent.config import validate
from agent.errors import CheckpointError
from agent.finetune.finetune import FinetuneAgent
from agent.finetune.ppo import PPO
from agent.plots import learning_curve
from agent.pretrain.pretrain import PretrainAgent
from env.normalizer import Normalizer
from model.common.critic import CriticObs
from model.common.mlp_gaussian import Gaussian_MLP
from model.rl.gaussian_ppo import PPO_Gaussian
from tests.agent.test_ppo import TRAIN, make_rollout
from tests.point_mass import PointMass
from tests.smoke import runs

NETWORK = {"action_dim": 2, "horizon_steps": 2, "cond_dim": 4, "mlp_dims": [31, 29], "activation_type": "Tanh"}
LEARNED = {"fixed_std": 0.4, "learn_fixed_std": True}


def make_policy(**settings) -> PPO_Gaussian:
    torch.manual_seed(0)
    critic = CriticObs(cond_dim=4, mlp_dims=(29, 29, 29), residual_style=True)
    return PPO_Gaussian(Gaussian_MLP(**NETWORK, **LEARNED), critic, horizon_steps=2, **settings)


@pytest.mark.parametrize("time_limit", ["bootstrap", "terminal"])
def test_the_actors_loss_is_the_hand_computed_one(time_limit):
    """One minibatch of everything, after one step has moved the policy: what PPO reports is what plain numpy finds."""
    policy = make_policy(clip_ploss_coef=0.002)
    rollout, _ = make_rollout(policy, PointMass(5, dense=True), 7)
    train = {**TRAIN, "batch_size": 10**6, "update_epochs": 2, "actor_lr": 0.01, "max_grad_norm": None}
    train["time_limit"] = time_limit
    assert rollout.truncated.any() and not rollout.truncated[-1].all()
    algorithm = PPO(policy, train, 5, torch.Generator().manual_seed(0))
    algorithm.actor_optimizer = torch.optim.SGD(policy.actor_parameters(), 0.02)  # a step that numpy can follow
    obs = {"state": rollout.obs["state"].flatten(0, 1)}
    with torch.no_grad():
        values = policy.value(obs).view(7, 5)
        final = torch.zeros(7, 5)
        for index, last in rollout.final_obs:
            final.view(-1)[index] = policy.value(last)
    old = {key: value.clone() for key, value in policy.network.state_dict().items()}
    metrics = algorithm.update(rollout, 0)

    advantages = np.zeros((7, 5))
    trace, ended = np.zeros(5), (rollout.terminated | rollout.truncated).numpy()
    v, f, r = values.numpy(), final.numpy(), rollout.rewards.numpy() * TRAIN["reward_scale_const"]
    for t in reversed(range(7)):
        following = f[t] if t == 6 else np.where(ended[t], f[t], v[t + 1])
        if time_limit == "terminal":
            following = np.where(rollout.truncated[t].numpy(), 0, following)
        trace = r[t] + 0.95 * following - v[t] + 0.95 * 0.95 * np.where(ended[t], 0, trace)
        advantages[t] = trace
    a = advantages.ravel()
    a = (a - a.mean()) / a.std(ddof=1)
    x, log_old = rollout.chains.flatten(0, 1)[:, 1].double(), rollout.log_probs.flatten().double()

    def surrogate(network: Gaussian_MLP) -> torch.Tensor:
        mean, std = network(obs)
        density = -((x - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)
        ratio = (density.mean((1, 2)) - log_old).exp()
        return -torch.minimum(torch.tensor(a) * ratio, torch.tensor(a) * ratio.clamp(0.998, 1.002)).mean()

    network = Gaussian_MLP(**NETWORK, **LEARNED)
    network.load_state_dict(old)
    losses = []
    for _ in range(2):
        loss = surrogate(network)
        network.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter -= 0.02 * parameter.grad
    assert losses[1] < losses[0]
    assert metrics["loss/policy"] == pytest.approx(np.mean(losses), abs=1e-5)
    for key, value in network.state_dict().items():
        torch.testing.assert_close(policy.network.state_dict()[key], value, rtol=1e-4, atol=1e-5)
    assert metrics["self_check/max_abs_log_ratio"] < 1e-5


def gaussian_config(leaf: str, *overrides: str):
    """A locomotion leaf of the Gaussian policy, turned to the point mass."""
    with initialize_config_dir(str(runs.ROOT / "cfg"), version_base="1.3"):
        cfg = compose(
            leaf, overrides=[key for key in runs.TASK if "denoising" not in key and "keys" not in key] + list(overrides)
        )
    validate(cfg)
    return cfg


SMALL = [
    "base_policy_path=scratch", "env.n_envs=40", "train.n_steps=8", "train.n_train_itr=25", "train.batch_size=80",
    "train.actor_lr=3e-3", "train.critic_lr=3e-3", "train.final_eval_episodes=100", "env.reset_at_iteration=true",
    "train.latest_every_s=0", "env.max_episode_steps=10",
]  # fmt: skip


def test_it_learns_from_nothing_stops_at_a_return_and_goes_on(tmp_path):
    runs.UNIT.save(tmp_path / "normalization.npz")
    common = [*SMALL, f"normalization_path={tmp_path / 'normalization.npz'}", f"logdir={tmp_path / 'run'}"]
    leaf = "gym/finetune/hopper-v2/medium"
    first = FinetuneAgent(gaussian_config(leaf, *common, "train.stop_at_return=2.0")).run()
    rows = runs_rows(tmp_path / "run")
    assert 1 < first["iterations"] < 25
    # 40 environments, new episodes of 5 chunks at every iteration of 8 chunks: one each ends
    counts, means = ([row[f"train/{key}"] for row in rows[1:]] for key in ("episodes", "episode_return"))
    assert [count == 40 and mean >= 2.0 for count, mean in zip(counts, means)] == [False] * (len(rows) - 2) + [True]
    result = FinetuneAgent(gaussian_config(leaf, *common, "resume=true")).run()
    assert result["iterations"] == 25
    assert result["after"]["success_interval"][0] > result["before"]["success_interval"][1]
    assert result["base_policy_path"] == "scratch"

    policy = checkpoint.load_policy(result["checkpoint"])
    assert policy.normalizer.obs_dim == 4
    seen = {"state": torch.rand(3, 1, 4)}
    save_behaviour(
        tmp_path / "p.safetensors",
        policy,
        dict(policy.config["model"]["actor"]) | {"_target_": None},
        policy.normalizer,
        {},
    )
    with pytest.raises(CheckpointError, match="_target_"):
        load_behaviour(tmp_path / "p.safetensors")
    network = {key: value for key, value in policy.config["model"]["actor"].items() if key != "_target_"}
    save_behaviour(tmp_path / "p.safetensors", policy, network, policy.normalizer, {"seed": 3})
    again = load_behaviour(tmp_path / "p.safetensors")
    assert torch.equal(again.sample(seen).trajectories, policy.sample(seen, deterministic=True).trajectories)
    assert again.about == {"seed": 3}


def runs_rows(logdir):
    return [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]


def test_killed_between_iterations_equals_uninterrupted(tmp_path):
    runs.UNIT.save(tmp_path / "normalization.npz")
    common = [
        *SMALL,
        "env.reset_at_iteration=false",
        "train.n_train_itr=4",
        f"normalization_path={tmp_path / 'normalization.npz'}",
    ]
    leaf = "gym/finetune/hopper-v2/medium"
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    FinetuneAgent(gaussian_config(leaf, *common, f"logdir={whole}")).run()
    FinetuneAgent(gaussian_config(leaf, *common, f"logdir={cut}", "train.stop_at_return=-1e9")).run()
    assert len(runs_rows(cut)) == 2
    FinetuneAgent(gaussian_config(leaf, *common, f"logdir={cut}", "resume=true")).run()
    one, two = (checkpoint.load(x / "checkpoint" / "state_4.pt")["model"] for x in (whole, cut))
    assert all(torch.equal(value, two[key]) for key, value in one.items())


def test_a_cloned_policy_is_fine_tuned(tmp_path):
    runs.write_demonstrations(tmp_path / "data" / "gym" / "point_mass")
    common = [f"data_root={tmp_path / 'data'}", "horizon_steps=2", "act_steps=2"]
    pre = gaussian_config(
        "gym/pretrain/hopper-medium-v2/pre_gaussian_mlp", *common, f"logdir={tmp_path / 'pre'}", "model.network.mlp_dims=[31,29]",
        "model.network.activation_type=Tanh", "train.n_epochs=3",
    )  # fmt: skip
    result = PretrainAgent(pre).run()
    losses = [row["train/nll loss"] for row in runs_rows(tmp_path / "pre")]
    assert losses[-1] < losses[0]
    tune = gaussian_config(
        "gym/finetune/hopper-v2/medium", *common, *SMALL, f"base_policy_path={result['checkpoint']}", "train.n_train_itr=1",
        f"logdir={tmp_path / 'ft'}", "model.actor.mlp_dims=[31,29]",
    )  # fmt: skip
    agent = FinetuneAgent(tune)
    base = checkpoint.load_policy(result["checkpoint"])
    assert torch.equal(
        agent.policy.network.mlp_mean.moduleList[0].linear_1.weight, base.network.mlp_mean.moduleList[0].linear_1.weight
    )
    assert agent.run()["iterations"] == 1


def test_a_start_from_nothing_needs_bounds(tmp_path):
    with pytest.raises(CheckpointError, match="normalization_path: no checkpoint brings a normaliser"):
        FinetuneAgent(
            gaussian_config(
                "gym/finetune/hopper-v2/medium", *SMALL, "normalization_path=null", f"logdir={tmp_path / 'x'}"
            )
        )


def test_damaged_policy_files_are_refused(tmp_path):
    policy, unit = make_policy(), Normalizer(-np.ones(4), np.ones(4), -np.ones(2), np.ones(2))
    path = tmp_path / "p.safetensors"
    save_behaviour(path, policy, {**NETWORK, **LEARNED}, unit, {})
    tensors = load_file(path)
    for name, change, message in (
        ("other", lambda: save_file(tensors, path, {"format": "other"}), "expected format"),
        ("key", lambda: save_file({k: v for k, v in tensors.items() if "mlp_mean.moduleList.1" not in k}, path, metadata(LEARNED)), "is missing"),
        ("width", lambda: save_file(tensors, path, metadata({**LEARNED, "mlp_dims": [31, 28]})), "expected shape"),
        ("cut", lambda: path.write_bytes(path.read_bytes()[:100]), "damaged"),
        ("absent", path.unlink, "no such policy"),
    ):  # fmt: skip
        change()
        with pytest.raises(CheckpointError, match=message):
            load_behaviour(path)
        assert name


def metadata(settings: dict) -> dict[str, str]:
    return {"format": "d2ppo-gaussian-1", "network": json.dumps({**NETWORK, **settings}), "about": "{}"}


@pytest.mark.parametrize(("solved", "label"), [(0.0, "return"), (0.3, "success rate")])
def test_the_learning_curve_shows_returns_where_nothing_is_ever_solved(tmp_path, monkeypatch, solved, label):
    row = {"env_steps": 7, "train/success_rate": solved, "train/episode_return": 11.0}
    for kind, value in (("success", solved), ("return", 13.0)):
        row |= {f"eval/{kind}_ci_low": value - 0.1, f"eval/{kind}_ci_high": value + 0.1}
    row |= {"eval/success_rate": solved, "eval/episode_return": 13.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    labels = []
    monkeypatch.setattr("matplotlib.axes.Axes.set", lambda axis, **given: labels.append(given["ylabel"]))
    assert learning_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png", "x").stat().st_size > 5_000
    assert labels == [label]
