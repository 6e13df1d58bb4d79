"""Videos of MuJoCo states, drawn by OpenGL where it cannot hurt, or without it.

OpenGL hangs after a fork, crashes at exit while a thread renders, and is simply absent on many servers. So a
model and a sequence of ``qpos`` are handed to ``video_worker.py`` in a fresh interpreter with a deadline, which tries EGL and
then OSMesa (both render in software where there is no GPU). If none works, this project's own rasteriser draws
(``engine/raster.py``; no shadows). A training run never dies of a video: ``render_video`` logs what went wrong and returns nothing.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import mujoco
import numpy as np

from env.errors import EnvError

log = logging.getLogger(__name__)

_GIF_MAX_FPS = 12.5  # a GIF frame lasts a whole number of 10 ms; more frames only make it heavier
_GIF_MAX_FRAMES, _GIF_COLOURS = 100, 64  # the MP4 is for looking closely
_ALL = (0, 1, 2)  # geom groups that MuJoCo draws unless told otherwise
_PROBE_SECONDS = 60.0
_ENCODE_SECONDS = 60.0
_PROBE_XML = (
    "<mujoco><worldbody><light pos='0 0 3'/><geom type='sphere' size='.2' rgba='1 0 0 1'/>"
    "<camera name='probe' pos='0 -1 0' xyaxes='1 0 0 0 0 1'/></worldbody></mujoco>"
)


class RenderError(EnvError):
    """Rendering failed or took too long; the message ends with what the renderer said."""


def render_video(
    model: mujoco.MjModel,
    qpos: np.ndarray,
    path: str | os.PathLike[str],
    camera: str | None = None,
    width: int = 320,
    height: int = 240,
    fps: float = 20.0,
    geom_groups: Sequence[int] | None = None,
    timeout_s: float | None = None,
) -> list[Path]:
    """Write ``<path>.mp4`` and ``<path>.gif`` of the states ``qpos (T, nq)``, one frame each.

    ``camera``, ``geom_groups`` and ``timeout_s`` are those of ``render_frames``. A suffix of ``path`` is
    replaced; ``fps`` is the number of states per second (the GIF keeps every other one where that is more than
    12.5). Returns the files written: none, after a logged warning, where rendering or writing fails for
    whatever reason.
    """
    try:
        frames = render_frames(model, qpos, camera, width, height, geom_groups, timeout_s)
    except EnvError as error:
        log.warning("No video at %s: %s", path, error)
        return []
    return write_video(frames, path, fps)


def write_video(frames: np.ndarray, path: str | os.PathLike[str], fps: float) -> list[Path]:
    """Write ``frames (T, H, W, 3)`` as ``<path>.mp4`` and ``<path>.gif``, each whole or not at all.

    Returns the files written; what cannot be written is a logged warning.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("No video at %s: %s", path, error)
        return []
    written = []
    for suffix, write in ((".mp4", write_mp4), (".gif", write_gif)):
        target = path.with_suffix(suffix)
        partial = target.with_name(f".{target.stem}.partial{suffix}")
        try:
            write(frames, partial, fps)
            os.replace(partial, target)
            written.append(target)
        except (ImportError, OSError, RenderError) as error:
            partial.unlink(missing_ok=True)
            log.warning("No video at %s: %s", target, error)
    return written


def render_frames(
    model: mujoco.MjModel,
    qpos: np.ndarray,
    camera: str | None = None,
    width: int = 320,
    height: int = 240,
    geom_groups: Sequence[int] | None = None,
    timeout_s: float | None = None,
) -> np.ndarray:
    """Images ``(T, height, width, 3)`` uint8 of the states ``qpos (T, nq)``.

    ``camera`` is a camera of the model; None takes "frontview" where there is one, else a free camera that sees
    everything. ``geom_groups`` are the groups drawn (robosuite's visual geoms are group 1, its collision geoms
    group 0); None is MuJoCo's default. ``timeout_s`` is the deadline of OpenGL's process; None allows 60 s and half a
    second per frame of 320x240 pixels.

    Raises ``RenderError`` where OpenGL fails or the deadline passes, ``EnvError`` for a wrong shape, NaN or camera.
    """
    qpos = _checked_qpos(model, qpos)
    camera = _checked_camera(model, camera)
    if min(width, height) < 1:
        raise EnvError(f"A video needs at least one pixel each way, found width={width}, height={height}.")
    backend, _ = working_backend()
    if backend is None:
        return _draw_natively(model, qpos, camera, (height, width), _ALL if geom_groups is None else geom_groups)
    if timeout_s is None:
        timeout_s = 60.0 + 0.5 * len(qpos) * max(1.0, width * height / (320 * 240))
    job = {
        "camera": camera,
        "width": width,
        "height": height,
        "geom_groups": None if geom_groups is None else list(geom_groups),
    }
    return _render_in_child(model, qpos, job, backend, timeout_s)


def write_mp4(frames: np.ndarray, path: str | os.PathLike[str], fps: float) -> None:
    """Write ``frames (T, H, W, 3)`` as H.264 at ``fps`` frames/s; an odd last row or column is cut off.

    Raises ``RenderError`` where ffmpeg fails, is absent or takes longer than a minute.
    """
    with tempfile.TemporaryDirectory(prefix="video_") as name:
        source = Path(name) / "frames.npy"
        np.save(source, frames)
        encoder = Path(__file__).with_name("video_encoder.py")
        command = [sys.executable, str(encoder), str(source), str(path), str(fps)]
        _run(command, dict(os.environ), _ENCODE_SECONDS, what="ffmpeg")


