"""Comparing renderers: the benchmark's rows and the picture, on a small scene; and that the yardstick is MuJoCo's own image."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from env.engine.cameras import pose_of
from env.video import render_frames, working_backend
from script import renderer_figure
from script.bench.registry import Context, discover
from script.bench.rows import renderer as row
from script.bench.scenes import Mujoco, Scene, similarity

XML = """<mujoco><visual><quality shadowsize="64"/></visual><worldbody><light pos="0 0 3" castshadow="false"/>
<geom type="plane" size="1 1 .1" group="1" rgba=".3 .5 .4 1"/><geom type="box" size=".1 .1 .4" rgba="0 0 1 1"/>
<body pos="0 0 .3"><freejoint/><geom type="sphere" size=".2" rgba="1 .2 0 1" group="1"/></body>
<camera name="front" pos="0 -2 1" xyaxes="1 0 0 0 .5 1"/><camera name="above" pos=".1 0 2" xyaxes="1 0 0 0 1 0"/></worldbody></mujoco>"""
pytestmark = pytest.mark.skipif(working_backend()[0] is None, reason="no OpenGL")


@pytest.fixture(scope="module")
def scene():
    model = mujoco.MjModel.from_xml_string(XML)
    data, poses = mujoco.MjData(model), []
    for k in range(3):
        data.qpos[:3] = 0.1 * k, 0.05 * k, 0.3 + 0.1 * k
        mujoco.mj_kinematics(model, data)
        poses.append(pose_of(data))
    return Scene("ball", model, [0, 1], 41, (1,), np.stack(poses), ())


def test_the_yardstick_is_mujocos_own_image(scene):
    out, theirs = scene.blank(), Mujoco(scene, working_backend()[0])
    theirs.draw(scene.poses[0], (), out[0])
    theirs.close()
    for k, camera in enumerate(("front", "above")):
        plain = render_frames(
            scene.model, np.array([[0, 0, 0.3, 1, 0, 0, 0]]), camera, 41, 41, [1]
        )  # without the blue box
        np.testing.assert_array_equal(out[0, 3 * k : 3 * k + 3], plain[0].transpose(2, 0, 1))
    assert out[0].std() > 20


def test_the_benchmark_yields_its_rows_with_their_bars(scene):
    assert "renderer" in discover()
    figures = list(row._task(Context(repeats=1, scale=0.1), scene, 1e6, working_backend()[0]))
    assert [f.name for f in figures] == [
        "ball, balanced, 1 thread", "ball, balanced, 2 threads", "ball, faithful, 1 thread", "ball, balanced",
        "ball, balanced, 2 threads over 1",
    ]  # fmt: skip
    assert [f.bar for f in figures] == [10.0, None, None, 1.0, 1.8]
    assert figures[3].met and figures[3].unit == "CPU ms/image"
    assert figures[0].note.startswith(f"{1e3 / figures[0].value:.2f} CPU ms per image; MuJoCo ")


def test_the_picture_and_its_table(scene, tmp_path, monkeypatch, capsys):
    import json

    from PIL import Image

    monkeypatch.setattr(renderer_figure, "scene_of", lambda task: scene)
    out, table = tmp_path / "a" / "x.png", tmp_path / "x.json"
    renderer_figure.main(["--tasks", "ball", "--out", str(out), "--json", str(table)])
    rows = json.loads(table.read_text())
    assert [(r["task"], r["camera"], r["pixels"]) for r in rows] == [("ball", "front", 41), ("ball", "above", 41)]
    for r in rows:
        assert r["similarity"] > 0.95 and 0 <= r["mean_difference"] < 4 and r["native_ms"] > 0 and r["mujoco_ms"] > 0
    assert Image.open(out).size[1] > 400 and "SSIM" in capsys.readouterr().out


def test_similarity_falls_with_differences():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, 3, 17, 19), dtype=np.uint8)
    noisy = np.clip(image.astype(int) + rng.integers(-40, 41, image.shape), 0, 255).astype(np.uint8)
    assert similarity(image, image) == pytest.approx(1.0) and 0.5 < similarity(image, noisy) < 0.99
    assert abs(similarity(image, 255 - image)) < 1.0
