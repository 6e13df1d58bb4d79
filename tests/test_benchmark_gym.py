"""The benchmark of locomotion: its yardsticks do the same work, and its setting is the published one. No timings here."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from env.engine.batch import EngineVectorEnv
from env.registry import locomotion
from script.bench import registry
from script.bench.gym_env import GymBlock
from script.bench.rows import gym as rows
from script.bench.rows.finetune import compose


@pytest.mark.parametrize("body", ["hopper", "halfcheetah"])
def test_raw_physics_goes_through_the_engines_episodes_to_the_bit(body):
    motion = rows.RandomMotion(body, 17, seed=3)
    assert all(len(segments) >= 1 for segments in motion.segments)
    substeps = sum(len(controls) for segments in motion.segments for _, controls in segments)
    assert substeps == motion.work * (5 if body == "halfcheetah" else 4)
    assert motion.work == 17 * 4 * 40 if body == "halfcheetah" else motion.episodes > 60
    raw, engine = rows.RawEpisodes(motion, 2), rows.EngineSide(motion, motion.engine(1))
    for _ in range(2):  # and again, from the same start
        engine.reset()
        assert raw.run() == engine.run() == motion.work
        np.testing.assert_array_equal([engine.venv.render_state(i) for i in range(rows.N_ROBOTS)], motion.last)
        assert raw.deviation() == 0.0
    raw.close()
    engine.close()


def test_the_straightforward_simulators_do_what_the_engine_does():
    """Same seeds, same chunks: rewards, ends and observations of the first episodes."""
    block = GymBlock("hopper", k=3, first=2, seed=5, act_steps=4)
    venv = EngineVectorEnv(locomotion("hopper"), 3, 4, 1000, n_threads=1)
    first, obs = block.reset()[0]["state"].copy(), venv.reset([7, 8, 9, 1, 2, 3])["state"][:, 0]
    np.testing.assert_allclose(first, 2 * (obs + 1) / (2 + 1e-6) - 1, atol=1e-6)
    running, rng = np.ones(3, bool), np.random.default_rng(0)
    while running.any():
        chunk = rng.uniform(-1, 1, (3, 4, 3)).astype(np.float32)
        answer, step = block.step(chunk)[0], venv.step(chunk)
        np.testing.assert_allclose(answer["reward"][running], step.reward[running], atol=1e-5)
        assert (answer["terminated"][running] == step.terminated[running]).all() and not answer["truncated"].any()
        running &= ~step.terminated
        np.testing.assert_allclose(answer["state"][running], step.obs["state"][running, 0], atol=1e-5)
    block.close()


def test_the_setting_is_the_published_one(tmp_path):
    s, cfg = rows.HOPPER, compose(rows.HOPPER, tmp_path / "base.pt", tmp_path, 0, 2, rows.CONFIG)
    assert (cfg.env.n_envs, cfg.train.n_steps, cfg.act_steps, cfg.train.update_epochs) == (40, 500, 4, 5)
    assert (s.n_envs, s.n_steps, s.act_steps, s.update_epochs) == (40, 500, 4, 5) and s.control_steps == 80_000
    assert (s.obs_dim, s.action_dim, s.denoising_steps) == (cfg.obs_dim, cfg.action_dim, cfg.denoising_steps)
    assert s.batch_size * s.ft_denoising_steps == cfg.train.batch_size == 50_000
    assert (s.gamma, s.gae_lambda, s.actor_lr, s.critic_lr) == (
        cfg.train.gamma, cfg.train.gae_lambda, cfg.train.actor_lr, cfg.train.critic_lr,
    )  # fmt: skip
    assert (s.clip_coef, s.clip_base, s.gamma_denoising) == (
        cfg.model.clip_ploss_coef, cfg.model.clip_ploss_coef_base, cfg.model.gamma_denoising,
    )  # fmt: skip
    assert list(cfg.model.actor.mlp_dims) == [s.actor_width] * 3 and cfg.model.actor.activation_type == s.activation
    assert list(cfg.model.critic.mlp_dims) == [s.critic_width] * 3


class FakePool:
    """EnvPool's interface: every third step of a robot is a reset, which is no control step."""

    def __init__(self):
        self.count, self.resets = 0, 0

    def reset(self):
        self.resets += 1

    def step(self, action):
        assert action.shape == (rows.N_ROBOTS, 3) and action.dtype == np.float64
        self.count += 1
        elapsed = np.full(rows.N_ROBOTS, self.count % 3)
        return None, None, None, None, {"elapsed_step": elapsed}

    def close(self):
        pass


def test_envpool_is_credited_for_control_steps_only(monkeypatch):
    pool = FakePool()
    monkeypatch.setitem(sys.modules, "envpool", types.SimpleNamespace(make=lambda *a, **k: pool))
    task = rows.EnvPoolTask("hopper", 1, 0, np.zeros((3, rows.N_ROBOTS, 4, 3), np.float32))
    assert task.run()["work"] == 0 and pool.resets == 1 and pool.count == 0
    assert task.run()["work"] == rows.N_ROBOTS * 8 and pool.count == 12  # four of the twelve were resets


def test_without_envpool_the_other_rows_stand(monkeypatch):
    monkeypatch.setattr(rows.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(rows, "BODIES", ("halfcheetah",))
    monkeypatch.setattr(rows, "CHUNKS", 1)
    monkeypatch.setattr(rows, "N_ROBOTS", 2)
    figures, context = [], registry.Context(repeats=1, cores=2)
    with pytest.raises(registry.UnavailableError, match="pip install envpool"):
        for figure in rows.locomotion(context):
            figures.append(figure)  # noqa: PERF402  (what came before the end is kept)
    assert [f.yardstick for f in figures] == ["raw mj_step"] * 4 and all(f.bar == 0.85 for f in figures)
