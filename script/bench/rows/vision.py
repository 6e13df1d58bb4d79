"""Image policies against a straightforward implementation: encoder at every denoising step, float32 images.

One thread and CPU seconds: wall time would also measure how threads wait for each other. The networks are the published
ones of Lift (96 x 96 pixels), with the same weights on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from script.bench.measure import Contestant, Figure, compare
from script.bench.registry import Context, benchmark

if TYPE_CHECKING:
    from torch import Tensor, nn

    from model.types import Obs

SIZE, OBS_DIM, ACTION_DIM, HORIZON = 96, 9, 7, 4
DENOISING, DDIM, BATCH, N_ENVS = 100, 5, 64, 20
STRAIGHT = "straightforward"


@benchmark(
    "vision",
    "image policies against an encoder at every denoising step and float32 images: sampling, training, memory",
    repeats=9,
)
def vision(context: Context) -> Iterator[Figure]:
    """Sampling (bar: 3 x), memory of images (bar: 4 x), pre-training step, PPO update."""
    with one_thread():
        yield from sampling(context)
        yield from pretraining(context)
        yield from updating(context)
        yield from memory()


def sampling(context: Context) -> Iterator[Figure]:
    """Action chunks per second of the pre-trained and of the fine-tuned policy, five DDIM steps each.

    One at once is a robot that acts (no chain is kept), several are a rollout that explores.
    """
    for name, make in (("pre-trained", make_pretrained), ("fine-tuned", make_finetuned)):
        ours, theirs = make(*networks(context.seed))
        for n in (1, N_ENVS):
            obs = observations(n, context.seed)
            floats = as_floats(obs)
            how: dict[str, bool] = {"deterministic": n == 1}
            if name == "fine-tuned":
                how["return_chain"] = n > 1
            turns = max(1, round(20 * context.scale)) if n == 1 else max(1, round(4 * context.scale))
            samples = context.interleave(
                {
                    "ours": Contestant(repeat(lambda p=ours, o=obs, h=how: p.sample(o, **h), turns, n)),
                    STRAIGHT: Contestant(repeat(lambda p=theirs, o=floats, h=how: p.sample(o, **h), turns, n)),
                }
            )
            milliseconds = 1e3 * float(np.median(samples["ours"].cpu_seconds_each)) * n
            yield compare(
                f"sampling, {name} policy, {n} at once",
                "chunks/CPU s",
                samples["ours"].cpu_rates,
                STRAIGHT,
                samples[STRAIGHT].cpu_rates,
                bar=3.0,
                note=f"{milliseconds:.1f} ms; DDIM, {DDIM} steps",
            )


def pretraining(context: Context) -> Iterator[Figure]:
    """Optimisation steps per second with random shifts, without and with the dispersive loss (there: in a second pass)."""
    for dispersive in (False, True):
        sides = pretraining_steps(context.seed, dispersive)
        turns = max(1, round(2 * context.scale))
        samples = context.interleave({key: Contestant(repeat(step, turns, 1)) for key, step in sides.items()})
        yield compare(
            f"pre-training step, batch {BATCH}" + (", dispersive" if dispersive else ""),
            "steps/CPU s",
            samples["ours"].cpu_rates,
            STRAIGHT,
            samples[STRAIGHT].cpu_rates,
            note=f"{1e3 * float(np.median(samples['ours'].cpu_seconds_each)) / BATCH:.2f} ms per sample",
        )


def pretraining_steps(seed: int, dispersive: bool) -> dict[str, Callable[[], None]]:
    """One optimisation step of either side, each with its images as it keeps them."""
    from model.types import Batch

    ours, theirs = make_pretrained(*networks(seed), dispersive=dispersive)
    actions, obs = uniform(BATCH, seed), observations(BATCH, seed)
    batch, floats = Batch(actions, obs), as_floats(obs)
    return {
        "ours": training_step(ours, lambda: ours.loss(batch).total),
        STRAIGHT: training_step(theirs, lambda: straightforward_loss(theirs, actions, floats, dispersive)),
    }


def updating(context: Context) -> Iterator[Figure]:
    """The actor's gradient of whole chains: one encoding per observation against one per denoising step."""
    ours, theirs = make_finetuned(*networks(context.seed))
    chunks = max(2, round(24 * context.scale))
    obs = observations(chunks, context.seed)
    floats = as_floats(obs)
    chains = uniform(chunks * (DDIM + 1), context.seed).view(chunks, DDIM + 1, HORIZON, ACTION_DIM)
    sides = {
        "ours": training_step(ours, lambda: ours.chain_log_probs(obs, chains).mean(), "actor_ft"),
        STRAIGHT: training_step(theirs, lambda: theirs.chain_log_probs(floats, chains).mean(), "actor_ft"),
    }
    samples = context.interleave({key: Contestant(repeat(step, 1, chunks)) for key, step in sides.items()})
    yield compare(
        f"PPO, actor's step on {chunks} chains",
        "chunks/CPU s",
        samples["ours"].cpu_rates,
        STRAIGHT,
        samples[STRAIGHT].cpu_rates,
        note=f"{1e3 * float(np.median(samples['ours'].cpu_seconds_each)):.2f} ms per chunk of {DDIM} denoising steps",
    )


