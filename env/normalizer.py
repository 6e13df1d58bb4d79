"""Min/max statistics that map observations and actions to [-1, 1] and back, and the wrapper that applies them.

The convention is the one of the published ``normalization.npz`` files (DPPO, arXiv:2409.00588, and everything
trained with it):

    normalise     x_n = 2 (x - min) / (max - min + 1e-6) - 1      for observations and for actions
    un-normalise  x   = (x_n + 1) / 2 * (max - min) + min         without the 1e-6

The statistics are kept in float32 (so that a file, a checkpoint and a fit compare equal) and the arithmetic is
float64, which makes demonstrations normalised once on disk and observations normalised on line the same
numbers.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from env.errors import EnvError
from env.npz import NpzFile
from env.protocol import NpObs, StepResult, VectorEnv

EPSILON = 1e-6  # of the published convention; in the direction "normalise" only
CONSTANT_RANGE = 1e-4  # an observation column narrower than this never moved in the demonstrations
_MAX_BYTES = 2**20  # of one statistic: a hundred thousand columns
_KEYS = ("obs_min", "obs_max", "action_min", "action_max")


@dataclass(frozen=True, eq=False)
class Normalizer:
    """Per-column bounds in the task's own units: ``obs_min, obs_max (Do,)`` and ``action_min, action_max (Da,)``.

    Raises ``EnvError`` when an array is not one-dimensional, not finite, when lengths disagree, or a minimum
    exceeds its maximum.
    """

    obs_min: np.ndarray
    obs_max: np.ndarray
    action_min: np.ndarray
    action_max: np.ndarray

    def __post_init__(self) -> None:
        for key in _KEYS:
            object.__setattr__(self, key, _statistic(key, getattr(self, key)))
        for kind in ("obs", "action"):
            low, high = getattr(self, f"{kind}_min"), getattr(self, f"{kind}_max")
            if low.shape != high.shape:
                raise EnvError(f"{kind}_min has {low.size} columns and {kind}_max has {high.size}; they must agree.")
            if (low > high).any():
                column = int(np.argmax(low > high))
                raise EnvError(f"{kind}_min exceeds {kind}_max in column {column}: {low[column]:g} > {high[column]:g}.")

    @property
    def obs_dim(self) -> int:
        """Number of observation columns, Do."""
        return self.obs_min.size

    @property
    def action_dim(self) -> int:
        """Number of action columns, Da."""
        return self.action_min.size

    def normalize_obs(self, obs: np.ndarray) -> np.ndarray:
        """Task units ``(..., Do)`` -> float32 in [-1, 1] for what the demonstrations covered (nothing is clipped)."""
        return _normalize(obs, self.obs_min, self.obs_max, "observation")

    def unnormalize_obs(self, obs: np.ndarray) -> np.ndarray:
        """Inverse of ``normalize_obs``, ``(..., Do)`` float32."""
        return _unnormalize(obs, self.obs_min, self.obs_max, "observation")

    def normalize_action(self, action: np.ndarray) -> np.ndarray:
        """Task units ``(..., Da)`` -> float32 in [-1, 1]."""
        return _normalize(action, self.action_min, self.action_max, "action")

    def unnormalize_action(self, action: np.ndarray) -> np.ndarray:
        """What the policy says, ``(..., Da)`` in [-1, 1] -> what the task understands, float32 (nothing is clipped)."""
        return _unnormalize(action, self.action_min, self.action_max, "action")

    @classmethod
    def fit(cls, states: np.ndarray, actions: np.ndarray) -> Normalizer:
        """Statistics of demonstrations ``states (T, Do)``, ``actions (T, Da)``.

        An observation column that never moved is widened by 1 on both sides, so that it maps to 0 and the first
        deviation met on line does not become a number in the thousands. A constant action column is left alone:
        un-normalising then returns that constant whatever the policy says, which keeps a degree of freedom the
        demonstrations never used at rest.
        """
        for name, array in (("states", states), ("actions", actions)):
            if np.ndim(array) != 2 or len(array) == 0:
                raise EnvError(f"{name} must be (T, D) with T >= 1, found shape {np.shape(array)}.")
            if not np.isfinite(array).all():
                row, column = np.argwhere(~np.isfinite(array))[0]
                raise EnvError(f"{name} holds NaN or infinity, first at row {row}, column {column}.")
        low, high = np.min(states, axis=0).astype(np.float64), np.max(states, axis=0).astype(np.float64)
        margin = np.where(high - low < CONSTANT_RANGE, 1.0, 0.0)
        return cls(low - margin, high + margin, np.min(actions, axis=0), np.max(actions, axis=0))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``path`` (an npz with the four published keys) in one atomic step."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                np.savez(file, **self.to_dict())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Normalizer:
        """Read an npz written by ``save`` or published by DPPO. Nothing is unpickled.

        Raises ``EnvError`` naming the file and what is wrong: absent, a pickle, truncated, a key missing, a
        wrong shape, NaN.
        """
        path = Path(path)
        _check_is_npz(path)
        with NpzFile(path) as archive:
            missing = [key for key in _KEYS if key not in archive.names]
            if missing:
                found = ", ".join(sorted(archive.names)) or "nothing"
                raise EnvError(f"{path}: no {', '.join(missing)} in it (expected {', '.join(_KEYS)}; found {found}).")
            for key in _KEYS:
                if archive.header(key).n_bytes > _MAX_BYTES:
                    raise EnvError(
                        f"{path}: {key} has shape {archive.header(key).shape}; expected one number per column."
                    )
            arrays = {key: archive.read(key) for key in _KEYS}
        try:
            return cls(**arrays)
        except EnvError as error:
            raise EnvError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, np.ndarray]:
        """Copies of the four arrays under their published names, as they go into a file or a checkpoint."""
        return {key: getattr(self, key).copy() for key in _KEYS}

    @classmethod
    def from_dict(cls, arrays: Mapping[str, Any]) -> Normalizer:
        """Inverse of ``to_dict``, from arrays or CPU tensors. Raises ``EnvError`` naming a missing key."""
        missing = [key for key in _KEYS if key not in arrays]
        if missing:
            raise EnvError(
                f"normalisation statistics lack {', '.join(missing)} (found {', '.join(sorted(arrays)) or 'nothing'})."
            )
        return cls(**{key: np.asarray(arrays[key]) for key in _KEYS})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Normalizer):
            return NotImplemented
        return all(np.array_equal(getattr(self, key), getattr(other, key)) for key in _KEYS)

    __hash__ = None  # type: ignore[assignment]  # arrays inside: comparable, not hashable

    def describe_difference(self, other: Normalizer) -> str:
        """One line for a person, ``obs_max[3]: 0.5 here, 0.7 there (2 of 19 columns differ)``; empty when equal."""
        lines = []
        for key in _KEYS:
            mine, theirs = getattr(self, key), getattr(other, key)
            if mine.shape != theirs.shape:
                lines.append(f"{key}: {mine.size} columns here, {theirs.size} there")
            elif (mine != theirs).any():
                columns = np.flatnonzero(mine != theirs)
                worst = columns[np.argmax(np.abs(mine[columns] - theirs[columns]))]
                lines.append(
                    f"{key}[{worst}]: {mine[worst]:.7g} here, {theirs[worst]:.7g} there "
                    f"({columns.size} of {mine.size} columns differ)"
                )
        return "; ".join(lines)


class NormalizedVectorEnv:
    """A ``VectorEnv`` whose "state" observations and action chunks are in normalised units.

    Observations, ``final_obs`` included, are normalised (and cut off at plus and minus ``obs_limit``, where one is given); chunks are
    clipped to [-1, 1] and un-normalised.
    Images, rewards and ends pass untouched, rows of idle slots stay zero, and anything else the inner
    environment offers (``record``, ``render_state``, ...) is reached through the wrapper.

    Raises ``EnvError`` when the statistics do not fit the environment, or a chunk is of the wrong shape or not
    finite.
    """

    def __init__(self, venv: VectorEnv, normalizer: Normalizer, obs_limit: float | None = None) -> None:
        obs_dim = venv.obs_shapes["state"][-1]
        for what, expected, found in (
            ("observation", obs_dim, normalizer.obs_dim),
            ("action", venv.action_dim, normalizer.action_dim),
        ):
            if expected != found:
                raise EnvError(
                    f"The environment has {expected} {what} dimensions and the normalisation statistics {found}: they "
                    "belong to another task or another choice of low_dim_keys. Point normalization_path at the file "
                    "made with this task's demonstrations."
                )
        self.venv = venv
        self.normalizer = normalizer
        self.obs_limit = obs_limit
        self.n_envs = venv.n_envs
        self.act_steps = venv.act_steps
        self.action_dim = venv.action_dim
        self.obs_shapes = venv.obs_shapes
        self.max_episode_steps = venv.max_episode_steps

    def __getattr__(self, name: str) -> Any:
        if name == "venv" or name.startswith("_"):  # not there yet (a copy being built) or not public
            raise AttributeError(name)
        return getattr(self.venv, name)

    def reset(self, seed: int | Sequence[int]) -> NpObs:
        """See ``VectorEnv.reset``; the observations are normalised."""
        return self._normalized(self.venv.reset(seed), self._occupied())

    def step(self, chunk: np.ndarray) -> StepResult:
        """Execute ``chunk (N, Te, Da)`` in normalised units; values outside [-1, 1] are clipped."""
        chunk, shape = np.asarray(chunk), np.shape(chunk)
        if len(shape) != 3 or shape[0] != self.n_envs or shape[2] != self.action_dim:
            raise EnvError(
                f"An action chunk must be (n_envs, act_steps, action_dim) = "
                f"{(self.n_envs, self.act_steps, self.action_dim)}, found {shape}."
            )
        bad = self._occupied() & ~np.isfinite(chunk).all(axis=(1, 2))  # checked before clipping turns infinity into 1
        if bad.any():
            raise EnvError(f"The action chunk of slot {int(np.argmax(bad))} holds NaN or infinity.")
        result = self.venv.step(self.normalizer.unnormalize_action(np.clip(chunk, -1.0, 1.0)))
        active = np.asarray(result.info["active"], dtype=bool)
        return dataclasses.replace(
            result,
            obs=self._normalized(result.obs, self._occupied()),
            final_obs=self._normalized(result.final_obs, active),
        )

    def seeds(self) -> np.ndarray:
        """See ``VectorEnv.seeds``."""
        return self.venv.seeds()

    def state_dict(self) -> dict[str, Any]:
        """See ``VectorEnv.state_dict``: the inner environment's (statistics travel in the checkpoint, not here)."""
        return self.venv.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> NpObs:
        """See ``VectorEnv.load_state_dict``; the observations are normalised."""
        return self._normalized(self.venv.load_state_dict(state), self._occupied())

    def close(self) -> None:
        """See ``VectorEnv.close``."""
        self.venv.close()

    def _occupied(self) -> np.ndarray:
        return self.venv.seeds() >= 0

    def _normalized(self, obs: NpObs, keep: np.ndarray) -> NpObs:
        state = self.normalizer.normalize_obs(obs["state"])
        if self.obs_limit is not None:
            np.clip(state, -self.obs_limit, self.obs_limit, out=state)
        if not keep.all():
            state[~keep] = 0.0
        return {**obs, "state": state}


