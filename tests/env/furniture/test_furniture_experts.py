"""The scripted experts of Furniture-Bench: they assemble, repeat themselves by seed, and their demonstrations are the published kind."""

from __future__ import annotations

import math
import random

import mujoco
import numpy as np
import pytest

from env.engine.batch import EngineVectorEnv
from env.furniture import assembly, placement, spatial
from env.furniture.facts import TAG_TO_ROBOT, euler
from env.furniture.lamp_expert import LampExpert
from env.registry import EXPERTS
from script import collect_demos


def play(task: str, seeds, noise: float, steps: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return of each of the episodes, and all first actions (steps, n, 10) of them."""
    entry, n = EXPERTS[task], len(seeds)
    venv = EngineVectorEnv(assembly.family(entry.env), n, 1, entry.steps, n_threads=1)
    expert = entry.make(n, np.random.default_rng(1), noise=noise, retry=True)
    obs, total, actions, over = venv.reset(seeds)["state"][:, 0], np.zeros(n), [], np.zeros(n, bool)
    for _ in range(steps or entry.steps):
        actions.append(expert.act(obs))
        result = venv.step(actions[-1][:, None])
        total[~over] += result.reward[~over]
        over |= result.success | result.truncated
        obs = result.obs["state"][:, 0]
        assert not result.info["invalid"].any()
        if over.all():
            break
    venv.close()
    return total, np.array(actions)


def test_one_leg_is_assembled_by_turning():
    total, actions = play("one_leg_low", [3, 5], noise=1.0)
    assert (total == 1).all()
    assert np.isfinite(actions).all() and actions.shape[2] == 10
    rows = actions[:, :, 3:9].reshape(-1, 2, 3)
    assert np.allclose(np.linalg.norm(rows, axis=2), 1.0, atol=1e-3)
    closings = (np.diff(actions[:, 0, 9]) > 0).sum()
    assert closings >= 5  # top, leg, and three strokes at least


@pytest.mark.parametrize(("task", "seed"), [("lamp_med", 5004), ("round_table_med", 5001)])
def test_two_pairs_are_assembled_though_the_parts_lie_awkwardly(task, seed):
    assert play(task, [seed], noise=1.0)[0] == 2


def lamp(hand_yaw: float, lean: float, bulb: tuple[float, float, float], others: float = 0.3):
    """The lamp's player in front of a bulb at x, y (m) and heading (degrees); base and hood ``others`` m to the right of it."""
    hand, rows = euler(0, 0, hand_yaw) @ euler(0, lean, 0) @ euler(180, 0, 0), []
    x, y, heading = bulb
    for at, turn in (
        ((x, y - others, 0.02), np.eye(3)),
        ((x, y, 0.025), euler(0, 0, heading - 90)),
        ((x, -0.4, 0.05), np.eye(3)),
        ((0.68, 0, 0), np.eye(3)),
    ):
        quat = np.zeros(4)
        mujoco.mju_mat2Quat(quat, (TAG_TO_ROBOT[1].T @ turn).ravel())
        rows.append([*(TAG_TO_ROBOT[1].T @ (np.array(at) - TAG_TO_ROBOT[0])), *quat[1:], quat[0]])
    row = [0.5, 0.0, 0.2, *hand[:2].ravel(), *[0.0] * 6, 0.07, *np.ravel(rows)]
    return LampExpert.player(random.Random(1), 0.0, True, [float(v) for v in row])


def yaw_of(rotation) -> float:
    return math.degrees(math.atan2(rotation[1][0], rotation[0][0]))


def test_the_wrist_turns_the_way_on_which_it_does_not_end():
    # joint 7 ends at -130 and 230 degrees: from 190 to -100 the way is 290 degrees long, not 70
    seen, yaw = [], 190.0
    for _ in range(4):
        yaw = yaw_of(lamp(yaw, 0, (0.5, 0, 0)).facing(math.radians(-100)))
        seen.append(round(yaw))
    assert seen == [115, 40, -35, -100]
    assert yaw_of(lamp(0.0, 40, (0.5, 0, 0)).facing(math.radians(90))) == pytest.approx(10)  # leaning: first upright


@pytest.mark.parametrize(
    ("bulb", "others", "awkward"),
    [
        ((0.5, 0.0, 0.0), 0.3, False),
        ((0.5, 0.0, 170.0), 0.3, True),  # its peg points away from the robot
        ((0.62, 0.0, 0.0), 0.3, True),  # the wrist would be beyond the arm's reach
        ((0.5, 0.0, 0.0), 0.1, True),  # the palm would come down on the base
    ],
)  # fmt: skip
def test_what_a_leaning_hand_cannot_take(bulb, others, awkward):
    assert lamp(0.0, 0.0, bulb, others)._awkward(1, 0.0275, math.radians(54)) is awkward


@pytest.mark.parametrize("task", ["one_leg", "lamp", "round_table"])
def test_no_episode_begins_with_the_hand_in_a_part(task):
    family, rng = assembly.family(f"{task}_med_dim"), np.random.default_rng(7)
    starts = [family.draw(rng) for _ in range(20)]
    assert not any(family._touches(start) for start in starts)
    anywhere = [placement.draw(family.furniture, family.spread, rng) for _ in range(40)]
    assert any(family._touches(start) for start in anywhere)


def test_the_same_seeds_act_the_same_and_noise_varies():
    first, again = (play("lamp_low", [3], noise=1.0, steps=40)[1] for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first[:30], play("lamp_low", [3], noise=0.0, steps=40)[1][:30])


def test_spatial_helpers_agree_with_matrices():
    a, b = euler(20, -40, 70), euler(-100, 5, 33)
    rows = [tuple(map(tuple, m.tolist())) for m in (a, b)]
    assert np.allclose(spatial.times(*rows), a @ b) and np.allclose(spatial.transpose(rows[0]), a.T)
    assert np.allclose(spatial.turned(rows[0], (1.0, 2.0, 3.0)), a @ [1, 2, 3])
    assert np.allclose(spatial.about(spatial.vector_of(rows[0])), a)
    assert np.allclose(spatial.about_z(0.3), euler(0, 0, math.degrees(0.3)))
    assert np.allclose(spatial.about_y(0.3), euler(0, math.degrees(0.3), 0))
    assert np.allclose(spatial.cross((1.0, 2.0, 3.0), (-2.0, 0.5, 4.0)), np.cross([1, 2, 3], [-2, 0.5, 4]))


def test_demonstrations_go_where_the_published_ones_are(tmp_path):
    collect_demos.main(["--task", "one_leg_low", "--episodes", "2", "--n-envs", "2", "--out", str(tmp_path)])
    folder = tmp_path / "furniture" / "one_leg_low"
    with np.load(folder / "train.npz", allow_pickle=False) as demos:
        lengths = demos["traj_lengths"]
        assert demos["states"].shape == (lengths.sum(), 58) and demos["actions"].shape == (lengths.sum(), 10)
        assert np.abs(demos["states"]).max() <= 1.001 and len(lengths) == 2
        ends = np.cumsum(lengths)
        assert [demos["rewards"][e - n : e].sum() for e, n in zip(ends, lengths, strict=True)] == [1, 1]
    with np.load(folder / "normalization.npz", allow_pickle=False) as bounds:
        assert bounds["obs_min"].shape == (58,) and bounds["action_max"].shape == (10,)


def test_furniture_has_no_demonstrations_with_images(tmp_path):
    with pytest.raises(SystemExit):
        collect_demos.main(["--task", "lamp_low", "--images", "--out", str(tmp_path)])
