"""Our own renderer inside the engine: threads, no OpenGL, forks, all task families, and what environments and demonstrations show."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import mujoco
import numpy as np
import pytest

from agent.dataset.demos import read_demos
from env.engine import native_threads
from env.engine.camera_renderer import QUALITIES
from env.engine.cameras import pose_of
from env.errors import EnvError
from env.registry import D3IL, GYM, ROBOMIMIC, make_vector_env
from script.demo_images import Sight, save_with_images

ROOT = Path(__file__).resolve().parents[2]


class Stub:
    """A rasteriser that writes whose turn it was: the mean of the pose, one more in each channel."""

    def __init__(self, scene, cameras, size, reflections):
        self.scene, self.cameras, self.threads = scene, cameras, set()
        assert reflections == QUALITIES[scene[1]].reflection

    def draw(self, pose, appearance, image):
        self.threads.add(threading.get_ident())
        if appearance == "broken":
            raise EnvError("this one cannot be drawn")
        image += np.uint8(pose.mean()) + np.arange(len(image), dtype=np.uint8)[:, None, None]


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr(native_threads, "RasterScene", lambda *arguments: arguments)
    monkeypatch.setattr(native_threads, "Rasterizer", Stub)


@pytest.mark.parametrize(("n_threads", "n_images"), [(1, 5), (3, 11), (5, 2), (4, 0)])
def test_every_image_is_drawn_once_by_whoever_is_free(stub, n_threads, n_images):
    threads = native_threads.NativeThreads("model", [3, 1], (2, 3), "balanced", n_threads)
    images = [np.zeros((6, 2, 3), np.uint8) for _ in range(n_images)]
    poses = np.arange(n_images)[:, None, None] * np.ones((1, 4, 7))
    if n_images:
        threads.draw(poses, [()] * n_images, images)
    for k, image in enumerate(images):
        assert (image == k + np.arange(6)[:, None, None]).all()
    assert all(len(r.threads) <= 1 for r in threads._rasterizers)  # each has scratch memory of its own
    assert {r.scene for r in threads._rasterizers} == {("model", "balanced", (1, 2))}


@pytest.mark.parametrize("n_threads", [1, 3])
def test_an_image_that_fails_is_not_kept_quiet(stub, n_threads):
    threads = native_threads.NativeThreads("model", [0], (2, 2), "faithful", n_threads)
    images, looks = [np.zeros((3, 2, 2), np.uint8) for _ in range(7)], [()] * 6 + ["broken"]
    with pytest.raises(EnvError, match="cannot be drawn"):
        threads.draw(np.zeros((7, 1, 7)), looks, images)


ALONE = """
import os, sys
import numpy as np
from env.engine.cameras import CameraPool, pose_of
from env.engine.pool import Simulations
from env.registry import family

task = family("lift")
simulations = Simulations(task, 3, n_threads=2)
starts = np.stack([task.draw(np.random.default_rng(k)) for k in range(3)])
simulations.begin(range(3), starts)
poses = np.stack([pose_of(data) for data in simulations.data])

def drawn(pool):
    images = np.zeros((3, *pool.image_shape), np.uint8)
    pool.render(poses, [pool.appearance(start) for start in starts], list(images))
    return images

pools = [CameraPool(task, ["robot0_eye_in_hand", "agentview"], (48, 64), "balanced", n, "native") for n in (1, 2, 3)]
images = drawn(pools[0])
assert images.std() > 5 and len({image.tobytes() for image in images}) == 3
assert all(np.array_equal(drawn(pool), images) for pool in pools)
if sys.platform == "linux":
    maps = open("/proc/self/maps").read()
    assert not [name for name in ("libGL", "libEGL", "libOSMesa", "_dri.so", "libgallium") if name in maps]
child = os.fork()
if child == 0:
    try:
        fresh = CameraPool(task, ["robot0_eye_in_hand", "agentview"], (48, 64), "balanced", 2, "native")
        fine = all(np.array_equal(drawn(pool), images) for pool in (*pools, fresh))
    except BaseException:
        fine = False
    os._exit(0 if fine else 1)
