"""Threads of the furniture: nothing is pressed together, only screwed; what is screwed can be unscrewed; and the engine's promises."""

from __future__ import annotations

import math

import mujoco
import numpy as np
import pytest

from env.engine.batch import EngineVectorEnv
from env.furniture import assembly, screw
from env.furniture.facts import FURNITURE, euler
from env.furniture.parts import PARTS
from env.furniture.scene import screws
from env.registry import EXPERTS

# kg (m2), N s/m (N m s): holds a part still. Not by inertia alone: the solver stops early where the mean inertia is huge
FIRM = np.array([[1e3], [1e9]])
CASES = [(name, k) for name, furniture in FURNITURE.items() for k in range(len(screws(furniture)))]


class Bench:
    """One thread alone, weightless: its socket part stands firm, the arm keeps away, the part with the peg is before its hole.

    ``turn`` (rad, how far it is from home, mod a whole turn) and ``rest`` (m, how far it has to go).
    """

    def __init__(self, furniture: str, k: int, place: int = 0, turn: float = 1.0, rest: float | None = None) -> None:
        self.family = assembly.family(f"{furniture}_low_dim")
        self.venv = EngineVectorEnv(self.family, 1, 1, 9999, n_threads=1)
        state = self.venv.reset(7)["state"][0, 0]
        self.hold = np.append(state[:9], -1.0)[None, None]
        self.model, self.data = self.venv.simulations.models[0], self.venv.simulations.data[0]
        self.own = self.venv.simulations.memory[0]
        self.own[assembly.PIN] = 0.0
        self.screw = screws(self.family.furniture)[k]
        self.pair = self.family.furniture.pairs[self.screw.pair]
        self.hole, self.place = assembly.HOLES + screw.N_SCREW_MEMORY * k, place
        self.model.opt.gravity[:] = 0.0
        first = self.model.joint(self.screw.socket).dofadr[0]
        self.model.dof_armature[first : first + 6], self.model.dof_damping[first : first + 6] = FIRM
        mine = self.model.joint(self.screw.part).dofadr[0]  # as heavy and sluggish as a hand that holds it
        self.model.dof_armature[mine : mine + 3], self.model.dof_armature[mine + 3 : mine + 6] = 5.0, 1e-3
        self.model.dof_damping[mine : mine + 3], self.model.dof_damping[mine + 3 : mine + 6] = 60.0, 0.02
        mujoco.mj_setConst(self.model, mujoco.MjData(self.model))
        at, home = np.array([0.45, 0.3, 0.4]), euler(30, 20, 10)  # anywhere
        put(self.venv, self.screw.socket, at, home)
        axis = np.array(PARTS[self.screw.part].axis)
        target = home @ self.pair.rotation
        self.into = target @ axis
        half = np.concatenate([[math.cos(turn / 2)], -math.sin(turn / 2) * axis])
        back = np.zeros(9)
        mujoco.mju_quat2Mat(back, half)
        rest = self.screw.depth + 0.003 if rest is None else rest
        self.goal = at + home @ np.array(self.pair.places[place])
        put(self.venv, self.screw.part, self.goal - rest * self.into, target @ back.reshape(3, 3))
        mujoco.mj_forward(self.model, self.data)

    def lean(self, angle: float, about: float) -> None:
        """Held crooked by ``angle`` degrees, the tip over the middle of the hole; ``about`` (rad) says which way."""
        shape, name = PARTS[self.screw.part], self.screw.part
        first, axis = self.model.joint(name).dofadr[0] + 3, np.array(shape.axis)
        self.model.dof_armature[first : first + 3], self.model.dof_damping[first : first + 3] = 10.0, 1e7
        mujoco.mj_setConst(self.model, mujoco.MjData(self.model))
        x = np.array([1.0, 0.0, 0.0])
        across = math.cos(about) * x + math.sin(about) * np.cross(axis, x)
        quat, tilt = (
            np.append(math.cos(math.radians(angle) / 2), math.sin(math.radians(angle) / 2) * across),
            np.zeros(9),
        )
        mujoco.mju_quat2Mat(tilt, quat)
        turn = self.data.body(name).xmat.reshape(3, 3) @ tilt.reshape(3, 3)
        put(self.venv, name, self.data.body(name).xpos + shape.tip * (self.into - turn @ axis), turn)
        mujoco.mj_forward(self.model, self.data)

    def run(self, seconds: float, push: float = 0.0, torque: float = 0.0) -> float:
        """A force (N) along the axis into the hole and a torque (N m) about it, clockwise seen from outside; returns the reward."""
        self.data.xfrc_applied[self.model.body(self.screw.part).id] = np.concatenate(
            [push * self.into, torque * self.into]
        )
        reward = 0.0
        for _ in range(round(10 * seconds)):
            result = self.venv.step(self.hold)
            assert not result.info["invalid"][0]
            reward += result.reward[0]
        return reward

    @property
    def engaged(self) -> bool:
        return self.own[self.hole] == self.place

    @property
    def excluded(self) -> list[bool]:
        """Whether the part with the peg, and its nut, pass through the socket."""
        socket, present = self.model.body(self.screw.socket).id, self.model.exclude_signature.tolist()
        others = (self.model.body(name).id for name in (self.screw.part, f"{self.screw.part}_nut"))
        return [(min(socket, other) << 16) + max(socket, other) in present for other in others]

    @property
    def rest(self) -> float:
        """m that the peg has to go."""
        return float((self.goal - self.data.body(self.screw.part).xpos) @ self.into)


