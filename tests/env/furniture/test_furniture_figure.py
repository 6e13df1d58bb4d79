"""The strip and the videos of assemblies: of an episode that succeeds, from its start to its end; what cannot be shown is said."""

from __future__ import annotations

import itertools
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from script import furniture_figure


def test_an_assembly_is_drawn_from_start_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(furniture_figure, "STRIDE", 53)
    monkeypatch.setattr(furniture_figure, "WIDTH", 64)
    monkeypatch.setattr(furniture_figure, "HEIGHT", 48)
    venv, recording = furniture_figure.success("one_leg_low", 7001)
    assert len(recording.qpos) < 700  # it ends 20 steps after success, not because time was up
    venv.close()
    images, seconds = furniture_figure.draw("one_leg_low", 7001, tmp_path / "film")
    assert images.shape == (furniture_figure.MOMENTS, 48, 64, 3) and seconds[0] == 0 and (np.diff(seconds) > 0).all()
    assert seconds[-1] == pytest.approx((len(recording.qpos) - 1) / 10)  # the last moment is the last that was recorded
    assert all((a != b).any() for a, b in itertools.pairwise(images))
    frames = iio.imread(tmp_path / "film.gif")
    assert len(frames) == len(range(0, len(recording.qpos) - 1, 53)) + 1 and (tmp_path / "film.mp4").stat().st_size > 0


def test_no_success_is_an_error_that_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(furniture_figure, "TRIES", 0)
    with pytest.raises(SystemExit) as ended:
        furniture_figure.main(["--tasks", "lamp_low", "--out", str(tmp_path / "f.png")])
    assert ended.value.code == 2 and "lamp_low: the expert did not succeed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