assert os.waitpid(child, 0)[1] == 0
assert np.array_equal(drawn(pools[1]), images)
"""


@pytest.mark.robomimic
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_no_opengl_is_loaded_any_number_of_threads_draws_the_same_and_a_fork_goes_on_drawing():
    environment = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_pools_come_and_go():
    """The whole of it, 1,000 pools in 50 processes: ``python script/bench/render_cycles.py 50 --renderer native --pools 20``."""
    command = [
        sys.executable,
        str(ROOT / "script" / "bench" / "render_cycles.py"),
        "1",
        "--renderer",
        "native",
        "--pools",
        "20",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.robomimic
@pytest.mark.parametrize("task", [*ROBOMIMIC, *sorted({name for name in GYM if "medium" not in name}), D3IL[0]])
def test_every_task_of_this_project_can_be_drawn(task, caplog):
    """Every camera of its models; what is not drawn is said once."""
    venv = make_vector_env({"name": task, "n_envs": 1, "act_steps": 1, "max_episode_steps": 9})
    family, qpos = venv.family, venv.reset([3]) and venv.render_state(0)
    venv.close()
    model = family.render_model()
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    groups = getattr(family, "visual_geoms", native_threads.GROUPS)
    cameras = [*range(model.ncam), native_threads.FREE_CAMERA]
    image = np.zeros((1, 3 * len(cameras), 40, 56), np.uint8)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            threads = native_threads.NativeThreads(model, cameras, (40, 56), "balanced", 1, groups)
            threads.draw(pose_of(data)[None], [()], image)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(set(said))
    blank = [k for k, views in enumerate(image.reshape(-1, 3 * 40 * 56)) if views.std() < 3]
    assert not [model.camera(k).name for k in blank if k < model.ncam and not model.camera(k).name.startswith("robot")]


@pytest.mark.robomimic
def test_an_environment_shows_what_its_renderer_draws(tmp_path):
    """By seed, in any slot, again after a restored state; and demonstrations show the same, and say who drew them."""
    seen = {"image_keys": ["robot0_eye_in_hand_image"], "low_dim_keys": ["robot0_eef_pos"]}
    settings = {
        "name": "lift",
        "n_envs": 3,
        "act_steps": 4,
        "max_episode_steps": 6,
        "n_threads": 2,
        "renderer": "native",
    }
    venv = make_vector_env({**settings, "wrappers": {"robomimic_image": seen}})
    try:
        first = venv.reset([13, 17, 19])["rgb"]
        assert first.shape == (3, 1, 3, 96, 96) and first.dtype == np.uint8 and first.std(axis=(2, 3, 4)).min() > 5
        arrays = {"states": np.zeros((1, 9)), "actions": np.zeros((1, 7)), "traj_lengths": np.ones(1, np.int64)}
        sight = Sight(venv.poses()[1:2], venv.starts()[1])
        about = save_with_images(tmp_path / "train.npz", "lift", arrays, [sight], "balanced", 96, "native")
        assert np.array_equal(read_demos(tmp_path / "train.npz", use_img=True)["images"], first[1])
        assert (about["renderer"], about["render_quality"]) == ("native", "balanced")
        saved, chunk = venv.state_dict(), np.random.default_rng(0).uniform(-1, 1, (3, 4, 7))
        then = venv.step(chunk)
        assert (then.obs["rgb"] != first).any(axis=(1, 2, 3, 4)).all()
        assert np.array_equal(venv.load_state_dict(saved)["rgb"], first)
        assert np.array_equal(venv.step(chunk).obs["rgb"], then.obs["rgb"])
        assert np.array_equal(venv.reset([19, 13])["rgb"][:2], first[[2, 0]])
    finally:
        venv.close()
    with pytest.raises(EnvError, match="closed"):
        venv.reset([13])
