"""Camera images: robosuite's pixels, the protocol's rules, and a clean end.

Needs OpenGL (EGL or OSMesa). Where nothing can draw and nothing could be installed, the tests are skipped, saying so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mujoco
import numpy as np
import pytest

from env.engine.cameras import QUALITIES, CameraPool, pose_of
from env.errors import EnvError
from env.normalizer import NormalizedVectorEnv, Normalizer
from env.registry import family, make_vector_env
from env.robomimic.env_meta import TASKS as FACTS
from env.video import working_backend
from script.bench.scenes import similarity

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.robomimic,
    pytest.mark.mujoco,
    pytest.mark.skipif(working_backend()[0] is None, reason=f"no OpenGL: {working_backend()[1]}"),
]
ACT_STEPS = 4
PROPRIO = ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]


def config(task: str = "lift", **changes: object) -> dict[str, object]:
    facts = FACTS[task]
    image = {
        "image_keys": [f"{camera}_image" for camera in facts.cameras],
        "low_dim_keys": list(facts.obs_dims(use_object=False)),
    }
    base = {"name": task, "n_envs": 3, "act_steps": ACT_STEPS, "max_episode_steps": 300, "n_threads": 2}
    return {**base, "render_quality": "faithful", "renderer": "gl", "wrappers": {"robomimic_image": image}, **changes}


def robosuite_images(task: str, seed: int, actions: np.ndarray, folder: Path) -> np.ndarray:
    np.save(folder / "actions.npy", actions)
    arguments = [FACTS[task].suite_name, ",".join(FACTS[task].cameras), seed, folder / "actions.npy", ACT_STEPS]
    backend = working_backend()[0]
    environment = {**os.environ, "LP_NUM_THREADS": "0"} | ({"MUJOCO_GL": backend} if backend else {})
    command = [sys.executable, Path(__file__).with_name("robosuite_images.py"), *arguments, folder / "images.npz"]
    subprocess.run([str(word) for word in command], check=True, env=environment, capture_output=True, timeout=300)
    with np.load(folder / "images.npz") as kept:
        return kept["images"]


def reach(task: str, seed: int, chunks: int) -> np.ndarray:
    """Coherent motion that goes down to the objects: (T, Da)."""
    rng, n = np.random.default_rng(seed), FACTS[task].action_dim
    drift = rng.uniform(-0.6, 0.6, (chunks, n))
    drift[:, 2] -= 0.4
    return np.repeat(drift, ACT_STEPS, axis=0).astype(np.float32)


@pytest.mark.parametrize(
    ("task", "seed", "chunks"), [("lift", 11, 20), ("can", 5, 4), ("square", 7, 4), ("transport", 3, 3)]
)
def test_faithful_images_are_robosuites_to_the_last_pixel(task, seed, chunks, tmp_path):
    actions = reach(task, seed, chunks)
    theirs = robosuite_images(task, seed, actions, tmp_path)
    venv = make_vector_env(config(task, n_envs=1))
    try:
        ours = [venv.reset([seed])["rgb"][0, -1]]
        ours += [venv.step(chunk[None]).obs["rgb"][0, -1] for chunk in actions.reshape(chunks, ACT_STEPS, -1)]
    finally:
        venv.close()
    differing = [int((a != b).sum()) for a, b in zip(ours, theirs, strict=True)]
    assert differing == [0] * (chunks + 1)
    assert len({image.tobytes() for image in ours}) == chunks + 1  # it moved: no stale picture


@pytest.fixture(scope="module")
def lift_images():
    """Three slots, episodes of 6 control steps (chunks of 4 and 2), in the quality that is fastest to draw."""
    venv = make_vector_env(config(max_episode_steps=6, render_quality="fast"))
    yield venv
    venv.close()


def test_images_in_observations_follow_the_protocol(lift_images):
    venv, rng = lift_images, np.random.default_rng(1)
    shape = (3, 1, 3, 96, 96)
    assert venv.obs_shapes == {"state": (1, 9), "rgb": shape[1:]}
    first = venv.reset([13, 17, 19, 23])["rgb"]
    assert first.shape == shape and first.dtype == np.uint8 and (first.std(axis=(1, 2, 3, 4)) > 5).all()
    chunks = rng.uniform(-1, 1, (3, 3, ACT_STEPS, 7))
    middle = venv.step(chunks[0])
    assert not middle.truncated.any()
    assert np.array_equal(middle.obs["rgb"], middle.final_obs["rgb"]) and (middle.obs["rgb"] != first).any()
    end = venv.step(chunks[1])  # slot 0 goes on with seed 23, the others are out of work
    assert end.truncated.all() and venv.seeds().tolist() == [23, -1, -1]
    assert (end.final_obs["rgb"].std(axis=(1, 2, 3, 4)) > 5).all() and not end.obs["rgb"][1:].any()
    assert (end.obs["rgb"][0] != end.final_obs["rgb"][0]).any()
    again = venv.reset([23, 13])["rgb"]
    assert np.array_equal(again[0], end.obs["rgb"][0]) and np.array_equal(again[1], first[0])  # whatever slot
    assert not again[2].any()
    after = venv.step(chunks[2])
    assert not after.final_obs["rgb"][2].any() and not after.obs["rgb"][2].any()


def test_saved_state_gives_back_the_same_images_in_mid_episode(lift_images):
    venv, rng = lift_images, np.random.default_rng(2)
    venv.reset(5)
    now = venv.step(rng.uniform(-1, 1, (3, 3, 7)))  # 3 of 6 steps: bodies lag a substep behind the coordinates
    saved, chunk = venv.state_dict(), rng.uniform(-1, 1, (3, ACT_STEPS, 7))
    then = venv.step(chunk)
    venv.reset(6)
    assert np.array_equal(venv.load_state_dict(saved)["rgb"], now.obs["rgb"])
    repeated = venv.step(chunk)
    assert np.array_equal(repeated.obs["rgb"], then.obs["rgb"])
    assert np.array_equal(repeated.final_obs["rgb"], then.final_obs["rgb"])
    saved.pop("poses")
    with pytest.raises(EnvError, match="saved without cameras"):
        venv.load_state_dict(saved)


def test_frames_of_a_history_are_those_of_single_control_steps():
    actions = np.random.default_rng(3).uniform(-1, 1, (2, 5, 7))
    stacked = make_vector_env(config(n_envs=2, img_cond_steps=3, render_quality="fast", max_episode_steps=5))
    single = make_vector_env(config(n_envs=2, act_steps=1, render_quality="fast", max_episode_steps=5))
    try:
        first = stacked.reset([3, 4])["rgb"]
        frames = [single.reset([3, 4])["rgb"][:, 0]]
        assert all(np.array_equal(first[:, k], frames[0]) for k in range(3))  # padded with the earliest
        results = [single.step(actions[:, t : t + 1]) for t in range(5)]
        frames += [result.final_obs["rgb"][:, 0] for result in results]
        result = stacked.step(actions[:, :2])
        assert np.array_equal(result.obs["rgb"], np.stack(frames[:3], axis=1))
        result = stacked.step(actions[:, 2:])
        assert np.array_equal(result.final_obs["rgb"], np.stack(frames[3:], axis=1))
        assert np.array_equal(result.final_obs["state"], results[-1].final_obs["state"])
        assert result.info["steps"].tolist() == [3, 3]
    finally:
        stacked.close()
        single.close()


def test_the_normaliser_lets_images_pass(lift_images):
    normalizer = Normalizer(-np.ones(9), np.ones(9), -np.ones(7), np.ones(7))
    venv = NormalizedVectorEnv(lift_images, normalizer)
    rgb = venv.reset([29])["rgb"]
    assert rgb.dtype == np.uint8 and np.array_equal(rgb, lift_images.reset([29])["rgb"])


def test_cheaper_qualities_look_like_the_faithful_one():
    """Lift's wrist camera, and the whole robot; spec/render.md has SSIM 0.99 and 0.96 as the least over four tasks."""
    images = {}
    for quality in QUALITIES:
        pool = CameraPool(family("lift"), ["robot0_eye_in_hand", "agentview"], (96, 96), quality, 1, "gl")
        images[quality] = np.zeros((3, *pool.image_shape), np.uint8)
        pool.render(np.stack([pose_of(moved(seed)) for seed in range(3)]), [()] * 3, list(images[quality]))
        pool.close()
    for quality, least, most_apart in (("balanced", 0.99, 0.7), ("fast", 0.97, 2.0)):
        for camera in (slice(0, 3), slice(3, 6)):
            ours, faithful = images[quality][:, camera], images["faithful"][:, camera]
            assert similarity(ours, faithful) > least
            assert 0.0 < np.abs(ours.astype(int) - faithful).mean() < most_apart