def write_gif(frames: np.ndarray, path: str | os.PathLike[str], fps: float) -> None:
    """Write ``frames (T, H, W, 3)`` as an endless GIF at their speed: at most 12.5 frames/s, 100 frames and 64 colours.

    All frames share one palette without dithering, so that what does not move takes no room.
    """
    from PIL import Image

    stride = max(math.ceil(fps / _GIF_MAX_FPS), math.ceil(len(frames) / _GIF_MAX_FRAMES))
    samples = np.concatenate([frames[0], frames[len(frames) // 2], frames[-1]])
    palette = Image.fromarray(samples).quantize(
        _GIF_COLOURS, method=Image.Quantize.FASTOCTREE
    )  # keeps small bright things
    images = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames[::stride]]
    duration = max(10, 10 * round(100 * stride / fps))  # milliseconds; the format counts in steps of 10
    images[0].save(path, save_all=True, append_images=images[1:], duration=duration, loop=0)


@functools.cache
def working_backend(renderer: str = "gl") -> tuple[str | None, str]:
    """The first back end that draws a red ball, tried in a child process; or None, and why each failed. ``renderer``: "gl" for
    any, or the one to try."""
    model = mujoco.MjModel.from_xml_string(_PROBE_XML)
    job = {"camera": "probe", "width": 32, "height": 24, "geom_groups": None}
    reasons = []
    for backend in _backends() if renderer == "gl" else (renderer,):
        try:
            frame = _render_in_child(model, np.zeros((1, 0)), job, backend, _PROBE_SECONDS)[0]
        except RenderError as error:
            reasons.append(str(error))
            continue
        if frame[12, 16, 0] > frame[0, 0, 0]:
            return backend, ""
        reasons.append(f"{backend}: the image is blank")
    return None, " | ".join(reasons)


def _backends() -> tuple[str, ...]:
    """Values of MUJOCO_GL to try, the user's own choice first; elsewhere than on Linux MuJoCo knows best."""
    if not sys.platform.startswith("linux"):
        return ("",)
    chosen = os.environ.get("MUJOCO_GL", "").lower()
    return tuple(dict.fromkeys(b for b in (chosen, "egl", "osmesa") if b in ("egl", "osmesa")))


def _render_in_child(
    model: mujoco.MjModel, qpos: np.ndarray, job: dict[str, object], backend: str, timeout_s: float
) -> np.ndarray:
    with tempfile.TemporaryDirectory(prefix="video_") as name:
        folder = Path(name)
        mujoco.mj_saveModel(model, str(folder / "model.mjb"))
        np.save(folder / "qpos.npy", qpos)
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        worker = Path(__file__).with_name("video_worker.py")
        _run(
            [sys.executable, str(worker), str(folder)],
            _child_environment(backend),
            timeout_s,
            what=backend or "renderer",
        )
        return np.load(folder / "frames.npy", allow_pickle=False)


def _draw_natively(
    model: mujoco.MjModel, qpos: np.ndarray, camera: str | None, size: tuple[int, int], geom_groups: Sequence[int]
) -> np.ndarray:
    from env.engine.native_threads import FREE_CAMERA, NativeThreads  # its kernels are of no use to OpenGL
    from env.engine.pool import pose_of, usable_cores

    data, poses = mujoco.MjData(model), np.empty((len(qpos), model.nbody, 7))
    for row, pose in zip(qpos, poses, strict=True):
        data.qpos[:] = row
        mujoco.mj_kinematics(model, data)
        pose[:] = pose_of(data)
    eye = FREE_CAMERA if camera is None else model.camera(camera).id
    images = np.empty((len(qpos), 3, *size), np.uint8)
    NativeThreads(model, [eye], size, "balanced", usable_cores(), geom_groups).draw(poses, [()] * len(poses), images)
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))


def _child_environment(backend: str) -> dict[str, str]:
    environment = dict(os.environ, LP_NUM_THREADS="0")  # software rasterisation in the calling thread: fastest here
    if backend:
        environment.update(MUJOCO_GL=backend, PYOPENGL_PLATFORM=backend)
    return environment


def _run(command: list[str], environment: dict[str, str], timeout_s: float, what: str) -> None:
    """Run to the end or kill the whole process group at the deadline: a stuck OpenGL call answers to nothing less."""
    with tempfile.TemporaryFile() as stderr:
        child = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            code = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise RenderError(f"{what}: no answer within {timeout_s:g} s; the renderer was stopped.") from None
        finally:
            if child.poll() is None:
                _kill(child)
        if code != 0:
            stderr.seek(0)
            said = stderr.read().decode(errors="replace").strip().splitlines()
            raise RenderError(f"{what}: the renderer ended with code {code}: {' / '.join(said[-2:]) or 'no message'}")


def _kill(child: subprocess.Popen[bytes]) -> None:
    if hasattr(os, "killpg"):
        os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
    child.wait()


def _checked_qpos(model: mujoco.MjModel, qpos: np.ndarray) -> np.ndarray:
    qpos = np.asarray(qpos, dtype=np.float64)
    if qpos.ndim != 2 or qpos.shape[1] != model.nq or len(qpos) == 0:
        raise EnvError(f"qpos must be (T, nq) = (at least 1, {model.nq}), found {qpos.shape}.")
    if not np.isfinite(qpos).all():
        raise EnvError(f"qpos holds NaN or infinity, first in frame {int(np.argwhere(~np.isfinite(qpos))[0][0])}.")
    return qpos


def _checked_camera(model: mujoco.MjModel, camera: str | None) -> str | None:
    names = [model.camera(i).name for i in range(model.ncam)]
    if camera is None:
        return "frontview" if "frontview" in names else None
    if camera not in names:
        raise EnvError(
            f"The model has no camera {camera!r}; it has {', '.join(names) or 'none'} (None is a free camera)."
        )
    return camera