def memory() -> Iterator[Figure]:
    """Images per GiB of a rollout's buffer, as allocated, against float32."""
    import torch

    from agent.finetune.rollout import Rollout

    obs = observations(1, 0)
    rollout = Rollout.allocate(7, 5, obs, (DDIM + 1, HORIZON, ACTION_DIM), "cpu")
    held = {"ours": rollout.obs["rgb"], STRAIGHT: rollout.obs["rgb"].to(torch.float32)}
    per_gib = {key: np.array([7 * 5 * 2**30 / (t.numel() * t.element_size())]) for key, t in held.items()}
    yield compare("images in memory", "images/GiB", per_gib["ours"], STRAIGHT, per_gib[STRAIGHT], bar=4.0)


def networks(seed: int) -> tuple[nn.Module, nn.Module]:
    """Our network and the straightforward one, with the same weights."""
    import torch

    from model.common.vit import VitEncoder
    from model.diffusion.mlp_diffusion import VisionDiffusionMLP
    from script.bench.reference_vision import VisionDenoiser

    torch.manual_seed(seed)
    ours = VisionDiffusionMLP(
        VitEncoder([3, SIZE, SIZE]),
        ACTION_DIM,
        HORIZON,
        OBS_DIM,
        time_dim=32,
        mlp_dims=(512, 512, 512),
        residual_style=True,
        spatial_emb=128,
        augment=True,
    )
    theirs = VisionDenoiser(OBS_DIM, ACTION_DIM, HORIZON)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def make_pretrained(*pair: nn.Module, dispersive: bool = False) -> list[Any]:
    """The supervised policy around each network."""
    from model.diffusion.diffusion import DiffusionModel

    settings = {"denoising_steps": DENOISING, "use_ddim": True, "ddim_steps": DDIM, "use_dispersive_loss": dispersive}
    return [DiffusionModel(network, HORIZON, OBS_DIM, ACTION_DIM, **settings) for network in pair]


def make_finetuned(*pair: nn.Module) -> list[Any]:
    """The policy that PPO tunes around each network. Neither evaluates the frozen base where the tuned copy is used (the
    published code does: the yardstick is half as expensive as that)."""
    import torch

    from model.diffusion.diffusion_ppo import PPODiffusion

    settings = {"denoising_steps": DENOISING, "ft_denoising_steps": DDIM, "use_ddim": True, "ddim_steps": DDIM}
    critic = torch.nn.Identity()  # not part of this comparison
    return [PPODiffusion(network, critic, HORIZON, OBS_DIM, ACTION_DIM, **settings) for network in pair]


def straightforward_loss(policy: Any, actions: Tensor, obs: Obs, dispersive: bool) -> Tensor:
    """Shifted float32 images, the denoising loss; the dispersive part in a pass of its own, as published."""
    from model.types import Batch
    from script.bench.reference_vision import random_shift

    def shifted() -> Batch:
        return Batch(actions, {**obs, "rgb": random_shift(obs["rgb"][:, 0])[:, None]})

    regulariser, policy.dispersion = policy.dispersion, None
    loss = policy.loss(shifted()).total
    policy.dispersion = regulariser
    if dispersive:
        _, _, features = policy._predict(shifted(), None)
        loss = loss + regulariser.weight * regulariser.loss(features)
    return loss


def training_step(policy: nn.Module, loss: Callable[[], Tensor], part: str = "network") -> Callable[[], None]:
    """A function that takes one optimisation step on ``loss``."""
    import torch

    optimizer = torch.optim.AdamW(getattr(policy, part).parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


def observations(n: int, seed: int) -> Obs:
    """Random states and images, {"state": (n, 1, Do), "rgb": (n, 1, 3, 96, 96) uint8}."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 1, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return {"state": torch.rand(n, 1, OBS_DIM, generator=generator) * 2 - 1, "rgb": images}


def as_floats(obs: Obs) -> Obs:
    """The same with float32 images."""
    return {**obs, "rgb": obs["rgb"].float()}


def uniform(n: int, seed: int) -> Tensor:
    """Action chunks (n, Ta, Da) in [-1, 1]."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, HORIZON, ACTION_DIM, generator=generator) * 2 - 1


def repeat(step: Callable[[], Any], times: int, work: int) -> Callable[[], float]:
    """``times`` calls as one turn, each doing ``work``."""

    def run() -> float:
        for _ in range(times):
            step()
        return float(math.prod((times, work)))

    return run


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread; its own number again afterwards."""
    import torch

    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(usual)
