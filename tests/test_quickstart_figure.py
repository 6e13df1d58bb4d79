"""The README's learning curves: what a panel shows of a run, by task, in success or in return."""

import json
import sys

import matplotlib.image
import pytest
from matplotlib.figure import Figure

from script import quickstart_figure


def finished(folder, task, seed, solvable):
    """A finished fine-tuning run's files, as far as a curve needs them."""
    folder.mkdir()
    (folder / "config.yaml").write_text(f"env_name: {task}\nseed: {seed}\n")
    rows = [
        {"itr": 0, "env_steps": 0, "eval/success_rate": 0.2, "eval/episode_return": 11.0},
        {"itr": 1, "env_steps": 3000, "train/success_rate": 0.3, "train/episode_return": 13.0},
        {"itr": 2, "env_steps": 6000, "train/success_rate": None, "train/episode_return": None},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ends = {
        key: {
            "success_rate": rate,
            "success_interval": [rate - 0.1, rate + 0.1],
            "mean_return": value,
            "return_interval": [value - 2, value + 2],
            **({} if solvable else {"solvable": False}),
        }
        for key, rate, value in (("before", 0.2, 11.0), ("after", 0.7, 17.0))
    }
    (folder / "result.json").write_text(json.dumps({**ends, "env_steps": 6000}))
    return folder


@pytest.mark.parametrize(
    ("solvable", "explored", "evaluated", "after"),
    [(True, 0.3, [0.2, 0.7], [0.6, 0.8]), (False, 13.0, [11.0, 17.0], [15.0, 19.0])],
)
def test_a_curve_is_of_success_or_of_return(tmp_path, solvable, explored, evaluated, after):
    axis = Figure().subplots()
    quickstart_figure.curves(axis, [finished(tmp_path / "run", "lift", 7, solvable)], "title")
    train, points, _, end = axis.lines
    assert train.get_xydata().tolist() == [[3.0, explored]]
    assert points.get_xydata().tolist() == [[0.0, evaluated[0]], [6.0, evaluated[1]]]
    assert points.get_label() == "seed 7"
    assert end.get_ydata() == pytest.approx(after)
    assert axis.get_ylabel() == ("success rate" if solvable else "return")


def test_several_tasks_get_a_panel_each(tmp_path, monkeypatch):
    runs = [finished(tmp_path / f"{task}{seed}", task, seed, False) for task in ("hopper", "walker") for seed in (0, 1)]
    assert quickstart_figure.by_task(runs) == {"hopper": runs[:2], "walker": runs[2:]}
    out = tmp_path / "new" / "curves.png"
    monkeypatch.setattr(sys, "argv", ["quickstart_figure.py", *map(str, runs), f"--out={out}"])
    quickstart_figure.main()
    height, width = matplotlib.image.imread(out).shape[:2]
    assert width > 1.8 * height  # two panels
