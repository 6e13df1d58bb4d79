"""One PPO iteration over the denoising chain as published, written the straightforward way: the yardstick of the
fine-tuning row.

Rollout with chunks through ``AsyncVectorEnv``; float64 buffers; values and old log-probabilities recomputed after
the rollout, in splits; GAE with the published treatment of time limits; minibatches of ``batch_size`` chunks, each
repeated over its K denoising steps; AdamW for actor and critic. It is meant to be as fast as such a loop reasonably
is: all cores for torch, no logging, no rendering.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from script.bench.reference_networks import Denoiser, ReferencePolicy, ResidualNet
from script.bench.robosuite_env import Limits, make_vector

PHASES = ("simulate", "sample", "values + old log-probs", "update")


@dataclass(frozen=True)
class LoopSettings:
    """The published Lift setting; ``scaled`` makes a shorter rollout with the same number of minibatches per epoch."""

    n_envs: int = 50
    n_steps: int = 300  # chunks per environment
    act_steps: int = 4
    obs_dim: int = 19
    action_dim: int = 7
    denoising_steps: int = 20
    ft_denoising_steps: int = 10
    batch_size: int = 7500  # chunks
    update_epochs: int = 10
    log_prob_split: int = 10_000  # chunks per call when values and log-probs are recomputed
    gamma: float = 0.999
    gae_lambda: float = 0.95
    gamma_denoising: float = 0.99
    actor_lr: float = 1e-5
    critic_lr: float = 1e-3
    vf_coef: float = 0.5
    target_kl: float = 1.0
    clip_coef: float = 0.01
    clip_base: float = 1e-3
    clip_rate: float = 3.0
    actor_width: int = 512
    critic_width: int = 256
    activation: str = "Mish"  # of the actor

    @property
    def control_steps(self) -> int:
        """Control steps of one iteration."""
        return self.n_envs * self.n_steps * self.act_steps


def scaled(scale: float, full: LoopSettings | None = None) -> LoopSettings:
    """``full`` (the published Lift setting) with ``scale`` times the chunks per environment and per minibatch (at least
    2 chunks per environment).
    """
    full = full or LoopSettings()
    n_steps = max(2, round(full.n_steps * scale))
    return replace(full, n_steps=n_steps, batch_size=round(full.batch_size * n_steps / full.n_steps))


class Simulators(Protocol):
    """What the loop needs of the simulators (see ``AsyncSimulators``)."""

    def reset(self) -> np.ndarray:
        """First observations (N, Do)."""

    def step(self, chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Execute (N, Te, Da) -> observations (N, Do), rewards, terminated, truncated (N,)."""


