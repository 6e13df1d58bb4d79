"""The benchmark's own machinery, and that its yardsticks do what they claim: no timings here."""

from __future__ import annotations

import json
import math
import operator

import mujoco
import numpy as np
import pytest
import torch

from script import benchmark as command
from script.bench import registry, report
from script.bench.isolated import Isolated
from script.bench.measure import Contestant, Figure, compare, interleave, paired_ratio
from script.bench.reference_loop import LoopSettings, ReferenceLoop, RewardScaler, scaled
from script.bench.reference_networks import Denoiser, ReferencePolicy, ResidualNet, cosine_schedule
from script.bench.replay import Replay, record
from script.bench.robosuite_env import ACTION_DIM, OBS_DIM, Limits, RobosuiteBlock, workers_for

OBS, ACTION, HORIZON, STEPS, TUNED = 5, 3, 2, 7, 4


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------ measuring


def test_contestants_take_turns_and_the_warm_up_does_not_count():
    calls = []

    def contestant(name, work):
        return Contestant(
            lambda: calls.append(name) or work, lambda: calls.append(f"prepare {name}"), lambda: len(calls)
        )

    samples = interleave({"a": contestant("a", 2.0), "b": contestant("b", 3.0)}, repeats=3)
    assert calls == ["prepare a", "a", "prepare b", "b"] * 4
    assert samples["a"].work == [2.0] * 3
    assert samples["b"].cpu == [1] * 3, "the CPU clock is read around the run alone, not around prepare"
    assert len(interleave({"a": contestant("a", 1.0)}, 2, warm_up=False)["a"].wall) == 2
    with pytest.raises(ValueError, match="at least 1"):
        interleave({}, 0)


def test_ratios_are_taken_turn_by_turn():
    ours, theirs = np.array([10.0, 1.0, 30.0]), np.array([5.0, 1.0, 10.0])  # the machine was slow in the second turn
    ratio, low, high = paired_ratio(ours, theirs)
    assert ratio == 2.0
    assert (low, high) == (1.5, 2.5)
    assert np.median(ours) / np.median(theirs) == ratio  # the same here; not below
    assert paired_ratio(np.array([1.0, 2.0, 9.0]), np.array([1.0, 4.0, 3.0]))[0] == 1.0


@pytest.mark.parametrize(
    ("better", "ratio", "met"),
    [("higher", 0.9, True), ("higher", 0.8, False), ("lower", 0.8, True), ("lower", 0.9, False)],
)
def test_bar_points_the_right_way(better, ratio, met):
    assert Figure("x", 1.0, "s", ratio=ratio, better=better, bar=0.85).met is met
    assert Figure("x", 1.0, "s", ratio=ratio, better=better).met is None


# ------------------------------------------------------------------------------------- table, JSON, command line


def test_number_keeps_three_digits():
    assert [report.number(x) for x in (None, 0.0, 1234.5, 12.345, 1.2345, 0.012345, -2.5, math.nan)] == [
        "-", "0", "1,234", "12.3", "1.23", "0.0123", "-2.50", "nan",
    ]  # fmt: skip


def test_table_shows_verdicts_inner_tables_notes_and_gaps():
    missed = compare(
        "lift", "steps/s", np.array([80.0, 82.0]), "raw", np.array([100.0, 100.0]), bar=0.85, note="as replayed"
    )
    missed.tables["seconds"] = {"ours": {"sample": 1.5}, "theirs": {"sample": 2.5, "update": 3.5}}
    lines = report.table([missed], {"images": "no renderer"}).splitlines()
    row = next(line for line in lines if line.startswith("lift "))
    assert (
        "81.0 steps/s" in row and "100 raw" in row and "0.810" in row and ">= 0.85 MISSED" in row and row.endswith(" 2")
    )
    assert next(line for line in lines if line.startswith("ours")).split() == ["ours", "1.50", "-"]
    assert "lift: as replayed" in lines and "skipped images: no renderer" in lines
    assert "skipped" in report.table([], {"a": "b"})


