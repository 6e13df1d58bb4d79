"""The figure of avoiding's modes and the picture of its scene."""

from __future__ import annotations

import colorsys
import json

import imageio.v3 as iio
import numpy as np
import pytest

from env.d3il import field
from script import avoid_figure, test_d3il_render


def straight(x: float) -> np.ndarray:
    y = np.linspace(-0.28, 0.5, 79)
    return np.stack([np.full_like(y, x), y], axis=1)


def test_a_path_ends_where_the_rod_touches():
    free, hit = avoid_figure.cut(straight(0.28)), avoid_figure.cut(straight(0.5))
    assert not free.touched and len(free.xy) == 79 and free.mode == (0, 2, 5)
    assert hit.touched and hit.mode == (None, None, None)
    assert hit.xy[-2, 1] <= -0.1 - 0.04 < hit.xy[-1, 1]  # rod and cylinder: 1 + 3 cm
    assert avoid_figure.cut(straight(0.5 + 0.0401)).xy[-1, 1] > 0  # passes the first one by a hair


def test_every_last_row_has_a_colour_of_its_own():
    hues = {
        flag: {round(colorsys.rgb_to_hls(*avoid_figure.colour((a, b, flag)))[0], 2) for a in (0, 1) for b in (2, 3, 4)}
        for flag in (5, 6, 7, 8)
    }
    assert all(len(h) == 1 for h in hues.values()) and len(set.union(*hues.values())) == 4
    assert len({avoid_figure.colour(mode) for mode in field.MODES}) == 24


def test_an_unfinished_run_is_named(tmp_path, capsys):
    for content in (None, "{", json.dumps({"after": {}})):
        if content is not None:
            (tmp_path / "result.json").write_text(content)
        with pytest.raises(SystemExit):
            avoid_figure.main([str(tmp_path)])
        assert "no result.json of a finished fine-tuning run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        avoid_figure.main([])
    assert "either a run's folder or --checkpoints" in capsys.readouterr().err


def test_figure_of_two_policies(tmp_path, monkeypatch):
    courses = [avoid_figure.cut(straight(x)) for x in (0.28, 0.42, 0.5)]
    monkeypatch.setattr(avoid_figure, "paths", lambda *_: (courses, 0.33))
    monkeypatch.setattr(avoid_figure, "load", lambda _: {"config": {"env": {"name": "avoiding-m5"}}})
    (tmp_path / "result.json").write_text(json.dumps({"base_policy_path": "a.pt", "checkpoint": "b.pt"}))
    avoid_figure.main([str(tmp_path), "--episodes", "3"])
    picture = iio.imread(tmp_path / "modes.png")
    assert picture.shape[0] > 500 and picture.shape[1] > 1000 and np.ptp(picture[..., :3]) > 200


def test_the_scene_can_be_seen(tmp_path):
    test_d3il_render.main(["--steps", "0", "9", "--size", "64", "--out", str(tmp_path / "x.png")])
    picture = iio.imread(tmp_path / "x.png")[..., :3].astype(int)
    assert picture.shape == (64, 128, 3)
    red = (picture[..., 0] > 100) & (picture[..., 1:].max(axis=-1) < 80)
    assert red[:, :64].sum() > 10 and red[:, 64:].sum() > 10  # the cylinders
    assert (picture[:, :64] != picture[:, 64:]).any()  # the arm moves


@pytest.mark.parametrize("more", [["--mode", "1", "2", "9"], ["--steps", "-1"], ["--size", "4"]])
def test_senseless_pictures_are_refused(more, capsys):
    with pytest.raises(SystemExit):
        test_d3il_render.main(more)
    assert "expected a mode" in capsys.readouterr().err
