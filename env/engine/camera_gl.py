"""OpenGL for camera images: which back end, on which GPU, and contexts that are made one at a time."""

from __future__ import annotations

import functools
import glob
import importlib
import os
import sys
import threading
from typing import Any

import mujoco

from env.errors import EnvError
from env.video import RenderError, working_backend

INSTALL = (
    "MuJoCo cannot render here: on Debian or Ubuntu run `apt-get install libegl1 "
    "libgles2 libgl1-mesa-dri` (EGL) or `apt-get install libosmesa6` (OSMesa); no GPU is needed. env.renderer=native needs nothing."
)
_making = threading.Lock()  # mujoco.egl opens its one display at the first context, without a lock of its own


@functools.cache
def choose_backend(renderer: str = "gl") -> str:
    """ "egl" or "osmesa" (empty elsewhere than on Linux: MuJoCo's own choice), tried out once in a process of its own.
    ``renderer``: "egl" or "osmesa", or "gl" for the first of them that works.

    Sets the variables OpenGL reads, unless the user did: software rasterisation in the calling thread (the fastest
    here, and the only one that survives a fork) and this worker's GPU. Raises ``RenderError`` saying what to install.
    """
    device = None if "MUJOCO_EGL_DEVICE_ID" in os.environ else gpu_of_this_worker()
    if device is not None:
        os.environ["MUJOCO_EGL_DEVICE_ID"] = device
    backend, reasons = working_backend(renderer)
    if device is not None and backend != "egl":  # a GPU that computes but cannot draw: leave the choice to EGL
        del os.environ["MUJOCO_EGL_DEVICE_ID"]
        working_backend.cache_clear()
        backend, reasons = working_backend(renderer)
    if backend is None:
        raise RenderError(f"{INSTALL} What was tried: {reasons}")
    os.environ.setdefault("LP_NUM_THREADS", "0")
    if backend and "OpenGL" not in sys.modules:
        os.environ["PYOPENGL_PLATFORM"] = backend
    return backend


def gpu_of_this_worker() -> str | None:
    """The GPU this process should draw on, as MUJOCO_EGL_DEVICE_ID counts them; None: leave it to EGL.

    With several worker processes (``LOCAL_RANK``, as torchrun numbers them) each takes its own among the visible GPUs.
    """
    present = len(glob.glob("/dev/nvidia[0-9]*"))
    visible = [d.strip() for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d.strip().isdigit()]
    devices = visible or [str(i) for i in range(present)]
    if not present or not devices:
        return None
    rank = os.environ.get("LOCAL_RANK", "0")
    return devices[(int(rank) if rank.isdigit() else 0) % len(devices)]


def open_context(backend: str, width: int, height: int) -> Any:
    """An OpenGL context, current in the calling thread. Raises ``EnvError`` where the driver refuses."""
    with _making:
        try:
            module = importlib.import_module(f"mujoco.{backend}") if backend else mujoco
            context = module.GLContext(width, height)
            context.make_current()
        except Exception as error:
            raise EnvError(f"no OpenGL context ({backend or 'default'}): {error}. {INSTALL}") from error
    return context
