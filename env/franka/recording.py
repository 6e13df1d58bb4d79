"""Recording an episode while it runs, without ever holding it up.

``EpisodeRecorder`` takes ticks, events and durations from the control loop and hands them to threads of its own through bounded queues;
nothing of it waits or raises in the loop. What cannot be kept (a full disk, a queue that overflows) is an event, and ``problem`` says so
for the loop to look at. The files are those of ``episode.py``; beside them, in the episode's folder::

    events.jsonl       one line per event, on disk as it happens
    <camera>.mp4       each camera's frames as captured, one per tick; in fragments, so that a film that was cut off still plays
    latency.json/.png  camera age, inference, observation to motion, ticks, and what was measured: percentiles, histograms
    about.json         configuration, checksum of the checkpoint, the operator's verdict, what was lost
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import json
import logging
import math
import os
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from env.franka import episode as files
from env.franka.film import Film, encoder
from env.franka.latency import summarize, write_picture
from env.franka.rows import GrowingFile, RowLog, atomically
from env.franka.types import Clock, DeploymentError, Event, Frame, Observation, Tick

log = logging.getLogger(__name__)

_QUEUED, _FRAMES = 400, 20  # so many may wait: 20 s of ticks, a second of frames
_PATIENCE = 10.0  # seconds to write what waits, at the end
_WORDS = {"y": 1.0, "success": 1.0, "n": 0.0, "failure": 0.0}


class EpisodeRecorder:
    """A ``Recorder`` (``types.py``) of one episode into ``folder``, which must be new or empty.

    Args:
        task: of robomimic, whose layout the recording has.
        clock: of the deployment.
        about: goes into ``about.json``: the configuration, ``checkpoint`` (a path, whose checksum is added) and the like.
        fps: ticks per second.

    ``problem`` is None, or a sentence: ticks or events are being lost. A loop looks at it, and holds.

    Raises:
        DeploymentError: the folder cannot be made, or has something in it; no task of robomimic.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        task: str,
        clock: Clock,
        about: Mapping[str, Any] | None = None,
        fps: float = 20.0,
    ) -> None:
        self.folder, self.problem = Path(folder), None
        self._task, self._clock, self._fps = task, clock, fps
        self._about = {
            **(about or {}),
            "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
        if self._about.get("checkpoint"):
            self._about["checkpoint_sha256"] = checksum(Path(self._about["checkpoint"]))
        files.env_args_of(task, {})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            found = next(self.folder.iterdir(), None)
        except OSError as error:
            raise DeploymentError(f"{self.folder}: no recording can be written there ({error})") from error
        if found is not None:
            raise DeploymentError(
                f"{self.folder}: expected a new or empty folder for the recording, found {found.name} in it"
            )
        self._ticks, self._inputs = RowLog(self.folder, files.TICKS), RowLog(self.folder, files.INPUTS)
        self._durations: defaultdict[str, list[float]] = defaultdict(list)
        self._lost: defaultdict[str, int] = defaultdict(int)
        self._told: set[str] = set()
        self._lines: list[str] = []  # all events so far
        self._observed: list[float] = []  # when
        self._last: Tick | None = None
        self._finished = False
        self._events = GrowingFile(self.folder / files.EVENTS)
        with contextlib.suppress(OSError):  # whoever wants a film will hear of it
            encoder()
        self._writer = _Worker("record", _QUEUED, lambda job: job(), self._failed)
        self._films: dict[str, _Worker] = {}

    # ------------------------------------------------------------------------------------- what the control loop calls

    def tick(self, tick: Tick) -> None:
        """One row. The first decides which columns there are, and their shapes; what does not fit later is left out, which is an event."""
        self._durations_of(tick)
        self._row(self._ticks, _row(tick))
        if tick.observation is not None:
            self._row(self._inputs, _input(tick.number, tick.observation))
        for camera, frame in tick.frames.items():
            self._film(camera, frame)
        self._last = tick

    def event(self, event: Event) -> None:
        """One line of ``events.jsonl``, on its way to the disk at once."""
        line = json.dumps(plain(dataclasses.asdict(event)))
        self._lines.append(line)  # what the disk does not take now, finish may write
        self._writer.put(functools.partial(self._events.append, line.encode() + b"\n"))

    def measure(self, name: str, seconds: float) -> None:
        """A duration for the histograms, as often as one likes and from any thread."""
        self._durations[name].append(seconds)

    # ------------------------------------------------------------------------------------------------------- afterwards

    def finish(self, verdict: str | float | None = None) -> Path:
        """End the recording; returns its folder. Blocks while files are written; again: does nothing.

        ``verdict`` is the operator's (``score_of``). What cannot be written is logged, never raised; the rows then stay as they are, and
        ``read_episode`` reads them.
        """
        if self._finished:
            return self.folder
        self._finished = True
        try:
            score = score_of(verdict)
        except DeploymentError as error:  # an episode is not thrown away for a word
            score = None
            self._say("recorder.verdict", "warn", found=str(verdict), detail=str(error))
        for worker in (self._writer, *self._films.values()):
            worker.close(_PATIENCE)
        for stream in (self._ticks, self._inputs, self._events):
            stream.close()
        about = functools.partial(self._write_about, verdict, score)
        for write in (self._write_events, self._write_latency, functools.partial(self._write_hdf5, score), about):
            try:
                write()
            except Exception as error:  # noqa: BLE001  whatever it is: the other files are still wanted
                self._failed(error)
        return self.folder

    def _write_events(self) -> None:
        self._write_text(files.EVENTS, "".join(f"{line}\n" for line in self._lines))

    def _write_latency(self) -> None:
        summary = summarize(self._durations)
        self._write_text("latency.json", json.dumps(summary, indent=1))
        if summary:
            atomically(self.folder / "latency.png", functools.partial(write_picture, summary))

    def _write_hdf5(self, score: float | None) -> None:
        if not self._ticks:
            return
        columns = files.columns_of(files.read_episode(self.folder), score)
        known = {"score": score, "checkpoint_sha256": self._about.get("checkpoint_sha256")}
        attributes = {key: value for key, value in known.items() if value is not None}
        files.write_hdf5(self.folder / files.HDF5, [(columns, attributes)], self._task)
        for stream in (self._ticks, self._inputs):
            stream.remove()

    def _write_about(self, verdict: str | float | None, score: float | None) -> None:
        about = {**self._about, "verdict": verdict, "score": score, "lost": dict(self._lost), "problem": self.problem}
        self._write_text(files.ABOUT, json.dumps(plain(about), indent=1))

    def _write_text(self, name: str, text: str) -> None:
        atomically(self.folder / name, lambda path: path.write_text(text, encoding="utf-8"))

    # ------------------------------------------------------------------------------------------------------------ inside

    def _row(self, stream: RowLog, row: Mapping[str, Any]) -> None:
        data, misfits = stream.pack({name: np.asarray(value) for name, value in row.items()})
        for name, what in misfits.items():
            self._once(f"recorder.column.{name}", what)
        if not self._writer.put(functools.partial(stream.append, data)):
            self._lost["rows"] += 1
            self._trouble(f"{self.folder}: the disk does not keep up: rows are lost")

    def _durations_of(self, tick: Tick) -> None:
        """What a tick says about time: its distance from the last one; for a new chunk, its inference, and from observation to motion."""
        last = self._last
        if last is not None:
            self.measure("tick_dt", tick.t_host - last.t_host)
        if tick.observation is not None:
            self._observed.append(tick.observation.t_host)
            self.measure("camera_age", tick.observation.camera_age if tick.frames else math.nan)
        if math.isfinite(tick.t_infer_start) and (last is None or tick.t_infer_start != last.t_infer_start):
            self.measure("inference", tick.t_infer_end - tick.t_infer_start)
            seen = [t for t in self._observed[-8:] if t <= tick.t_infer_start]
            if seen:
                self.measure("observation_to_motion", tick.t_host - seen[-1])

    def _film(self, camera: str, frame: Frame) -> None:
        if camera not in self._films:
            film = Film(self.folder / f"{camera}.mp4", self._fps)
            failed = functools.partial(self._once, f"recorder.film.{camera}")
            self._films[camera] = _Worker(f"film {camera}", _FRAMES, film.take, failed, film.close)
        if not self._films[camera].put(frame.image):
            self._lost[f"frames of {camera}"] += 1  # a film with gaps is no reason to stop a robot

    def _say(self, name: str, action: str, **data: Any) -> None:
        self.event(Event(self._clock.now(), name, action, **data))

    def _once(self, name: str, what: object) -> None:
        if name not in self._told:
            self._told.add(name)
            self._say(name, "warn", detail=str(what))

    def _failed(self, error: Exception) -> None:
        self._trouble(f"{self.folder}: cannot be written ({error})")

    def _trouble(self, sentence: str) -> None:
        if self.problem is None:
            self.problem = sentence
            log.error("%s", sentence)
            self._say("recorder.problem", "warn", detail=sentence)


class _Worker:
    """A thread that handles what is put into its bounded queue; its first failure is reported, and what comes later refused."""

    def __init__(
        self,
        name: str,
        size: int,
        handle: Callable[[Any], None],
        failed: Callable[[Exception], None],
        close: Callable[[], None] | None = None,
    ) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(size)
        self._handle, self._failed, self._close, self._broken = handle, failed, close, False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: Any) -> bool:
        """Never waits; False where the queue is full, or a former item failed."""
        if self._broken:
            return False
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            return False
        return True

    def close(self, patience: float) -> None:
        """Wait until all is handled, at most ``patience`` seconds each for room in the queue and for the end."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=patience)
        self._thread.join(patience)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if not self._broken:
                self._guarded(self._handle, item)
        if self._close is not None:
            self._guarded(self._close)

    def _guarded(self, do: Callable[..., None], *args: Any) -> None:
        try:
            do(*args)
        except Exception as error:  # noqa: BLE001  of whatever kind: a recording must not end without a word
            self._broken = True
            self._failed(error)


def _row(tick: Tick) -> dict[str, Any]:
    """The columns of a tick, by their names in ``episode.hdf5``. Actions of demonstrations are finite: what is not is not executed."""
    raw = tick.raw or (tick.observation.raw if tick.observation is not None else {})
    robot, gripper, seen = tick.robot, tick.gripper, tick.observation
    deploy = {
        "number": tick.number, "t_exec": tick.t_host, "running": tick.state == "RUNNING",
        "t_obs": math.nan if seen is None else seen.t_host, "t_robot": robot.t_robot, "t_state": robot.t_host,
        "t_infer_start": tick.t_infer_start, "t_infer_end": tick.t_infer_end,
        "action_raw": tick.raw_action, "action_executed": tick.action,
        "reference_position": tick.reference_position, "reference_quaternion": tick.reference_quaternion,
        "measured_position": robot.position, "measured_quaternion": robot.quaternion, "q": robot.q, "dq": robot.dq,
        "wrench": robot.wrench, "success_rate": robot.success_rate,
        "gripper_width": math.nan if gripper is None else gripper.width, "grasped": gripper is not None and gripper.grasped,
    }  # fmt: skip
    deploy |= {f"t_cam/{camera}": frame.t_host for camera, frame in tick.frames.items()}
    actions = np.nan_to_num(np.asarray(tick.action, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    return {
        "actions": actions, **{f"obs/{key}": value for key, value in raw.items()}, **{f"deploy/{key}": value for key, value in deploy.items()}
    }  # fmt: skip


def _input(number: int, observation: Observation) -> dict[str, Any]:
    return {"number": number, "t_obs": observation.t_host, "camera_age": observation.camera_age, **observation.values}


def score_of(verdict: str | float | None) -> float | None:
    """An operator's verdict from 0 to 1: y or success, n or failure, or percent; None stays None. Raises ``DeploymentError``."""
    if verdict is None:
        return None
    text = str(verdict).strip().lower()
    if text in _WORDS:
        return _WORDS[text]
    with contextlib.suppress(ValueError):
        if 0.0 <= float(text) <= 100.0:
            return float(text) / 100.0
    raise DeploymentError(f"verdict: expected y, n or a number from 0 to 100, found {verdict!r}")


def checksum(path: Path) -> str | None:
    """SHA-256 of a file; None of a folder, or of what is not there."""
    if not path.is_file():
        return None
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """``value`` as JSON has it: arrays as lists, NaN and infinity as words, all else as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
