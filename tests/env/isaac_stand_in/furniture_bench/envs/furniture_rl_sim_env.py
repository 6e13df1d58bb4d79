"""``FurnitureRLSimEnv`` by its interface (shapes, devices, prints, what a reset of some environments does to the others), with little physics:

the hand is where it was told to be, a pair is assembled by reaching for x > 0.4 + 0.1 * (the number of pairs so far) with a closed gripper, and there are
places that hurt: y > 0.9 makes NaN, y < -0.9 ends the process, z > 0.9 raises, z < -0.9 hangs.
"""

import os
import time

import isaacgym  # noqa: F401  # isort: skip  # before torch
import torch  # isort: skip

PARTS = {"one_leg": (5, 1), "lamp": (3, 2), "round_table": (3, 2)}  # parts, pairs


class FurnitureRLSimEnv:
    """N environments in one."""

    def __init__(
        self, randomness, randomize_obstacle=True, *, furniture, num_envs, max_env_steps, headless, obs_keys, **settings
    ):
        assert randomness in ("low", "med") and obs_keys[-1] == "parts_poses" and settings["concat_robot_state"] is True
        assert (settings["act_rot_repr"], settings["action_type"], settings["ctrl_mode"]) == ("rot_6d", "pos", "diffik")
        assert (settings["stiffness"], settings["damping"], settings["april_tags"]) == (1000, 200, False)
        assert settings["compute_device_id"] == settings["graphics_device_id"] == 0
        print("a chatty simulator", headless, flush=True)
        self.device, self.num_envs, self.furniture_name = torch.device("cpu"), num_envs, furniture
        self.parts, self.pairs = PARTS[furniture]
        self.max_env_steps, self.headless = max_env_steps, headless
        self.last_grasp, self.width = torch.full((num_envs,), -1.0), torch.zeros(num_envs, 1)
        self.env_steps = torch.zeros(num_envs, dtype=torch.int)
        self.assembled = torch.zeros(num_envs, dtype=torch.int)
        self.hand, self.velocity = torch.zeros(num_envs, 3), torch.zeros(num_envs, 3)
        self.poses = torch.zeros(num_envs, self.parts + 1, 7)
        self.refreshed = 0  # sixtieths of a second that resets took

    def reset(self, env_idxs=None):
        """Begin anew in these; the lamp's memory of bulbs is lost in all, as in the original."""
        env_idxs = torch.arange(self.num_envs) if env_idxs is None else env_idxs
        assert env_idxs.numel() > 0 and env_idxs.dtype == torch.int64
        self.hand[env_idxs] = torch.rand(len(env_idxs), 3) * 0.1
        self.velocity[env_idxs], self.width[env_idxs] = 0, 0.065  # but not the memory of what the gripper was told
        self.poses[env_idxs] = torch.rand(len(env_idxs), self.parts + 1, 7)
        self.assembled[env_idxs] = 0
        self.env_steps[env_idxs] = 0
        self.refreshed += 1
        if self.furniture_name == "lamp":
            self.refreshed += 10
            self.lb_rest_poses = self.poses[:, 1].clone()
            self._moving_bulbs = torch.zeros(self.num_envs, dtype=torch.bool)
        return self.observation()

    def step(self, action):
        """A tenth of a second: (N, 10) on the device."""
        assert action.shape == (self.num_envs, 10) and action.device == self.device
        action = action.clamp(-1, 1)
        y, z = action[:, 1], action[:, 2]
        if (y < -0.9).any():
            print("CUDA error: an illegal memory access was encountered", flush=True)
            os._exit(6)
        if (z > 0.9).any():
            raise RuntimeError("PhysX Internal CUDA error")
        if (z < -0.9).any():
            time.sleep(60)
        self.velocity = (action[:, :3] - self.hand) * 10
        self.hand = action[:, :3].clone()
        self.hand[y > 0.9] = float("nan")
        near = (action[:, 0] > 0.4 + 0.1 * self.assembled) & (action[:, 9] > 0.019) & (self.last_grasp > 0)
        rewarded = near & (self.assembled < self.pairs)
        self.assembled += rewarded.int()
        self.last_grasp = action[:, 9]
        self.width = 0.065 * (action[:, 9:] <= 0).float()
        if self.furniture_name == "lamp":  # what nobody touched lies where it lay; what was touched goes with the hand
            self._moving_bulbs |= action[:, 0] > 0.2
            self.poses[:, 1] = self.lb_rest_poses
            self.poses[self._moving_bulbs, 1, :3] = self.hand[self._moving_bulbs]
        self.env_steps += 1
        done = (self.assembled == self.pairs).unsqueeze(1)
        return self.observation(), rewarded.float().unsqueeze(1), done, {"obs_success": True, "action_success": True}

    def observation(self):
        """As the original's with ``concat_robot_state``: 14 and 7 per part and obstacle; the hand is turned by 0.6 about z."""
        turned = torch.tensor([0.0, 0.0, 0.29552, 0.95534]).repeat(self.num_envs, 1)
        robot = torch.cat([self.hand, turned, self.velocity, torch.zeros(self.num_envs, 3), self.width], dim=1)
        return {"robot_state": robot, "parts_poses": self.poses.reshape(self.num_envs, -1).clone()}
