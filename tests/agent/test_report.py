"""The report: what features and phases are, what a line of results says, and that the page is whole and fetches nothing."""

from __future__ import annotations

import re
import sys
import time
import types
import xml.dom.minidom

import numpy as np
import pytest

from agent.collapse import phases, separability
from agent.errors import UsageError
from agent.eval.statistics import Estimate, student_mean
from agent.report import figures
from agent.report.features import features_of, maps_of
from agent.report.page import make_report
from agent.report.results import Row, differences_of, evaluations, failures_by_seed, number
from agent.report.runs import grouped, read_run
from script import report as script
from tests.agent.finished_runs import A, B, evaluation, finetuning, pretraining, ten_runs, trained


@pytest.fixture
def ten(tmp_path):
    return ten_runs(tmp_path)


def test_a_phase_ends_where_a_gripper_switches():
    gripper = [-1, -1, 1, 1, -1, 1, 1, -1]  # of two trajectories, of five and three steps
    actions = np.stack([np.linspace(-0.5, 0.5, 8), gripper], axis=1)
    assert phases(actions, np.array([5, 3])).tolist() == [0, 0, 1, 1, 2, 0, 0, 1]
    assert phases(actions[:, :1], np.array([5, 3])) is None


def test_separability_is_that_of_other_trajectories():
    """Thirteen trajectories of six points each, all in one phase, side by side in turn: whoever counts its own trajectory finds its phase."""
    trajectory = np.repeat(np.arange(13), 6)
    turned = np.stack([trajectory, 0.001 * np.arange(78)], axis=1)
    assert separability(turned, trajectory % 2, trajectory) == 0.0
    assert separability(turned + 40.0 * (trajectory % 2)[:, None], trajectory % 2, trajectory) == 1.0
    rare = np.where(
        trajectory == 0, 1, 0
    )  # one trajectory alone in its phase: that phase is never found, the other nearly always
    assert 0.4 < separability(turned, rare, trajectory) < 0.5


def test_maps_show_principal_components_and_keep_neighbours():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    z = rng.normal(size=(60, 11)) * ([7.0, 3.0] + [0.1] * 9) + 40.0 * (np.arange(60) % 2)[:, None]
    left, singular, _ = np.linalg.svd(z - z.mean(axis=0), full_matrices=False)
    found = maps_of(left * singular)
    assert list(found) == ["PCA", "t-SNE"]
    _, vectors = np.linalg.eigh(np.cov(z.T))
    for k in (0, 1):  # up to sign, shift and scale
        assert abs(np.corrcoef(found["PCA"][:, k], z @ vectors[:, -1 - k])[0, 1]) == pytest.approx(1.0, abs=1e-6)
    for xy in found.values():
        assert xy.shape == (60, 2) and xy.min() > -1e-6 and xy.max() < 1 + 1e-6
        distance = np.linalg.norm(xy[:, None] - xy, axis=2) + 9 * np.eye(60)
        assert (distance.argmin(axis=1) % 2 == np.arange(60) % 2).all()
    assert (found["t-SNE"] == maps_of(left * singular)["t-SNE"]).all()


def test_umap_is_asked_for_and_its_absence_is_explained(monkeypatch):
    principal = np.random.default_rng(0).normal(size=(13, 5))
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    monkeypatch.setitem(sys.modules, "umap", None)
    assert list(maps_of(principal)) == ["PCA"]
    with pytest.raises(UsageError, match=r"\[report\]"):
        maps_of(principal, umap=True)
    mapper = types.SimpleNamespace(fit_transform=lambda z: z[:, 1:3])
    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=lambda **_: mapper))
    found = maps_of(principal, umap=True)
    assert abs(np.corrcoef(found["UMAP"][:, 0], principal[:, 1])[0, 1]) == pytest.approx(1.0, abs=1e-6)