def put(venv: EngineVectorEnv, part: str, position, rotation) -> None:
    """Place a part (robot frame) at rest."""
    model, data = venv.simulations.models[0], venv.simulations.data[0]
    at, dof = model.joint(part).qposadr[0], model.joint(part).dofadr[0]
    data.qpos[at : at + 3] = position
    mujoco.mju_mat2Quat(data.qpos[at + 3 : at + 7], np.ascontiguousarray(rotation, float).ravel())
    data.qvel[dof : dof + 6] = 0.0


@pytest.mark.parametrize(("name", "k"), CASES)
def test_a_part_is_screwed_home_tightened_and_unscrewed_again(name, k):
    bench = Bench(name, k)
    assert bench.excluded == [False, False]
    start = screw.start_of(1.0, bench.screw.depth - screw.FREE)
    assert bench.run(1.0, push=3.0) == 0
    assert bench.engaged and bench.rest == pytest.approx(start, abs=0.0005)
    assert bench.excluded == [True, True]
    turned = 0.0
    while bench.rest > 0.0004 and turned < 30:  # 20 degrees from home it counts
        turned += bench.run(0.5, push=3.0, torque=0.06) or 0.5
    assert bench.own[assembly.GIVEN] == 1
    bench.run(1.0, push=20.0, torque=10.0)
    assert bench.engaged and bench.rest == pytest.approx(0.0, abs=0.0002)
    for _ in range(60):
        bench.run(0.5, push=-3.0, torque=-0.06)
        if not bench.engaged:
            break
    assert not bench.engaged and bench.rest > start - 0.001
    assert bench.excluded == [False, False]


@pytest.mark.parametrize("push", [5.0, 20.0, 50.0])
@pytest.mark.parametrize(("name", "k"), CASES)
def test_pressing_does_not_assemble(name, k, push):
    bench = Bench(name, k, turn=0.2)  # would count as turned home
    bench.run(0.8, push=3.0)
    assert bench.engaged and bench.rest > 0.007
    before = bench.rest
    assert bench.run(6.0, push=push) == 0
    assert bench.engaged and before - bench.rest < 0.0001


