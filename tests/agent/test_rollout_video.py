"""Videos of evaluations: which episodes, when they count as solved, and after which iterations."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from agent.eval import video
from agent.finetune.finetune import FinetuneAgent
from env import video_grid
from env.engine.batch import EngineVectorEnv
from env.errors import EnvError
from model.types import Sample
from tests.env.slider import Slider
from tests.point_mass import PointMass

LIMIT = 23


class Push(torch.nn.Module):
    """Pushes by its sampling noise, so that some sliders arrive in time and some do not."""

    noise_shape = (3, 1)

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def sample(self, obs, deterministic=True, noise=None):
        return Sample(0.25 + 0.6 * noise)


@pytest.fixture
def drawn(monkeypatch):
    """Calls of ``render_grid`` instead of pictures."""
    calls = []
    monkeypatch.setattr(
        video, "render_grid", lambda *args: calls.append(args) or [args[2], args[2].with_suffix(".gif")]
    )
    return calls


@pytest.mark.parametrize("n_envs", [2, 7])
def test_the_episodes_asked_for_in_their_order(drawn, tmp_path, n_envs):
    venv, seeds = EngineVectorEnv(Slider(), n_envs, 3, LIMIT), [31, 5, 17, 8, 2]
    path = video.record_video(Push(), venv, seeds, tmp_path / "clip.mp4")
    venv.close()
    assert path == str(tmp_path / "clip.gif")
    _, episodes, _, camera, hz, _ = drawn[0]
    assert [e.seed for e in episodes] == seeds and camera == "agentview" and hz == 20
    outcomes = []
    for e in episodes:
        beyond = np.flatnonzero(e.qpos[:, 0] > 0.5)  # what "solved" means for a slider
        expected = min(-(-int(beyond[0]) // 3) * 3, len(e.qpos) - 1) if len(beyond) else None  # seen at the chunk's end
        assert e.solved_at == expected
        outcomes.append(expected is not None)
        assert len(e.qpos) == LIMIT + 1 or e.qpos[-1, 0] > 1.0
    assert any(outcomes) and not all(outcomes)


def test_the_task_names_the_camera(drawn, tmp_path):
    family = Slider()
    family.camera = "frontview"
    venv = EngineVectorEnv(family, 1, 3, LIMIT)
    video.record_video(Push(), venv, [4], tmp_path / "clip.mp4")
    venv.close()
    assert drawn[0][3] == "frontview"


def test_a_task_that_is_never_solved_shows_its_returns(drawn, tmp_path):
    family = Slider(ends=1e3)
    family.solvable, family.control_hz, family.visual_geoms = False, 50, (0, 3)
    venv = EngineVectorEnv(family, 2, 3, LIMIT)
    video.record_video(Push(), venv, [4, 9, 2], tmp_path / "clip.mp4")
    venv.close()
    _, episodes, _, _, hz, geoms = drawn[0]
    assert (hz, geoms) == (50, (0, 3)) and len(episodes) == 3
    for e in episodes:  # a slider is paid its position
        assert e.score == pytest.approx(e.qpos[1:, 0].sum(), rel=1e-5)


def test_no_renderer_or_no_motion_is_a_warning(monkeypatch, tmp_path, caplog):
    assert video.record_video(Push(), PointMass(), [1], tmp_path / "a.mp4") is None

    def fails(*_arguments):
        raise EnvError("the driver sleeps")

    monkeypatch.setattr(video_grid, "render_frames", fails)
    venv = EngineVectorEnv(Slider(), 1, 3, LIMIT)
    assert video.record_video(Push(), venv, [1], tmp_path / "a.mp4") is None
    venv.close()
    assert "does not record" in caplog.text and "the driver sleeps" in caplog.text


@pytest.mark.parametrize(
    ("save", "freq", "num", "expected"),
    [
        (True, 1, 2, [0, 10, 20, 30, 40, 50, 60]),
        (True, 10, 1, [0, 10, 20, 30, 40, 50, 60]),
        (True, 20, 1, [0, 20, 40, 60]),
        (True, 25, 1, [0, 30, 50]),
        (True, 1, 0, []),
        (False, 1, 2, []),
    ],
)
def test_after_which_evaluations(save, freq, num, expected):
    train = {"render": {"freq": freq, "num": num}, "val_freq": 10}
    cfg = SimpleNamespace(env=SimpleNamespace(save_video=save))
    due = [
        itr
        for itr in range(0, 61, 10)
        if FinetuneAgent._video_due(SimpleNamespace(cfg=cfg, train=train, iteration=itr))
    ]
    assert due == expected
