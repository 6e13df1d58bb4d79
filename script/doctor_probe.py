"""What ``doctor.py`` tries in a child process, because it is slow, or may hang or crash: ``python doctor_probe.py <what>``.

imports          one JSON line per package: its version, seconds, or the error; then torch's GPUs and the kernel cache
render           one JSON line: the OpenGL renderer and milliseconds per 96x96 image (MUJOCO_GL says which back end)
native           the same by this project's own renderer, and what env.renderer=auto takes here
lift <quality> <renderer>   one JSON line: milliseconds per 96x96 image of Lift's wrist camera, as a run would draw it
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
from typing import Any

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
                module = load(name)
            say(package=name, version=str(getattr(module, "__version__", "")), seconds=time.perf_counter() - started)
        except BaseException as error:  # whatever an installation gone wrong raises, SystemExit included
            say(package=name, error=f"{type(error).__name__}: {error}".splitlines()[0])
    for part in (gpus, kernels):
        try:
            part()
        except Exception as error:
            say(part=part.__name__, error=f"{type(error).__name__}: {error}".splitlines()[0])


def load(name: str) -> Any:
    """The package as runs import it: robosuite without OpenCV, which needs libGL."""
    if name != "robosuite":
        return importlib.import_module(name)
    sys.path.insert(0, str(ROOT))
    from env.robomimic.suite import import_robosuite

    return import_robosuite()


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

    folder = str(Path(kernel_folder(str(ROOT / "env/engine/osc.py"))).parent)
    say(part="kernels", folder=folder, compiled=compiled("env/engine/osc.py") and compiled("env/robomimic/lift.py"))


def compiled(module: str, names: str = "*") -> bool:
    """Whether kernels of this source file's folder have been kept, some of them with such ``names``."""
    sys.path.insert(0, str(ROOT))
    from env.engine.library import kernel_folder

    return any(Path(kernel_folder(str(ROOT / module))).glob(f"**/{names}.nbc"))


def scene() -> tuple[Any, Any]:
    """A small scene of boxes and balls: model and data."""
    import mujoco

    things = "".join(
        f"<geom type='{kind}' size='.1 .1 .1' pos='{x / 4} {y / 4} .1' rgba='{0.5 + x / 8} .3 {0.5 + y / 8} 1'/>"
        for x in range(-4, 5)
        for y, kind in ((-1, "box"), (0, "sphere"), (1, "capsule"))
    )
    model = mujoco.MjModel.from_xml_string(SCENE.format(things))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def render() -> None:
    """Draw it with OpenGL."""
    import mujoco
    import numpy as np

    model, data = scene()
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


def native() -> None:
    """Draw it without."""
    sys.path.insert(0, str(ROOT))
    import numpy as np

    from env.engine.native_threads import NativeThreads
    from env.engine.pool import pose_of
    from env.engine.renderers import resolve

    said = f"this project's own; env.renderer=auto takes {resolve('auto')} for new policies"
    if not compiled("env/engine/raster.py", "raster_view.*"):
        say(ms=None, renderer=f"{said}; it is compiled at its first use (a minute)")
        return
    model, data = scene()
    threads, images, times = (
        NativeThreads(model, [0], (SIZE, SIZE), "balanced", 1, (0,)),
        np.zeros((1, 3, SIZE, SIZE), np.uint8),
        [],
    )
    for _ in range(FRAMES):
        started = time.perf_counter()
        threads.draw(pose_of(data)[None], [()], images)
        times.append(time.perf_counter() - started)
    if images.max() == images.min():
        raise RuntimeError("the image is blank")
    say(ms=1000.0 * statistics.median(times), renderer=said)


def lift(quality: str, renderer: str) -> None:
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
    pool = CameraPool(task, ["robot0_eye_in_hand"], (SIZE, SIZE), quality, 1, renderer)
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
    {"imports": imports, "render": render, "native": native, "lift": lambda: lift(*sys.argv[2:])}[sys.argv[1]]()
    sys.__stdout__.flush()
    os._exit(0)  # OpenGL drivers have been seen to crash in their exit handlers