@pytest.mark.parametrize("about", [0.0, 0.8])
@pytest.mark.parametrize("push", [5.0, 20.0, 50.0])
@pytest.mark.parametrize(("name", "k"), CASES)
def test_a_crooked_peg_is_stopped_at_the_rim(name, k, push, about):
    bench = Bench(name, k, turn=0.2)
    bench.lean(17.0, about)
    for _ in range(12):
        assert bench.run(0.1, push=push) == 0
        assert not bench.engaged and bench.rest > 0.008


@pytest.mark.parametrize(("name", "k"), CASES)
def test_a_peg_somewhat_crooked_does_not_creep_in(name, k):
    bench = Bench(name, k, turn=0.2)
    bench.lean(5.0, 0.8)
    assert bench.run(2.0, push=50.0) == 0
    assert bench.rest > 0.008


@pytest.mark.parametrize("on_top", [False, True])
@pytest.mark.parametrize(("name", "k"), CASES)
def test_the_robot_cannot_press_a_part_home(name, k, on_top):
    """Six seconds with all the arm's strength, with the part in the hand or under the closed gripper: it goes in as far as it was turned."""
    if on_top and k:
        pytest.skip("nothing to press on: the hand reaches over the base's cross")
    venv, own, obs = until_engaged(name, k)
    if on_top:
        obs = above(venv, name, k, obs)
    (first, phase), turned, force, goal = seen_from_hole(venv, name, k), 0.0, 0.0, obs[:10].copy()
    for _ in range(60):
        goal[2], goal[9] = obs[2] - 0.1, 1.0
        result = venv.step(goal[None, None].astype(np.float32))
        obs = result.obs["state"][0, 0]
        assert result.reward[0] == 0 and not result.info["invalid"][0]
        force = max(force, own[assembly.HOLES + screw.N_SCREW_MEMORY * k + screw.FORCE])
        left, now = seen_from_hole(venv, name, k)
        turned, phase = turned + math.remainder(phase - now, math.tau), now
        assert abs(first - left - turned * screw.PITCH / math.tau) < 0.001
    assert force > 15.0  # it did press (a bulb slips through the fingers)


def until_engaged(name: str, k: int) -> tuple[EngineVectorEnv, np.ndarray, np.ndarray]:
    """The task's expert has put the peg of thread ``k`` into its hole and still holds the part: environment, its memory, observation."""
    entry = EXPERTS[f"{name}_low"]
    for seed in (3, 5, 7):
        venv = EngineVectorEnv(assembly.family(entry.env), 1, 1, entry.steps, n_threads=1)
        expert, obs = entry.make(1, np.random.default_rng(1), noise=1.0, retry=True), venv.reset([seed])["state"][:, 0]
        own = venv.simulations.memory[0]
        for _ in range(entry.steps - 100):
            obs = venv.step(expert.act(obs)[:, None].astype(np.float32)).obs["state"][:, 0]
            if own[assembly.HOLES + screw.N_SCREW_MEMORY * k] >= 0:
                return venv, own, obs[0]
    raise AssertionError(f"{name}: the expert got no peg into its hole")


def above(venv: EngineVectorEnv, name: str, k: int, obs: np.ndarray) -> np.ndarray:
    """Let go, go up and over the part, close."""
    goal = obs[:10].copy()
    at = venv.simulations.data[0].body(screws(FURNITURE[name])[k].part).xpos.copy()
    for step in range(45):
        goal[9] = 1.0 if step > 35 else -1.0
        if step > 4:
            goal[:3] = *at[:2], at[2] + 0.12
        if step in range(5, 15):
            goal[:3] = obs[0], obs[1], obs[2] + 0.05
        obs = venv.step(goal[None, None].astype(np.float32)).obs["state"][0, 0]
    return obs