def moved(seed: int) -> mujoco.MjData:
    """Lift with the arm somewhere else."""
    task, rng = family("lift"), np.random.default_rng(seed)
    data = mujoco.MjData(task.model)
    task.begin(task.model, data, task.draw(rng), np.zeros(task.memory_size))
    data.qpos[:7] += rng.uniform(-0.2, 0.2, 7)
    mujoco.mj_forward(task.model, data)
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"render_quality": "balancd"}, "did you mean 'balanced'"),
        ({"renderer": "nativ"}, "renderer: expected one of auto, .*did you mean 'native'"),
        ({"wrappers": {"robomimic_image": {"image_keys": ["nose_image"]}}}, "no camera 'nose'; it has frontview"),
        ({"wrappers": {"robomimic_image": {"image_keys": ["agentview"]}}}, "expected a list of <camera>_image"),
        (
            {"wrappers": {"robomimic_image": {"image_keys": ["agentview_image"], "shape_meta": {"obs": {"rgb": {"shape": [6, 96, 96]}}}}}},
            r"expected \[3, height, width\] for 1 cameras",
        ),
        ({"img_cond_steps": 0}, "img_cond_steps must be a whole number"),
    ],
)  # fmt: skip
def test_a_wrong_image_setting_is_named(change, message):
    with pytest.raises(EnvError, match=message):
        make_vector_env(config(**change))


