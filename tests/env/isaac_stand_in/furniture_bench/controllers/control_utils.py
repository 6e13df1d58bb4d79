"""Rotations."""

import torch


def proprioceptive_quat_to_6d_rotation(robot_state):
    """(..., 14) with a quaternion x y z w -> (..., 16) with two rows of its matrix."""
    x, y, z, w = robot_state[..., 3:7].unbind(-1)
    first = torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)], -1)
    second = torch.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)], -1)
    return torch.cat([robot_state[..., :3], first, second, robot_state[..., 7:]], -1)
