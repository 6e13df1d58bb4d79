"""Ablations: which cells a configuration means, what the table says of them, and that nothing finished is done twice."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from scipy import stats

from agent import checkpoint
from agent.ablation.figure import ablation_figure, curves_figure, reference_row
from agent.ablation.grid import Cell, cells_of
from agent.ablation.outcome import outcome_of, rows_of, write_table
from agent.dataset.demos import save_demos
from agent.errors import UsageError
from agent.eval.statistics import wilson_interval
from env.normalizer import Normalizer
from script import ablation_cells

ROOT = Path(__file__).resolve().parents[2]
NAMED = sorted(path.stem for path in (ROOT / "cfg" / "ablation").glob("*.yaml"))


def named(name: str, *overrides: str) -> dict:
    with initialize_config_dir(str(ROOT / "cfg"), version_base="1.3"):
        return OmegaConf.to_container(compose(f"ablation/{name}", overrides=list(overrides)), resolve=True)


def config(**more: object) -> dict:
    return {
        "name": "x", "out": "o", "data_root": "d", "log_root": "l", "jobs": 1, "threads": 1, "part": None, "parts": 1, "seeds": [5, 7],
        "task": "can", "pretrain": "{task}/pre", "evaluate": "{task}/eval", "finetune": None, "settings": {"w": 1, "layer": "early"},
        "evaluate_settings": {"n": 3}, "finetune_settings": {}, "grids": {"a": {"w": [0, 1]}}, "reference": {"w": 0}, "threshold": None,
        **more,
    }  # fmt: skip


def test_cells_are_all_combinations_once():
    cells = cells_of(config(grids={"a": {"w": [0, 1], "layer": ["early", "late"]}, "b": {"layer": ["early", "mid"]}}))
    assert len(cells) == 5 * 2  # (w 1, early) is in both grids
    assert len({cell.folder for cell in cells}) == 10
    shared = [cell for cell in cells if len(cell.labels) == 2]
    assert [cell.seed for cell in shared] == [5, 7]
    assert shared[0].labels == {"a": {"w": "1", "layer": "early"}, "b": {"layer": "early"}}
    assert shared[0].stages == (("pretrain", "can/pre", {"w": 1, "layer": "early"}), ("evaluate", "can/eval", {"n": 3}))


def test_an_axis_may_stand_for_several_settings_and_for_what_is_run():
    grid = {
        "arm": {
            "ours": {"task": "lift", "w": 2},
            "other": {"pretrain": "{task}/gauss", "evaluate": None, "finetune": "{task}/ft"},
        }
    }
    first, _, second, _ = cells_of(config(grids={"g": grid}, finetune_settings={"f": True}))
    assert (first.task, first.labels) == ("lift", {"g": {"arm": "ours"}})
    assert first.stages[0] == ("pretrain", "lift/pre", {"w": 2, "layer": "early"})
    assert [stage[:2] for stage in second.stages] == [("pretrain", "can/gauss"), ("finetune", "can/ft")]
    assert second.stages[1][2] == {"f": True}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"grid": {}}, "did you mean 'grids'"),
        ({"grids": {}}, "at least one grid"),
        ({"seeds": []}, "at least one grid and one seed"),
        ({"grids": {"a": [1, 2]}}, "grids.a: expected a section of axes"),
        ({"grids": {"a": {"w": []}}}, "grids.a.w: expected at least one value"),
        ({"pretrain": "{what}/pre"}, "no placeholder but {task}"),
    ],
)
def test_what_cannot_be_is_named(more: dict, message: str):
    with pytest.raises(UsageError, match=message):
        cells_of(config(**more))


@pytest.mark.parametrize("name", NAMED)
def test_every_named_ablation_composes_to_the_end(name: str):
    """All of its settings exist in the leaves that it names, and a reference, where one is asked for, is among the cells."""
    plain = named(name)
    cells = cells_of(plain)
    seen = set()
    for cell in cells:
        for stage in cell.stages:
            key = (stage[1], *stage[2])  # which settings; their values are checked as they are used
            if key not in seen:
                seen.add(key)
                cfg = ablation_cells.composed(
                    stage[1], {**stage[2], "seed": cell.seed, "wandb": None, "resume": True, "logdir": "x"}
                )
                ablation_cells.run.validate(cfg)
    settings = [cell.settings for cell in cells]
    assert not plain["reference"] or any(all(s.get(k) == v for k, v in plain["reference"].items()) for s in settings)


def test_the_papers_first_experiments_are_there():
    weights = [cell.stages[0][2]["dispersive_loss_weight"] for cell in cells_of(named("weight", "seeds=[0]"))]
    assert {0, 0.1, 0.3, 0.5, 0.7, 0.9} <= set(weights) and named("weight")["task"] == "square"
    where = {(cell.task, cell.stages[0][2]["dispersive_loss_layer"]) for cell in cells_of(named("layer"))}
    assert where >= {(t, x) for t in ("lift", "can", "square", "transport") for x in ("early", "mid", "late")}
    starts = cells_of(named("efficiency", "seeds=[0]"))
    assert [stage[0] for cell in starts for stage in cell.stages] == ["pretrain", "finetune"] * 3
    assert {cell.task for cell in starts} == {"transport"}


def test_every_algorithm_is_compared_on_its_own_start():
    cells = [cell for name in ("algorithms", "algorithms_steps") for cell in cells_of(named(name, "seeds=[3]"))]
    found = {axes["algorithm"]: cell for cell in cells for axes in cell.labels.values()}
    denoise = {"PPO", "PPO-exact", "RWR", "AWR", "DIPO", "DQL", "IDQL", "QSM"}
    assert found.keys() == denoise | {"ReinFlow", "MeanFlow", "SAC", "RLPD", "IBRL", "Cal-QL"}
    assert len({found[label].folder for label in denoise}) == len(denoise)
    assert all(found[label].stages[0] == found["PPO"].stages[0] for label in denoise)  # one base
    assert {found[label].stages[1][2]["train.n_train_itr"] for label in denoise | {"ReinFlow", "MeanFlow"}} == {50}
    assert [stage[0] for stage in found["SAC"].stages] == ["finetune"]
    assert found["RLPD"].settings["train.n_train_itr"] == 100 and "model.n_critics" not in found["SAC"].settings
    assert found["IBRL"].stages[0][2] == {"train.n_epochs": 20, "train.save_model_freq": 20}


def test_what_fine_tuning_gained_and_cost_by_hand(tmp_path: Path):
    """Two algorithms, two seeds; an iteration is what was collected and learned, without evaluations; relative to the reference of that seed."""
    grid = {"algorithm": {"a": {"finetune": "{task}/a"}, "b": {"pretrain": None, "finetune": "{task}/b"}}}
    cells = cells_of(config(evaluate=None, grids={"g": grid}, settings={}, reference={"finetune": "can/a"}))
    seconds = {("a", 5): [9, 2, 1], ("a", 7): [4, 4, 4], ("b", 5): [3, 3, 3], ("b", 7): [2, 2, 2]}
    for cell in cells:
        label, folder = cell.labels["g"]["algorithm"], tmp_path / cell.folder
        for stage, _, _ in cell.stages:
            (folder / stage).mkdir(parents=True)
            (folder / stage / "result.json").write_text(json.dumps({"wall_seconds": 1}))
        rows = [{"itr": 0, "env_steps": 0, "eval/episode_return": 1}]
        for k, total in enumerate(seconds[label, cell.seed]):
            times = {"time/collect": 0.25 * total, "time/update": 0.75 * total, "time/iteration": total + 100}
            rows.append({"itr": k + 1, "env_steps": 120 * (k + 1), **times})
        (folder / "finetune" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        gained = {"a": 10, "b": -3}[label]
        before = {"successes": [0, 0], "returns": [float(cell.seed), 20.0]}
        after = {"successes": [0, 0], "returns": [x + gained for x in before["returns"]], "solvable": False}
        result = {"before": before, "after": after, "env_steps": 360, "wall_seconds": 1}
        (folder / "finetune" / "result.json").write_text(json.dumps(result))
    outcomes = [outcome_of(cell, tmp_path / cell.folder, None) for cell in cells]
    assert outcomes[0].curve == ((0, 1), (360, 12.5 + 10))  # 5 and 20 before
    a, b = rows_of(outcomes, {"finetune": "can/a"})
    assert (a["setting"], a["gain"], a["gain_low"], a["env_steps"]) == ("algorithm=a", 10, 10, 360)
    assert (a["seconds_per_iteration"], a["env_steps_per_s"], a["relative_iteration"]) == (3, (60 + 30) / 2, 1)
    assert (b["gain"], b["seconds_per_iteration"], b["env_steps_per_s"]) == (-3, 2.5, (40 + 60) / 2)
    assert b["relative_iteration"] == (3 / 2 + 2 / 4) / 2 and b["difference"] == pytest.approx(-13)
    line = write_table([a, b], tmp_path)[1].read_text().splitlines()[3]
    assert (
        line == "| g | can | algorithm=b | 2 x 2 | 10 [4, 16] | -13 [-13, -13] | -3 [-3, -3] | 360 | 50 | 2.5 | 1.00 |"
    )


def finished(folder: Path, cell: Cell, scores: list[float], solvable: bool = True, rank: float = 3.0) -> None:
    """What the stages of ``cell`` would have left."""
    for stage in ("pretrain", "evaluate"):
        (folder / stage).mkdir(parents=True, exist_ok=True)
    (folder / "pretrain" / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"epoch": k, "features/early/effective_rank": r, "features/early/feature_norm": 1}) + "\n"
            for k, r in enumerate((9, rank))
        )
    )
    (folder / "pretrain" / "result.json").write_text(json.dumps({"wall_seconds": 11.0, "checkpoint": "c.pt"}))
    result = {"successes": [bool(x) for x in scores], "returns": scores, "solvable": solvable, "seconds": 2.0}
    (folder / "evaluate" / "result.json").write_text(json.dumps(result))


def test_a_row_by_hand(tmp_path: Path):
    cells = cells_of(config(grids={"a": {"w": [0, 1, 2]}}))
    scores = {(0, 5): [1, 0, 0, 0], (0, 7): [1, 1, 0, 0], (1, 5): [1, 1, 0, 1], (1, 7): [1, 1, 1, 0]}
    outcomes = []
    for cell in cells:
        key = (cell.stages[0][2]["w"], cell.seed)
        if key in scores:
            finished(tmp_path / cell.folder, cell, scores[key])
        outcomes.append(outcome_of(cell, tmp_path / cell.folder, None))
    assert outcomes[4] is outcomes[5] is None
    rows = rows_of(outcomes[:4], {"w": 0})
    assert [row["setting"] for row in rows] == ["w=0", "w=1"]
    plain, ours = rows
    assert (plain["mean"], plain["seeds"], plain["episodes"]) == (0.375, 2, 8)
    low, high = stats.t.interval(0.95, 1, 0.375, 0.125)  # 0.25 and 0.5: standard error 0.125
    assert (plain["low"], plain["high"]) == (max(0, low), min(1, high))
    assert math.isnan(plain["difference"])  # with itself
    assert ours["difference"] == pytest.approx(0.375)  # 0.5 and 0.25
    assert (ours["difference_low"], ours["difference_high"]) == pytest.approx(stats.t.interval(0.95, 1, 0.375, 0.125))
    assert (ours["low"], ours["high"]) == pytest.approx(
        wilson_interval(6, 8)
    )  # both seeds agree: what the episodes leave open
    assert ours["early/effective_rank"] == 3 and "early/feature_norm" not in ours
    assert ours["seconds"] == 26.0 and ours["by_seed"] == [0.75, 0.75]
    files = write_table(rows, tmp_path)
    assert "| a | can | w=1 | 2 x 4 | 0.750 [" in files[1].read_text()
    assert files[0].read_text().splitlines()[2].startswith("a,can,w=1,2,8,success,0.75,")
    assert reference_row(rows, "can") is plain and reference_row(rows[:1], "can") is None
    assert ablation_figure(rows, tmp_path / "f.png", "x").read_bytes()[:4] == b"\x89PNG"


def test_cells_of_one_base_train_it_once(tmp_path: Path):
    """What is copied is whole and refers to itself; another seed, or other settings of pre-training, are another base."""
    tuned = {
        "algorithm": {
            "a": {"finetune": "{task}/a"},
            "b": {"finetune": "{task}/b"},
            "c": {"finetune": "{task}/b", "w": 2},
        }
    }
    a, _, b, other_seed, c, _ = cells_of(config(evaluate=None, grids={"g": tuned}))
    base = tmp_path / "cells" / a.folder / "pretrain"
    (base / "checkpoint").mkdir(parents=True)
    (base / "checkpoint" / "state_3.pt").write_bytes(b"weights")
    (base / ".lock").touch()
    about = {"task": a.task, "seed": a.seed, "stages": a.stages, "grids": a.labels}
    (base.parent / "cell.json").write_text(json.dumps(about))
    assert not ablation_cells.share_base(b, tmp_path)  # not finished
    (base / "result.json").write_text(json.dumps({"checkpoint": str(base / "checkpoint" / "state_3.pt"), "epochs": 3}))
    assert [ablation_cells.share_base(cell, tmp_path) for cell in (b, b, other_seed, c)] == [True, False, False, False]
    mine = tmp_path / "cells" / b.folder / "pretrain"
    result = json.loads((mine / "result.json").read_text())
    assert result == {"checkpoint": str(mine / "checkpoint" / "state_3.pt"), "epochs": 3}
    assert Path(result["checkpoint"]).read_bytes() == b"weights" and not (mine / ".lock").exists()
    assert [path.name for path in mine.parent.iterdir()] == ["pretrain"]


def test_a_cell_is_compared_with_the_reference_most_like_it(tmp_path: Path):
    cells = cells_of(config(seeds=[5], grids={"a": {"w": [0, 1], "batch": [32, 256]}}))
    scores = {(0, 32): [0, 0], (0, 256): [1, 0], (1, 32): [1, 1], (1, 256): [1, 1]}
    outcomes = []
    for cell in cells:
        settings = cell.stages[0][2]
        finished(tmp_path / cell.folder, cell, scores[settings["w"], settings["batch"]])
        outcomes.append(outcome_of(cell, tmp_path / cell.folder, None))
    rows = rows_of(outcomes, {"w": 0})
    differences = {row["setting"]: row["difference"] for row in rows}
    assert reference_row(rows, "can") is None  # of each size of batch one
    assert differences["w=1, batch=32"] == 1 and differences["w=1, batch=256"] == 0.5
    assert math.isnan(differences["w=0, batch=32"]) and math.isnan(differences["w=0, batch=256"])


def test_locomotion_is_measured_by_returns_and_fine_tuning_by_its_own_evaluation(tmp_path: Path):
    (cell, _, *_) = cells_of(config())
    finished(tmp_path / "a", cell, [10.0, 30.0], solvable=False)
    assert outcome_of(cell, tmp_path / "a", None).scores == [10.0, 30.0]
    (tuned, *_) = cells_of(config(evaluate=None, finetune="{task}/ft"))
    finished(tmp_path / "b", cell, [0])
    (tmp_path / "b" / "finetune").mkdir()
    after = {"successes": [True, True, False], "returns": [1, 1, 0], "solvable": True}
    (tmp_path / "b" / "finetune" / "result.json").write_text(json.dumps({"after": after, "wall_seconds": 5.0}))
    rates = [(0, 0.1), (200, None), (400, 0.6), (600, 0.5)]
    (tmp_path / "b" / "finetune" / "metrics.jsonl").write_text(
        "".join(json.dumps({"itr": k, "env_steps": n, "eval/success_rate": x}) + "\n" for k, (n, x) in enumerate(rates))
    )
    outcome = outcome_of(tuned, tmp_path / "b", 0.55)
    assert outcome.scores == [1, 1, 0] and outcome.steps_to == 400 and outcome.seconds == 16.0
    assert outcome.curve == ((0, 0.1), (400, 0.6), (600, 0.5))
    assert curves_figure([outcome], tmp_path / "c.png", "x").read_bytes()[:4] == b"\x89PNG"
    assert curves_figure([outcome_of(cell, tmp_path / "a", None)], tmp_path / "d.png", "x") is None
    assert math.isnan(outcome_of(tuned, tmp_path / "b", 0.7).steps_to)


def test_a_finished_stage_is_not_repeated_and_must_mean_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done = []

    def execute(cfg: object) -> None:
        logdir = Path(cfg.logdir)
        done.append((cfg.stage, cfg.get("base_policy_path"), cfg.resume, cfg.seed))
        if cfg.stage == "eval" and len(done) == 2:
            raise KeyboardInterrupt
        logdir.mkdir(parents=True)
        (logdir / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
        (logdir / "result.json").write_text(json.dumps({"checkpoint": "trained.pt"}))

    monkeypatch.setattr(ablation_cells.run, "execute", execute)
    plain = named("weight", "seeds=[11]", "task=can")
    cell = cells_of(plain)[0]
    with pytest.raises(KeyboardInterrupt):
        ablation_cells.run_cell(cell, tmp_path, "somewhere", 1)
    ablation_cells.run_cell(
        cell, tmp_path, "elsewhere", 2
    )  # where data lie, and on how many threads, changes no result
    assert done == [("pretrain", None, True, 11), ("eval", "trained.pt", True, 11), ("eval", "trained.pt", True, 11)]
    ablation_cells.run_cell(cell, tmp_path, "somewhere", 1)
    assert len(done) == 3
    stages = ((*cell.stages[0][:2], {**cell.stages[0][2], "train.batch_size": 7}), cell.stages[1])
    other = Cell(cell.task, cell.seed, stages, cell.labels)
    (tmp_path / "cells" / cell.folder).rename(tmp_path / "cells" / other.folder)
    with pytest.raises(UsageError, match=r"train\.batch_size was 256 .* is 7 now"):
        ablation_cells.run_cell(other, tmp_path, "somewhere", 1)


@pytest.mark.slow
@pytest.mark.mujoco
def test_a_killed_ablation_goes_on_and_repeats_nothing(tmp_path: Path):
    """SIGKILL to the whole, in the middle of the second cell; the same command finishes, and the result is that of one left alone."""
    rng, folder = np.random.default_rng(0), tmp_path / "data" / "gym" / "hopper-medium-v2"
    folder.mkdir(parents=True)
    save_demos(folder / "train.npz", rng.uniform(-1, 1, (97, 11)), rng.uniform(-1, 1, (97, 3)), np.array([50, 47]))
    Normalizer(-np.ones(11), np.ones(11), -np.ones(3), np.ones(3)).save(folder / "normalization.npz")
    (tmp_path / "tiny.yaml").write_text(
        "# @package _global_\ndefaults: [/base/ablation, _self_]\nname: tiny\npretrain: gym/pretrain/hopper-medium-v2/two_cores\n"
        "evaluate: gym/eval/hopper-v2/eval_diffusion_mlp\nseeds: [0, 1]\ntask: hopper\n"
        "evaluate_settings: {n_episodes: 3, env.max_episode_steps: 8}\ngrids: {g: {train.batch_size: 47}}\n"
        "settings: {train.n_epochs: 60, train.latest_every_s: 0, train.lr_scheduler.first_cycle_steps: 999, model.use_dispersive_loss: true}\n"
    )

    def start(out: Path, *more: str) -> subprocess.Popen:
        command = [sys.executable, str(ROOT / "script" / "ablate.py"), f"--config-dir={tmp_path}", "--config-name=tiny"]
        more = [*more, f"out={out}", f"data_root={tmp_path / 'data'}", "jobs=1"]
        return subprocess.Popen(
            [*command, *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    killed = start(tmp_path / "a")
    metrics = "*_seed1/pretrain/metrics.jsonl"
    while not any(file.read_text().count("\n") > 5 for file in (tmp_path / "a" / "cells").glob(metrics)):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (first,) = (tmp_path / "a" / "cells").glob("*_seed0")
    (second,) = (tmp_path / "a" / "cells").glob("*_seed1")
    assert not (second / "evaluate" / "result.json").exists()
    before = {file: file.stat().st_mtime_ns for file in first.rglob("*") if file.is_file() and file.parent != first}
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not _unlocked(second / "pretrain"):
        time.sleep(0.2)  # the worker notices that its parent is gone
    whole = start(tmp_path / "a").communicate(timeout=600)
    assert "| g | hopper | batch_size=47 | 2 x 3 |" in whole[0], whole
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert "going on after epoch" in (second / "log.txt").read_text()
    start(tmp_path / "b", "seeds=[1]").communicate(timeout=600)
    (alone,) = (tmp_path / "b" / "cells").glob("*_seed1")
    a, b = (checkpoint.load(run / "pretrain" / "checkpoint" / "state_60.pt")["model"] for run in (second, alone))
    assert all(torch.equal(a[key], b[key]) for key in b)


def _unlocked(logdir: Path) -> bool:
    import fcntl

    with open(logdir / ".lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
