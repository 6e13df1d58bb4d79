"""Rendering in a child process: frames, files, deadlines, and a machine that cannot render."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time

import mujoco
import numpy as np
import pytest

from env import video
from env.errors import EnvError

W, H, T = 70, 46, 3
XML = """
<mujoco>
  <visual><headlight ambient=".4 .4 .4"/></visual>
  <worldbody>
    <camera name="side" pos="0 -3 0" xyaxes="1 0 0 0 0 1" fovy="60"/>
    <camera name="away" pos="0 -3 0" xyaxes="-1 0 0 0 0 1" fovy="60"/>
    <body name="ball"><joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 0 1"/>
      <geom type="sphere" size=".3" rgba="1 0 0 1" group="1"/>
      <geom type="box" size=".35 .35 .35" rgba="0 1 0 1" group="4"/></body>
  </worldbody>
</mujoco>
"""


@pytest.fixture(scope="module")
def model():
    return mujoco.MjModel.from_xml_string(XML)


PLAIN = """
import mujoco, os
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom type='sphere' size='.2'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 24, 32)
renderer.update_scene(data)
os._exit(0 if renderer.render().any() else 1)
"""


@pytest.fixture(scope="module")
def renders():
    """Skip where MuJoCo alone cannot render either; where it can, so must we (a skip must not hide a broken worker)."""
    for backend in ("egl", "osmesa"):
        environment = dict(os.environ, MUJOCO_GL=backend, PYOPENGL_PLATFORM=backend)
        plain = subprocess.run(
            [sys.executable, "-c", PLAIN], env=environment, capture_output=True, timeout=60, check=False
        )
        if plain.returncode == 0:
            assert video.renderer_available() == (True, "")
            return
    pytest.skip("MuJoCo cannot render here")


def centre(frame: np.ndarray, channel: int = 0) -> tuple[float, float]:
    """Mean (column, row) of the pixels where ``channel`` dominates."""
    others = np.delete(frame.astype(int), channel, axis=-1).max(-1)
    rows, columns = np.nonzero(frame[..., channel].astype(int) > others + 40)
    return columns.mean(), rows.mean()


def test_frames_show_the_states(renders, model):
    qpos = np.array([[0.0, 0.0], [0.8, 0.0], [0.0, 0.5]])
    frames = video.render_frames(model, qpos, "side", W, H)
    assert frames.shape == (T, H, W, 3) and frames.dtype == np.uint8
    (x0, y0), (x1, y1), (x2, y2) = (centre(f) for f in frames)
    pixels_per_metre = H / 2 / (3 * np.tan(np.radians(30)))  # pinhole camera, 3 m away, 60 degrees of vertical view
    assert x0 == pytest.approx((W - 1) / 2, abs=1) and y0 == pytest.approx((H - 1) / 2, abs=1)
    assert x1 - x0 == pytest.approx(0.8 * pixels_per_metre, abs=1) and y1 == pytest.approx(y0, abs=1)
    assert y2 - y0 == pytest.approx(-0.5 * pixels_per_metre, abs=1) and x2 == pytest.approx(x0, abs=1)


def test_sizes_beyond_the_models_own_buffer(renders, model):
    width = model.vis.global_.offwidth + 6
    frame = video.render_frames(model, np.zeros((1, 2)), "side", width, 30)[0]
    assert frame.shape == (30, width, 3) and centre(frame)[0] == pytest.approx((width - 1) / 2, abs=1)


def test_geom_groups_and_default_camera(renders, model):
    frame = video.render_frames(model, np.zeros((1, 2)), "side", W, H, geom_groups=[4])[0]
    assert centre(frame, channel=1)[0] == pytest.approx((W - 1) / 2, abs=1)
    assert not (frame[..., 0].astype(int) > frame[..., 1].astype(int) + 40).any()
    free = video.render_frames(model, np.zeros((1, 2)), None, W, H)[0]
    assert (free[..., 0].astype(int) > free[..., 1].astype(int) + 40).any()


def test_front_view_is_the_default_where_there_is_one(renders):
    model = mujoco.MjModel.from_xml_string(XML.replace('"side"', '"frontview"'))
    default, named = (video.render_frames(model, np.zeros((1, 2)), name, W, H) for name in (None, "frontview"))
    np.testing.assert_array_equal(default, named)


def test_video_files_play_at_the_right_speed(renders, model, tmp_path):
    import imageio_ffmpeg
    from PIL import Image

    qpos = np.stack([np.linspace(-0.8, 0.8, 23), np.zeros(23)], axis=1)
    files = video.render_video(model, qpos, tmp_path / "new" / "clip.mp4", "side", W + 1, H + 1, fps=20)
    assert [f.name for f in files] == ["clip.mp4", "clip.gif"]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["clip.gif", "clip.mp4"]
    reader = imageio_ffmpeg.read_frames(str(files[0]))
    meta = next(reader)
    decoded = [np.frombuffer(b, np.uint8).reshape(H, W, 3) for b in reader]
    assert meta["fps"] == 20 and meta["size"] == (W, H) and len(decoded) == 23
    assert centre(decoded[0])[0] < W / 2 - 5 and centre(decoded[-1])[0] > W / 2 + 5
    with Image.open(files[1]) as gif:
        assert gif.n_frames == 12 and gif.info["duration"] == 100 and gif.info["loop"] == 0
        assert gif.size == (W + 1, H + 1)


@pytest.mark.parametrize(
    "qpos, camera, match",
    [
        (np.zeros((T, 5)), "side", r"\(at least 1, 2\), found \(3, 5\)"),
        (np.zeros((0, 2)), "side", "at least 1"),
        (np.array([[0, 0], [0, np.nan]]), "side", "frame 1"),
        (np.zeros((T, 2)), "front", "'front'; it has side, away"),
    ],
)
def test_bad_arguments_are_named_and_never_stop_a_training_run(model, tmp_path, caplog, qpos, camera, match):
    with pytest.raises(EnvError, match=match):
        video.render_frames(model, qpos, camera, W, H)
    with caplog.at_level(logging.WARNING):
        assert video.render_video(model, qpos, tmp_path / "a.mp4", camera) == []
    assert "No video at" in caplog.text and list(tmp_path.iterdir()) == []


def test_a_machine_that_cannot_render_gets_advice(model, tmp_path, monkeypatch, caplog):
    def fails(*_args):
        raise video.RenderError("egl: the renderer ended with code 1")

    monkeypatch.setattr(video, "_render_in_child", fails)
    video.working_backend.cache_clear()
    try:
        available, advice = video.renderer_available()
        assert not available and "libegl1" in advice and "libosmesa6" in advice and "code 1" in advice
        with pytest.raises(video.RenderError, match="libosmesa6"):
            video.render_frames(model, np.zeros((T, 2)))
        with caplog.at_level(logging.WARNING):
            assert video.render_video(model, np.zeros((T, 2)), tmp_path / "a") == []
        assert "libosmesa6" in caplog.text
    finally:
        video.working_backend.cache_clear()


def test_a_blank_image_is_not_rendering(monkeypatch):
    monkeypatch.setattr(video, "_render_in_child", lambda *_args: np.zeros((1, 24, 32, 3), np.uint8))
    video.working_backend.cache_clear()
    try:
        available, advice = video.renderer_available()
        assert not available and "blank" in advice
    finally:
        video.working_backend.cache_clear()


def test_a_renderer_that_hangs_is_stopped(tmp_path):
    start, pid_file = time.monotonic(), tmp_path / "pid"
    code = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(30)"
    with pytest.raises(video.RenderError, match=r"egl: no answer within 1 s"):
        video._run([sys.executable, "-S", "-c", code], {}, 1.0, "egl")
    assert time.monotonic() - start < 10
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_a_renderer_that_crashes_is_quoted():
    code = "import sys; sys.stderr.write('noise\\nfirst\\nno driver'); sys.exit(3)"
    with pytest.raises(video.RenderError, match=r"code 3: first / no driver"):
        video._run([sys.executable, "-c", code], {}, 30, "egl")


def test_a_full_disk_is_a_warning(renders, model, tmp_path, monkeypatch, caplog):
    def full(_frames, path, _fps):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(video, "write_mp4", full)
    with caplog.at_level(logging.WARNING):
        files = video.render_video(model, np.zeros((T, 2)), tmp_path / "a", "side", W, H)
    assert [f.name for f in files] == ["a.gif"] and [p.name for p in tmp_path.iterdir()] == ["a.gif"]
    assert "No space left" in caplog.text


@pytest.mark.parametrize(
    "chosen, expected", [("", ("egl", "osmesa")), ("OSMESA", ("osmesa", "egl")), ("glfw", ("egl", "osmesa"))]
)
def test_the_users_choice_of_back_end_comes_first(monkeypatch, chosen, expected):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("MUJOCO_GL", chosen)
    assert video._backends() == expected
