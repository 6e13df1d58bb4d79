"""The deployment's command: its configurations, its refusals, and a demonstrator that must succeed through the whole of it on the twin."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from agent.errors import UsageError
from env.franka.episode import read_episode
from env.franka.observation import STATE_KEYS, ObservationSpec
from env.franka.settings import read_settings
from env.franka.types import DeploymentError
from env.normalizer import Normalizer
from script import deploy_franka
from tests.agent import deployable

ROOT = Path(__file__).resolve().parents[1]
LEAVES = sorted(p.relative_to(ROOT / "cfg" / "real") for p in (ROOT / "cfg" / "real").glob("*/*.yaml"))


def composed(leaf, *overrides):
    leaf = Path(leaf)
    base = f"hydra.searchpath=[file://{ROOT / 'cfg' / 'base' / 'real'}]"
    with initialize_config_dir(str(ROOT / "cfg" / "real" / leaf.parent), version_base="1.3"):
        return OmegaConf.to_container(compose(leaf.stem, [base, *overrides]), resolve=True)


@pytest.mark.parametrize("leaf", LEAVES, ids=str)
def test_leaf(leaf):
    text = (ROOT / "cfg" / "real" / leaf).read_text()
    assert text.startswith("# @package _global_\n")
    assert sum(bool(line.strip()) and not line.strip().startswith("#") for line in text.splitlines()) <= 15
    cfg = composed(leaf)
    settings = read_settings(cfg)
    assert cfg["task"] == leaf.parent.name and settings.mode == "run"
    assert settings.safety.table == settings.safety.low[2] == cfg["safety"]["table"]
    if leaf.stem == "deploy_franka":  # a first run is slow, held by a person, far below what the arm can do
        assert cfg["robot"]["kind"] == "panda" and cfg["operator"] == "keyboard" and settings.speed_scale == 0.3
        assert settings.reference.caps.velocity == (0.25, 0.6) and settings.safety.force_stop == 40.0


@pytest.mark.robomimic
@pytest.mark.parametrize("task", ["lift", "can", "square"])
def test_scenes_are_the_simulation_s(task):
    """Where the base stands, how high the table is, and that all objects begin inside the box."""
    pytest.importorskip("robosuite")
    from env.franka.clock import VirtualClock
    from env.franka.robot_mujoco import MujocoRobot

    cfg, robot = composed(f"{task}/deploy_franka"), MujocoRobot(VirtualClock(), task)
    np.testing.assert_allclose(cfg["world"], robot.world.position, atol=1e-9)
    low, high = np.array(cfg["safety"]["low"]), np.array(cfg["safety"]["high"])
    for seed in range(11):
        robot.reset(seed)
        for position in (robot.object_pose()[0], robot.state().position):
            assert (position > low).all() and (position < high).all()
    names = [
        robot.model.geom(i).name or robot.model.body(robot.model.geom_bodyid[i]).name for i in range(robot.model.ngeom)
    ]
    top = names.index("bin1" if task == "can" else "table_collision")
    table = robot.data.geom_xpos[top][2] + robot.model.geom_size[top][2] - robot.world.position[2]
    assert cfg["safety"]["table"] == pytest.approx(table, abs=1e-6)


@pytest.mark.parametrize("group", ["robot", "camera", "safety", "control", "policy", "scheduler"])
def test_every_choice_is_valid(group):
    options = sorted(p.stem for p in (ROOT / "cfg" / "base" / "real" / group).glob("*.yaml"))
    assert len(options) > 1
    for option in options:
        read_settings(composed("lift/deploy_franka", f"{group}={option}"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+sped_scale=1", "sped_scale: there is no such key; did you mean speed_scale?"),
        ("+safety.tabel=1", "safety.tabel: there is no such key; did you mean safety.table?"),
        ("+safety.caps.speed=[1,1]", "safety.caps.speed: there is no such key"),
        ("+robot.port=3", "robot.port: there is no such key; did you mean robot.ip?"),
        ("mode=fast", "mode: expected one of run, shadow, found 'fast'"),
        ("episodes=0", "episodes: expected a whole number from 1"),
        ("speed_scale=1.5", "speed_scale: expected a number from 0.001 to 1"),
        ("home=[1,2]", "home: expected true, false or seven"),
        ("safety.table=low", "safety.table"),
        ("safety.force_hold=50", "safety.force_hold must be positive and at most safety.force_stop"),
        ("scheduler.mode=later", "schedule"),
        ("safety.caps.velocity=[0,1]", "caps.velocity"),
    ],
)
def test_a_setting_that_cannot_be(override, message):
    with pytest.raises(DeploymentError) as caught:
        read_settings(composed("lift/deploy_franka", override))
    assert message in str(caught.value)


def test_the_command_speaks_to_a_person(monkeypatch, capsys):
    leaf = ["--config-dir=cfg/real/lift", "--config-name=deploy_mujoco"]
    command = [sys.executable, "script/deploy_franka.py", *leaf, "episdes=3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0 and "did you mean 'episodes'" in done.stderr
    monkeypatch.setattr(sys, "argv", ["deploy_franka.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        deploy_franka.main()
    assert ended.value.code == 0 and "--config-dir=cfg/real/lift --config-name=deploy_franka" in capsys.readouterr().out


class Demonstrator:
    """The scripted expert as a policy: from the very observations that a network would see."""

    act_steps = horizon_steps = 1
    action_dim, max_episode_steps = 7, 200
    normalizer = Normalizer(-2 * np.ones(19), 3 * np.ones(19), -np.ones(7), np.ones(7))
    spec = ObservationSpec("lift", STATE_KEYS)

    def reset(self, seed=None):
        from env.robomimic.lift_expert import LiftExpert

        self.expert = LiftExpert(1, np.random.default_rng(seed), noise=0.0, retry=True)

    def __call__(self, observation):
        return self.expert.act(self.normalizer.unnormalize_obs(observation["state"][0])[None])


@pytest.mark.robomimic
def test_a_demonstrator_succeeds_through_the_whole_stack(tmp_path, monkeypatch, capsys):
    """Reference model, safety layer, 250 Hz servo, impedance: nothing of it may be in the way of somebody who knows the task."""
    pytest.importorskip("robosuite")
    monkeypatch.setattr(deploy_franka, "make_policy", lambda cfg: Demonstrator())
    cfg = composed("lift/deploy_mujoco", f"logdir={tmp_path / 'run'}", "episodes=3", "seed=2000100")
    result = deploy_franka.deploy(cfg)
    assert result["success_rate"] == 1.0 and [e["verdict"] for e in result["episodes"]] == ["success"] * 3
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written["episodes"][2]["seed"] == 2000102 and written["success_interval"][0] == pytest.approx(0.44, abs=0.01)
    episode = read_episode(tmp_path / "run" / "episode_002")
    assert episode.about["score"] == 1.0 and episode.about["seed"] == 2000102
    assert len(episode) == written["episodes"][2]["steps"] > 20
    lag = np.linalg.norm(
        episode.column("deploy/reference_position") - episode.column("deploy/measured_position"), axis=1
    )
    assert 1e-3 < lag.mean() < 0.03 and lag.max() < 0.06
    shown = capsys.readouterr().out
    assert "episode   3/3  seed 2000102  success" in shown and "success   1.000 [0.4" in shown


@pytest.mark.robomimic
def test_a_shadow_sends_nothing(tmp_path, monkeypatch):
    pytest.importorskip("robosuite")
    monkeypatch.setattr(deploy_franka, "make_policy", lambda cfg: Demonstrator())
    cfg = composed("lift/deploy_mujoco", f"logdir={tmp_path / 'run'}", "episodes=1", "mode=shadow", "max_steps=23")
    result = deploy_franka.deploy(cfg)
    assert result["success_rate"] == 0.0
    episode = read_episode(tmp_path / "run" / "episode_000")
    assert np.ptp(episode.column("deploy/measured_position"), axis=0).max() < 1e-3
    assert np.abs(episode.column("deploy/action_raw")[:, :6]).max() > 0.1


@pytest.mark.robomimic
def test_a_checkpoint_through_both_laws_and_its_recording_replayed(tmp_path):
    """A policy of random weights: robosuite's law, the impedance's, and then the recorded arm."""
    pytest.importorskip("robosuite")
    path = deployable.lift(tmp_path / "state_1.pt")
    same = [f"checkpoint={path}", "episodes=1", "max_steps=9", "device=cpu"]
    for law in ("osc", "impedance"):
        cfg = composed("lift/deploy_mujoco", *same, f"robot.law={law}", f"logdir={tmp_path / law}")
        assert deploy_franka.deploy(cfg)["episodes"][0]["steps"] == 9
    recorded = tmp_path / "impedance" / "episode_000"
    again = ["robot=replay", f"robot.episode={recorded}", "camera=none", f"logdir={tmp_path / 'again'}"]
    result = deploy_franka.deploy(composed("lift/deploy_mujoco", *same, *again))
    assert result["episodes"][0]["success"] is None and np.isnan(result["success_rate"])
    first, second = (
        read_episode(p).column("deploy/action_raw") for p in (recorded, tmp_path / "again" / "episode_000")
    )
    np.testing.assert_allclose(second[:4], first[:4], atol=1e-3)  # the same seed, the same first observation


def test_what_does_not_fit_together(tmp_path):
    path = deployable.lift(tmp_path / "state_1.pt")
    same = [f"checkpoint={path}", f"logdir={tmp_path / 'run'}", "device=cpu"]
    for leaf, overrides, message in (
        ("lift/deploy_mujoco", ["checkpoint=null"], "checkpoint: give a policy"),
        ("can/deploy_mujoco", [], "its policy is for lift, this configuration for can"),
        ("lift/deploy_franka", ["camera=none"], "robot.ip: the control unit's address"),
        ("lift/deploy_mujoco", ["robot=replay"], "robot.episode: the folder"),
        ("lift/deploy_mujoco", ["policy=remote"], "policy.url"),
        ("lift/deploy_mujoco", ["object_pose=nowhere.at.all"], "object_pose: cannot import"),
    ):
        with pytest.raises((UsageError, DeploymentError)) as caught:
            deploy_franka.deploy(composed(leaf, *same, *overrides))
        assert message in str(caught.value)
