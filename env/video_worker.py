"""Render one job in a process of its own: ``python video_worker.py <job folder>``; called by ``env/video.py``.

The folder holds ``model.mjb``, ``qpos.npy (T, nq)`` and ``job.json`` (camera, width, height, geom_groups);
``frames.npy (T, H, W, 3) uint8`` is left there. Nothing of the project is imported, so that the child starts
fast and OpenGL meets neither threads nor forks.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder: names in it must not shadow installed packages

import mujoco
import numpy as np


def open_camera(model: mujoco.MjModel, name: str | None) -> mujoco.MjvCamera:
    """The model's camera ``name``, or a free camera that sees the whole model."""
    camera = mujoco.MjvCamera()
    if name is None:
        mujoco.mjv_defaultFreeCamera(model, camera)
    else:
        camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
    return camera


def render(folder: Path) -> None:
    """Render every row of ``qpos.npy`` into ``frames.npy``."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    model = mujoco.MjModel.from_binary_path(str(folder / "model.mjb"))
    qpos = np.load(folder / "qpos.npy", allow_pickle=False)
    width, height = job["width"], job["height"]
    model.vis.global_.offwidth, model.vis.global_.offheight = width, height
    # A 4096-pixel shadow map, the default, is three times the work of all the rest in software.
    model.vis.quality.shadowsize = min(model.vis.quality.shadowsize, 1024)
    data = mujoco.MjData(model)
    camera = open_camera(model, job["camera"])
    options = mujoco.MjvOption()
    options.sitegroup[:] = 0  # sites are aids of the model's author, not things
    if job["geom_groups"] is not None:
        options.geomgroup[:] = 0
        options.geomgroup[job["geom_groups"]] = 1
    frames = np.lib.format.open_memmap(folder / "frames.npy", "w+", np.uint8, (len(qpos), height, width, 3))
    with mujoco.Renderer(model, height=height, width=width) as renderer:
        # A reflective floor draws the whole scene again: two thirds of the time, for a difference nobody sees.
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        for row, frame in zip(qpos, frames, strict=True):
            data.qpos[:] = row
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            mujoco.mj_camlight(model, data)
            renderer.update_scene(data, camera, options)
            frame[:] = renderer.render()
    frames.flush()


if __name__ == "__main__":
    render(Path(sys.argv[1]))
    sys.stderr.flush()
    os._exit(0)  # OpenGL drivers have been seen to crash in their exit handlers, after all work was done
