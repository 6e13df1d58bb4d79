"""Two finished runs: paired where they met the same episodes, refused where not, and what differs in their configurations."""

from __future__ import annotations

import json

import pytest

from agent.errors import UsageError
from agent.report.comparison import compare, lines
from agent.report.runs import differences, grouped, read_run, replay_command
from script import compare as script
from tests.agent.finished_runs import A, B, evaluation, finetuning, pretraining


def two(tmp_path, **more):
    plain = pretraining(tmp_path / "plain", weight=0.0)
    spread = pretraining(tmp_path / "spread", weight=0.5)
    return (
        read_run(evaluation(tmp_path / "a", plain, A)),
        read_run(evaluation(tmp_path / "b", spread, B, **more)),
    )


def test_the_same_episodes_are_paired(tmp_path):
    found = compare(*two(tmp_path))
    assert (found["success"]["only_a"], found["success"]["only_b"]) == (1, 2)
    assert found["success"]["difference"] == pytest.approx(1 / 7) and found["success"]["p_value"] == pytest.approx(1.0)
    assert found["seeds_only_a"] == [2_000_001] and found["seeds_only_b"] == [2_000_002, 2_000_003]
    assert found["return"]["value"] == pytest.approx(1 / 7) and found["a"]["success"] == pytest.approx(4 / 7)
    assert found["configuration"] == {
        "base.dispersive_loss_weight": [0.0, 0.5]
    }  # not twice: model.dispersive_loss_weight
    text = "\n".join(lines(found))
    assert "only a 1, only b 2" in text and "base.dispersive_loss_weight  0.0 -> 0.5" in text


@pytest.mark.parametrize(("more", "said"), [({"first_seed": 5}, "5 to 11"), ({"task": "square"}, "square")])
def test_what_cannot_be_paired_is_refused_by_name(tmp_path, more, said):
    a, b = two(tmp_path, **more)
    with pytest.raises(UsageError, match=said) as error:
        compare(a, b)
    assert str(a.path) in str(error.value) and str(b.path) in str(error.value)


def test_a_fine_tuning_run_against_its_own_beginning_and_its_policy_against_another(tmp_path):
    base = pretraining(tmp_path / "base")
    tuned = read_run(finetuning(tmp_path / "tuned", base, A, B))
    found = compare(tuned)
    assert found["success"]["difference"] == pytest.approx(1 / 7) and found["a"]["name"] == "tuned, before"
    other = read_run(evaluation(tmp_path / "other", base, A))
    beside = compare(other, tuned)
    assert beside["success"] == found["success"] and beside["configuration"]["train.actor_lr"] == [None, 1e-4]
    with pytest.raises(UsageError, match="'before'"):
        compare(other)


def test_unfinished_runs_and_folders_of_something_else_are_named(tmp_path):
    run = pretraining(tmp_path / "run")
    with pytest.raises(UsageError, match="stage pretrain"):
        compare(read_run(run), read_run(run))
    (run / "result.json").unlink()
    with pytest.raises(UsageError, match="not finished"):
        compare(read_run(run), read_run(run))
    with pytest.raises(UsageError, match=r"config\.yaml"):
        read_run(tmp_path)
    (run / "result.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        read_run(run)


def test_the_script_prints_and_writes(tmp_path, capsys, monkeypatch):
    a, b = two(tmp_path)
    monkeypatch.chdir(tmp_path)
    script.main([str(a.path), str(b.path), "--level", "0.8"])
    assert "b - a" in capsys.readouterr().out
    assert json.loads((tmp_path / "comparison_a_b.json").read_text())["level"] == 0.8
    with pytest.raises(SystemExit) as stop:
        script.main([str(a.path), str(tmp_path / "nothing")])
    assert stop.value.code == 2 and "nothing" in capsys.readouterr().err


def test_seeds_of_one_setting_are_one_group(tmp_path):
    runs = []
    for weight in (0.0, 0.5):
        for seed in (0, 1):
            base = pretraining(tmp_path / f"pre{weight}_{seed}", seed, weight)
            runs.append(read_run(evaluation(tmp_path / f"eval{weight}_{seed}", base, A)))
    groups = grouped(runs)
    assert [[run.seed for run in group.runs] for group in groups] == [[0, 1], [0, 1]]
    assert [group.label for group in groups] == [
        "can, dispersive_loss_weight=0.0 ×2",
        "can, dispersive_loss_weight=0.5 ×2",
    ]
    other = evaluation(tmp_path / "epoch", base, A)  # of another of its checkpoints
    (other / "config.yaml").write_text((other / "config.yaml").read_text().replace("state_3.pt", "state_2.pt"))
    assert [len(group.runs) for group in grouped([*runs, read_run(other)])] == [2, 2, 1]
    assert differences([{"a": 1}, {"a": 1, "b.a": 2}]) == {"b.a": [None, 2]}


def test_an_episode_can_be_replayed(tmp_path):
    """The command's keys are those of an evaluation; of a fine-tuning run's configuration what does not belong there goes."""
    base = pretraining(tmp_path / "base")
    tuned = read_run(finetuning(tmp_path / "tuned", base, A, B))
    command = replay_command(tuned, 2_000_003)
    assert "'~train'" in command and "'~model'" in command and "stage=eval" in command and "'~env'" not in command
    assert f"base_policy_path={tuned.checkpoint}" in command and "++eval_seed=2000003" in command
    assert "~" not in replay_command(read_run(evaluation(tmp_path / "e", base, A)), 5)
