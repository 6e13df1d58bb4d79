"""Names of observations."""

DEFAULT_STATE_OBS = [
    *(f"robot_state/{key}" for key in ("ee_pos", "ee_quat", "ee_pos_vel", "ee_ori_vel", "gripper_width")),
    "parts_poses",
]
