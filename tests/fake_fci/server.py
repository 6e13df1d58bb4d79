"""A control unit and its gripper, on one loopback address, in one thread.

Time is the wall's (``realtime``), or waits for the client (``lockstep``): then the next state goes out only once the last was answered, so
that a slow machine looks like a fast one. In lockstep, ``advance`` halts time altogether between calls. Whatever a person or a cable may do
to a robot can be done to this one: see ``Faults``.

Joint limits, joint velocities and torque steps are enforced as the interface says, and 20 commands missed in a row are a violation of its
communication constraints. What it idealises: decoupled joints, no friction but viscous, perfect sensors, no gravity.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tests.fake_fci import protocol_v5 as wire
from tests.fake_fci.dynamics import DQ_MAX, PERIOD, TORQUE_STEP, Arm, Model, library
from tests.fake_fci.gripper import FakeGripper
from tests.fake_fci.protocol_v5 import Command, Mode, MoveStatus

MISSED_MAX = 20
CUT, SINE = np.cos(np.pi / 4), np.sin(np.pi / 4)
HAND = np.array(
    [[CUT, SINE, 0.0, 0.0], [-SINE, CUT, 0.0, 0.0], [0.0, 0.0, 1.0, 0.1034], [0.0, 0.0, 0.0, 1.0]]
)  # F_T_NE


@dataclass
class Faults:
    """What is wrong at present."""

    frozen: bool = False  # no datagram passes, in either direction
    drop: int = 0  # so many commands to come are lost
    recovery_refused: bool = False  # somebody must see to it in the robot's web page
    version: int = wire.VERSION  # that of the control unit


@dataclass
class Motion:
    """A MOVE under way."""

    number: int
    answered: bool = True  # the last state was, or none is due
    started: bool = False  # a first command has come
    torque: np.ndarray = field(default_factory=lambda: np.zeros(7))  # last commanded
    applied: np.ndarray = field(default_factory=lambda: np.zeros(7))  # in the last tick
    missed: int = 0
    finished: bool = False
    lost: bool = False  # the answer to the last state was
    sent_at: float = 0.0


class Link:
    """The server's end of one client: a listening socket, then a stream of messages and datagrams beside it."""

    def __init__(self, host: str, port: int, header, take: Callable[[int, int, bytes], None]) -> None:
        self.header, self.take, self.host = header, take, host
        self.listener = socket.create_server((host, port), backlog=4)
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind((host, 0))
        self.udp.setblocking(False)
        self.tcp: socket.socket | None = None
        self.udp_port = 0
        self._buffer = b""

    def sockets(self) -> list[socket.socket]:
        """What to listen to: a client, or for a client. A second one waits until the first has gone."""
        return [self.tcp or self.listener]

    def serve(self) -> bool:
        """Take what has come; False once the client has gone."""
        if self.tcp is None:
            self.tcp, _ = self.listener.accept()
            self.tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._buffer, self.udp_port = b"", 0
            return True
        try:
            data = self.tcp.recv(65536)
        except OSError:
            data = b""
        if not data:
            self.hang_up()
            return False
        self._buffer += data
        while len(self._buffer) >= self.header.size:
            command, number, size = self.header.unpack_from(self._buffer)
            if len(self._buffer) < size:
                break
            payload, self._buffer = self._buffer[self.header.size : size], self._buffer[size:]
            self.take(command, number, payload)
        return True

    def answer(self, command: int, number: int, payload: bytes) -> None:
        if self.tcp is not None:
            self.tcp.sendall(self.header.pack(command, number, self.header.size + len(payload)) + payload)

    def publish(self, state: np.ndarray) -> None:
        if self.tcp is not None and self.udp_port:
            self.udp.sendto(state.tobytes(), (self.tcp.getpeername()[0], self.udp_port))

    def hang_up(self) -> None:
        if self.tcp is not None:
            self.tcp.close()
        self.tcp = None


