"""A policy's whole sampler, from the task's own units to the task's own units, for machines without this project.

Three inputs, one output; ``B`` is free, the other sizes are the policy's:

========= ========================== ===========================================================
state     ``(B, To, Do)`` float32    observations as the task gives them (unless the policy has no normaliser)
noise     ``(B, *noise_shape)``      standard normal numbers, the chain's start first
rgb       ``(B, To, C, H, W)`` uint8 image policies only
actions   ``(B, Ta, Da)`` float32    the chunk as the task takes it; the first ``act_steps`` are meant to be executed
========= ========================== ===========================================================

Sampling is that of an evaluation (``deterministic``). The embeddings of the diffusion steps are tables, and the normaliser
computes in float64, as ``env.normalizer`` does.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from agent.errors import UsageError
from agent.files import atomic_write
from env.normalizer import EPSILON, Normalizer
from model.common.vit import VitEncoder
from model.diffusion.modules import TimeEmbedding

OPSET = 18
Inputs = dict[str, Tensor]


class Sampler(nn.Module):
    """See the module's text.

    Args:
        policy: of ``agent.checkpoint.load_policy``; it is copied.
        cond_steps: ``To``.

    Raises:
        UsageError: the policy takes no given noise.
    """

    def __init__(self, policy: nn.Module, cond_steps: int = 1) -> None:
        super().__init__()
        if not hasattr(policy, "noise_shape"):
            raise UsageError(f"{type(policy).__name__} cannot be exported: it does not take its noise as an input")
        self.cond_steps, self.noise_shape = cond_steps, tuple(policy.noise_shape)
        self.normalizer: Normalizer | None = getattr(policy, "normalizer", None)
        if self.normalizer is not None:
            for key, value in self.normalizer.to_dict().items():
                self.register_buffer(key, torch.from_numpy(value).double())
        self.policy = copy.deepcopy(policy).cpu().eval().requires_grad_(False)
        _tabulate(self.policy)
        self.obs_dim, self.image_shape = _seen(self.policy)

    def forward(self, state: Tensor, noise: Tensor, rgb: Tensor | None = None) -> Tensor:
        """The chunk ``(B, Ta, Da)`` that answers to an observation."""
        if self.normalizer is not None:
            state = (2 * (state.double() - self.obs_min) / (self.obs_max - self.obs_min + EPSILON) - 1).float()
        obs = {"state": state} if rgb is None else {"state": state, "rgb": rgb}
        chunk = self.policy.sample(obs, deterministic=True, noise=noise).trajectories
        if self.normalizer is not None:
            chunk = ((chunk.double() + 1) / 2 * (self.action_max - self.action_min) + self.action_min).float()
        return chunk

    def inputs(self, batch: int, seed: int) -> Inputs:
        """Random inputs: observations spread over what the normaliser covers, noise, any pixels."""
        g = torch.Generator().manual_seed(seed)
        state = torch.rand(batch, self.cond_steps, self.obs_dim, generator=g, dtype=torch.float64) * 2 - 1
        if self.normalizer is not None:
            state = (state + 1) / 2 * (self.obs_max - self.obs_min) + self.obs_min
        found = {"state": state.float(), "noise": torch.randn(batch, *self.noise_shape, generator=g)}
        if self.image_shape is not None:
            shape = (batch, self.cond_steps, *self.image_shape)
            found["rgb"] = torch.randint(0, 256, shape, generator=g, dtype=torch.uint8)
        return found


class _Table(nn.Module):
    """An embedding of diffusion steps, looked up."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)

    def forward(self, t: Tensor) -> Tensor:
        return F.embedding(t, self.rows)


def _tabulate(policy: nn.Module) -> None:
    """Replace each embedding of diffusion steps by its values: no runtime then computes them anew in every step."""
    if not hasattr(policy, "denoising_steps"):  # a flow's times are no integers
        return
    for module in list(policy.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, TimeEmbedding):
                with torch.no_grad():
                    setattr(module, name, _Table(child(torch.arange(policy.denoising_steps))))


def _seen(policy: nn.Module) -> tuple[int, tuple[int, int, int] | None]:
    """``Do`` and, of an image policy, ``(C, H, W)`` of what it looks at."""
    config = getattr(policy, "config", None) or {}
    obs_dim = getattr(policy, "obs_dim", None) or config.get("obs_dim")
    if obs_dim is None and getattr(policy, "normalizer", None) is not None:
        obs_dim = policy.normalizer.obs_dim
    if obs_dim is None:
        raise UsageError("obs_dim: the configuration does not say how many numbers an observation has; add obs_dim")
    eye = next((m for m in policy.modules() if isinstance(m, VitEncoder)), None)
    if eye is None:
        return obs_dim, None
    cameras = next(m.num_img for m in policy.modules() if hasattr(m, "num_img"))
    return obs_dim, (3 * cameras, eye.img_h, eye.img_w)


