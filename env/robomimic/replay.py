"""Recorded demonstrations, replayed in the engine: do the same actions from the same state end in the same state?

A recording has MuJoCo's time, qpos and qvel before every action. Replaying sets the first of them, runs the actions and
compares the coordinates with the recorded ones. Contact is chaotic (robosuite drifts apart from *itself*, started 1e-15
rad away, by up to millimetres), so an episode that ends elsewhere is looked at step by step as well: put into each
recorded state, one action must lead to the next recorded state.

The fine print of a recording decides what can be expected. The engine's own, with the episode's model at full precision,
replay to the bit. robosuite keeps the model with six digits. Older simulators (the published files: robosuite 1.2 to
1.4.1 on older MuJoCo) simulate other contacts. The null-space posture is the first state's, the gripper's first command
is neutral.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from env.engine import osc
from env.engine.library import SOLVED
from env.engine.pool import Simulations
from env.errors import EnvError
from env.robomimic import suite

SAME_STATE = 1e-6  # m, rad: replayed to the same final state
SAME_STEP = 1e-6  # m, rad: the same physics, step by step (median of an episode; six digits of a model cost 1e-8)
BATCH = 50  # episodes side by side
_WIDTH = {"free": (7, 6), "ball": (4, 3), "slide": (1, 1), "hinge": (1, 1)}  # of qpos and of qvel


@dataclass(frozen=True)
class Recording:
    """One recorded episode."""

    name: str
    states: np.ndarray  # (T, 1 + nq + nv): time (s), qpos, qvel before each action
    actions: np.ndarray  # (T, Da)
    rewards: np.ndarray  # (T,)
    model_xml: str | None  # the episode's MJCF


@dataclass(frozen=True)
class Replay:
    """What became of it. Differences are the largest over the coordinates (m, rad)."""

    name: str
    final: float  # at the last recorded state, running freely from the first
    step: float  # median over the episode, from each recorded state; NaN where ``final`` is good enough
    solved: bool  # in the replay, at any step
    recorded_solved: bool

    @property
    def same(self) -> bool:
        """The same final state."""
        return self.final <= SAME_STATE

    @property
    def chaotic(self) -> bool:
        """Another final state by the same physics."""
        return not self.same and self.step <= SAME_STEP


def replay(
    family: Any, recordings: Sequence[Recording], n_threads: int | None = None, every_step: bool = False
) -> list[Replay]:
    """Replay ``recordings`` in simulations of ``family`` (an ``env.engine.family.Family`` of robomimic).

    Args:
        every_step: look step by step at every episode, not only at those that end elsewhere.

    Raises:
        EnvError: a recording of another model or without what is needed; names the episode.
    """
    results = []
    for at in range(0, len(recordings), BATCH):
        batch = recordings[at : at + BATCH]
        simulations = Simulations(family, len(batch), n_threads=n_threads)
        try:
            results += _replay_batch(simulations, batch, every_step)
        finally:
            simulations.close()
    return results


def _replay_batch(simulations: Simulations, batch: Sequence[Recording], every_step: bool) -> list[Replay]:
    columns = [_columns(simulations.family, r) for r in batch]
    lengths = np.array([len(r.actions) for r in batch])
    actions = np.zeros((len(batch), lengths.max(), simulations.family.action_dim))
    for i, r in enumerate(batch):
        actions[i, : lengths[i]] = r.actions
        _place(simulations, i, r, columns[i])
    slots = np.arange(len(batch))
    done = simulations.run(slots, actions, lengths, traced=slots)
    final = np.zeros(len(batch))
    for i, r in enumerate(batch):
        if lengths[i] > 1:
            final[i] = np.abs(done.trace[i, lengths[i] - 2] - r.states[-1, columns[i].qpos]).max()
    closer = slots if every_step else np.flatnonzero(~(final <= SAME_STATE))
    steps = _step_by_step(simulations, batch, columns, closer, actions)
    return [
        Replay(r.name, float(final[i]), steps.get(i, np.nan), bool(done.bits[i] & SOLVED), bool(r.rewards.max() > 0.0))
        for i, r in enumerate(batch)
    ]


def _step_by_step(
    simulations: Simulations,
    batch: Sequence[Recording],
    columns: Sequence[_Columns],
    slots: np.ndarray,
    actions: np.ndarray,
) -> dict[int, float]:
    """Median difference of each of ``slots`` after one action from a recorded state."""
    differences: dict[int, list[float]] = {int(i): [] for i in slots}
    for i in differences:
        _place(simulations, i, batch[i], columns[i])
    longest = max((len(batch[i].actions) for i in differences), default=0)
    for t in range(longest - 1):
        running = np.array([i for i in differences if t < len(batch[i].actions) - 1], np.int64)
        for i in running:
            if t:
                _set_state(simulations, i, batch[i].states[t], columns[i])
        ones = np.ones(len(batch), np.int64)
        simulations.run(running, np.ascontiguousarray(actions[:, t : t + 1]), ones)
        for i in running:
            found = simulations.data[i].qpos - batch[i].states[t + 1, columns[i].qpos]
            differences[i].append(float(np.abs(found).max()))
    return {i: float(np.median(values)) if values else 0.0 for i, values in differences.items()}


@dataclass(frozen=True)
class _Columns:
    """Where the engine's coordinates stand in a recorded state."""

    qpos: np.ndarray  # (nq,)
    qvel: np.ndarray  # (nv,)


