"""``EngineVectorEnv``: the engine's simulations behind the ``VectorEnv`` protocol (``env/protocol.py`` has the
rules).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np

from env.engine.family import Family
from env.engine.generators import Generators
from env.engine.library import SOLVED, TERMINATED, UNSTABLE
from env.engine.pool import ChunkOutcome, Simulations, pose_of
from env.engine.seeds import SeedSupply
from env.errors import EnvError
from env.protocol import NpObs, StepResult

if TYPE_CHECKING:
    from env.engine.camera_obs import CameraObs, Glimpse


_NOBODY = np.zeros(0, np.int64)


@dataclass(slots=True)
class Recording:
    """The motion of one episode, for a video: coordinates at its start (or where recording began) and after each
    control step.
    """

    slot: int
    seed: int
    start: np.ndarray  # the episode's draw, for ``render_model``
    qpos: np.ndarray  # (T, nq)


class EngineVectorEnv:
    """N simulations of one family, N action chunks at a time; implements ``VectorEnv``.

    Args:
        family: the task.
        n_envs: slots.
        act_steps: control steps per chunk (Te).
        max_episode_steps: control steps after which an episode is truncated; need not be a multiple of ``act_steps``.
        obs_keys: which of the family's observations make up ``state``, in this order; None: all, in the family's order.
        obs_steps: observations stacked in ``state`` (To), one per control step, padded with the earliest.
        n_threads: None for all usable cores.
        cameras: whose images make up ``rgb``, in the order of its channels; none: no images.
        image_size: (height, width) of an image, pixels.
        render_quality: "faithful", "balanced" or "fast", see ``cameras.py``.
        renderer: "auto", "native", "gl", "egl" or "osmesa", see ``renderers.py``.
        img_obs_steps: images stacked in ``rgb``, one per control step, padded with the earliest.
        end_on_success: an episode ends (``terminated``) with the control step that solves the task, instead of going on
            to its time limit with reward 1 per solved step.

    Images are drawn once per chunk, uint8 and upright, on threads of their own.

    ``invalid_episodes`` counts the episodes that were cut because the simulation went unstable.

    Raises:
        EnvError: a number below 1, an unknown observation key, camera or quality, or images where nothing can draw.
    """

    def __init__(
        self,
        family: Family,
        n_envs: int,
        act_steps: int,
        max_episode_steps: int,
        obs_keys: Sequence[str] | None = None,
        obs_steps: int = 1,
        n_threads: int | None = None,
        cameras: Sequence[str] = (),
        image_size: Sequence[int] = (96, 96),
        render_quality: str = "balanced",
        img_obs_steps: int = 1,
        end_on_success: bool = False,
        renderer: str = "auto",
    ) -> None:
        counts = {
            "n_envs": n_envs,
            "act_steps": act_steps,
            "max_episode_steps": max_episode_steps,
            "cond_steps": obs_steps,
        }
        for key, value in counts.items():
            if value < 1:
                raise EnvError(f"{key} must be at least 1, found {value}")
        self.family, self.n_envs, self.act_steps, self.max_episode_steps = family, n_envs, act_steps, max_episode_steps
        self.action_dim, self.invalid_episodes = family.action_dim, 0
        self._columns = _columns(family, obs_keys)
        self.obs_shapes = {"state": (obs_steps, len(self._columns))}
        first, last = int(self._columns[0]), int(self._columns[-1])
        in_order = np.array_equal(self._columns, np.arange(first, last + 1))
        self._where = slice(first, last + 1) if in_order else self._columns
        self.simulations = Simulations(family, n_envs, obs_steps, n_threads, end_on_success)
        self._eyes: CameraObs | None = None
        if cameras:
            from env.engine.camera_obs import CameraObs  # its kernels are of no use without images

            try:
                self._eyes = CameraObs(self.simulations, cameras, image_size, render_quality, img_obs_steps, renderer)
            except BaseException:
                self.simulations.close()
                raise
            self.obs_shapes["rgb"] = self._eyes.shape
        self._seeds, self._elapsed = np.full(n_envs, -1, np.int64), np.zeros(n_envs, np.int64)
        self._starts = np.zeros((n_envs, len(family.draw(np.random.default_rng(0)))))
        self._supply: SeedSupply | None = None
        self._generators = Generators()
        self._traced: dict[int, list[np.ndarray]] = {}
        self._recordings: list[Recording] = []

    # ---------------------------------------------------------------------------------------------- protocol

    def reset(self, seed: int | Sequence[int]) -> NpObs:
        """See ``VectorEnv.reset``. Raises ``EnvError`` for a seed outside [0, 2**63)."""
        self._supply = SeedSupply(seed, self.n_envs)
        self._begin_next(np.arange(self.n_envs))
        return self._seen(self._obs())

    def step(self, chunk: np.ndarray) -> StepResult:
        """See ``VectorEnv.step``. Raises ``EnvError`` before the first ``reset``, and for a chunk of the wrong shape
        or with NaN.
        """
        active = self._seeds >= 0
        actions = self._checked(chunk, active)
        slots = np.flatnonzero(active)
        traced = np.array([i for i in self._traced if active[i]], np.int64) if self._traced else _NOBODY
        limits = np.minimum(self.max_episode_steps - self._elapsed, actions.shape[1])
        done = self._simulate(slots, actions, limits, traced)
        invalid = (done.bits & UNSTABLE) != 0
        self.invalid_episodes += int(invalid.sum())
        self._elapsed += done.steps
        for row, i in enumerate(traced):
            self._traced[i].extend(done.trace[row, : max(0, done.steps[i] - int(invalid[i]))])
        terminated = ((done.bits & TERMINATED) != 0) & ~invalid
        truncated = (active & ~terminated & (self._elapsed >= self.max_episode_steps)) | invalid
        info = {"active": active, "steps": done.steps, "invalid": invalid, "seed": self._seeds.copy()}
        final_obs = self._obs()
        over = terminated | truncated
        ended = np.flatnonzero(over)
        last = self._eyes.glimpses(ended) if self._eyes else []
        if len(ended):
            self._begin_next(ended)
            obs = self._obs()
        else:
            obs = {"state": final_obs["state"].copy()}
        if self._eyes:
            final_obs["rgb"] = self._eyes.blank()
            self._seen(obs, [(final_obs["rgb"][i], glimpse) for i, glimpse in zip(ended, last, strict=True)])
            final_obs["rgb"][~over] = obs["rgb"][~over]
        reward = np.where(invalid, 0.0, done.reward).astype(np.float32)
        success = ((done.bits & SOLVED) != 0) & ~invalid
        return StepResult(obs, reward, terminated, truncated, final_obs, success, info)

    def skip(self, slots: Sequence[int]) -> NpObs:
        """Leave the episodes of these slots where they are and begin their next ones; the new observations of all."""
        if self._supply is None:
            raise EnvError("call reset before skip")
        self._begin_next(np.asarray(slots, np.int64))
        return self._seen(self._obs())

    def seeds(self) -> np.ndarray:
        """See ``VectorEnv.seeds``."""
        return self._seeds.copy()

    def state_dict(self) -> dict[str, Any]:
        """See ``VectorEnv.state_dict``: exact, to the bit, also in the middle of an episode. Recordings are not part
        of it.
        """
        if self._supply is None:
            raise EnvError("there is no state to save yet: call reset first")
        state = {
            "family": self.family.name,
            "seeds": self._seeds.copy(),
            "elapsed": self._elapsed.copy(),
            "starts": self._starts.copy(),
            "physics": np.stack([self.simulations.physics(i) for i in range(self.n_envs)]),
            "memory": self.simulations.memory.copy(),
            "history": self.simulations.history.copy(),
            "supply": self._supply.state_dict(),
            "invalid_episodes": self.invalid_episodes,
        }
        return state | ({"poses": self._eyes.poses.copy()} if self._eyes else {})

    def load_state_dict(self, state: dict[str, Any]) -> NpObs:
        """See ``VectorEnv.load_state_dict``. Raises ``EnvError`` when the state belongs to another task, size or
        simulator.
        """
        if state["family"] != self.family.name:
            raise EnvError(
                f"the saved state belongs to task {state['family']!r}, this environment runs {self.family.name!r}"
            )
        targets = {
            "seeds": self._seeds, "elapsed": self._elapsed, "starts": self._starts,
            "memory": self.simulations.memory, "history": self.simulations.history,
        }  # fmt: skip
        if self._eyes and "poses" not in state:
            raise EnvError(
                "the saved environment state has no images (it was saved without cameras); env.wrappers differ"
            )
        physics = np.asarray(state["physics"], np.float64)
        expected = {name: target.shape for name, target in targets.items()} | {
            "physics": (self.n_envs, len(self.simulations.physics(0)))
        }
        if self._eyes:
            expected["poses"] = self._eyes.poses.shape
        for name, shape in expected.items():
            if np.shape(state[name]) != shape:
                raise EnvError(
                    f"saved environment state {name!r}: expected shape {shape}, found {np.shape(state[name])}; "
                    "n_envs, cond_steps, img_cond_steps, the task's version or mujoco's differ"
                )
        for name, target in targets.items():
            target[...] = np.asarray(state[name])
        active = np.flatnonzero(self._seeds >= 0)
        self.simulations.restore(active, self._starts[active], physics[active])
        if self._eyes:
            self._eyes.restore(active, self._starts[active], np.asarray(state["poses"]))
        self._supply = SeedSupply.from_state_dict(state["supply"])
        self.invalid_episodes = int(state["invalid_episodes"])
        self._traced, self._recordings = {}, []
        return self._seen(self._obs())

    def close(self) -> None:
        """See ``VectorEnv.close``."""
        if self._eyes:
            self._eyes.close()
        self.simulations.close()

    # ------------------------------------------------------------------------------------------------ videos

    def poses(self) -> np.ndarray:
        """Where the bodies of every slot are, as images of this moment show them (``cameras.pose_of``): (N, nbody, 7)."""
        return np.stack([pose_of(data) for data in self.simulations.data])

    def starts(self) -> np.ndarray:
        """The draws the present episodes began with, (N, length of a start): what ``CameraPool.appearance`` takes."""
        return self._starts.copy()

    def render_state(self, i: int) -> np.ndarray:
        """Coordinates of slot ``i``: (nq,)."""
        return self.simulations.data[i].qpos.copy()

    def render_model(self, start: np.ndarray | None = None) -> mujoco.MjModel:
        """The task with everything visible; ``start`` (of a ``Recording``) sets what differs between episodes."""
        model = self.family.render_model()
        if start is not None and self.family.own_models:
            self.family.patch(model, mujoco.MjData(model), start)
        return model

    def record(self, indices: Sequence[int]) -> None:
        """Keep the motion of these slots from now on (and only of these); forgets what was recorded before."""
        wrong = [i for i in indices if not 0 <= i < self.n_envs]
        if wrong:
            raise EnvError(f"cannot record slot {wrong[0]}: there are {self.n_envs} slots")
        self._traced = {int(i): [self.render_state(i)] for i in indices}
        self._recordings = []

    def recorded(self) -> list[Recording]:
        """The episodes recorded so far, ended ones first; episodes still running come last."""
        running = [self._recording(i) for i in self._traced if self._seeds[i] >= 0]
        return self._recordings + running

    # ----------------------------------------------------------------------------------------------- helpers

    def _recording(self, i: int) -> Recording:
        return Recording(i, int(self._seeds[i]), self._starts[i].copy(), np.stack(self._traced[i]))

    def _begin_next(self, slots: np.ndarray) -> None:
        """Start the next episode in each of ``slots``, or leave them idle."""
        traced = [i for i in map(int, slots) if i in self._traced] if self._traced else ()
        for i in traced:
            if self._seeds[i] >= 0 and len(self._traced[i]) > 1:
                self._recordings.append(self._recording(i))
        self._elapsed[slots] = 0
        self._seeds[slots] = seeds = self._supply.next(slots)
        going = seeds >= 0
        if not going.all():
            self.simulations.history[slots[~going]] = 0.0
            slots, seeds = slots[going], seeds[going]
        starts = np.empty((len(slots), self._starts.shape[1]))
        for start, generator in zip(starts, self._generators.of(seeds), strict=True):
            start[:] = self.family.draw(generator)
        self._starts[slots] = starts
        self.simulations.begin(slots, starts)
        if self._eyes:
            self._eyes.begin(slots, starts)
        for i in traced:
            if self._seeds[i] >= 0:
                self._traced[i] = [self.render_state(i)]

    def _simulate(self, slots: np.ndarray, actions: np.ndarray, limits: np.ndarray, traced: np.ndarray) -> ChunkOutcome:
        """Run the chunk, in one piece, or control step by control step where images of every one of them are asked
        for.
        """
        if not self._eyes or self._eyes.frames == 1:
            done = self.simulations.run(slots, actions, limits, traced)
            if self._eyes:
                self._eyes.look(slots[(done.bits[slots] & UNSTABLE) == 0])
            return done
        done, going = None, slots
        for t in range(actions.shape[1]):
            going = going[limits[going] > t]
            now = self.simulations.run(going, actions[:, t : t + 1], np.minimum(limits, 1), traced)
            self._eyes.look(going[(now.bits[going] & UNSTABLE) == 0])
            going = going[(now.bits[going] & (UNSTABLE | TERMINATED)) == 0]
            if done is None:
                done = now
                continue
            done.reward += now.reward
            done.bits |= now.bits
            done.steps += now.steps
            done.trace = np.concatenate([done.trace, now.trace], axis=1)
        return done

    def _seen(self, obs: NpObs, more: Sequence[tuple[np.ndarray, Glimpse]] = ()) -> NpObs:
        """Add the images of all slots in use to ``obs`` (where there are cameras), and draw ``more`` beside them."""
        if self._eyes:
            obs["rgb"] = self._eyes.blank()
            active = np.flatnonzero(self._seeds >= 0)
            now = [(obs["rgb"][i], glimpse) for i, glimpse in zip(active, self._eyes.glimpses(active), strict=True)]
            self._eyes.draw([*now, *more])
        return obs

    def _obs(self) -> NpObs:
        return {"state": self.simulations.history[:, :, self._where].astype(np.float32)}

    def _checked(self, chunk: np.ndarray, active: np.ndarray) -> np.ndarray:
        if self._supply is None:
            raise EnvError("call reset before step")
        actions = np.ascontiguousarray(chunk, np.float64)
        if (
            actions.ndim != 3
            or actions.shape[0] != self.n_envs
            or actions.shape[2] != self.action_dim
            or not actions.shape[1]
        ):
            raise EnvError(
                f"an action chunk must have shape ({self.n_envs}, act_steps, {self.action_dim}), found {actions.shape}"
            )
        if not np.isfinite(actions).all() and not np.isfinite(actions[active]).all():
            slot = next(int(i) for i in np.flatnonzero(active) if not np.isfinite(actions[i]).all())
            raise EnvError(f"the action chunk of slot {slot} has NaN or infinite entries")
        return actions


def _columns(family: Family, keys: Sequence[str] | None) -> np.ndarray:
    """Columns of the full observation that make up ``state``."""
    keys = list(family.layout) if keys is None else list(keys)
    unknown = [key for key in keys if key not in family.layout]
    if unknown or not keys:
        raise EnvError(
            f"low_dim_keys: task {family.name!r} has no observation {unknown or '(none asked for)'}; it has "
            + ", ".join(family.layout)
        )
    return np.concatenate([np.arange(family.layout[key].start, family.layout[key].stop) for key in keys])
