"""A scripted expert for "avoiding" that goes through the cylinders in any of the 24 modes as a person with a gamepad does.

Each episode draws waypoints beside the cylinders of its mode, a speed, a hesitation at the start and pauses on the way; the stick
wavers, never points back, and no axis moves more than 12.5 mm per control step. D3IL's own 96 demonstrations (length 76 +- 12
steps, 60 to 106; 10 % of the actions zero; they stop at y = 0.446 +- 0.017) are what the numbers below were chosen after.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from env.d3il.field import MODES, ROWS, SUBSETS

STICK = 0.0125  # m per control step and axis, at most
_X = {0: 0.425, 1: 0.575, 2: 0.355, 3: 0.5, 4: 0.645, 5: 0.285, 6: 0.425, 7: 0.575, 8: 0.715}  # middle of each passage
_BEFORE, _AFTER = (-0.03, -0.022, -0.03), (0.02, 0.022, 0.04)  # y of the waypoints relative to their row
_AIM = 0.007  # m: how far off the middle of a passage a person aims (standard deviation), at most 2.5 times
_END, _END_SPREAD = 0.448, 0.015  # y where the stick is let go
_WAVER, _MEMORY = 0.0010, 0.85  # m per step: the stick's unsteadiness, and its share that stays from step to step
_RAMP = 0.0016  # m per step and step: how fast the stick is pushed


class _Run:
    """One episode: a person, a mode, and where on the way they are."""

    def __init__(self, rng: random.Random, mode: Sequence[int], noise: float, at: Sequence[float]) -> None:
        self._rng, self._noise, self._at = rng, noise, [float(at[0]), float(at[1])]
        self._way = self._waypoints(mode)
        self._speed = STICK * (1.0 - 0.06 * min(noise, 1.0) * rng.random())
        self._push = self._speed if noise == 0.0 else 0.005 + 0.005 * rng.random()
        self._wait = round(noise * rng.uniform(1, 6))
        self._pauses = 0.006 * noise
        self._waver = 0.0

    def _waypoints(self, mode: Sequence[int]) -> list[tuple[float, float]]:
        way = [
            (_X[flag] + self._off(_AIM), ROWS[row] + dy)
            for row, flag in enumerate(mode)
            for dy in (_BEFORE[row], _AFTER[row])
        ]
        return [*way, (way[-1][0] + self._off(_AIM), _END + self._off(_END_SPREAD))]

    def _off(self, spread: float) -> float:
        return self._noise * spread * min(max(self._rng.gauss(0.0, 1.0), -2.5), 2.5)

    def act(self) -> list[float]:
        """The next action: what is added to the desired position, m."""
        if self._wait > 0 or not self._way:
            self._wait -= 1
            return [0.0, 0.0]
        if self._rng.random() < self._pauses:
            self._wait = self._rng.randint(1, 6)
            self._push = 0.005
        self._push = min(self._speed, self._push + _RAMP)
        dx, dy = (g - a for g, a in zip(self._way[0], self._at, strict=True))
        steps = max(abs(dx), abs(dy)) / self._push
        if steps <= 1.0:
            self._way.pop(0)
        share = 1.0 / max(steps, 1.0)
        self._waver = _MEMORY * self._waver + (1.0 - _MEMORY**2) ** 0.5 * self._off(_WAVER)
        action = [dx * share + self._waver, max(0.0, dy * share + 0.5 * self._waver)]
        action = [min(max(a, -STICK), STICK) for a in action]
        self._at = [a + d for a, d in zip(self._at, action, strict=True)]
        return action


class AvoidingExpert:
    """The expert for ``n`` slots at once, called at every control step.

    Args:
        n: slots.
        rng: source of every episode's own generator.
        noise: scale of all that is human: 0 none (straight, at full speed), 1 like D3IL's demonstrations.
        modes: which modes to go through, one after another, episode by episode; None: all 24.
    """

    def __init__(
        self, n: int, rng: np.random.Generator, noise: float = 1.0, modes: Sequence[Sequence[int]] | None = None
    ) -> None:
        self._rng, self._noise, self._modes = rng, noise, [tuple(m) for m in (MODES if modes is None else modes)]
        unknown = [m for m in self._modes if m not in MODES]
        if unknown or not self._modes:
            raise ValueError(
                f"no such mode: {unknown or 'none given'}; a mode is one flag of 0-1, one of 2-4 and one of 5-8"
            )
        self._runs: list[_Run | None] = [None] * n
        self._begun = 0

    def reset_rows(self, mask: np.ndarray) -> None:
        """Begin a new episode where ``mask (n,)`` is true."""
        for i in np.flatnonzero(mask):
            self._runs[i] = None

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Actions (n, 2), m, for observations (n, 4); of these only the first of an episode counts: where it begins."""
        if np.shape(obs) != (len(self._runs), 4):
            raise ValueError(
                f"AvoidingExpert: observations must have shape ({len(self._runs)}, 4), found {np.shape(obs)}"
            )
        for i, row in enumerate(np.asarray(obs, np.float64).tolist()):
            if self._runs[i] is None:
                mode = self._modes[self._begun % len(self._modes)]
                self._runs[i] = _Run(random.Random(int(self._rng.integers(2**63))), mode, self._noise, row[:2])
                self._begun += 1
        return np.array([run.act() for run in self._runs])


def expert(task: str, n: int, rng: np.random.Generator, noise: float) -> AvoidingExpert:
    """The expert of a data set: ``avoid`` (all modes) or one of ``SUBSETS``."""
    return AvoidingExpert(n, rng, noise, SUBSETS[task].modes if task in SUBSETS else None)
