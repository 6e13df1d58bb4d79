"""The picture of steering: its rows are what the runs found, and evaluations on other seeds are refused."""

import json

import pytest
from omegaconf import OmegaConf

from script import steering_figure


def result(rate: float, first: int = 5) -> dict:
    return {"success_rate": rate, "success_interval": [rate - 0.1, rate + 0.1], "seeds": list(range(first, first + 7))}


def write(folder, content, pixels=False):
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(content))
    shapes = {"obs": {"state": {}, **({"rgb": {}} if pixels else {})}}
    OmegaConf.save({"env_name": "two_hands", "task": {}, "shape_meta": shapes}, folder / "config.yaml")


def test_rows_are_base_zero_and_tuned(tmp_path):
    write(tmp_path / "run", {"before": result(0.2), "after": result(0.8)}, pixels=True)
    write(tmp_path / "zero", result(0.6))
    name, results = steering_figure.read(f"{tmp_path / 'run'}:{tmp_path / 'zero'}")
    assert name == "two hands, pixels\n7 episodes"
    assert [r["success_rate"] for r in results] == [0.2, 0.6, 0.8]
    out = tmp_path / "figure.png"
    assert steering_figure.main([f"{tmp_path / 'run'}:{tmp_path / 'zero'}", "--out", str(out)]) == 0
    assert out.stat().st_size > 10_000


def test_other_seeds_are_refused(tmp_path):
    write(tmp_path / "run", {"before": result(0.2), "after": result(0.8)})
    write(tmp_path / "zero", result(0.6, first=6))
    with pytest.raises(SystemExit, match="n_episodes=7 eval_seed=5"):
        steering_figure.read(f"{tmp_path / 'run'}:{tmp_path / 'zero'}")
