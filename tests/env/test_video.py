"""Videos by OpenGL in a child process and by our own rasteriser: frames, files, deadlines, and a machine without OpenGL."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time

import mujoco
import numpy as np
import pytest

from env import video, video_grid
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


@pytest.fixture(params=["gl", "native"])
def renders(request, monkeypatch):
    """By OpenGL, and on a machine that has none."""
    if request.param == "native":
        monkeypatch.setattr(video, "working_backend", lambda: (None, "no OpenGL"))
        monkeypatch.setattr(video, "_render_in_child", None)
    else:
        request.getfixturevalue("opengl")


@pytest.fixture(scope="module")
def opengl():
    """Skip where MuJoCo alone cannot render either; where it can, so must we (a skip must not hide a broken worker)."""
    for backend in ("egl", "osmesa"):
        environment = dict(os.environ, MUJOCO_GL=backend, PYOPENGL_PLATFORM=backend)
        plain = subprocess.run(
            [sys.executable, "-c", PLAIN], env=environment, capture_output=True, timeout=60, check=False
        )
        if plain.returncode == 0:
            assert video.working_backend()[0] is not None
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


def test_back_ends_that_fail_say_why_and_only_the_one_asked_for_is_tried(monkeypatch):
    tried = []

    def fails(_model, _qpos, _job, backend, _seconds):
        tried.append(backend)
        raise video.RenderError(f"{backend}: the renderer ended with code 1")

    monkeypatch.setattr(video, "_render_in_child", fails)
    video.working_backend.cache_clear()
    try:
        assert video.working_backend("osmesa") == (None, "osmesa: the renderer ended with code 1")
        assert tried == ["osmesa"]
        assert "egl: the renderer ended with code 1 | osmesa" in video.working_backend()[1]
    finally:
        video.working_backend.cache_clear()


def test_a_blank_image_is_not_rendering(monkeypatch):
    monkeypatch.setattr(video, "_render_in_child", lambda *_args: np.zeros((1, 24, 32, 3), np.uint8))
    video.working_backend.cache_clear()
    try:
        backend, reasons = video.working_backend()
        assert backend is None and "blank" in reasons
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


def test_a_full_disk_is_a_warning(opengl, model, tmp_path, monkeypatch, caplog):
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


def test_a_gif_is_light_and_keeps_its_colours_and_speed(tmp_path):
    """250 frames at 10/s with a thin red border from frame 125 on, and little else that is red."""
    from PIL import Image

    frames = np.random.default_rng(3).integers(90, 110, (1, 40, 60, 3), np.uint8).repeat(250, 0)
    for k in range(250):
        frames[k, 10:16, k % 50 : k % 50 + 7] = 255  # every frame differs a little
    frames[125:, :, :1] = (215, 40, 40)
    video.write_gif(frames, tmp_path / "a.gif", fps=10)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 84 and gif.info["duration"] == 300  # every third
        borders = []
        for k in (0, 83):
            gif.seek(k)
            borders.append(np.asarray(gif.convert("RGB"))[20, 0].astype(int))
    assert abs(borders[0] - 100).max() < 25
    assert abs(borders[1] - (215, 40, 40)).max() < 25


# ------------------------------------------------------------------------------------------------ side by side


def test_tiles_stand_row_by_row_and_wait_for_the_longest():
    tiles = [np.full((n, 2, 3, 3), 10 * k, np.uint8) for k, n in enumerate((4, 1, 3, 2, 2), start=1)]
    tiles[2][:] += np.arange(3, dtype=np.uint8)[:, None, None, None]
    out = video_grid.compose(tiles, hold=2)
    assert out.shape == (6, 4, 9, 3)  # 2 rows of 3 columns
    assert (out[:, :2, 3:6] == 20).all() and (out[:, 2:, 3:6] == 50).all()
    assert out[:, 0, 6, 0].tolist() == [30, 31, 32, 32, 32, 32]
    assert (out[:, 2:, 6:] == 255).all()


@pytest.mark.parametrize("n, columns", [(1, 1), (2, 2), (3, 2), (4, 2), (5, 3), (9, 3), (10, 4)])
def test_grids_are_nearly_square(n, columns):
    assert video_grid.columns_of(n) == columns


@pytest.fixture
def written(monkeypatch):
    """What would have been written: (frames, frames per second)."""
    calls = []
    monkeypatch.setattr(video_grid, "write_video", lambda frames, path, fps: calls.append((frames, fps)) or [path])
    return calls


def moving_ball(n: int) -> np.ndarray:
    return np.stack([np.linspace(-0.8, 0.8, n), np.zeros(n)], axis=1)


def test_episodes_side_by_side_with_their_outcome(renders, model, written):
    """At 4 rows per second: one solved at row 6 of 31 (shown to row 10), one that fails at row 17, one solved at the end."""
    episodes = [
        video_grid.Episode(11, moving_ball(31), solved_at=6),
        video_grid.Episode(12, moving_ball(18)),
        video_grid.Episode(13, moving_ball(4), solved_at=3),
    ]
    assert video_grid.render_grid(model, episodes, "x", "side", hz=4.0)
    (frames, fps), width, height = written[0], 240, 180
    assert fps == 2.0 and frames.shape == (
        10 + 2,
        2 * (height + 24),
        2 * (width + 8),
        3,
    )  # 10 for row 17, a second more
    corners = [frames[:, top, left] for top, left in ((1, 1), (1, width + 9), (height + 25, 1))]
    colours = {video_grid.RUNNING: "-", video_grid.SOLVED: "+", video_grid.FAILED: "x"}
    assert ["".join(colours[tuple(c)] for c in corner) for corner in corners] == [
        "---" + "+" * 9,  # rows 0, 2, 4, then 6, 8, 10
        "-" * 9 + "x" * 3,  # rows 0 ... 16, then 17
        "--" + "+" * 10,  # rows 0, 2, 3
    ]
    pixels = height / 2 / (3 * np.tan(np.radians(30)))  # per metre, as above
    for k, row in ((0, 0), (3, 6), (5, 10), (11, 10)):
        x = centre(frames[k, 4 : 4 + height, 4 : 4 + width])[0] - (width - 1) / 2
        assert x == pytest.approx(moving_ball(31)[row, 0] * pixels, abs=1.5)
    captions = frames[0, height + 4 : height + 20, 4 : 4 + width], frames[0, height + 4 : height + 20, width + 12 : -4]
    assert all((c < 90).any() and (c == 255).mean() > 0.7 for c in captions)
    assert (captions[0] != captions[1]).any()


def test_captions_name_seed_and_outcome():
    assert video_grid.caption(video_grid.Episode(1000003, np.zeros((61, 2)), 57), 20) == "seed 1000003: solved (2.9 s)"
    assert video_grid.caption(video_grid.Episode(7, np.zeros((61, 2))), 20) == "seed 7: failed (3.0 s)"
    paid = video_grid.Episode(7, np.zeros((61, 2)), None, 3141.59)
    assert video_grid.caption(paid, 20) == "seed 7: return 3142 (3.0 s)"


def test_a_long_episode_shows_fewer_frames_at_the_same_speed(model, written, monkeypatch):
    drawn = []

    def render(_model, qpos, camera, width, height, groups, deadline):
        drawn.append(qpos)
        return np.zeros((len(qpos), height, width, 3), np.uint8)

    monkeypatch.setattr(video_grid, "render_frames", render)
    qpos = np.stack([np.arange(801.0), np.zeros(801)], 1)
    assert video_grid.render_grid(model, [video_grid.Episode(1, qpos)], "x", hz=20.0)
    assert drawn[0][:, 0].tolist() == [*range(0, 800, 5), 800]
    assert written[0][1] == 4.0 and len(written[0][0]) == 161 + 4


def test_a_grid_that_cannot_be_drawn_is_a_warning(model, tmp_path, caplog):
    episodes = [video_grid.Episode(1, np.full((2, 2), np.nan))]
    with caplog.at_level(logging.WARNING):
        assert video_grid.render_grid(model, episodes, tmp_path / "a", "side") == []
        assert video_grid.render_grid(model, [], tmp_path / "a", "side") == []
    assert "NaN" in caplog.text and "no episode" in caplog.text and list(tmp_path.iterdir()) == []