class FakeControlUnit:
    """The robot. ``serve(seconds)`` waits for messages; ``tick()`` lets a millisecond pass when one is due."""

    def __init__(self, host: str = "127.0.0.1", lockstep: bool = False, patience: float = 5.0) -> None:
        if not host.startswith("127."):
            raise ValueError(f"a fake robot stays on this machine: expected a host 127.x.x.x, found {host}")
        file = library()
        self.arm, self._library = Arm(Model(file)), file.read_bytes()
        self.lockstep, self.patience = lockstep, patience
        self.faults, self.mode, self.motion = Faults(), Mode.IDLE, None
        self.permits: int | None = None  # ticks that ``advance`` has granted; None: time runs
        self.link = Link(host, wire.PORT, wire.HEADER, self._command)
        self.hand = FakeGripper(Link(host, wire.GRIPPER_PORT, wire.GRIPPER_HEADER, self._grip))
        self.state = np.zeros((), wire.ROBOT_STATE)
        for name in ("EE_T_K", "NE_T_EE"):
            self.state[name] = np.eye(4).ravel()
        self.state["F_T_NE"] = HAND.T.ravel()
        self.state["m_ee"], self.state["elbow"], self.state["elbow_d"] = 0.73, (0, -1), (0, -1)
        self.state["O_ddP_O"] = (0, 0, -9.81)
        self.successes: deque[float] = deque(maxlen=100)
        self.counts = {"commands": 0, "missed": 0, "non_finite": 0, "recoveries": 0}
        self.settings: list[int] = []  # commands that set something, in order
        self._next = self._lingered = time.perf_counter()
        self._publish()

    # ------------------------------------------------------------------------------------------------------- time

    def serve(self, seconds: float, extra: tuple = ()) -> list:
        """Handle what arrives within ``seconds`` at most, returns with the first; those of ``extra`` that can be read."""
        wanted = [self.link.udp, *self.link.sockets(), *self.hand.link.sockets(), *extra]
        ready = select.select(wanted, [], [], max(0.0, seconds))[0]
        if self.link.udp in ready:
            self._datagrams()
        for link in (self.link, self.hand.link):
            if (link.tcp or link.listener) in ready and not link.serve() and link is self.link:
                self.hang_up()
        return [s for s in ready if s in extra]

    def due(self) -> float:
        """Seconds until the next tick may be, 0 where it is due; a tenth where it waits for the client or for ``advance``."""
        now = time.perf_counter()
        motion = self.motion
        if motion is not None and motion.started:
            if self.permits == 0 and motion.answered:
                return 0.1
            waiting = self.lockstep and not motion.answered and not self.faults.frozen
            if waiting and now - motion.sent_at < self.patience:
                return min(0.1, self.patience)
            if self.permits:
                return 0.0
        return max(0.0, self._next - now)

    def tick(self) -> None:
        """One millisecond."""
        now = time.perf_counter()
        self._next = max(self._next + PERIOD, now)  # time that was missed is not caught up with
        self._answers()
        if self.motion is not None:
            self.motion.applied = self.motion.torque
            self.arm.step(self.motion.applied, self.flange_to_ee)
            if self.permits:
                self.permits -= 1
            if violation := self.arm.violation():
                self.abort(violation)
        else:
            self.arm.brake()
        self.state["message_id"] += np.uint64(1)
        self.hand.update(now)
        self._publish()

    def linger(self) -> None:
        """While time is halted: the last state once more, which a client takes for a sign of life and nothing else."""
        now = time.perf_counter()
        if self.permits == 0 and self.motion is not None and now - self._lingered > 0.2 and not self.faults.frozen:
            self._lingered = now
            self.link.publish(self.state)

    def _answers(self) -> None:
        """Judge the command that came, or did not, for the last state."""
        motion = self.motion
        if motion is None or not motion.started:
            return
        heard = motion.answered and not motion.lost
        self.successes.append(float(heard))
        motion.missed = 0 if heard else motion.missed + 1
        self.counts["missed"] += not heard
        silent = self.lockstep and time.perf_counter() - motion.sent_at >= self.patience
        if motion.missed >= MISSED_MAX or (silent and not motion.answered):
            self.abort("communication_constraints_violation")
        elif motion.finished:
            self._end(MoveStatus.SUCCESS)

    def _publish(self) -> None:
        state, pose = self.state, self.arm.model.pose(self.arm.q, self.flange_to_ee).T.ravel()
        for name in ("O_T_EE", "O_T_EE_d", "O_T_EE_c"):
            state[name] = pose
        state["F_T_EE"] = self.flange_to_ee.T.ravel()
        state["q"] = state["q_d"] = state["theta"] = self.arm.q
        state["dq"] = state["dq_d"] = state["dtheta"] = self.arm.dq
        state["tau_J"] = state["tau_J_d"] = self.motion.applied if self.motion else 0.0
        state["O_F_ext_hat_K"] = -self.arm.push  # positive: of the robot on its environment
        state["robot_mode"] = self.mode
        state["motion_generator_mode"] = 2 if self.motion else wire.NO_GENERATOR
        state["controller_mode"] = wire.EXTERNAL_CONTROLLER if self.motion else wire.NO_CONTROLLER
        state["control_command_success_rate"] = sum(self.successes) / max(1, len(self.successes))
        if self.motion:
            self.motion.answered, self.motion.lost, self.motion.sent_at = False, False, time.perf_counter()
        if not self.faults.frozen:
            self.link.publish(state)

    @property
    def flange_to_ee(self) -> np.ndarray:
        """F_T_EE, (4, 4)."""
        return HAND @ self.state["NE_T_EE"].reshape(4, 4).T

    # ----------------------------------------------------------------------------------------------------- faults

    def abort(self, error: str) -> None:
        """A reflex: the motion ends, and stays so until it is recovered."""
        self.state["errors"][wire.ERRORS.index(error)] = True
        self.state["reflex_reason"] = self.state["errors"]
        self.mode = Mode.REFLEX
        self._end(MoveStatus.REFLEX_ABORTED)

    def user_stop(self, pressed: bool) -> None:
        """The button in the operator's hand."""
        if pressed:
            self.mode = Mode.USER_STOPPED
            self._end(MoveStatus.EMERGENCY_ABORTED)
        elif self.mode == Mode.USER_STOPPED:
            self.mode = Mode.IDLE

    def _end(self, status: MoveStatus) -> None:
        if self.motion is not None:
            if self.mode == Mode.MOVE:
                self.mode = Mode.IDLE
            motion, self.motion = self.motion, None
            self.link.answer(Command.MOVE, motion.number, bytes([status]))

    def hang_up(self) -> None:
        """The connection is gone: whoever moves, stops."""
        self.link.hang_up()
        if self.motion is not None:
            self.abort("communication_constraints_violation")

    # --------------------------------------------------------------------------------------------------- commands

    def _datagrams(self) -> None:
        while True:
            try:
                data = self.link.udp.recv(4096)
            except BlockingIOError:
                return
            motion = self.motion
            if self.faults.frozen or motion is None or len(data) != wire.ROBOT_COMMAND.itemsize:
                continue
            command = np.frombuffer(data, wire.ROBOT_COMMAND)[0]
            newest = command["message_id"] == self.state["message_id"]
            if newest or not self.lockstep or not motion.started:
                motion.answered = newest or not self.lockstep
                self._torque(motion, command)

    def _torque(self, motion: Motion, command: np.void) -> None:
        motion.started = True
        if self.faults.drop > 0:
            self.faults.drop -= 1
            motion.lost = True
            return
        self.counts["commands"] += 1
        torque = command["tau_J_d"]
        if not np.isfinite(torque).all():
            self.counts["non_finite"] += 1
            self._end(MoveStatus.INPUT_ERROR_ABORTED)
        elif (np.abs(torque - motion.applied) > TORQUE_STEP * (motion.missed + 1) + 1e-9).any():
            self.abort("controller_torque_discontinuity")
        else:
            motion.torque, motion.finished = torque.copy(), bool(command["motion_generation_finished"])

    def _command(self, command: int, number: int, payload: bytes) -> None:
        answer = {
            Command.CONNECT: self._connect,
            Command.MOVE: self._move,
            Command.STOP_MOVE: self._stop_move,
            Command.AUTOMATIC_ERROR_RECOVERY: self._recover,
            Command.LOAD_MODEL_LIBRARY: lambda n, p: b"\x00" + self._library,
        }.get(Command(command), lambda n, p: self._set(Command(command), p))(number, payload)
        self.link.answer(command, number, answer)

    def _connect(self, number: int, payload: bytes) -> bytes:
        version, port = wire.CONNECT.unpack(payload)
        fits = version == self.faults.version
        self.link.udp_port = port if fits else 0
        return wire.CONNECTED.pack(0 if fits else 1, self.faults.version)

    def _move(self, number: int, payload: bytes) -> bytes:
        controller, _, *_ = wire.MOVE.unpack(payload)
        if self.mode != Mode.IDLE or controller != wire.EXTERNAL_CONTROLLER:  # torques are all that is built
            return bytes([MoveStatus.NOT_POSSIBLE])
        self.mode, self.motion = Mode.MOVE, Motion(number)
        self.successes.clear()
        return bytes([MoveStatus.MOTION_STARTED])

    def _stop_move(self, number: int, payload: bytes) -> bytes:
        self._end(MoveStatus.PREEMPTED)
        return b"\x00"

    def _recover(self, number: int, payload: bytes) -> bytes:
        if self.mode == Mode.USER_STOPPED:
            return bytes([wire.RECOVERY_EMERGENCY])
        if self.faults.recovery_refused:
            return bytes([wire.RECOVERY_NEEDS_A_PERSON])
        self.counts["recoveries"] += 1
        self.state["errors"] = False
        self.mode = Mode.IDLE
        return b"\x00"

    def _set(self, command: Command, payload: bytes) -> bytes:
        if self.mode == Mode.MOVE:
            return bytes([wire.NOT_POSSIBLE])
        self.settings.append(int(command))
        if command == Command.SET_NE_TO_EE:
            self.state["NE_T_EE"] = np.frombuffer(payload, "<f8", 16)
        return b"\x00"

    def _grip(self, command: int, number: int, payload: bytes) -> None:
        self.hand.take(command, number, payload)

    def report(self) -> dict:
        """What a test may ask."""
        return {
            "mode": int(self.mode),
            "q": self.arm.q.tolist(),
            "dq_fraction": float(np.abs(self.arm.dq / DQ_MAX).max()),
            "time": int(self.state["message_id"]) * PERIOD,
            "width": self.hand.width,
            "settings": self.settings,
            "held": self.hand.thing,
            **self.counts,
        }
