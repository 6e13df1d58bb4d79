"""The wire format of the research interface version 5 (Panda, libfranka 0.9) and of the gripper interface version 3: little-endian, packed.

Facts of the public headers: names are the interface's own. A message is a header and a payload; its size counts both.
"""

from __future__ import annotations

import struct
from enum import IntEnum

import numpy as np

VERSION, GRIPPER_VERSION = 5, 3
PORT, GRIPPER_PORT = 1337, 1338
HEADER, GRIPPER_HEADER = struct.Struct("<III"), struct.Struct("<HII")  # command, its number, size
CONNECT, CONNECTED, GRIPPER_CONNECTED = struct.Struct("<HH"), struct.Struct("<BH"), struct.Struct("<HH")
MOVE = struct.Struct("<II6d")  # controller mode, motion generator mode, two deviations
GRASP, GRIPPER_MOVE = struct.Struct("<5d"), struct.Struct("<2d")


class Command(IntEnum):
    """What a client may ask of the robot."""

    CONNECT = 0
    MOVE = 1
    STOP_MOVE = 2
    GET_CARTESIAN_LIMIT = 3
    SET_COLLISION_BEHAVIOR = 4
    SET_JOINT_IMPEDANCE = 5
    SET_CARTESIAN_IMPEDANCE = 6
    SET_GUIDING_MODE = 7
    SET_EE_TO_K = 8
    SET_NE_TO_EE = 9
    SET_LOAD = 10
    SET_FILTERS = 11
    AUTOMATIC_ERROR_RECOVERY = 12
    LOAD_MODEL_LIBRARY = 13


class MoveStatus(IntEnum):
    """Answers to MOVE: one at its start, one at its end."""

    SUCCESS = 0
    MOTION_STARTED = 1
    PREEMPTED = 2
    NOT_POSSIBLE = 3
    REFLEX_ABORTED = 6
    EMERGENCY_ABORTED = 7
    INPUT_ERROR_ABORTED = 8


NOT_POSSIBLE = 1  # of every other command
RECOVERY_NEEDS_A_PERSON, RECOVERY_EMERGENCY = 2, 4  # of AUTOMATIC_ERROR_RECOVERY


class GripperCommand(IntEnum):
    CONNECT = 0
    HOMING = 1
    GRASP = 2
    MOVE = 3
    STOP = 4


class GripperStatus(IntEnum):
    SUCCESS = 0
    FAIL = 1
    UNSUCCESSFUL = 2
    ABORTED = 3


class Mode(IntEnum):
    """RobotMode."""

    OTHER = 0
    IDLE = 1
    MOVE = 2
    GUIDING = 3
    REFLEX = 4
    USER_STOPPED = 5


EXTERNAL_CONTROLLER, NO_CONTROLLER = 2, 3  # ControllerMode
NO_GENERATOR = 0  # MotionGeneratorMode in a state: that of a MOVE, plus one

ERRORS = (
    "joint_position_limits_violation",
    "cartesian_position_limits_violation",
    "self_collision_avoidance_violation",
    "joint_velocity_violation",
    "cartesian_velocity_violation",
    "force_control_safety_violation",
    "joint_reflex",
    "cartesian_reflex",
    "max_goal_pose_deviation_violation",
    "max_path_pose_deviation_violation",
    "cartesian_velocity_profile_safety_violation",
    "joint_position_motion_generator_start_pose_invalid",
    "joint_motion_generator_position_limits_violation",
    "joint_motion_generator_velocity_limits_violation",
    "joint_motion_generator_velocity_discontinuity",
    "joint_motion_generator_acceleration_discontinuity",
    "cartesian_position_motion_generator_start_pose_invalid",
    "cartesian_motion_generator_elbow_limit_violation",
    "cartesian_motion_generator_velocity_limits_violation",
    "cartesian_motion_generator_velocity_discontinuity",
    "cartesian_motion_generator_acceleration_discontinuity",
    "cartesian_motion_generator_elbow_sign_inconsistent",
    "cartesian_motion_generator_start_elbow_invalid",
    "force_controller_desired_force_tolerance_violation",
    "start_elbow_sign_inconsistent",
    "communication_constraints_violation",
    "power_limit_violation",
    "cartesian_motion_generator_joint_position_limits_violation",
    "cartesian_motion_generator_joint_velocity_limits_violation",
    "cartesian_motion_generator_joint_velocity_discontinuity",
    "cartesian_motion_generator_joint_acceleration_discontinuity",
    "cartesian_position_motion_generator_invalid_frame",
    "controller_torque_discontinuity",
    "joint_p2p_insufficient_torque_for_planning",
    "tau_j_range_violation",
    "instability_detected",
    "joint_move_in_wrong_direction",
    "cartesian_spline_motion_generator_violation",
    "joint_via_motion_generator_planning_joint_limit_violation",
    "base_acceleration_initialization_timeout",
    "base_acceleration_invalid_reading",
)

_POSES = ("O_T_EE", "O_T_EE_d", "F_T_EE", "EE_T_K", "F_T_NE", "NE_T_EE")
_STATE: list[tuple] = [("message_id", "<u8"), *((name, "<f8", 16) for name in _POSES)]
_STATE += [("m_ee", "<f8"), ("I_ee", "<f8", 9), ("F_x_Cee", "<f8", 3), ("m_load", "<f8"), ("I_load", "<f8", 9)]
_STATE += [("F_x_Cload", "<f8", 3), ("elbow", "<f8", 2), ("elbow_d", "<f8", 2)]
_STATE += [(name, "<f8", 7) for name in ("tau_J", "tau_J_d", "dtau_J", "q", "q_d", "dq", "dq_d", "ddq_d")]
_STATE += [("joint_contact", "<f8", 7), ("cartesian_contact", "<f8", 6), ("joint_collision", "<f8", 7)]
_STATE += [("cartesian_collision", "<f8", 6), ("tau_ext_hat_filtered", "<f8", 7), ("O_F_ext_hat_K", "<f8", 6)]
_STATE += [("K_F_ext_hat_K", "<f8", 6), ("O_dP_EE_d", "<f8", 6), ("O_ddP_O", "<f8", 3)]
_STATE += [(name, "<f8", 2) for name in ("elbow_c", "delbow_c", "ddelbow_c")]
_STATE += [("O_T_EE_c", "<f8", 16), ("O_dP_EE_c", "<f8", 6), ("O_ddP_EE_c", "<f8", 6)]
_STATE += [("theta", "<f8", 7), ("dtheta", "<f8", 7), ("motion_generator_mode", "u1"), ("controller_mode", "u1")]
_STATE += [("errors", "?", len(ERRORS)), ("reflex_reason", "?", len(ERRORS)), ("robot_mode", "u1")]
_STATE += [("control_command_success_rate", "<f8")]

ROBOT_STATE = np.dtype(_STATE)
ROBOT_COMMAND = np.dtype(
    [
        ("message_id", "<u8"),
        ("q_c", "<f8", 7),
        ("dq_c", "<f8", 7),
        ("O_T_EE_c", "<f8", 16),
        ("O_dP_EE_c", "<f8", 6),
        ("elbow_c", "<f8", 2),
        ("valid_elbow", "?"),
        ("motion_generation_finished", "?"),
        ("tau_J_d", "<f8", 7),
    ]
)
GRIPPER_STATE = np.dtype(
    [("message_id", "<u4"), ("width", "<f8"), ("max_width", "<f8"), ("is_grasped", "?"), ("temperature", "<u2")]
)