def test_features_are_those_of_the_checkpoint_at_its_demonstrations(tmp_path):
    found = features_of(read_run(trained(tmp_path / "run")))
    assert found.layer == "late" and set(found.figures) == {"early", "mid", "late"}
    assert {"effective_rank", "neighbour_agreement", "phase_separability"} <= set(found.figures["mid"])
    assert len(found.time) == len(found.phase) == 10 + 14 + 8 and set(found.phase) == {
        0,
        1,
    }  # every chunk: none has too many
    assert found.phase[:10].tolist() == [0] * 6 + [1] * 4 and found.phase[10:24].tolist() == [0] * 8 + [1] * 6
    assert found.time[:10] == pytest.approx(np.linspace(0, 1, 10))


def test_a_line_of_results_says_and_draws_its_interval():
    row = Row(0, "a", "", Estimate(0.25, -0.2, 0.5), 1.0, solvable=True)
    assert row.text == "0.250 [0.000, 0.500]" and row.bar == (25.0, 0.0, 50.0)
    difference = Row(0, "a", "", Estimate(-50.0, -100.0, 200.0), 200.0, solvable=False, difference=True)
    assert difference.text == "-50 [-100, +200]" and difference.bar == (37.5, 25.0, 100.0)
    alone = Row(0, "a", "", Estimate(0.5, np.nan, np.nan), 1.0, solvable=True)
    assert alone.text == "0.500" and alone.bar == (50.0, 50.0, 50.0)
    assert [number(x) for x in (1234.5, 3.14159, None)] == ["1,234", "3.14", "–"]


def test_results_of_seeds_are_averaged_and_compared_on_the_same_episodes(ten):
    groups = grouped(map(read_run, ten))
    rows = [row for row in evaluations(groups) if row.name.startswith("can, ")]
    assert [row.estimate.value for row in rows if row.mean] == pytest.approx([4 / 7, 5 / 7])
    evaluated = [row for row in differences_of(groups) if "against can" in row.note]
    assert (
        len(evaluated) == 1
        and evaluated[0].estimate == pytest.approx(student_mean([1 / 7, 1 / 7]))
        and "better with probability 1.00" in evaluated[0].note
    )
    tuned = [row for row in differences_of(groups) if "before fine-tuning" in row.note]
    assert [row.estimate.value for row in tuned] == pytest.approx([1 / 7, 1 / 7])
    of_policies = [run for g in groups if g.stage == "eval" for run in g.runs]
    task, seeds, marks, unsolved = next(failures_by_seed(of_policies))
    failed = np.stack([~run.outcome.successes for run in of_policies])
    order = np.argsort(failed.sum(axis=0), kind="stable")
    assert (task, len(seeds)) == ("can", 7) and [at for _, at in marks] == [
        np.flatnonzero(f[order]).tolist() for f in failed
    ]
    assert unsolved == [seeds[i] for i in range(7) if not (A[i] or B[i] or (A + A)[i + 1] or (B + B)[i + 1])]


def test_other_episodes_are_not_compared(tmp_path):
    bases = [pretraining(tmp_path / f"pre{k}", weight=0.5 * k) for k in (0, 1)]
    here, there = (evaluation(tmp_path / f"e{k}", bases[k], A, first_seed=100 * k) for k in (0, 1))
    assert list(differences_of(grouped(map(read_run, (here, there))))) == []


def test_evaluations_have_the_colour_of_the_policy_they_are_of(ten):
    groups = {group.runs[0].path.name: group.number for group in grouped(map(read_run, ten))}
    assert groups["plain"] == groups["eval0_0"] != groups["spread"] == groups["eval1_0"]
    assert len(set(groups.values())) == 4


