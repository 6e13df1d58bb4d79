"""Who draws: what "auto" means, what is refused, and that our own renderer needs no OpenGL and survives a fork."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from env.engine import renderers
from env.errors import EnvError
from env.video import RenderError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU or none, whose OpenGL works or does not."""

    def make(gpu: bool, nvidia_gl: bool, backend: str | None) -> None:
        def choose(renderer: str = "gl") -> str:
            if backend is None:
                raise RenderError("nothing draws")
            return backend

        monkeypatch.setattr(renderers, "gpu_of_this_worker", lambda: "0" if gpu else None)
        monkeypatch.setattr(renderers, "find_library", lambda name: "libEGL_nvidia.so.0" if nvidia_gl else None)
        monkeypatch.setattr(renderers, "choose_backend", choose)
        monkeypatch.setattr(renderers, "working_backend", lambda renderer="gl": (backend, ""))

    return make


@pytest.mark.parametrize(
    ("gpu", "nvidia_gl", "backend", "new", "after_gl"),
    [
        (False, False, "egl", "native", "gl"),
        (False, False, None, "native", "native"),  # a policy from elsewhere can be run all the same
        (True, True, "egl", "gl", "gl"),
        (True, False, "egl", "native", "gl"),  # a GPU that only computes: OpenGL would draw on the CPU
        (True, True, "osmesa", "native", "gl"),
        (True, True, None, "native", "native"),
    ],
)
def test_auto_draws_by_gpu_or_natively_but_a_policy_goes_on_seeing_what_it_knows(
    machine, gpu, nvidia_gl, backend, new, after_gl
):
    machine(gpu, nvidia_gl, backend)
    assert renderers.resolve("auto") == renderers.resolve(None) == new
    assert renderers.resolve("auto", "gl") == after_gl
    assert renderers.resolve("auto", "native") == "native"
    assert [renderers.resolve(name, "native") for name in ("native", "gl", "egl", "osmesa")] == [
        "native", "gl", "egl", "osmesa",
    ]  # fmt: skip
    assert [renderers.kind_of(name) for name in ("native", "gl", "egl", "osmesa")] == ["native", "gl", "gl", "gl"]


def test_an_unknown_renderer_is_refused_with_the_nearest_known_one():
    with pytest.raises(EnvError, match=r"^renderer: expected one of auto, .*found 'natve'; did you mean 'native'\?$"):
        renderers.resolve("natve")


@pytest.mark.robomimic
def test_a_task_is_built_without_opencv_which_comes_when_it_is_used():
    """OpenCV loads libGL, or fails where there is none."""
    code = (
        "import sys; from env.robomimic.suite import import_robosuite; import_robosuite(); assert 'cv2' not in sys.modules\n"
        "maps = open('/proc/self/maps').read() if sys.platform == 'linux' else ''\n"
        "assert not [name for name in ('libGL', 'libEGL', 'libOSMesa') if name in maps]\n"
        "from robosuite.renderers.viewer import opencv_renderer\n"
        "assert opencv_renderer.cv2.cvtColor.__name__ == 'cvtColor' and 'cv2' in sys.modules"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
