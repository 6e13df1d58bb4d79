"""Whatever the hand does, nothing explodes, sinks into the table or becomes NaN."""

from __future__ import annotations

import numpy as np
import pytest

from env.engine.batch import EngineVectorEnv
from env.furniture import assembly
from env.furniture.facts import FURNITURE, POSE, ROBOT_STATE, TAG_TO_ROBOT, euler

EPISODES, STEPS = 5, 120  # of each task; issue 8's bar is about 500 whole episodes


class Vandal:
    """Goals near a part or anywhere, upright or not, gripper open or closed, kept for a while: (n, D) observations -> (n, 10) actions."""

    def __init__(self, n: int, n_parts: int, rng: np.random.Generator) -> None:
        self.rng, self.n_parts, self.left, self.goal = rng, n_parts, np.zeros(n, int), np.zeros((n, 10))

    def act(self, obs: np.ndarray) -> np.ndarray:
        for row in np.flatnonzero(self.left == 0):
            self.goal[row], self.left[row] = self._draw(obs[row]), self.rng.integers(3, 25)
        self.left -= 1
        return self.goal.copy()

    def _draw(self, row: np.ndarray) -> np.ndarray:
        rng, at = self.rng, ROBOT_STATE + POSE * self.rng.integers(self.n_parts)
        place = TAG_TO_ROBOT[1] @ row[at : at + 3] + TAG_TO_ROBOT[0] + rng.normal(size=3) * (0.02, 0.02, 0.03)
        if rng.random() < 0.3:
            place = rng.uniform((0.3, -0.35, 0.0), (0.75, 0.35, 0.3))
        tilt = (180.0, 0.0) if rng.random() < 0.8 else rng.uniform(-180, 180, 2)
        turn = euler(*tilt, rng.uniform(-180, 180))
        return np.concatenate([place, turn[:2].ravel(), [rng.choice((-1.0, 1.0))]])


@pytest.mark.parametrize("name", FURNITURE)
def test_random_actions_break_nothing(name):
    furniture = FURNITURE[name]
    family, n_parts = assembly.family(f"{name}_med_dim"), len(furniture.parts)
    venv, vandal = (
        EngineVectorEnv(family, EPISODES, 1, STEPS, n_threads=1),
        Vandal(EPISODES, n_parts, np.random.default_rng(3)),
    )
    obs, model = venv.reset(list(range(9100, 9100 + EPISODES)))["state"][:, 0], venv.simulations.models[0]
    heights = [model.joint(part).qposadr[0] + 2 for part in furniture.parts]
    speeds = [model.joint(part).dofadr[0] + i for part in furniture.parts for i in range(3)]
    touched = np.zeros(EPISODES, bool)
    for _ in range(STEPS - 1):
        result = venv.step(vandal.act(obs)[:, None].astype(np.float32))
        obs = result.obs["state"][:, 0].copy()
        assert not result.info["invalid"].any() and np.isfinite(obs).all()
        for row, data in enumerate(venv.simulations.data):
            touched[row] |= np.abs(data.qvel[speeds]).max() > 0.02
            assert data.qpos[heights].min() > -0.005 and np.abs(data.qvel[speeds]).max() < 15.0
            assert not any(warning.number for warning in data.warning)
    assert touched.all()
    venv.close()