def export_torch(sampler: Sampler, path: str | os.PathLike[str]) -> Path:
    """Write ``torch.export``'s format (``.pt2``): ``torch.export.load(path).module()(state, noise[, rgb])``.

    Raises:
        UsageError: the file is not writable.
    """
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(_program(sampler), buffer)
    return _write(path, buffer.getvalue())


def export_onnx(sampler: Sampler, path: str | os.PathLike[str], about: Mapping[str, Any] | None = None) -> Path:
    """Write an ONNX model with inputs ``state, noise[, rgb]`` and output ``actions``; ``about`` becomes its metadata.

    Raises:
        UsageError: the packages of the extra ``export`` are missing, or the file is not writable.
    """
    _need("onnx", "onnxscript")
    names = list(sampler.inputs(2, 0))
    with _quiet():
        program = torch.onnx.export(
            _program(sampler),
            input_names=names,
            output_names=["actions"],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    model = program.model_proto
    for key, value in (about or {}).items():
        model.metadata_props.add(key=key, value=str(value))
    return _write(path, model.SerializeToString())


def onnx_session(path: str | os.PathLike[str]) -> Callable[[Inputs], np.ndarray]:
    """The ONNX model on one core: inputs to actions.

    Raises:
        UsageError: onnxruntime is missing.
    """
    _need("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, {key: value.numpy() for key, value in inputs.items()})[0]


def torch_module(path: str | os.PathLike[str]) -> Callable[[Inputs], np.ndarray]:
    """The ``torch.export`` file, run: inputs to actions."""
    with _quiet():
        module = torch.export.load(path).module()
    return lambda inputs: module(*inputs.values()).detach().numpy()


def in_evaluation(policy: nn.Module, dtype: torch.dtype = torch.float32) -> Callable[[Inputs], np.ndarray]:
    """What an evaluation does with the same inputs: numpy's normaliser around the policy itself.

    In float64 the network's own rounding is gone: what remains between the two is what float32 can tell at all.
    """
    scale: Normalizer | None = getattr(policy, "normalizer", None)
    if dtype is not torch.float32:
        policy = copy.deepcopy(policy).to(dtype)

    def run(inputs: Inputs) -> np.ndarray:
        state = inputs["state"]
        state = state if scale is None else torch.from_numpy(scale.normalize_obs(state.numpy()))
        obs = {"state": state.to(dtype), **({"rgb": inputs["rgb"]} if "rgb" in inputs else {})}
        chunk = policy.sample(obs, deterministic=True, noise=inputs["noise"].to(dtype)).trajectories.numpy()
        return chunk if scale is None else scale.unnormalize_action(chunk)

    return run


def largest_difference(
    one: Callable[[Inputs], np.ndarray], two: Callable[[Inputs], np.ndarray], sampler: Sampler, chunks: int = 100
) -> float:
    """Between the actions of ``one`` and ``two`` over ``chunks`` random inputs, in batches of 1 and 7; in units of half an
    action's range, so that 2 is the whole range."""
    worst, half = 0.0, 1.0
    if sampler.normalizer is not None:
        half = np.maximum(sampler.normalizer.action_max - sampler.normalizer.action_min, 1e-9).astype(np.float64) / 2
    for seed in range(max(1, chunks // 8)):
        for batch in (1, 7):
            inputs = sampler.inputs(batch, 10 * seed + batch)
            difference = np.abs(one(inputs).astype(np.float64) - two(inputs)) / half
            worst = max(worst, float(difference.max()))
    return worst


@dataclass(frozen=True)
class Latency:
    """Medians over ``repeats`` calls, in milliseconds. On a machine that does other things, too, ``wall`` says less than ``cpu``."""

    wall: float
    cpu: float
    repeats: int


def latency(run: Callable[[Inputs], np.ndarray], sampler: Sampler, repeats: int = 200) -> Latency:
    """How long one chunk for one observation takes on one core."""
    inputs, threads = sampler.inputs(1, 0), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(repeats // 10):
            run(inputs)
        times = np.empty((repeats, 2))
        for i in range(repeats):
            before = time.perf_counter(), time.process_time()
            run(inputs)
            times[i] = time.perf_counter() - before[0], time.process_time() - before[1]
    finally:
        torch.set_num_threads(threads)
    wall, cpu = np.median(times, axis=0) * 1000
    return Latency(float(wall), float(cpu), repeats)


def _program(sampler: Sampler) -> torch.export.ExportedProgram:
    inputs = sampler.inputs(2, 0)  # two rows: torch takes sizes of one for constants
    batch = torch.export.Dim("batch", min=1, max=4096)
    return torch.export.export(sampler, tuple(inputs.values()), dynamic_shapes=[{0: batch}] * len(inputs))


def _write(path: str | os.PathLike[str], content: bytes) -> Path:
    try:
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise UsageError(f"{path}: not written ({error.strerror or error})") from error
    return Path(path)


def _need(*packages: str) -> None:
    for package in packages:
        try:
            __import__(package)
        except ImportError as error:
            raise UsageError(f"{package} is not installed; install the extra: pip install -e .[export]") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes on packages that nobody asked for."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
