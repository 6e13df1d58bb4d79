"""A scripted Lift expert with human-like variety, for demonstrations without a download.

A feedback policy in four phases: above the cube, down, close, lift. Every episode draws its own style (hover height,
gain, aim, grasp depth, patience, lift height, whether to turn the fingers along the cube), and a slowly varying
disturbance is added to its motion; so demonstrations disagree as people's do, and a cloned policy is left with
something to learn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ABOVE, _DOWN, _CLOSE, _LIFT = range(4)
_TABLE_TO_LIFTED = 0.82  # m: a cube this high lies on the table
_PATIENCE = 40  # control steps after which a reaching phase ends anyway
_LIFTING = 15  # control steps of lifting after which the cube has left the table, or was missed
_MEMORY = 0.7  # share of the disturbance kept from step to step
_TURN_DISTURBANCE = 0.1  # rotation is disturbed this much less than translation


@dataclass(slots=True)
class _Style:
    """How each of n episodes goes about it."""

    hover: np.ndarray  # (n,) m above the cube before going down
    gain: np.ndarray  # (n, 1) action per metre
    offset: np.ndarray  # (n, 2) m beside the cube's centre
    depth: np.ndarray  # (n,) m above the cube's centre
    dwell: np.ndarray  # (n,) control steps to close the fingers
    lift_speed: np.ndarray  # (n,) action
    lift_to: np.ndarray  # (n,) m above the table
    aligns: np.ndarray  # (n,) bool: turns the fingers along the cube
    disturbance: np.ndarray  # (n, 1) action


def _draw_style(n: int, rng: np.random.Generator, noise: float, sloppiness: float) -> _Style:
    return _Style(
        hover=rng.uniform(0.03, 0.09, n),
        gain=rng.uniform(6.0, 14.0, (n, 1)),
        offset=sloppiness * rng.uniform(-0.008, 0.008, (n, 2)),
        depth=rng.uniform(-0.008, 0.010, n),
        dwell=rng.integers(4, 9, n),
        lift_speed=rng.uniform(0.4, 1.0, n),
        lift_to=rng.uniform(0.10, 0.16, n),
        aligns=rng.random(n) < 0.5,
        disturbance=noise * rng.uniform(0.0, 1.0, (n, 1)),
    )


class LiftExpert:
    """The expert for ``n`` slots at once, called at every control step with raw observations.

    Args:
        n: slots.
        rng: source of style and disturbance.
        noise: largest disturbance, in units of the action; 0.3 loses a quarter of the episodes (keep only the
            successes), 0 none.
        sloppiness: scale of the aim's error (8 mm).
        retry: go back above the cube, with a new style, when it was missed; then 99 % of 300-step episodes succeed, at
            noise 0.3 too.
    """

    def __init__(
        self, n: int, rng: np.random.Generator, noise: float = 0.3, sloppiness: float = 1.0, retry: bool = False
    ) -> None:
        self._rng, self._noise, self._sloppiness, self._retry = rng, noise, sloppiness, retry
        self._phase, self._count = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self._drift = np.zeros((n, 6))
        self._style = _draw_style(n, rng, noise, sloppiness)

    def reset_rows(self, mask: np.ndarray) -> None:
        """Begin a new episode, with a new style, where ``mask (n,)`` is true."""
        fresh = _draw_style(len(mask), self._rng, self._noise, self._sloppiness)
        for name in _Style.__slots__:
            getattr(self._style, name)[mask] = getattr(fresh, name)[mask]
        self._phase[mask], self._count[mask], self._drift[mask] = _ABOVE, 0, 0.0

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Actions (n, 7) in [-1, 1] for observations (n, 19) in Lift's default order; advances the phases."""
        obs, style = np.asarray(obs, np.float64), self._style
        if self._retry:
            missed = (self._phase == _LIFT) & (self._count > _LIFTING) & (obs[:, 11] < _TABLE_TO_LIFTED + 0.02)
            if missed.any():
                self.reset_rows(missed)
        reaching, closing, lifting = self._phase <= _DOWN, self._phase == _CLOSE, self._phase == _LIFT
        target = -obs[:, 16:19]
        target[:, :2] += style.offset
        target[:, 2] += style.depth
        goal = target.copy()
        goal[self._phase == _ABOVE, 2] += style.hover[self._phase == _ABOVE]
        action = np.zeros((len(obs), 7))
        action[:, :3] = np.where(reaching[:, None], style.gain * goal, 0.0)
        action[:, 5] = np.where(reaching & style.aligns, 2.0 * _finger_error(obs), 0.0)
        below = obs[:, 11] < _TABLE_TO_LIFTED + style.lift_to
        action[lifting, 2] = np.where(below, style.lift_speed, 0.0)[lifting]
        action[:, 6] = np.where(closing | lifting, 1.0, -1.0)
        self._advance(goal, target)
        self._drift = _MEMORY * self._drift + style.disturbance * self._rng.standard_normal(self._drift.shape)
        action[:, :3] += self._drift[:, :3]
        action[:, 3:6] += _TURN_DISTURBANCE * self._drift[:, 3:]
        return np.clip(action, -1.0, 1.0)

    def _advance(self, goal: np.ndarray, target: np.ndarray) -> None:
        self._count += 1
        done = (self._phase == _ABOVE) & (np.linalg.norm(goal, axis=1) < 0.015)
        done |= (self._phase == _DOWN) & (np.abs(target).max(axis=1) < 0.008)
        done |= (self._phase == _CLOSE) & (self._count > self._style.dwell)
        done |= (self._phase <= _DOWN) & (self._count > _PATIENCE)
        self._phase[done] += 1
        self._count[done] = 0


def _finger_error(obs: np.ndarray) -> np.ndarray:
    """Angle (rad, within +-45 degrees) from the line of the fingers to the nearest side of the cube, seen from above:
    (n,).
    """
    x, y, z, w = obs[:, 3:7].T
    fingers = np.arctan2(1 - 2 * (x * x + z * z), 2 * (x * y - z * w))  # the hand's y axis
    x, y, z, w = obs[:, 12:16].T
    cube = np.arctan2(2 * (x * y + z * w), 1 - 2 * (y * y + z * z))  # the cube's x axis
    return (cube - fingers + np.pi / 4) % (np.pi / 2) - np.pi / 4