def test_json_is_complete_and_strict(tmp_path):
    figure = compare("x", "s", np.array([math.nan]), "y", np.array([1.0]), better="lower", bar=1.1)
    path = tmp_path / "new" / "record.json"
    report.write_json(path, report.document([figure], {"b": "gone"}, {"scale": 0.1}, report.machine()))
    content = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["format"] == "d2ppo-benchmark"
    assert content["figures"][0]["value"] is None and content["figures"][0]["met"] is False
    assert content["machine"]["cores"] >= 1 and content["machine"]["versions"]["torch"] != "absent"
    assert [p.name for p in path.parent.iterdir()] == ["record.json"]


@pytest.fixture
def three_rows(monkeypatch):
    rows: dict[str, registry.Benchmark] = {}
    monkeypatch.setattr(registry, "_BENCHMARKS", rows)
    monkeypatch.setattr(registry, "discover", lambda: rows)

    @registry.benchmark("good", "works", repeats=2)
    def good(context):
        samples = context.interleave({"a": Contestant(lambda: 1.0), "b": Contestant(lambda: 1.0)})
        yield Figure("fine", float(len(samples["a"].wall)), "turns")

    @registry.benchmark("absent", "needs what is not there")
    def absent(context):
        raise registry.UnavailableError("no engine")

    @registry.benchmark("broken", "fails")
    def broken(context):
        yield Figure("half", 1.0, "s")
        raise ZeroDivisionError("oops")

    return rows


def test_one_function_is_one_row_and_a_failure_spares_the_others(three_rows, tmp_path, capsys):
    path = tmp_path / "out.json"
    assert command.main(["--json", str(path)]) == 1
    out = capsys.readouterr().out
    assert (
        "fine" in out
        and "skipped absent: no engine" in out
        and "skipped broken: FAILED: ZeroDivisionError: oops" in out
    )
    content = json.loads(path.read_text())
    assert [(f["name"], f["value"]) for f in content["figures"]] == [("fine", 2.0), ("half", 1.0)]
    assert command.main(["--only", "good,absent", "--repeats", "3"]) == 0, "what is absent is no failure"
    assert "3.00 turns" in capsys.readouterr().out
    with pytest.raises(ValueError, match="registered twice"):
        registry.benchmark("good", "again")(lambda context: [])


