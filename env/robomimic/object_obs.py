"""The ``object`` observation of recorded demonstrations, in the arrangement of robosuite 1.4 whatever wrote it.

=========  ==========================================================  =========================================
task       robosuite 1.4: the published data and checkpoints, and us   robosuite 1.5
=========  ==========================================================  =========================================
lift       cube position 3, orientation 4, gripper minus cube 3        the last three: cube minus gripper
can        can position 3, orientation 4, then both relative to the    relative position and orientation first,
square     gripper (3, 4)                                              and of one control step ago
transport  the same in both
=========  ==========================================================  =========================================

Version numbers are not to be trusted with this (files are converted, renamed, re-extracted), and need not be: positions
tell which arrangement it is.
"""

from __future__ import annotations

import numpy as np

from env.errors import EnvError

TOLERANCE = 0.02  # m: relative positions may be a control step old, in which a hand moves 2 cm at most


def to_published(task: str, eef_pos: np.ndarray, eef_quat: np.ndarray, obj: np.ndarray) -> np.ndarray:
    """``obj (T, D)`` as robosuite 1.4 arranges it; a copy where that differs.

    Args:
        task: ``lift``, ``can``, ``square`` or ``transport``.
        eef_pos, eef_quat: the (first) gripper's position (T, 3) in m and orientation (T, 4) as x, y, z, w.

    Raises:
        EnvError: the positions fit neither arrangement.
    """
    if task == "lift":
        offset = eef_pos - obj[:, :3]
        if _closest(obj[:, 7:10], offset, -offset) == 0:
            return obj
        return np.concatenate([obj[:, :7], -obj[:, 7:]], axis=1)
    if task in ("can", "square"):
        old, new = (_into_frame(eef_pos, eef_quat, obj[:, at : at + 3]) for at in (0, 7))
        misfit_old, misfit_new = _misfit(obj[:, 7:10], old), _misfit(obj[:, :3], new)
        _check(min(misfit_old, misfit_new))
        if misfit_old <= misfit_new:
            return obj
        return np.concatenate([obj[:, 7:], new, _relative_quaternion(eef_quat, obj[:, 10:14])], axis=1)
    return obj


def _closest(found: np.ndarray, *candidates: np.ndarray) -> int:
    misfits = [_misfit(found, candidate) for candidate in candidates]
    _check(min(misfits))
    return int(np.argmin(misfits))


def _misfit(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.median(np.abs(found - expected).max(axis=1)))


def _check(misfit: float) -> None:
    if not misfit <= TOLERANCE:
        raise EnvError(
            f"its relative position fits neither robosuite 1.4's nor 1.5's arrangement: off by {misfit:.3g} m, expected "
            f"at most {TOLERANCE}"
        )


def _into_frame(eef_pos: np.ndarray, eef_quat: np.ndarray, position: np.ndarray) -> np.ndarray:
    """``position`` (T, 3) as the gripper sees it: R^T (position - eef_pos)."""
    v, axis, w = position - eef_pos, -eef_quat[:, :3], eef_quat[:, 3:]
    cross = np.cross(axis, v)
    return v + 2.0 * (w * cross + np.cross(axis, cross))


def _relative_quaternion(eef_quat: np.ndarray, quat: np.ndarray) -> np.ndarray:
    """conj(eef) * quat, x y z w, with w >= 0: (T, 4)."""
    a, aw, b, bw = -eef_quat[:, :3], eef_quat[:, 3:], quat[:, :3], quat[:, 3:]
    q = np.concatenate([aw * b + bw * a + np.cross(a, b), aw * bw - (a * b).sum(1, keepdims=True)], axis=1)
    return np.where(q[:, 3:] < 0.0, -q, q)
