"""The twin: a Panda in robosuite's scene on the engine's own model, behind the protocols of a real arm and gripper.

Same scene, start of an episode (by seed), rule of success and physics step as in training. Two laws:

* ``impedance``: what a real Franka does with the poses that a deployment streams to its driver (``robot_panda.py``): Cartesian impedance,
  weak null space, gravity compensation, limited torque rate (``impedance.py``). robosuite gives the arm's joints 5 to 0.7 kg m² of armature for its solver's
  sake; a real arm's controller feels nothing of the kind, so here they have ``ARMATURE``.
* ``osc``: robosuite's own controller on the policy's delta actions, to the bit the simulation of training and evaluation.

Time passes as the clock says: physics is brought up to ``clock.now()`` whenever the robot is asked or told anything. With a virtual clock
that is lockstep, with the wall's real time.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence

import mujoco
import numpy as np

from env.engine import osc
from env.engine.driver import observe_one
from env.engine.family import observation_dim
from env.engine.library import SOLVED, handles_of
from env.engine.pool import pose_of
from env.franka import brake, dynamics, impedance
from env.franka.frames import Transform
from env.franka.limits import PANDA
from env.franka.types import Clock, ControlSettings, DeploymentError, GripperState, RobotFault, RobotState
from env.registry import ROBOMIMIC, family

ARMATURE = 0.1  # kg m^2, of the arm's joints: what identified models of a Panda have
ESTIMATE = 0.015  # s, by which an estimate of external forces lags behind
TORQUE_STEP = 1.0  # N m per ms, the most a Franka accepts
GRASP_MARGIN = 0.004  # m wider than aimed at: something is between the fingers
STILL = 0.002  # m/s: fingers slower than this do not move
LAWS = ("impedance", "osc")


class MujocoRobot:
    """A ``Robot`` (``env/franka/types.py``) that is simulated; ``gripper`` is its hand.

    Args:
        clock: whose time passes here.
        task: ``lift``, ``can`` or ``square``.
        law: see the module's docstring.
        feedforward: share of the target's velocity that the controller makes use of: 1 as both drivers here bring about, 0 as
            ``panda_py`` by itself.

    Raises:
        DeploymentError: a task with two arms or an unknown one, or an unknown law.
    """

    name = "mujoco"

    def __init__(self, clock: Clock, task: str = "lift", law: str = "impedance", feedforward: float = 1.0) -> None:
        one_arm = [name for name in ROBOMIMIC if name != "transport"]
        if task not in one_arm:
            raise DeploymentError(
                f"robot=mujoco simulates the tasks with one arm ({', '.join(one_arm)}), found task {task!r}"
            )
        if law not in LAWS:
            raise DeploymentError(f"robot.law: expected one of {', '.join(LAWS)}, found {law!r}")
        self.family, self.law = family(task), law
        self.model = copy.copy(self.family.model)
        self.data = mujoco.MjData(self.model)
        self._clock, self._lock, self._feedforward = clock, threading.RLock(), feedforward
        self._arm = osc.FIRST_ARM  # where the arm's ids begin
        self._ids, self._facts = self.family.ids.astype(np.int64), self.family.facts.astype(np.float64)
        self._judging = self._ids.copy()
        self._judging[1] = 0  # no physics steps: the control kernel only judges
        self._q, self._dof = (slice(first, first + osc.N_JOINTS) for first in (self._id(2), self._id(3)))
        if law == "impedance":
            self.model.dof_armature[self._dof] = ARMATURE
        self._handles = handles_of(self.model, self.data)
        self._memory, self._obs = np.zeros(self.family.memory_size), np.zeros(observation_dim(self.family))
        self._step = float(self.model.opt.timestep)
        self._per_action = int(self._ids[1])
        self._posture, self._inertia = np.zeros(osc.N_JOINTS), np.zeros((osc.N_JOINTS, osc.N_JOINTS))
        self._gains, self._rest, self._target = np.zeros(impedance.N_GAINS), np.zeros(osc.N_JOINTS), np.zeros(13)
        self._fingers, self._torque = np.zeros(impedance.N_FINGERS), np.zeros(osc.N_JOINTS)
        self._external = np.zeros(osc.N_JOINTS)
        self._running, self._fault, self._until, self._count = False, None, 0.0, 0
        self._objects = self._ids[osc.first_task_id(1) :]
        self.limits = PANDA
        self.gripper = MujocoGripper(self)
        self.configure(ControlSettings())
        self.reset(0)
        base = self.model.body_parentid[self.model.jnt_bodyid[self.model.dof_jntid[self._dof.start]]]
        self.world = Transform(self.data.xpos[base].copy(), _xyzw(self.data.xquat[base]))  # where the base is in it
        self._to_base = self.world.inverse()

    # ------------------------------------------------------------------------------------------------ episodes

    def reset(self, seed: int) -> None:
        """Begin the episode of ``seed``: as in training and evaluation."""
        with self._lock:
            start = self.family.draw(np.random.default_rng(seed))
            self.start_values = start
            mujoco.mj_resetData(self.model, self.data)
            if self.family.own_models:
                self.family.patch(self.model, self.data, start)
                mujoco.mj_resetData(self.model, self.data)
            self.family.begin(self.model, self.data, start, self._memory)
            self._solved, self.steps, self._count, self._fault, self._running = False, 0, 0, None, False
            self._until = self._clock.now()
            self._torque[:], self._external[:] = 0.0, 0.0
            self._posture[:] = self.data.qpos[self._q]
            width = 0.02 * 2  # robosuite's fingers begin half open: its gripper's action 0
            self._fingers[:] = width, width, 0.0
            self._hold()

    def solved(self) -> bool:
        """Whether the task was solved at the end of any control step (50 ms) of this episode, by its own rule."""
        with self._lock:
            self._advance()
            return self._solved

    def act(self, action: np.ndarray) -> None:
        """One control step (50 ms) of robosuite's own controller; ``action (7,)`` in the task's units. For ``law="osc"`` only."""
        if self.law != "osc":
            raise DeploymentError(
                "act() is for robot.law=osc; with the impedance law, poses are streamed by set_target()"
            )
        self._control(self._ids, np.ascontiguousarray(action, np.float64))

    def observe(self) -> dict[str, np.ndarray]:
        """The observation of training, by published key; the deployment's own is built by ``observation.py``."""
        with self._lock:
            addresses = (a.ctypes.data for a in (self._handles, self._memory, self._ids, self._facts, self._obs))
            observe_one(self.family.observe_kernel, *addresses)
            return {key: self._obs[columns].copy() for key, columns in self.family.layout.items()}

    def object_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """The task's object, as a perfect pose estimator would report it: position (3,) and quaternion (x, y, z, w), base frame."""
        with self._lock:
            self._advance()
            body = int(self._objects[0])
            return self._in_base(self.data.xpos[body], self.data.xquat[body])

    def view(
        self, camera: str, image_size: Sequence[int], render_quality: str = "balanced", renderer: str = "auto"
    ) -> View:
        """What ``camera`` sees, drawn as ``env/engine/cameras.py`` draws it: call it for an image of now."""
        return View(self, camera, image_size, render_quality, renderer)

    def _control(self, ids: np.ndarray, action: np.ndarray) -> None:
        """Run a control step of as many physics steps as ``ids`` says, and judge."""
        reward = np.zeros(1)
        arrays = self._handles, self._memory, ids, self._facts, action, reward
        with self._lock:
            bits = impedance.control_step(self.family.control_kernel, *(a.ctypes.data for a in arrays))
            self._solved, self.steps = self._solved or bool(bits & SOLVED), self.steps + 1

    # --------------------------------------------------------------------------------------------------- robot

    def connect(self) -> None:
        """Nothing to connect to."""

    def configure(self, settings: ControlSettings) -> None:
        """See ``Robot``; the null space's joints are the episode's first where none are given."""
        with self._lock:
            step, share = TORQUE_STEP * 1000.0 * self._step, self._step / (self._step + ESTIMATE)
            translation, rotation = settings.stiffness
            # the controller's rotational error is half the angle: as robot_panda.py does, stiffness is made what it says
            self._gains[:5] = (
                translation,
                2.0 * rotation,
                settings.damping_ratio,
                brake.POSTURE_STIFFNESS,
                self._feedforward,
            )
            self._gains[5:] = step, share
            if settings.nullspace_q is not None:
                self._posture[:] = settings.nullspace_q
            self._settings = settings

    def move_joints(self, q: np.ndarray, speed: float = 0.2) -> None:
        """At once: the way there is not simulated."""
        with self._lock:
            self.data.qpos[self._q], self.data.qvel[self._dof] = q, 0.0
            mujoco.mj_forward(self.model, self.data)
            self._hold()

    def start(self) -> None:
        """See ``Robot``: time begins to pass."""
        with self._lock:
            if self._fault is not None:
                raise self._fault
            self._until, self._running = self._clock.now(), True
            self._hold()
            self._rest[:] = self._posture

    def set_target(self, position: np.ndarray, quaternion: np.ndarray, twist: np.ndarray) -> None:
        """See ``Robot``."""
        self._aim(position, quaternion, twist, self._posture)

    def brake(self, position: np.ndarray, quaternion: np.ndarray) -> None:
        """See ``Robot``."""
        with self._lock:
            self._advance()
            q, dq = self.data.qpos[self._q], self.data.qvel[self._dof]
            damping = tuple(2.0 * self._gains[2] * float(np.sqrt(k)) for k in self._gains[:2])
            self._aim(position, quaternion, *brake.opposing(q, dq, damping))

    def _aim(self, position: np.ndarray, quaternion: np.ndarray, twist: np.ndarray, posture: np.ndarray) -> None:
        if self.law != "impedance":
            raise DeploymentError("set_target() is for robot.law=impedance; robot.law=osc takes actions by act()")
        target = np.concatenate([position, quaternion, twist])
        if target.shape != (13,) or not np.isfinite(target).all():
            raise ValueError(f"a target must be 13 finite numbers, found {target}")
        with self._lock:
            self._advance()
            if self._running:
                self._rest[:] = posture
                self._target[:3] = self.world.point(position)
                self._target[3:7] = self.world.orientation(quaternion)
                self._target[7:10], self._target[10:] = (self.world.vector(v) for v in (twist[:3], twist[3:]))

    def state(self) -> RobotState:
        """See ``Robot``."""
        with self._lock:
            self._advance()
            data = self.data
            position, quaternion = self._in_base(data.site_xpos[self._id(0)], data.xquat[self._id(1)])
            return RobotState(
                t_host=self._clock.now(),
                t_robot=float(data.time),
                q=data.qpos[self._q].copy(),
                dq=data.qvel[self._dof].copy(),
                position=position,
                quaternion=quaternion,
                wrench=self._wrench(),
                moving=self._running,
            )

    def check(self) -> None:
        """See ``Robot``."""
        with self._lock:
            self._advance()
            if self._fault is not None:
                raise self._fault

    def stop(self) -> None:
        """Hold where the arm is now: a real one's brakes and its own controller would."""
        with self._lock:
            self._advance()
            self._running = False
            self._hold()

    def recover(self) -> bool:
        """See ``Robot``: a simulation that went bad does not come back without ``reset``."""
        with self._lock:
            if self._fault is not None and self._fault.recoverable:
                self._fault = None
            return self._fault is None

    def close(self) -> None:
        """Nothing to close."""
        self._running = False

    # ------------------------------------------------------------------------------------------------- helpers

    def _id(self, k: int) -> int:
        return int(self._ids[self._arm + k])

    def _in_base(self, position: np.ndarray, wxyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A pose of the world, with MuJoCo's quaternion, in the base frame."""
        return self._to_base.point(position), self._to_base.orientation(_xyzw(wxyz))

    def _hold(self) -> None:
        """Stay here: the pose under control; the joints, out of it, where they come to rest."""
        self._rest[:] = self.data.qpos[self._q] + self.data.qvel[self._dof] / impedance.UNIT_RATE
        self._inertia[:] = dynamics.mass_matrix(self.data.qpos[self._q], ARMATURE)
        self._target[:3] = self.data.site_xpos[self._id(0)]
        self._target[3:7] = _xyzw(self.data.xquat[self._id(1)])
        self._target[7:] = 0.0

    def _advance(self) -> None:
        """Bring physics up to the clock, judging every control step's worth of it."""
        if self.law != "impedance" or (self._fault is not None and not self._fault.recoverable):
            return
        due = int((self._clock.now() - self._until) / self._step + 1e-6)
        if due <= 0:
            return
        self._until += due * self._step
        while due > 0:
            n = min(due, self._per_action - self._count % self._per_action)
            impedance.run_impedance(
                self._handles, self._ids, self._gains, self._rest, self._target, self._fingers, self._torque,
                self.data.qfrc_constraint, self._external, self._inertia, int(self._running), n,
            )  # fmt: skip
            due, self._count = due - n, self._count + n
            if self._count % self._per_action == 0:
                self._control(self._judging, np.zeros(self.family.action_dim))
        if not np.isfinite(self.data.qpos).all() or self.data.warning.number.any():
            self._fault = RobotFault("driver", "the simulation went unstable", recoverable=False)
        elif self._running:
            self._collide()

    def _collide(self) -> None:
        """The control unit's own reflex: beyond its thresholds the arm stops, and is in fault until somebody recovers it."""
        settings, wrench = self._settings, self._wrench()
        torque, force = np.abs(self._external).max(), np.abs(wrench).max()
        if torque > settings.collision_torque or force > settings.collision_force:
            found = f"{np.linalg.norm(wrench[:3]):.0f} N at the grip site, {torque:.0f} N m at a joint"
            self._fault = RobotFault(
                "reflex", f"{found}; thresholds {settings.collision_force:g} and {settings.collision_torque:g}", True
            )
            self._running = False
            self._hold()

    def _wrench(self) -> np.ndarray:
        """What pushes the arm from outside, (6,) at the grip site: from the joints' constraint forces, as a Franka estimates it."""
        jacobian = np.zeros((6, self.model.nv))
        mujoco.mj_jacSite(self.model, self.data, jacobian[:3], jacobian[3:], self._id(0))
        arm = jacobian[:, self._dof]
        damped = arm @ arm.T + 1e-6 * np.eye(6)
        force, torque = np.linalg.solve(damped, arm @ self._external).reshape(2, 3)
        return np.concatenate([self._to_base.vector(force), self._to_base.vector(torque)])


class MujocoGripper:
    """The twin's hand, a ``Gripper``. Its calls return at once: the fingers move as time passes."""

    max_width = 0.08

    def __init__(self, robot: MujocoRobot) -> None:
        self._robot = robot

    def goto(self, width: float, speed: float) -> None:
        """See ``Gripper``."""
        robot = self._robot
        with robot._lock:
            robot._advance()
            wanted = float(np.clip(width, 0.0, self.max_width))
            robot._fingers[impedance.WANTED], robot._fingers[impedance.STEP] = wanted, speed * robot._step

    def grasp(self, force: float, speed: float) -> bool:
        """Close; whether something is held shows later, in ``state()``. The force is the model's (20 N)."""
        self.goto(0.0, speed)
        return True

    def state(self) -> GripperState:
        """See ``Gripper``."""
        robot = self._robot
        with robot._lock:
            robot._advance()
            at, dof = robot._id(5), robot._id(5) - robot._id(2) + robot._id(3)
            width = float(robot.data.qpos[at] - robot.data.qpos[at + 1])
            speed = float(robot.data.qvel[dof] - robot.data.qvel[dof + 1])
            aim, wanted = robot._fingers[impedance.AIM], robot._fingers[impedance.WANTED]
            grasped = wanted == 0.0 and width - aim > GRASP_MARGIN and abs(speed) < STILL
            return GripperState(robot._clock.now(), width, grasped, aim != wanted or abs(speed) >= STILL)

    def stop(self) -> None:
        """The fingers stay where they are."""
        robot = self._robot
        with robot._lock:
            robot._fingers[impedance.WANTED] = robot._fingers[impedance.AIM]


class View:
    """A camera of the scene: call it for ``(H, W, 3)`` uint8 RGB of now. Owns a render thread until ``close``."""

    def __init__(
        self, robot: MujocoRobot, camera: str, image_size: Sequence[int], render_quality: str, renderer: str
    ) -> None:
        from env.engine.cameras import CameraPool  # its kernels are of no use without images

        self._robot = robot
        self._pool = CameraPool(robot.family, [camera], image_size, render_quality, n_threads=1, renderer=renderer)
        self._image = np.zeros(self._pool.image_shape, np.uint8)

    def __call__(self) -> np.ndarray:
        robot = self._robot
        with robot._lock:
            robot._advance()
            pose = pose_of(robot.data)
            appearance = self._pool.appearance(robot.start_values)
        self._pool.render(pose[None], [appearance], [self._image])
        return np.ascontiguousarray(self._image.transpose(1, 2, 0))

    def close(self) -> None:
        """End the render thread; idempotent."""
        self._pool.close()


def _xyzw(wxyz: np.ndarray) -> np.ndarray:
    return np.roll(wxyz, -1)
