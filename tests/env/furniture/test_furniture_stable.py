"""Whatever the hand does, nothing explodes, sinks into the table or becomes NaN."""

from __future__ import annotations

import itertools
import json

import mujoco
import numpy as np
import pytest

from env.engine.batch import EngineVectorEnv
from env.furniture import assembly
from env.furniture.facts import FURNITURE
from env.furniture.parts import FIT, SHELL
from env.furniture.scene import build
from script.check_furniture import HANDS, Vandal, Watch, main, play

EPISODES, STEPS = 5, 120  # of each task; issue 8's bar is about 500 whole episodes


@pytest.mark.parametrize("name", FURNITURE)
def test_random_actions_break_nothing(name):
    furniture = FURNITURE[name]
    family, n_parts = assembly.family(f"{name}_med_dim"), len(furniture.parts)
    venv, vandal = (
        EngineVectorEnv(family, EPISODES, 1, STEPS, n_threads=1),
        Vandal(EPISODES, n_parts, np.random.default_rng(3)),
    )
    obs, model = venv.reset(list(range(9100, 9100 + EPISODES)))["state"][:, 0], venv.simulations.models[0]
    watch = Watch(venv)
    speeds = [model.joint(part).dofadr[0] + i for part in furniture.parts for i in range(3)]
    touched = np.zeros(EPISODES, bool)
    for _ in range(STEPS - 1):
        result = venv.step(vandal.act(obs)[:, None].astype(np.float32))
        obs = result.obs["state"][:, 0].copy()
        assert not result.info["invalid"].any() and np.isfinite(obs).all()
        for row, data in enumerate(venv.simulations.data):
            touched[row] |= np.abs(data.qvel[speeds]).max() > 0.02
        watch.look(np.arange(EPISODES))
        assert not watch.broken().any()
    assert touched.all()
    venv.close()


@pytest.mark.parametrize(
    "name, part, edge", [("one_leg", "square_table_top", 0.08125), ("round_table", "round_table_top", 0.1)]
)
def test_a_top_in_the_corner_has_few_contacts_and_stays_out_of_the_walls(name, part, edge):
    family = assembly.family(f"{name}_low_dim")
    model, data = family.model, mujoco.MjData(family.model)
    family.begin(model, data, family.draw(np.random.default_rng(5)), np.zeros(family.memory_size))
    front, left = (data.geom(f"obstacle_{which}") for which in ("front", "left"))
    corner = np.array([front.xpos[0] - 0.01, left.xpos[1] - 0.01])
    at, body = model.joint(part).qposadr[0], model.body(part).id
    data.qpos[at : at + 2] = corner - edge - 0.001
    data.xfrc_applied[body, :2] = 5.0, 7.0
    mujoco.mj_step(model, data, nstep=250)
    walls = [model.geom(f"obstacle_{which}").id for which in ("front", "left", "right")]
    assert 2 <= np.isin(data.contact.geom, walls).any(1).sum() <= 4
    assert np.abs(data.qpos[at : at + 2] - (corner - edge)).max() < 0.001


def test_a_hand_that_presses_the_round_tops_rim_neither_tips_it_nor_jams_it_into_the_table():
    model = build(FURNITURE["round_table"])
    data, joint, body = mujoco.MjData(model), model.joint("round_table_top"), model.body("round_table_top").id
    at, force = joint.qposadr[0], np.zeros(model.nv)
    for angle in np.arange(24) * np.pi / 12:
        mujoco.mj_resetData(model, data)
        data.qpos[at : at + 7] = 0.4, 1.5, 0.0, 1.0, 0.0, 0.0, 0.0
        mujoco.mj_step(model, data, nstep=20)
        for _ in range(60):
            place = data.qpos[at : at + 3] + data.xmat[body].reshape(3, 3) @ (
                0.095 * np.cos(angle), 0.095 * np.sin(angle), 0.01,
            )  # fmt: skip
            force[:] = 0.0
            mujoco.mj_applyFT(model, data, np.array([0.0, 0.0, -40.0]), np.zeros(3), place, body, force)
            data.qfrc_applied[:] = force
            mujoco.mj_step(model, data)
            assert -0.004 < data.qpos[at + 2] < 0.03


