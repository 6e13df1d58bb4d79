"""An arm of seven decoupled joints with the Panda's kinematics, and the library in which both sides of the wire find them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).with_name("model") / "fer_model.c"
PERIOD = 1e-3  # s
FRICTION = 0.5  # N m s/rad, each joint
Q_MIN = np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973])
Q_MAX = np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973])
DQ_MAX = np.array([2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61])
TORQUE_STEP = 1.0  # N m in a period, the interface's limit
READY = np.array([0.0, 0.1963, 0.0, -2.618, 0.0, 2.9416, 0.7854])  # robosuite's reset pose


class NoCompilerError(RuntimeError):
    """There is no C compiler: no library, no control unit."""


def library() -> Path:
    """The compiled model; compiled once per source and user, into the folder for temporary files."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"fake_fci_{os.getuid()}"
    file = folder / f"fer_model_{digest}.so"
    if file.exists():
        return file
    compiler = next((c for c in (os.environ.get("CC"), "cc", "gcc", "clang") if c and shutil.which(c)), None)
    if compiler is None:
        raise NoCompilerError("the fake control unit needs a C compiler (cc, gcc or clang) for its model library")
    folder.mkdir(mode=0o700, exist_ok=True)
    partial = folder / f"{file.name}.{os.getpid()}"
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(partial), str(SOURCE), "-lm"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    partial.replace(file)  # whole or not at all, whoever else compiles
    return file


class Model:
    """The library, called from Python. Poses (4, 4), Jacobians (6, 7) in the base frame."""

    def __init__(self, file: Path) -> None:
        self._library = ctypes.CDLL(str(file))
        self.inertia = np.array((ctypes.c_double * 7).in_dll(self._library, "INERTIA"))

    def _call(self, name: str, size: int, *arrays: np.ndarray) -> np.ndarray:
        out = np.empty(size)
        kept = [np.ascontiguousarray(a, float) for a in (*arrays, out)]
        kept[-1] = out
        getattr(self._library, name)(*(a.ctypes.data_as(ctypes.c_void_p) for a in kept))
        return out

    def pose(self, q: np.ndarray, flange_to_ee: np.ndarray) -> np.ndarray:
        """Of the end effector, whose pose in the flange is ``flange_to_ee (4, 4)``."""
        return self._call("O_T_J9", 16, q, flange_to_ee.T.ravel()).reshape(4, 4).T

    def jacobian(self, q: np.ndarray, flange_to_ee: np.ndarray) -> np.ndarray:
        return self._call("O_J_J9", 42, q, flange_to_ee.T.ravel()).reshape(7, 6).T


class Arm:
    """Joint positions and velocities, moved by torques and by an external wrench (6,) at the end effector, base frame."""

    def __init__(self, model: Model, q: np.ndarray = READY) -> None:
        self.model = model
        self.q, self.dq = np.array(q, float), np.zeros(7)
        self.push = np.zeros(6)

    def step(self, torque: np.ndarray, flange_to_ee: np.ndarray) -> None:
        """One period under ``torque (7,)``."""
        if self.push.any():
            torque = torque + self.model.jacobian(self.q, flange_to_ee).T @ self.push
        inertia = self.model.inertia
        self.dq = (self.dq + PERIOD * torque / inertia) / (1.0 + PERIOD * FRICTION / inertia)
        self.q = self.q + PERIOD * self.dq

    def brake(self) -> None:
        """One period without control: the joints come to rest within a few hundredths of a second."""
        self.dq = 0.9 * self.dq
        self.q = self.q + PERIOD * self.dq

    def violation(self) -> str | None:
        """The limit that is broken, if any, by the interface's name."""
        if (self.q < Q_MIN).any() or (self.q > Q_MAX).any():
            return "joint_position_limits_violation"
        return "joint_velocity_violation" if (np.abs(self.dq) > DQ_MAX).any() else None
