"""Who draws camera images: this project's own rasteriser (``native``) or OpenGL (``gl``: EGL, or OSMesa where there is no EGL).

``native`` needs no library, no context and no GPU, works in any thread and after a fork, and is 10 and more times faster than
OpenGL in software. ``auto`` takes OpenGL where a GPU draws, and ``native`` everywhere else; but what a policy was trained on it
goes on seeing, see ``resolve``. Data sets and checkpoints say ``native`` or ``gl``; what says nothing was drawn by OpenGL.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from ctypes.util import find_library

from env.engine.camera_gl import choose_backend, gpu_of_this_worker
from env.errors import EnvError
from env.video import RenderError, working_backend

AUTO, NATIVE, GL = "auto", "native", "gl"
RENDERERS = (AUTO, NATIVE, GL, "egl", "osmesa")


def resolve(name: str | None, trained_on: str | None = None) -> str:
    """Who draws, where ``env.renderer`` is ``name`` (None: "auto"): any of ``RENDERERS`` but "auto".

    Args:
        trained_on: what the policy's training images were drawn by, ``NATIVE`` or ``GL``; None: there is no policy yet. "auto"
            follows it, and takes ``native`` instead of OpenGL only where there is no OpenGL.

    Raises:
        EnvError: an unknown name; with the nearest known one.
    """
    name = one_of("renderer", AUTO if name is None else name, RENDERERS)
    if name != AUTO:
        return name
    if trained_on == GL:
        return GL if working_backend()[0] is not None else NATIVE
    return GL if trained_on is None and gpu_draws() else NATIVE


def kind_of(renderer: str) -> str:
    """What is recorded of images drawn by ``renderer`` (not "auto"): ``NATIVE`` or ``GL``, of whichever back end."""
    return NATIVE if renderer == NATIVE else GL


def gpu_draws() -> bool:
    """Whether there is a GPU that OpenGL can use: many containers have one that only computes."""
    if gpu_of_this_worker() is None or find_library("EGL_nvidia") is None:
        return False
    try:
        return choose_backend() == "egl"
    except RenderError:
        return False


def one_of(key: str, name: str, known: Iterable[str]) -> str:
    """``name``; raises ``EnvError`` with the nearest known one if it is none of ``known``."""
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise EnvError(f"{key}: expected one of {', '.join(known)}, found {name!r}{hint}")
    return name