class AsyncSimulators:
    """``RobosuiteBlock`` workers seen as N environments."""

    def __init__(self, n_envs: int, workers: int, seed: int, limits: Limits) -> None:
        self.n_envs, self.workers = n_envs, workers
        self.venv = make_vector(n_envs, workers, seed, limits)

    def reset(self) -> np.ndarray:
        """Reset everything -> (N, Do)."""
        return self.venv.reset()[0]["state"].reshape(self.n_envs, -1)

    def step(self, chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """See ``Simulators``; Lift never terminates."""
        answer = self.venv.step(chunk.reshape(self.workers, -1, *chunk.shape[1:]))[0]
        truncated = answer["truncated"].reshape(-1).astype(bool)
        return (
            answer["state"].reshape(self.n_envs, -1),
            answer["reward"].reshape(-1),
            np.zeros_like(truncated),
            truncated,
        )

    def cpu_seconds(self) -> float:
        """CPU seconds of this process and its workers."""
        return time.process_time() + sum(self.venv.call("cpu_seconds"))

    def close(self) -> None:
        """End the workers."""
        self.venv.close()


@dataclass
class Buffers:
    """A rollout in float64, as published: (S, N, ...)."""

    obs: np.ndarray
    chains: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    firsts: np.ndarray
    last_obs: np.ndarray = field(default_factory=lambda: np.zeros(0))


class RewardScaler:
    """Divides rewards by the running standard deviation of the discounted return (fixed discount 0.99), clipped to
    +-10.
    """

    def __init__(self, n_envs: int) -> None:
        self.returns, self.mean, self.var, self.count = np.zeros(n_envs), 0.0, 1.0, 1e-4

    def __call__(self, rewards: np.ndarray, firsts: np.ndarray) -> np.ndarray:
        """(S, N) rewards and (S, N) episode starts -> scaled rewards."""
        discounted = np.zeros_like(rewards)
        for s in range(len(rewards)):
            self.returns = rewards[s] + 0.99 * (1 - firsts[s]) * self.returns
            discounted[s] = self.returns
        n, m, delta = self.count, discounted.size, discounted.mean() - self.mean
        square = self.var * n + discounted.var() * m + delta**2 * n * m / (n + m)
        self.mean, self.var, self.count = self.mean + delta * m / (n + m), square / (n + m - 1), n + m
        return np.clip(rewards / np.sqrt(self.var + 1e-8), -10, 10)


class ReferenceLoop:
    """Holds networks, optimisers and simulators; ``iteration()`` runs one whole iteration and returns seconds per
    phase.
    """

    def __init__(
        self, settings: LoopSettings, simulators: Simulators, seed: int, base: dict[str, Tensor] | None = None
    ) -> None:
        torch.manual_seed(seed)
        self.order = np.random.default_rng(seed)
        s = self.settings = settings
        actor = Denoiser(s.obs_dim, s.action_dim, s.act_steps, s.actor_width, activation=s.activation)
        if base is not None:
            actor.load_state_dict(base)
        critic = ResidualNet(s.obs_dim, s.critic_width, 1)
        self.policy = ReferencePolicy(actor, critic, s.denoising_steps, s.ft_denoising_steps, s.act_steps, s.action_dim)
        self.actor_optimizer = torch.optim.AdamW(self.policy.actor_ft.parameters(), lr=s.actor_lr, weight_decay=0)
        self.critic_optimizer = torch.optim.AdamW(self.policy.critic.parameters(), lr=s.critic_lr, weight_decay=0)
        self.simulators, self.scaler = simulators, RewardScaler(s.n_envs)
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.threads = self.sampling_threads = torch.get_num_threads()
        self.minibatches = 0

    def choose_sampling_threads(self, cores: int) -> int:
        """Sample with one thread or with all, whichever is faster here: a batch of 50 rows can lose more than it
        gains by threads.
        """
        obs, seconds = torch.zeros(self.settings.n_envs, self.settings.obs_dim), {}
        for threads in (1, cores):
            torch.set_num_threads(threads)
            times = []
            for _ in range(5):
                start = time.perf_counter()
                self.policy.sample(obs)
                times.append(time.perf_counter() - start)
            seconds[threads] = min(times)
        torch.set_num_threads(self.threads)
        self.sampling_threads = min(seconds, key=lambda threads: seconds[threads])
        return self.sampling_threads

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to ``seconds[name]``."""
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start

    def iteration(self) -> dict[str, float]:
        """Rollout, values and log-probs, advantages, update -> seconds per phase."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        buffers = self.collect()
        with self.phase(PHASES[2]):
            values, log_probs = self.evaluate(buffers)
        with self.phase(PHASES[3]):
            advantages, returns = self.advantages(buffers, values)
            self.update(buffers, log_probs, advantages, returns)
        return self.seconds

    def collect(self) -> Buffers:
        """``n_steps`` chunks in every environment."""
        s = self.settings
        b = Buffers(
            obs=np.zeros((s.n_steps, s.n_envs, s.obs_dim)),
            chains=np.zeros((s.n_steps, s.n_envs, s.ft_denoising_steps + 1, s.act_steps, s.action_dim)),
            rewards=np.zeros((s.n_steps, s.n_envs)),
            terminated=np.zeros((s.n_steps, s.n_envs)),
            firsts=np.zeros((s.n_steps + 1, s.n_envs)),
        )
        with self.phase(PHASES[0]):
            obs = self.simulators.reset()
        b.firsts[0] = 1
        torch.set_num_threads(self.sampling_threads)
        for step in range(s.n_steps):
            with self.phase(PHASES[1]):
                actions, chains = self.policy.sample(torch.from_numpy(obs).float())
                b.obs[step], b.chains[step] = obs, chains.numpy()
            with self.phase(PHASES[0]):
                obs, b.rewards[step], b.terminated[step], truncated = self.simulators.step(actions.numpy())
            b.firsts[step + 1] = truncated | b.terminated[step].astype(bool)
        torch.set_num_threads(self.threads)
        b.last_obs = obs
        return b

    @torch.no_grad()
    def evaluate(self, b: Buffers) -> tuple[np.ndarray, np.ndarray]:
        """Values (S, N) and element-wise old log-probs (S * N, K, Ta, Da) of the rollout, float64."""
        s = self.settings
        obs = torch.from_numpy(b.obs).float().flatten(0, 1)
        chains = torch.from_numpy(b.chains).float().flatten(0, 1)
        values = torch.cat([self.policy.value(part) for part in obs.split(s.log_prob_split)])
        parts = zip(obs.split(s.log_prob_split), chains.split(s.log_prob_split), strict=True)
        log_probs = torch.cat([self.policy.log_probs(o, c) for o, c in parts])
        shape = (len(obs), s.ft_denoising_steps, s.act_steps, s.action_dim)
        return values.view(s.n_steps, s.n_envs).double().numpy(), log_probs.view(shape).double().numpy()

    def advantages(self, b: Buffers, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """GAE (Schulman et al. 2016) -> advantages and returns (S, N); only ``terminated`` cuts it, as published."""
        s = self.settings
        rewards = self.scaler(b.rewards, b.firsts[:-1])
        with torch.no_grad():
            next_value = self.policy.value(torch.from_numpy(b.last_obs).float()).double().numpy()
        advantages, running = np.zeros_like(values), np.zeros(s.n_envs)
        for step in reversed(range(s.n_steps)):
            alive = 1 - b.terminated[step]
            delta = rewards[step] + s.gamma * next_value * alive - values[step]
            running = advantages[step] = delta + s.gamma * s.gae_lambda * alive * running
            next_value = values[step]
        return advantages, advantages + values

    def update(self, b: Buffers, log_probs: np.ndarray, advantages: np.ndarray, returns: np.ndarray) -> None:
        """``update_epochs`` passes over shuffled minibatches; a remainder smaller than a minibatch is dropped."""
        s = self.settings
        obs, chains = (torch.from_numpy(x).float().flatten(0, 1) for x in (b.obs, b.chains))
        old, adv, ret = (torch.from_numpy(x).float() for x in (log_probs, advantages.reshape(-1), returns.reshape(-1)))
        for _ in range(s.update_epochs):
            order = torch.from_numpy(self.order.permutation(len(obs)))
            for start in range(max(1, len(obs) // s.batch_size)):
                rows = order[start * s.batch_size : (start + 1) * s.batch_size]
                loss, kl = self.loss(obs[rows], chains[rows], old[rows], adv[rows], ret[rows])
                self.actor_optimizer.zero_grad()
                self.critic_optimizer.zero_grad()
                loss.backward()
                self.actor_optimizer.step()
                self.critic_optimizer.step()
                self.minibatches += 1
                if kl > s.target_kl:
                    return

    def loss(self, obs: Tensor, chains: Tensor, old: Tensor, adv: Tensor, ret: Tensor) -> tuple[Tensor, float]:
        """PPO over the chain: rows (B, ...) of chunks, each repeated over K steps -> (total loss, approximate KL)."""
        s, k = self.settings, self.settings.ft_denoising_steps
        new = self.policy.log_probs(obs, chains).clamp(-5, 2).mean(dim=(-1, -2))
        ratio = (new - old.flatten(0, 1).clamp(-5, 2).mean(dim=(-1, -2))).exp()
        adv = (adv - adv.mean()) / (adv.std() + 1e-8)
        position = torch.arange(k).repeat(len(obs))
        adv = adv.repeat_interleave(k) * s.gamma_denoising ** (k - 1 - position)
        clip = self.clip_range(position)
        policy_loss = torch.max(-adv * ratio, -adv * torch.clamp(ratio, 1 - clip, 1 + clip)).mean()
        value_loss = 0.5 * ((self.policy.value(obs) - ret) ** 2).mean()
        with torch.no_grad():
            kl = ((ratio - 1) - ratio.log()).mean().item()
        return policy_loss + s.vf_coef * value_loss, kl

    def clip_range(self, position: Tensor) -> Tensor:
        """Clip range of each chain position, growing exponentially from ``clip_base`` to ``clip_coef``, same shape
        as ``position``.
        """
        s = self.settings
        if s.ft_denoising_steps == 1:
            return torch.full(position.shape, s.clip_coef)
        fraction = position / (s.ft_denoising_steps - 1)
        growth = (torch.exp(s.clip_rate * fraction) - 1) / (np.exp(s.clip_rate) - 1)
        return s.clip_base + (s.clip_coef - s.clip_base) * growth