def seen_from_hole(venv: EngineVectorEnv, name: str, k: int) -> tuple[float, float]:
    """m that the engaged peg of thread ``k`` has to go, and rad that it has to turn (mod a whole turn)."""
    thread, data = screws(FURNITURE[name])[k], venv.simulations.data[0]
    pair, axis = FURNITURE[name].pairs[thread.pair], np.array(PARTS[thread.part].axis)
    hole = int(venv.simulations.memory[0][assembly.HOLES + screw.N_SCREW_MEMORY * k])
    assert hole >= 0
    socket, part = data.body(thread.socket), data.body(thread.part)
    home = socket.xmat.reshape(3, 3) @ pair.rotation
    gap = socket.xpos + socket.xmat.reshape(3, 3) @ np.array(pair.places[hole]) - part.xpos
    off = home.T @ part.xmat.reshape(3, 3)
    sine = axis @ [off[2, 1] - off[1, 2], off[0, 2] - off[2, 0], off[1, 0] - off[0, 1]]
    return float(gap @ home @ axis), math.atan2(-sine, np.trace(off) - 1.0)


def test_a_thread_starts_between_7_and_16_4_mm_and_at_the_same_turn():
    for u_max in (0.018, 0.024, 0.0194):
        for turn in np.linspace(0.0, math.tau, 101)[:-1]:
            u = screw.start_of(turn, u_max)
            assert u_max - screw.PITCH < u <= u_max
            assert (u / screw.PITCH * math.tau - turn) % math.tau == pytest.approx(0.0, abs=1e-9) or (
                u / screw.PITCH * math.tau - turn
            ) % math.tau == pytest.approx(math.tau, abs=1e-9)


def test_two_legs_do_not_share_a_hole():
    bench = Bench("one_leg", 0)
    at, turn = bench.data.body("leg4").xpos.copy(), bench.data.body("leg4").xmat.reshape(3, 3).copy()
    put(bench.venv, "leg1", bench.goal - 0.012 * bench.into, turn)  # leg 1 is in the hole already, and stays
    first = bench.model.joint("leg1").dofadr[0]
    bench.model.dof_armature[first : first + 6], bench.model.dof_damping[first : first + 6] = FIRM
    put(bench.venv, "leg4", at - 0.09 * bench.into, turn)
    mujoco.mj_forward(bench.model, bench.data)
    assert bench.run(4.0, push=20.0) == 0
    assert not bench.engaged and 0.04 < bench.rest < 0.11  # it stands on leg 1


# ------------------------------------------------------------------------------------------------------------- engine


def test_goes_on_exactly_where_it_was_saved_with_a_thread_engaged():
    bench = Bench("one_leg", 0)
    bench.run(0.8, push=3.0)
    assert bench.engaged
    state = bench.venv.state_dict()
    first = [bench.venv.step(bench.hold).obs["state"].copy() for _ in range(3)]
    bench.run(0.5, push=-20.0)
    restarted = Bench("one_leg", 0)  # its model has never known a thread to hold
    for later in (bench, restarted):
        later.venv.load_state_dict(state)
        assert later.engaged
        again = [later.venv.step(later.hold).obs["state"].copy() for _ in range(3)]
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert later.excluded == [True, True]


@pytest.mark.parametrize("name", FURNITURE)
def test_an_episode_depends_on_its_seed_alone(name):
    family = assembly.family(f"{name}_med_dim")

    def play(n: int, slot: int, seeds) -> np.ndarray:
        venv = EngineVectorEnv(family, n, 4, 40, n_threads=1)
        state, seen = venv.reset(seeds)["state"], []
        for k in range(3):
            goal = np.concatenate([state[:, 0, :9], np.ones((n, 1))], axis=1)
            goal[:, 2] -= 0.02 * (k + 1)
            state = venv.step(np.repeat(goal[:, None], 4, axis=1)).obs["state"]
            seen.append(state[slot].copy())
        return np.concatenate(seen)

    assert np.array_equal(play(1, 0, [31]), play(3, 2, [5, 17, 31]))
    assert not np.array_equal(play(1, 0, [31]), play(1, 0, [37]))
