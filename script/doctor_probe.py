"""What ``doctor.py`` tries in a child process, because it is slow, or may hang or crash: ``python doctor_probe.py <what>``.

imports          one JSON line per package: its version, seconds, or the error; then torch's GPUs and the kernel cache
render           one JSON line: the OpenGL renderer and milliseconds per 96x96 image (MUJOCO_GL says which back end)
lift <quality>   one JSON line: milliseconds per 96x96 image of Lift's wrist camera, as a run would draw it
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = ("numpy", "torch", "numba", "mujoco", "h5py", "hydra", "gymnasium", "robosuite", "imageio_ffmpeg")
SIZE, FRAMES = 96, 15
SCENE = (
    "<mujoco><visual><quality shadowsize='64'/></visual>"
    "<asset><texture name='t' type='2d' builtin='checker' width='64' height='64' rgb1='1 1 1' rgb2='.5 .5 .5'/>"
    "<material name='m' texture='t'/></asset><worldbody><light pos='0 0 3'/><geom type='plane' size='3 3 .1' material='m'/>"
    "<camera name='probe' pos='0 -1.5 1' xyaxes='1 0 0 0 .5 1'/>{}</worldbody></mujoco>"
)


def say(**facts: object) -> None:
    """One JSON line, at once: the parent may stop waiting at any time."""
    sys.__stdout__.write(json.dumps(facts) + "\n")
    sys.__stdout__.flush()


def imports() -> None:
    """Import what every run imports, one by one."""
    for name in IMPORTS:
        started = time.perf_counter()
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                module = importlib.import_module(name)
            say(package=name, version=str(getattr(module, "__version__", "")), seconds=time.perf_counter() - started)
        except BaseException as error:  # whatever an installation gone wrong raises, SystemExit included
            say(package=name, error=f"{type(error).__name__}: {error}".splitlines()[0])
    for part in (gpus, kernels):
        try:
            part()
        except Exception as error:
            say(part=part.__name__, error=f"{type(error).__name__}: {error}".splitlines()[0])


def gpus() -> None:
    """GPUs that torch can use, and what it was built for."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [torch.cuda.get_device_properties(i) for i in range(count)]
    say(
        part="gpus",
        built_for_cuda=torch.version.cuda,
        gpus=[{"name": p.name, "memory": p.total_memory} for p in names],
        threads=torch.get_num_threads(),
    )


def kernels() -> None:
    """Whether the engine's kernels are compiled for the present sources."""
    sys.path.insert(0, str(ROOT))
    from env.engine.library import kernel_folder

    folders = {name: kernel_folder(str(ROOT / name)) for name in ("env/engine/osc.py", "env/robomimic/lift.py")}
    compiled = all(any(Path(folder).glob("**/*.nbc")) for folder in folders.values())
    say(part="kernels", folder=str(Path(folders["env/engine/osc.py"]).parent), compiled=compiled)


def render() -> None:
    """Draw a small scene of boxes and balls."""
    import mujoco
    import numpy as np

    things = "".join(
        f"<geom type='{kind}' size='.1 .1 .1' pos='{x / 4} {y / 4} .1' rgba='{0.5 + x / 8} .3 {0.5 + y / 8} 1'/>"
        for x in range(-4, 5)
        for y, kind in ((-1, "box"), (0, "sphere"), (1, "capsule"))
    )
    model = mujoco.MjModel.from_xml_string(SCENE.format(things))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = mujoco.Renderer(model, SIZE, SIZE)
    times, image = [], np.zeros(0)
    for _ in range(FRAMES):
        started = time.perf_counter()
        renderer.update_scene(data, "probe")
        image = renderer.render()
        times.append(time.perf_counter() - started)
    if image.max() == image.min():
        raise RuntimeError("the image is blank")
    say(ms=1000.0 * statistics.median(times), renderer=_renderer_name())


def _renderer_name() -> str:
    try:
        from OpenGL import GL

        return (GL.glGetString(GL.GL_RENDERER) or b"").decode(errors="replace")
    except Exception:
        return ""


def lift(quality: str) -> None:
    """The wrist camera of Lift, one thread."""
    sys.path.insert(0, str(ROOT))
    import numpy as np

    from env.engine.cameras import CameraPool, pose_of
    from env.engine.pool import Simulations
    from env.registry import family

    task = family("lift")
    start = task.draw(np.random.default_rng(0))
    simulations = Simulations(task, 1, n_threads=1)
    simulations.begin([0], start[None])
    pool = CameraPool(task, ["robot0_eye_in_hand"], (SIZE, SIZE), quality, 1)
    images, looks, pose = [np.zeros(pool.image_shape, np.uint8)], [pool.appearance(start)], pose_of(simulations.data[0])
    times = []
    for _ in range(FRAMES):
        started = time.perf_counter()
        pool.render(pose[None], looks, images)
        times.append(time.perf_counter() - started)
    pool.close()
    say(ms=1000.0 * statistics.median(times))


if __name__ == "__main__":
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT / "script"]
    {"imports": imports, "render": render, "lift": lambda: lift(sys.argv[2])}[sys.argv[1]]()
    sys.__stdout__.flush()
    os._exit(0)  # OpenGL drivers have been seen to crash in their exit handlers
