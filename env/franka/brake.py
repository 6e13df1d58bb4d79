"""How an arm under Cartesian impedance is brought to rest, all of it, within a tenth of a second.

An impedance by itself does not: its damping of 2 sqrt(K) is critical for a mass of 1 kg, and an arm's is many times that. What is asked
for is a brake in each joint, tau = -D dq, said in the only words that the drivers' controllers understand: the velocity of the target,
against which they damp, and the posture that they draw the null space to. Both together are that torque exactly, for their null space is
the one of the pseudo-inverse: J^T F + (1 - J^T J^T+) tau = tau with F = (J J^T)^-1 J tau.

D is what inertias of 1 kg m^2 (shoulder, elbow) and 0.1 (wrist) bear from a servo of 250 Hz, and of 60 Hz when it is held up, with torque
that may change by 1 N m per ms: an arm twice as heavy, or half, is braked and not turned round (tests/env/franka/test_brake.py).
"""

from __future__ import annotations

import numpy as np

from env.franka.kinematics import jacobian

DAMPING = np.array([60.0, 60.0, 45.0, 45.0, 10.0, 10.0, 5.0])  # N m s/rad, on top of the controllers' own
TORQUE = 25.0  # N m in a joint, at most
POSTURE_STIFFNESS = 0.5  # N m/rad, by which the drivers draw the null space to its posture: panda_py's


def opposing(q: np.ndarray, dq: np.ndarray, damping: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """The twist (6,) a target must have, and the posture (7,), to brake an arm at ``q (7,)`` that moves at ``dq (7,)``.

    ``damping``: N s/m and N m s/rad, by which the controller opposes the arm's velocity being another than the target's.
    """
    J = jacobian(q)
    torque = np.clip(-DAMPING * dq, -TORQUE, TORQUE)
    wrench = np.linalg.solve(J @ J.T + 1e-6 * np.eye(6), J @ torque)  # kept from being singular
    return wrench / np.repeat(damping, 3), q + torque / POSTURE_STIFFNESS