@pytest.mark.parametrize("arguments", [["--only", "goood"], ["--only", ","], ["--scale", "0"], ["--repeats", "0"]])
def test_wrong_arguments_are_refused(three_rows, arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "did you mean 'good'" in message if arguments[1] == "goood" else arguments[0] in message


def test_list_names_every_real_benchmark(capsys):
    assert command.main(["--list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("engine", "robosuite", "finetune", "dispersive", "startup"))


class Counter:
    """A task for ``Isolated``: counts its runs in its own process."""

    def __init__(self) -> None:
        self.count = 0

    def run(self):
        self.count += 1
        return {"count": self.count}

    def close(self):
        pass


def test_isolated_keeps_state_and_reports_failures():
    with Isolated(Counter) as process:
        assert [process.run()["count"] for _ in range(2)] == [1, 2]
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        Isolated(operator.truediv, 1, 0)


# ----------------------------------------------------------------------------------------- yardstick: raw physics

PENDULUM = """<mujoco><option timestep="0.002"/><worldbody><body><joint name="j" type="hinge" axis="0 1 0"/>
<geom type="capsule" size="0.05" fromto="0 0 0 0.3 0 0" mass="1"/></body></worldbody>
<actuator><motor joint="j"/></actuator></mujoco>"""


def drive(simulations, controls):
    for step in controls:
        for (model, data), u in zip(simulations, step, strict=True):
            mujoco.mj_step1(model, data)
            data.ctrl[:] = u
            mujoco.mj_step2(model, data)


def look(simulations):
    """Evaluate everything once more, without a step: that is no substep to record."""
    for model, data in simulations:
        mujoco.mj_step1(model, data)


@pytest.mark.parametrize("threads", [1, 2])
def test_replay_repeats_what_was_recorded_to_the_bit(threads):
    model = mujoco.MjModel.from_xml_string(PENDULUM)
    simulations = [(model, mujoco.MjData(model)) for _ in range(3)]
    for i, (_, data) in enumerate(simulations):
        data.qpos[0] = 0.1 * i
    controls = np.random.default_rng(0).standard_normal((11, 3))
    tracks = record(lambda: drive(simulations, controls[:5]) or look(simulations) or drive(simulations, controls[5:]))
    assert np.array_equal(np.array([t.controls for t in tracks])[:, :, 0], controls.T)
    replay = Replay(tracks, threads, work=33.0)
    for _ in range(2):  # and again, from the same start
        replay.reset()
        assert replay.deviation() > 1e-3
        assert replay.run() == 33.0
        assert replay.deviation() == 0.0
    replay.close()
    assert mujoco.get_mjcb_control() is None


def test_recording_refuses_what_it_cannot_replay():
    model = mujoco.MjModel.from_xml_string(PENDULUM)
    data = mujoco.MjData(model)

    def with_a_reset():
        drive([(model, data)], np.zeros((2, 1)))
        mujoco.mj_resetData(model, data)
        drive([(model, data)], np.zeros((2, 1)))

    with pytest.raises(RuntimeError, match="was reset"):
        record(with_a_reset)
    with pytest.raises(RuntimeError, match="nothing called"):
        record(lambda: None)
    model.opt.integrator = mujoco.mjtIntegrator.mjINT_RK4
    with pytest.raises(ValueError, match="Runge-Kutta"):
        record(lambda: mujoco.mj_step(model, data))


# -------------------------------------------------------------------------------------- yardstick: the published loop


class FakeLift:
    """robosuite's interface, counting steps: the observation tells how many there were since the reset."""

    def __init__(self):
        self.resets, self.actions = 0, []

    def observation(self):
        blocks = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "cube_pos": 3, "cube_quat": 4}
        return {**{k: np.full(n, self.t) for k, n in blocks.items()}, "gripper_to_cube_pos": np.full(3, self.t)}

    def reset(self):
        self.resets, self.t = self.resets + 1, 0
        return self.observation()

    def step(self, action):
        self.t += 1
        self.actions.append(action)
        return self.observation(), 1.0, False, {}


def test_block_cuts_at_the_time_limit_and_normalises():
    limits = Limits(act_steps=4, max_episode_steps=6, obs_max=(3.0,) * OBS_DIM, action_min=(0.0,) * ACTION_DIM)
    block = RobosuiteBlock(2, 0, 0, limits)
    block.envs = [FakeLift(), FakeLift()]
    block.reset()
    answer = block.step(np.full((2, 4, ACTION_DIM), 0.5))[0]
    assert answer["reward"].tolist() == [4, 4] and not answer["truncated"].any()
    assert answer["state"][1, 0] == pytest.approx(2 * (4 + 1) / 4 - 1, abs=1e-5)
    assert answer["state"][1, -1] == pytest.approx(2 * (-4 + 1) / 4 - 1, abs=1e-5), "robosuite 1.4's sign"
    np.testing.assert_allclose(block.envs[0].actions[0], 0.75)
    answer = block.step(np.zeros((2, 4, ACTION_DIM)))[0]
    assert answer["reward"].tolist() == [2, 2], "the chunk ends where the episode does"
    assert (
        answer["truncated"].all()
        and block.envs[0].resets == 2
        and answer["state"][0, 0] == pytest.approx(-0.5, abs=1e-5)
    )


def test_workers_divide_the_environments():
    assert [workers_for(50, cores) for cores in (1, 2, 3, 8, 64)] == [1, 2, 5, 10, 50]


def make_policy(seed=0):
    torch.manual_seed(seed)
    actor = Denoiser(OBS, ACTION, HORIZON, width=13, time_dim=8)
    return ReferencePolicy(actor, ResidualNet(OBS, 11, 1), STEPS, TUNED, HORIZON, ACTION)


def test_schedule_has_the_published_values():
    tables = cosine_schedule(20)
    np.testing.assert_allclose(tables["std"][[0, 1, 10, 19]], [1e-10, 0.0758, 0.3690, 0.9965], atol=5e-5)
    np.testing.assert_allclose(tables["mean_from_x0"][[0, 1, 19]], [0.9999971, 0.7164648, 0.07776634], atol=1e-5)
    np.testing.assert_allclose(tables["mean_from_x"][[0, 1, 19]], [0, 0.2835139, 0.03143114], atol=1e-5)


def test_published_work_per_sample_and_chain():
    policy, calls = make_policy(), {"actor": [], "actor_ft": []}
    for name in calls:
        getattr(policy, name).register_forward_hook(lambda m, inputs, out, name=name: calls[name].append(len(out)))
    actions, chain = policy.sample(torch.randn(17, OBS))
    assert calls == {"actor": [17] * STEPS, "actor_ft": [17] * TUNED}
    assert chain.shape == (17, TUNED + 1, HORIZON, ACTION)
    assert torch.equal(chain[:, -1], actions)
    policy.log_probs(torch.randn(17, OBS), chain)
    assert calls["actor"][-1] == calls["actor_ft"][-1] == 17 * TUNED


def test_log_probs_are_of_the_right_transition():
    policy = make_policy()
    with torch.no_grad():
        for parameter in policy.actor.parameters():  # a frozen network that differs shows who was asked
            parameter.mul_(2)
        state = torch.randn(3, OBS)
        _, chain = policy.sample(state)
        log_probs = policy.log_probs(state, chain).view(3, TUNED, HORIZON, ACTION)
        t = TUNED - 1 - 2  # position 2 of the chain
        noise = policy.actor_ft(chain[:, 2], torch.full((3,), t), state)
        tables = {name: float(table[t]) for name, table in policy.tables.items()}
        x0 = (tables["x0_from_x"] * chain[:, 2] - tables["x0_from_noise"] * noise).clamp(-1, 1)
        mean, std = tables["mean_from_x0"] * x0 + tables["mean_from_x"] * chain[:, 2], max(tables["std"], 0.1)
        expected = -0.5 * ((chain[:, 3] - mean) / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(log_probs[:, 2], expected, atol=1e-5, rtol=1e-5)


class Corridor:
    """Simulators for the loop: rewards and ends are given, observations random."""

    def __init__(self, rewards, terminated):
        self.rewards, self.terminated, self.n = rewards, terminated, rewards.shape[1]
        self.rng = np.random.default_rng(0)

    def reset(self):
        self.step_number = 0
        return self.rng.standard_normal((self.n, OBS)).astype(np.float32)

    def step(self, chunk):
        s, self.step_number = self.step_number, self.step_number + 1
        obs = self.rng.standard_normal((self.n, OBS)).astype(np.float32)
        return obs, self.rewards[s], self.terminated[s], np.zeros(self.n, bool)


def make_loop(n_steps=6, n_envs=3):
    sizes = {"obs_dim": OBS, "action_dim": ACTION, "act_steps": HORIZON, "actor_width": 13, "critic_width": 11}
    steps = {"denoising_steps": STEPS, "ft_denoising_steps": TUNED, "update_epochs": 2, "log_prob_split": 5}
    settings = LoopSettings(n_envs=n_envs, n_steps=n_steps, batch_size=9, **sizes, **steps)
    ends = np.zeros((n_steps, n_envs), bool)
    if n_envs > 1:
        ends[2, 1] = True
    return ReferenceLoop(settings, Corridor(np.ones((n_steps, n_envs)), ends), seed=0)


def test_iteration_is_whole_and_in_double_precision():
    loop = make_loop()
    frozen, tuned = ([p.clone() for p in net.parameters()] for net in (loop.policy.actor, loop.policy.actor_ft))
    seconds = loop.iteration()
    assert set(seconds) == {"simulate", "sample", "values + old log-probs", "update"} and min(seconds.values()) > 0
    assert loop.minibatches == 2 * (18 // 9)
    assert all(torch.equal(a, b) for a, b in zip(frozen, loop.policy.actor.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(tuned, loop.policy.actor_ft.parameters(), strict=True))
    buffers = loop.collect()
    assert {x.dtype for x in (buffers.obs, buffers.chains, buffers.rewards)} == {np.dtype(np.float64)}
    assert buffers.firsts[[0, 3], 1].tolist() == [1, 1] and buffers.firsts[1:, 0].sum() == 0
    assert loop.choose_sampling_threads(1) == 1


def test_first_minibatch_has_ratio_one():
    loop = make_loop()
    buffers = loop.collect()
    _, log_probs = loop.evaluate(buffers)
    obs, chains = (torch.from_numpy(x).float().flatten(0, 1) for x in (buffers.obs, buffers.chains))
    advantages = torch.randn(18)
    loss, kl = loop.loss(obs, chains, torch.from_numpy(log_probs).float(), advantages, loop.policy.value(obs).detach())
    assert abs(kl) < 1e-6
    standardised = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    discounts = 0.99 ** torch.arange(TUNED - 1, -1, -1)
    assert loss.item() == pytest.approx(-(standardised[:, None] * discounts).mean().item(), abs=1e-5)


def test_advantages_by_hand():
    loop = make_loop(n_steps=3, n_envs=1)
    loop.scaler = lambda rewards, firsts: rewards
    buffers = loop.collect()
    buffers.rewards[:, 0], buffers.terminated[:, 0] = [1, 2, 3], [0, 1, 0]
    advantages, returns = loop.advantages(buffers, np.array([[0.5], [0.25], [0.125]]))
    after = loop.policy.value(torch.from_numpy(buffers.last_obs).float()).item()
    third = 3 + 0.999 * after - 0.125
    second = 2 - 0.25  # terminated: neither a value nor an advantage from beyond
    first = 1 + 0.999 * 0.25 - 0.5 + 0.999 * 0.95 * second
    np.testing.assert_allclose(advantages[:, 0], [first, second, third], rtol=1e-6)
    np.testing.assert_allclose(returns[:, 0], [first + 0.5, 2, third + 0.125], rtol=1e-6)


def test_reward_scaler_and_clip_range_have_the_published_values():
    rewards, firsts = np.array([[1, 2, 3], [0, 0, 4.0]]).T, np.array([[1, 0, 1], [1, 0, 0]]).T
    expected = np.array([[0.58103756, 1.16207512, 1.74311268], [0, 0, 2.32415024]]).T
    np.testing.assert_allclose(RewardScaler(2)(rewards, firsts), expected, atol=1e-7)
    loop = make_loop()
    loop.settings = LoopSettings()
    published = [0.001, 0.001187, 0.001447, 0.00181, 0.002317, 0.003025, 0.004013, 0.005391, 0.007315, 0.01]
    np.testing.assert_allclose(loop.clip_range(torch.arange(10)), published, atol=6e-7)


def test_scaling_keeps_the_number_of_minibatches():
    assert scaled(1.0) == LoopSettings()
    for scale in (0.001, 0.1, 0.37):
        s = scaled(scale)
        assert s.n_envs * s.n_steps // s.batch_size == 2


# ---------------------------------------------------------------------------------- yardstick and product agree


def test_published_networks_and_ours_are_the_same_function():
    """Same weights, same chain: our policy and the reference give the same denoiser, log-probs and values."""
    from model.common.critic import CriticObs
    from model.diffusion.diffusion_ppo import PPODiffusion
    from model.diffusion.mlp_diffusion import DiffusionMLP

    reference = make_policy()
    network = DiffusionMLP(ACTION, HORIZON, OBS, time_dim=8, mlp_dims=(13, 13, 13), residual_style=True)
    critic = CriticObs(OBS, (11, 11, 11), residual_style=True)
    policy = PPODiffusion(network, critic, HORIZON, OBS, ACTION, STEPS, TUNED, randn_clip_value=3.0)
    base = reference.actor.state_dict()
    policy.load_base({f"network.{key}": value for key, value in base.items()})
    critic.load_state_dict({f"Q1.{key}": value for key, value in reference.critic.state_dict().items()})
    state = torch.randn(5, OBS)
    with torch.no_grad():
        _, chain = reference.sample(state)
        theirs = reference.log_probs(state, chain).clamp(-5, 2).mean(dim=(-1, -2)).view(5, TUNED)
        obs = {"state": state[:, None]}
        torch.testing.assert_close(policy.chain_log_probs(obs, chain), theirs, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(policy.value(obs), reference.value(state), atol=1e-6, rtol=1e-5)


def test_both_loops_start_from_the_same_checkpoint(tmp_path):
    from agent import checkpoint
    from script.bench.rows.finetune import starting_point, write_base

    path = write_base(tmp_path / "base.pt", 3, 4)
    payload = checkpoint.load(path)
    payload["normalizer"]["obs_max"] += 2
    checkpoint.save(path, payload)
    weights, limits = starting_point(str(path), 0, 4)
    drawn, identity = starting_point(None, 3, 4)
    assert weights.keys() == drawn.keys() and all(torch.equal(weights[k], drawn[k]) for k in drawn)
    assert limits.obs_max == (3.0,) * OBS_DIM and identity.obs_max == (1.0,) * OBS_DIM
    assert limits.action_min == identity.action_min
    Denoiser(OBS_DIM, ACTION_DIM, 4).load_state_dict(weights)
