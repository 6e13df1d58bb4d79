"""Hidden features of a policy at work: what a network makes of observations, in the last of its evaluations before it acts.

The same for every policy, in pre-training and in fine-tuning: observations go through ``policy.sample``, and the outputs of the early, mid and
late hidden layer of the network that is being trained are recorded. Of a chain of denoising steps the last counts, where the action is
all but settled and the features say what the policy makes of the observation, not of the noise.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from model.common.dispersive_loss import pick, record_outputs
from model.common.feature_diagnostics import MAX_ROWS, feature_diagnostics
from model.types import Obs

LAYERS = ("early", "mid", "late")
_NETWORKS = ("actor_ft", "actor", "network")  # the tuned copy before what it was copied from


def trained_network(policy: nn.Module) -> nn.Module | None:
    """The network of ``policy`` that learns to act, if it declares three hidden layers or more; else None."""
    found = next(
        (getattr(policy, name) for name in _NETWORKS if isinstance(getattr(policy, name, None), nn.Module)), None
    )
    return found if len(getattr(found, "hidden_layers", ())) >= 3 else None


@torch.no_grad()
def probe(policy: nn.Module, obs: Obs, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Features ``(B, D)`` of ``obs``, by layer; empty for a network without three hidden layers.

    Args:
        policy: anything with ``sample(obs, deterministic, noise)`` and ``noise_shape``; it samples in evaluation mode.
        obs: ``{"state": (B, To, Do)[, "rgb": ...]}`` on the policy's device.
        generator: draws the noise that the policy starts from.
    """
    network = trained_network(policy)
    if network is None:
        return {}
    state = obs["state"]
    source = state.device if generator is None else generator.device
    noise = torch.randn(len(state), *policy.noise_shape, generator=generator, device=source).to(state.device)
    training = policy.training
    policy.eval()
    try:
        with ExitStack() as stack:
            seen = {layer: stack.enter_context(record_outputs(pick(network.hidden_layers, layer))) for layer in LAYERS}
            policy.sample(obs, deterministic=True, noise=noise)
    finally:
        policy.train(training)
    found = {layer: outputs[-1].flatten(1).float() for layer, outputs in seen.items() if outputs}
    each = {layer: len(z) // len(state) for layer, z in found.items()}  # samples per observation: of several the first
    return {layer: z[:: each[layer]] for layer, z in found.items()}


def diagnose(policy: nn.Module, obs: Obs, generator: torch.Generator | None = None) -> dict[str, float]:
    """``features/<layer>/<name>`` for every layer of ``probe`` and every name of ``feature_diagnostics``; no random numbers but
    the generator's are drawn. States are the observations as the policy sees them, without images."""
    obs = {key: value[:MAX_ROWS] for key, value in obs.items()}
    if len(obs["state"]) < 2:
        return {}
    found = {layer: feature_diagnostics(z, obs["state"]) for layer, z in probe(policy, obs, generator).items()}
    return {
        f"features/{layer}/{name}": float(value) for layer, report in found.items() for name, value in report.items()
    }