def _statistic(key: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise EnvError(f"{key} must hold numbers, found {array.dtype}.")
    array = np.array(array, dtype=np.float32)
    if array.ndim != 1 or array.size == 0:
        raise EnvError(f"{key} must be one-dimensional with at least one column, found shape {array.shape}.")
    if not np.isfinite(array).all():
        raise EnvError(f"{key} holds NaN or infinity, first in column {int(np.argmax(~np.isfinite(array)))}.")
    array.setflags(write=False)
    return array


def _columns(x: np.ndarray, low: np.ndarray, what: str) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    if x.ndim == 0 or x.shape[-1] != low.size:
        raise EnvError(f"Expected {what} arrays of shape (..., {low.size}), found {x.shape}.")
    return x


def _normalize(x: np.ndarray, low: np.ndarray, high: np.ndarray, what: str) -> np.ndarray:
    low, high = low.astype(np.float64), high.astype(np.float64)
    return (2.0 * (_columns(x, low, what) - low) / (high - low + EPSILON) - 1.0).astype(np.float32)


def _unnormalize(x: np.ndarray, low: np.ndarray, high: np.ndarray, what: str) -> np.ndarray:
    low, high = low.astype(np.float64), high.astype(np.float64)
    return ((_columns(x, low, what) + 1.0) / 2.0 * (high - low) + low).astype(np.float32)


def _check_is_npz(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        raise EnvError(
            f"{path} does not exist (config key normalization_path). `python script/collect_demos.py --task <task>` "
            "writes it beside the demonstrations it collects; published data sets ship one."
        ) from None
    except OSError as error:
        raise EnvError(f"{path} cannot be read: {error.strerror}.") from error
    if magic[:2] == b"PK":
        return
    hint = "it looks like a pickle, and pickles can run code" if magic[:1] == b"\x80" else "it is not an npz archive"
    raise EnvError(f"{path}: {hint}; expected an .npz with {', '.join(_KEYS)}, readable without pickle.")