def _columns(family: Any, recording: Recording) -> _Columns:
    """By the joints' names, because the engine leaves out what a task never uses; without a recorded model, by number."""
    model, width = family.model, recording.states.shape[1]
    if recording.model_xml is None:
        if width != 1 + model.nq + model.nv:
            raise EnvError(
                f"{recording.name}: no model_file; then states must have 1 + {model.nq} + {model.nv} columns, found {width}"
            )
        return _Columns(np.arange(1, 1 + model.nq), np.arange(1 + model.nq, width))
    recorded, nq, nv = {}, 0, 0
    for name, kind in _joints(_parsed(recording).find("worldbody")):
        if kind not in _WIDTH:
            raise EnvError(f"{recording.name}: model_file: joint {name!r}: unknown type {kind!r}")
        recorded[_plain(name)] = (nq, nv)
        nq, nv = nq + _WIDTH[kind][0], nv + _WIDTH[kind][1]
    if width != 1 + nq + nv:
        raise EnvError(
            f"{recording.name}: states: expected 1 + {nq} + {nv} columns (model_file's joints), found {width}"
        )
    qpos, qvel = np.zeros(model.nq, np.int64), np.zeros(model.nv, np.int64)
    for j in range(model.njnt):
        name = model.joint(j).name
        if _plain(name) not in recorded:
            raise EnvError(f"{recording.name}: model_file has no joint {name!r}; it has {', '.join(recorded)}")
        from_qpos, from_qvel = recorded[_plain(name)]
        size = model.joint(j).qpos0.size
        n_dof = {7: 6, 4: 3}.get(size, 1)
        at, dof = model.jnt_qposadr[j], model.jnt_dofadr[j]
        qpos[at : at + size] = 1 + from_qpos + np.arange(size)
        qvel[dof : dof + n_dof] = 1 + nq + from_qvel + np.arange(n_dof)
    return _Columns(qpos, qvel)


def _joints(body: ElementTree.Element | None) -> Iterator[tuple[str, str]]:
    """(name, type) of all joints in MuJoCo's order: a body's own before those of the bodies in it."""
    for child in body if body is not None else ():
        if child.tag == "freejoint":
            yield child.get("name", ""), "free"
        elif child.tag == "joint":
            yield child.get("name", ""), child.get("type", "hinge")
    for child in body if body is not None else ():
        if child.tag == "body":
            yield from _joints(child)


def _plain(joint: str) -> str:
    """robosuite 1.4 and 1.5 call the fingers' joints gripper0_finger_joint1 and gripper0_right_finger_joint1."""
    return joint.replace("_right_finger", "_finger")


def _parsed(recording: Recording) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(recording.model_xml or "")
    except ElementTree.ParseError as error:
        raise EnvError(f"{recording.name}: model_file: no XML ({error})") from error


def _place(simulations: Simulations, i: int, recording: Recording, columns: _Columns) -> None:
    """Begin the episode in slot ``i`` exactly as ``family.begin`` would, at the recorded coordinates."""
    family = simulations.family
    start = family.draw(np.random.default_rng(0))
    extra = _EXTRA.get(family.name, lambda recording: ())(recording)
    start[: len(extra)] = extra
    simulations.begin([i], start[None])  # gives the model what differs between episodes
    model, data, state = simulations.models[i], simulations.data[i], recording.states[0]
    qpos = state[columns.qpos]
    arms = family.ids[osc.FIRST_ARM :]
    at = [arms[osc.N_ARM_IDS * k + 2] for k in range(family.ids[0])]
    mujoco.mj_resetData(model, data)
    suite.begin_arms(model, data, family.ids, np.stack([qpos[a : a + osc.N_JOINTS] for a in at]), simulations.memory[i])
    _set_state(simulations, i, state, columns)


def _set_state(simulations: Simulations, i: int, state: np.ndarray, columns: _Columns) -> None:
    data = simulations.data[i]
    data.time, data.qpos[:], data.qvel[:] = state[0], state[columns.qpos], state[columns.qvel]
    mujoco.mj_forward(simulations.models[i], data)


def _box_size(recording: Recording, geom: str) -> Sequence[float]:
    """Half-sizes (3, m) of a box in the recorded model."""
    if recording.model_xml is None:
        raise EnvError(f"{recording.name}: no model_file, which tells the size of this episode's objects")
    for element in _parsed(recording).iter("geom"):
        if element.get("name") == geom:
            try:
                size = [float(x) for x in element.get("size", "").split()]
            except ValueError:
                size = []
            if len(size) == 3 and all(0.0 < x < 1.0 for x in size):
                return size
            raise EnvError(f"{recording.name}: model_file: geom {geom!r}: expected three sizes in m, found {size}")
    raise EnvError(f"{recording.name}: model_file has no geom {geom!r}")


_EXTRA: dict[str, Callable[[Recording], Sequence[float]]] = {  # task -> the first numbers of its start
    "lift": lambda recording: _box_size(recording, "cube_g0"),  # the cube's half-sizes
    "transport": lambda recording: _box_size(recording, "payload_head")[1:2],  # the hammer head's
}
