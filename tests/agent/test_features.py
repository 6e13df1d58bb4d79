"""Features of a policy at work: whose, of which evaluation, without a trace; and how they are summed up over checkpoints."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from agent import checkpoint
from agent.collapse import Sample, linear_probe, measure, rows_of
from agent.errors import UsageError
from agent.features import LAYERS, diagnose, probe, trained_network
from agent.finetune.finetune import FinetuneAgent
from agent.plots import read_metrics
from model.common.critic import CriticObs, CriticObsAct
from model.common.gaussian import GaussianModel
from model.common.mlp_gaussian import Gaussian_MLP
from model.diffusion.diffusion import DiffusionModel
from model.diffusion.diffusion_idql import IDQLDiffusion
from model.diffusion.diffusion_ppo import PPODiffusion
from model.diffusion.mlp_diffusion import DiffusionMLP
from tests.smoke import runs

B, TA, DA, DO = 11, 3, 2, 5


def network(dims: tuple[int, ...] = (13, 17, 19), residual: bool = False) -> DiffusionMLP:
    return DiffusionMLP(DA, TA, DO, time_dim=8, mlp_dims=list(dims), residual_style=residual)


def obs(n: int = B) -> dict[str, torch.Tensor]:
    return {"state": torch.randn(n, 1, DO, generator=torch.Generator().manual_seed(0))}


def test_the_last_evaluation_of_the_network_is_recorded():
    torch.manual_seed(0)
    policy = DiffusionModel(network(), TA, DO, DA, 7).train()
    seen = []
    for module in policy.network.hidden_layers:
        module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    before = torch.get_rng_state()
    found = probe(policy, obs(), torch.Generator().manual_seed(1))
    assert torch.equal(before, torch.get_rng_state()) and policy.training
    assert {layer: tuple(z.shape) for layer, z in found.items()} == {"early": (B, 13), "mid": (B, 17), "late": (B, 19)}
    assert len(seen) == 3 * 7  # seven denoising steps
    assert all(torch.equal(found[layer], z) for layer, z in zip(LAYERS, seen[-3:], strict=True))
    again = probe(policy, obs(), torch.Generator().manual_seed(1))
    assert all(torch.equal(found[layer], again[layer]) for layer in LAYERS)


def test_of_a_fine_tuned_policy_it_is_the_copy_that_learns():
    torch.manual_seed(0)
    policy = PPODiffusion(network((13, 13, 13)), CriticObs(DO, [7, 7]), TA, DO, DA, 7, 3)
    assert trained_network(policy) is policy.actor_ft
    before = probe(policy, obs(), torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in policy.actor_ft.parameters():
            parameter.mul_(0)
    assert all((z == 0).all() for z in probe(policy, obs(), torch.Generator().manual_seed(1)).values())
    assert all(z.any() for z in before.values())


def test_of_several_samples_per_observation_the_first_counts():
    """IDQL draws ``num_sample`` chunks for each; features are still one row per observation, in order."""
    torch.manual_seed(0)
    double = CriticObsAct(DO, [7, 7], DA, TA)
    policy = IDQLDiffusion(
        network(),
        double,
        CriticObs(DO, [7, 7]),
        num_sample=5,
        horizon_steps=TA,
        obs_dim=DO,
        action_dim=DA,
        denoising_steps=7,
    )
    seen = []
    policy.network.hidden_layers[-1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    found = probe(policy, obs(), torch.Generator().manual_seed(1))
    assert found["late"].shape == (B, 19) and torch.equal(found["late"], seen[-1].view(B, 5, 19)[:, 0])
    assert math.isfinite(diagnose(policy, obs())["features/late/neighbour_agreement"])


def test_any_policy_with_three_hidden_layers_is_diagnosed():
    gaussian = GaussianModel(Gaussian_MLP(DA, TA, DO, [13, 13, 13], fixed_std=0.1), TA)
    found = diagnose(gaussian, obs(), torch.Generator().manual_seed(0))
    assert {key.split("/")[1] for key in found} == set(LAYERS) and all(math.isfinite(x) for x in found.values())
    assert found["features/late/neighbour_agreement"] > 0
    flat = GaussianModel(Gaussian_MLP(DA, TA, DO, [13, 13], fixed_std=0.1), TA)
    assert diagnose(flat, obs()) == {}
    assert diagnose(gaussian, obs(1)) == {}


def test_a_linear_probe_finds_what_is_linear_and_only_that():
    rng = np.random.default_rng(0)
    trajectory = np.repeat(np.arange(20), 30)
    phase = np.minimum(np.tile(np.arange(30) // 10, 20), 2)
    told = np.eye(3)[phase] @ rng.normal(size=(3, 7)) + 0.01 * rng.normal(size=(600, 7))
    assert linear_probe(told, phase, trajectory) == 1
    assert abs(linear_probe(rng.normal(size=(600, 7)), phase, trajectory) - 1 / 3) < 0.1
    rare = np.where(
        np.arange(600) % 30 == 29, 1, 0
    )  # accuracy is of each phase: always saying the common one is chance
    assert linear_probe(np.zeros((600, 3)), rare, trajectory) == 0.5


def test_checkpoints_are_measured_on_the_same_epochs(tmp_path):
    torch.manual_seed(0)
    node = {
        "_target_": "model.diffusion.diffusion.DiffusionModel", "horizon_steps": TA, "obs_dim": DO, "action_dim": DA, "denoising_steps": 3,
        "network": {"_target_": "model.diffusion.mlp_diffusion.DiffusionMLP", "action_dim": DA, "horizon_steps": TA, "cond_dim": DO,
                    "time_dim": 8, "mlp_dims": [13, 17, 19]},
    }  # fmt: skip
    trained = DiffusionModel(network(), TA, DO, DA, 3)
    averaged = {key: torch.zeros_like(value) for key, value in trained.state_dict().items()}
    for run, epochs in (("a", (2, 5)), ("b", (2, 3, 5)), ("c", (7,))):
        for epoch in epochs:
            payload = {
                "kind": "pretrain",
                "epoch": epoch,
                "model": trained.state_dict(),
                "ema": averaged,
                "config": {"model": node},
            }
            checkpoint.save(tmp_path / run / "checkpoint" / f"state_{epoch}.pt", payload)
    sample = Sample(obs(60), np.arange(60) // 6, np.arange(60) % 3)
    rows = list(rows_of({"plain": [tmp_path / "a"], "dispersive": [tmp_path / "b"]}, sample))
    assert [(row["run"], row["epoch"], row["layer"]) for row in rows] == [
        (r, e, layer) for r in "ab" for e in (2, 5) for layer in LAYERS
    ]
    found = measure(tmp_path / "a" / "checkpoint" / "state_5.pt", sample)["mid"]
    expected = probe(trained, sample.obs, torch.Generator().manual_seed(1))["mid"]
    assert found["feature_norm"] == pytest.approx(float(expected.norm(dim=1).mean()))  # of the trained weights
    assert found["phase_probe"] == linear_probe(expected.numpy(), sample.phase, sample.trajectory)
    with pytest.raises(UsageError, match="no checkpoint of the same epoch"):
        list(rows_of({"plain": [tmp_path / "a"], "dispersive": [tmp_path / "c"]}, sample))
    with pytest.raises(UsageError, match="no checkpoint/state"):
        list(rows_of({"plain": [tmp_path]}, sample))


def test_fine_tuning_logs_them_and_is_not_moved_by_it(tmp_path):
    runs.save_untrained_base(tmp_path / "state_0.pt")
    weights = []
    for every in (1, 2):
        folder = tmp_path / f"every_{every}"
        more = [f"train.diagnostics_freq={every}", f"base_policy_path={tmp_path / 'state_0.pt'}", f"logdir={folder}"]
        FinetuneAgent(runs.finetune_config("train.n_train_itr=2", "train.dispersive_loss_weight=0.1", *more)).run()
        rows = read_metrics(folder / "metrics.jsonl")
        found = [row["itr"] for row in rows if "features/late/effective_rank" in row]
        assert found == [k for k in (1, 2) if k % every == 0]
        assert rows[-1]["dispersive/gradient_norm_ratio"] > 0
        weights.append(checkpoint.load(folder / "checkpoint" / "state_2.pt")["model"])
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