def test_a_curve_ends_with_the_final_evaluation_and_bands_are_students(tmp_path):
    """Drawn values, read back off the SVG's paths, in pixels: two seeds' means at 0, 1400 and 2800 steps."""
    base = pretraining(tmp_path / "base")
    runs = [read_run(finetuning(tmp_path / f"r{seed}", base, A, B, seed)) for seed in (0, 1)]
    drawn = []
    axis = type("Axis", (), {"get_ylim": lambda self: (0, 1), "set_ylim": lambda self, *x: None})()
    axis.plot = lambda x, y, lw, **_: drawn.append(("line", lw, np.array(x), np.array(y)))
    axis.fill_between = lambda x, low, high, **_: drawn.append(("band", 0, np.array(low), np.array(high)))
    curve = np.array([[0.0, 0.2, 0.1, 0.3], [1400.0, 0.5, 0.4, 0.6]])
    figures._draw_bands(axis, grouped(runs), lambda run: curve + [0, 0.1 * run.seed, 0, 0])
    lines = [x for x in drawn if x[0] == "line"]
    assert lines[-1][1] == 2 and lines[-1][3] == pytest.approx([0.25, 0.55])
    expected = student_mean([0.5, 0.6])
    assert (drawn[-1][2][1], drawn[-1][3][1]) == pytest.approx((expected.low, expected.high))
    drawn.clear()
    figures._draw_bands(axis, grouped(runs[:1]), lambda run: curve)
    assert drawn[-1][2].tolist() == [0.1, 0.4] and drawn[-1][3].tolist() == [0.3, 0.6]


def test_figures_are_elements_in_the_colours_of_the_page(ten):
    groups = grouped(map(read_run, ten))
    drawn = figures.curves(groups) + figures.losses(groups)
    assert [figure.title for figure in drawn] == ["can", "hopper", "can: diffusion loss"]
    for figure in drawn:
        assert "<text" in figure.svg and re.search(r"var\(--s\d\)", figure.svg)
        assert not re.search(r"#0[0-3]0[0-9a-f]{3}\b", figure.svg)
        xml.dom.minidom.parseString(figure.svg.replace("<svg ", '<svg xmlns:xlink="x" ', 1))
    names = re.findall(r'\bid="([^"]*)"', "".join(figure.svg for figure in drawn))
    assert len(names) == len(set(names))


def test_the_page_is_whole_and_fetches_nothing(ten):
    started = time.process_time()
    page = make_report(ten, title="<b>Can</b> & co")
    assert time.process_time() - started < 20  # of ten runs
    assert "<b>Can</b>" not in page and "&lt;b&gt;Can&lt;/b&gt; &amp; co" in page
    links = re.findall(r"""\b(?:src|href|poster|action)\s*=\s*["']([^"']*)|url\(([^)]*)\)|@import""", page)
    assert all((a or b).startswith(("data:", "#")) for a, b in links) and "<script" not in page
    assert page.count("data:video/mp4;base64,ZmlsbQ==") == 1
    for name in (
        "What was run",
        "Results",
        "Learning curves",
        "Features",
        "Films",
        "Failures",
        "Timing",
        "Configurations",
    ):
        assert page.count(f">{name}<") == 2, name  # a heading, and the way to it
    assert page.count(">t-SNE, by phase<") == page.count(">PCA, by time<") == 2  # with and without dispersive loss
    assert "eval_seed=2000005" in page and "base.dispersive_loss_weight" in page
    assert page.count("<details>") == 8 + 10  # failures of every run that was evaluated, a configuration of every run


def test_what_is_absent_is_said_not_fatal(tmp_path):
    run = trained(tmp_path / "run")
    (tmp_path / "demos" / "train.npz").unlink()
    page = make_report([run])
    assert "No maps" in page and "demos/train.npz" in page and "Films" not in page and 'id="results"' not in page
    (run / "result.json").unlink()
    (run / "metrics.jsonl").unlink()
    assert "not finished" in make_report([run])
    with pytest.raises(UsageError, match="twice"):
        make_report([run, run])


def test_the_script_writes_the_page(tmp_path, capsys):
    run = evaluation(tmp_path / "e", pretraining(tmp_path / "base"), A)
    script.main([str(run), "--out", str(tmp_path / "out" / "page.html"), "--title", "Mine"])
    assert "<title>Mine</title>" in (tmp_path / "out" / "page.html").read_text() and "1 run," in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        script.main([str(tmp_path)])
    assert stop.value.code == 2 and "config.yaml" in capsys.readouterr().err
