"""Hard limits of the two arms, as published for each by Franka (control interface specification): nothing may ever ask for more."""

from __future__ import annotations

import numpy as np

from env.franka.types import DeploymentError, RobotLimits

PANDA = RobotLimits(  # "FER", server version 5 and below
    q_min=np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973]),
    q_max=np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973]),
    dq_max=np.array([2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61]),
    ddq_max=np.array([15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0]),
    torque_max=np.array([87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0]),
    velocity=(1.7, 2.5),
    acceleration=(13.0, 25.0),
    jerk=(6500.0, 12500.0),
)
FR3 = RobotLimits(  # server version 6 and above; the joint range that holds at every speed, narrower than that at rest
    q_min=np.array([-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159]),
    q_max=np.array([2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159]),
    dq_max=np.array([2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26]),
    ddq_max=np.full(7, 10.0),
    torque_max=np.array([87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0]),
    velocity=(3.0, 2.5),
    acceleration=(9.0, 17.0),
    jerk=(4500.0, 8500.0),
)
LAST_PANDA_SERVER = 5  # 5: libfranka 0.9, the Panda's last; from 6 on it is an FR3


def limits_of(server_version: int) -> RobotLimits:
    """The limits of the arm behind a control unit of this server version."""
    if server_version < 1:
        raise DeploymentError(f"server version {server_version}: it counts from 1; see the table in installation/.")
    return PANDA if server_version <= LAST_PANDA_SERVER else FR3
