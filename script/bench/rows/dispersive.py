"""What the dispersive loss costs in pre-training: time per step, extra peak memory, network evaluations per loss."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from script.bench.measure import Contestant, Figure, compare
from script.bench.registry import Context, benchmark

if TYPE_CHECKING:
    from model.diffusion.diffusion import DiffusionModel
    from model.types import Batch

BATCHES, STEPS_PER_TURN, BAR = (256, 1024), 10, 1.10
OBS_DIM, ACTION_DIM, HORIZON = 19, 7, 4


@benchmark(
    "dispersive",
    "pre-training step with each dispersive loss against the plain step: time, memory, network forwards",
    repeats=15,
)
def dispersive_step(context: Context) -> Iterator[Figure]:
    """Loss, backward pass and AdamW step of the published Lift network, batch 256 and 1024; the bar is 10 % more time.

    On one thread, in CPU seconds: wall time would also measure how threads wait for each other.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler that counts memory announces itself on every call
    import torch

    from model.common.dispersive_loss import KINDS

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for batch_size in BATCHES:
            models = {kind: make_model(kind, context.seed) for kind in (None, *KINDS)}
            batch = make_batch(batch_size, context.seed)
            steps = {kind: training_step(model, batch, context.seed) for kind, model in models.items()}
            turns = max(1, round(STEPS_PER_TURN * context.scale))
            samples = context.interleave(
                {kind or "plain": Contestant(repeat(step, turns)) for kind, step in steps.items()}
            )
            plain = peak_bytes(steps[None])
            for kind in KINDS:
                forwards = count_forwards(models[kind], batch)
                extra = round((peak_bytes(steps[kind]) - plain) / 2**20)
                note = f"{forwards} network forward{'s' if forwards != 1 else ''} per loss, {extra:+d} MiB peak memory"
                yield compare(
                    f"{kind}, batch {batch_size}",
                    "CPU ms/step",
                    1e3 * samples[kind].cpu_seconds_each,
                    "plain step",
                    1e3 * samples["plain"].cpu_seconds_each,
                    better="lower",
                    bar=BAR,
                    note=note,
                )
    finally:
        torch.set_num_threads(threads)


def make_model(kind: str | None, seed: int) -> DiffusionModel:
    """The published Lift policy (residual [512] * 3), with the dispersive loss ``kind`` or (None) without one."""
    import torch

    from model.diffusion.diffusion import DiffusionModel
    from model.diffusion.mlp_diffusion import DiffusionMLP

    torch.manual_seed(seed)
    network = DiffusionMLP(
        action_dim=ACTION_DIM,
        horizon_steps=HORIZON,
        cond_dim=OBS_DIM,
        time_dim=16,
        mlp_dims=(512, 512, 512),
        residual_style=True,
    )
    return DiffusionModel(
        network,
        HORIZON,
        OBS_DIM,
        ACTION_DIM,
        denoising_steps=20,
        use_dispersive_loss=kind is not None,
        dispersive_loss_type=kind or "infonce_l2",
    )


def make_batch(batch_size: int, seed: int) -> Batch:
    """Normalised random demonstrations."""
    import torch

    from model.types import Batch

    generator = torch.Generator().manual_seed(seed)
    actions = torch.rand(batch_size, HORIZON, ACTION_DIM, generator=generator) * 2 - 1
    return Batch(actions, {"state": torch.rand(batch_size, 1, OBS_DIM, generator=generator) * 2 - 1})


def training_step(model: DiffusionModel, batch: Batch, seed: int) -> Callable[[], None]:
    """A function that runs one whole optimisation step."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-6)
    generator = torch.Generator().manual_seed(seed)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model.loss(batch, generator).total.backward()
        optimizer.step()

    return step


def repeat(step: Callable[[], None], times: int) -> Callable[[], float]:
    """``times`` steps as one turn."""

    def run() -> float:
        for _ in range(times):
            step()
        return float(times)

    return run


def count_forwards(model: DiffusionModel, batch: Batch) -> int:
    """How often one loss evaluates the network."""
    calls: list[None] = []
    handle = model.network.register_forward_hook(lambda *_: calls.append(None))
    try:
        model.loss(batch)
    finally:
        handle.remove()
    return len(calls)


def peak_bytes(step: Callable[[], None]) -> int:
    """Most bytes that PyTorch's CPU allocator held during ``step`` beyond what it held before."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    held = peak = 0
    records = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(records, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