def test_other_sizes_and_several_cameras_land_in_their_channels():
    pool = CameraPool(family("lift"), ["agentview", "robot0_eye_in_hand"], (31, 53), "faithful", 1, "gl")
    try:
        assert pool.image_shape == (6, 31, 53)
        data = moved(0)
        both = np.zeros(pool.image_shape, np.uint8)
        pool.render(pose_of(data)[None], [()], [both])
        assert both[:3].std() > 5 and both[3:].std() > 5 and (both[:3] != both[3:]).mean() > 0.5
        with pytest.raises(EnvError, match="contiguous uint8"):
            pool.render(pose_of(data)[None], [()], [both[:, :, ::-1]])
    finally:
        pool.close()
    with pytest.raises(EnvError, match="closed"):
        pool.render(pose_of(data)[None], [()], [both])


def test_a_hanging_driver_is_reported_with_what_to_do(monkeypatch):
    from env.engine import gl_threads

    monkeypatch.setattr(gl_threads, "_GRACE_SECONDS", 0.3)
    stuck, original = [], gl_threads.Renderer.draw

    def hang(self, *arguments):
        import time

        while not stuck:
            time.sleep(0.01)
        original(self, *arguments)

    monkeypatch.setattr(gl_threads.Renderer, "draw", hang)
    pool = CameraPool(family("lift"), ["agentview"], (16, 16), "fast", 1, "gl")
    image = np.zeros(pool.image_shape, np.uint8)
    try:
        with pytest.raises(EnvError, match=r"renderer hangs: 0 of 1 images are done .* resume=.* env.renderer=native"):
            pool.render(pose_of(moved(0))[None], [()], [image])
    finally:
        stuck.append(True)
        gl_threads._stop(pool._threads._queue, pool._threads._threads)


def test_start_render_exit_ends_cleanly_with_and_without_close():
    """The whole of it, 100 times: ``python script/bench/render_cycles.py 100``."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "script" / "bench" / "render_cycles.py"), "2"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 cycles ended as they should" in done.stdout


def test_demonstrations_show_what_the_environment_shows(tmp_path):
    """Images drawn after collecting are those a policy will see in the same states."""
    from agent.dataset.demos import read_demos
    from script import collect_demos

    arguments = (
        "--task lift --images --render-quality fast --renderer gl --episodes 2 --n-envs 2 --noise 0 --steps 60 --seed 3"
    )
    collect_demos.main([*arguments.split(), "--out", str(tmp_path)])
    folder = tmp_path / "robomimic" / "lift-img"
    demos, normalizer = read_demos(folder / "train.npz", use_img=True), Normalizer.load(folder / "normalization.npz")
    about = json.loads((folder / "about.json").read_text())
    said = ("fast", "gl", ["robot0_eye_in_hand"], [96, 96])
    assert tuple(about[key] for key in ("render_quality", "renderer", "cameras", "image_size")) == said
    assert demos["images"].shape == (120, 3, 96, 96) and demos["states"].shape == (120, 9)
    first = int(collect_demos.FIRST_SEED + np.random.SeedSequence(3).generate_state(1)[0].astype(np.int64) * 1_000_000)
    venv = NormalizedVectorEnv(make_vector_env(config(n_envs=2, act_steps=1, render_quality="fast")), normalizer)
    try:
        obs = venv.reset([first, first + 1])
        for t in range(7):
            for slot in range(2):
                row = 60 * slot + t
                differing = (obs["rgb"][slot, 0] != demos["images"][row]).mean()
                assert differing < 0.01 and (t > 0 or differing == 0)  # the file's actions are rounded
                assert np.allclose(obs["state"][slot, 0], demos["states"][row], atol=1e-5)
            obs = venv.step(demos["actions"][[t, 60 + t], None]).obs
    finally:
        venv.close()
