"""The Panda's (and FR3's: the same links) forward kinematics and Jacobian, of the grip site in the base frame, from the published
Denavit-Hartenberg parameters: what the joint guards of the safety layer look ahead with, with no simulator at hand."""

from __future__ import annotations

import numpy as np

from env.franka import frames

# Craig's convention, joint by joint: a (m), d (m), alpha (rad); then the flange, 107 mm beyond joint 7
_A = (0.0, 0.0, 0.0, 0.0825, -0.0825, 0.0, 0.088)
_D = (0.333, 0.0, 0.316, 0.0, 0.384, 0.0, 0.0)
_ALPHA = (0.0, -np.pi / 2, np.pi / 2, np.pi / 2, -np.pi / 2, np.pi / 2, np.pi / 2)
_FLANGE = np.eye(4)
_FLANGE[2, 3] = 0.107
_GRIP = _FLANGE @ frames.GRIP_SITE_IN_FLANGE


def _before(a: float, d: float, alpha: float) -> np.ndarray:
    """What precedes the turn about joint's z: along and about the last x, then along the new z."""
    c, s = np.cos(alpha), np.sin(alpha)
    return np.array([[1, 0, 0, a], [0, c, -s, -s * d], [0, s, c, c * d], [0, 0, 0, 1.0]])


_BEFORE = [_before(*row) for row in zip(_A, _D, _ALPHA)]


def joint_frames(q: np.ndarray) -> list[np.ndarray]:
    """Homogeneous (4, 4) of the seven joints, each after its turn, and of the grip site: 8 of them."""
    found, pose = [], np.eye(4)
    for before, angle in zip(_BEFORE, q):
        c, s = np.cos(angle), np.sin(angle)
        pose = pose @ before @ np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
        found.append(pose)
    return [*found, pose @ _GRIP]


def grip_site(q: np.ndarray) -> frames.Transform:
    """The grip site's pose at joint positions ``q (7,)``."""
    return frames.Transform.from_matrix(joint_frames(q)[-1])


def jacobian(q: np.ndarray) -> np.ndarray:
    """(6, 7): joint velocities -> the grip site's velocity and angular velocity, in the base frame."""
    *joints, tip = joint_frames(q)
    axes = np.stack([pose[:3, 2] for pose in joints])
    arms = tip[:3, 3] - np.stack([pose[:3, 3] for pose in joints])
    return np.concatenate([np.cross(axes, arms), axes], 1).T