def lowest(model, data, geom):
    """Height of a geom's lowest point, m."""
    (a, b, c), across = model.geom_size[geom], np.abs(data.geom_xmat[geom].reshape(3, 3)[2])
    reach = {
        mujoco.mjtGeom.mjGEOM_SPHERE: a,
        mujoco.mjtGeom.mjGEOM_CAPSULE: a + b * across[2],
        mujoco.mjtGeom.mjGEOM_CYLINDER: b * across[2] + a * np.hypot(*across[:2]),
        mujoco.mjtGeom.mjGEOM_BOX: across @ (a, b, c),
    }
    return data.geom_xpos[geom, 2] - reach[model.geom_type[geom]]


@pytest.mark.parametrize("name", FURNITURE)
def test_a_part_on_any_of_its_sides_lies_on_the_table_and_not_in_it(name):
    furniture = FURNITURE[name]
    model = build(furniture)
    data, solid = mujoco.MjData(model), (model.geom_contype & (FIT | SHELL)) > 0
    for part in furniture.parts[:3]:
        geoms, at = np.flatnonzero(solid & (model.geom_bodyid == model.body(part).id)), model.joint(part).qposadr[0]
        for axis, up in itertools.product(range(3), (-1, 1)):
            mujoco.mj_resetData(model, data)
            turned = np.roll(np.eye(3), axis - 2, 1)  # the part's axis up or down
            turned[1:] *= up
            data.qpos[at : at + 3] = 0.4, 1.5, 0.0
            mujoco.mju_mat2Quat(data.qpos[at + 3 : at + 7], turned.ravel())
            mujoco.mj_kinematics(model, data)
            data.qpos[at + 2] = 0.002 - min(lowest(model, data, geom) for geom in geoms)
            mujoco.mj_step(model, data, nstep=150)
            assert min(lowest(model, data, geom) for geom in geoms) > -0.003, (part, axis, up)


def test_what_breaks_is_told_apart():
    venv = EngineVectorEnv(assembly.family("lamp_low_dim"), 5, 1, 50, n_threads=1)
    venv.reset(0)
    data, watch = venv.simulations.data, Watch(venv)
    joints = [venv.simulations.models[0].joint(part) for part in venv.family.furniture.parts]
    data[1].qvel[joints[2].dofadr[0] + 1] = -16.0
    data[2].qpos[joints[0].qposadr[0] + 2] = -0.006
    data[3].qpos[joints[1].qposadr[0] + 2] = np.nan
    watch.look(np.array([0, 1, 2, 3]))
    assert watch.broken().tolist() == [False, True, True, True, False]
    watch.forget(np.array([1]))
    assert watch.broken().tolist() == [False, False, True, True, False]
    venv.close()


def test_command_counts_episodes_by_hand(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "one_leg_low",
                "--episodes",
                "5",
                "--first-seed",
                "9301",
                "--steps",
                "7",
                "--json",
                str(tmp_path / "a.json"),
            ]
        )
    told = json.loads((tmp_path / "a.json").read_text())
    assert ended.value.code == 0 and told["played"] == dict(zip(HANDS, (2, 2, 1), strict=True))
    assert told["unstable"] == {hand: [] for hand in HANDS} and "0 of 5 episodes unstable" in capsys.readouterr().out


def test_unstable_episodes_are_named(monkeypatch):
    monkeypatch.setattr("script.check_furniture.FASTEST", 0.0)
    tally = play("one_leg_low", 4, 9311, steps=3)
    assert tally.unstable == {"expert": [9311, 9314], "disturbed": [9312], "random": [9313]}
