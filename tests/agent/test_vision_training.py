"""Image policies through the real agents and files: pre-training, fine-tuning, evaluation, resumption, render quality."""

from __future__ import annotations

import json
import shutil
import zipfile

import numpy as np
import pytest
import torch

from agent import checkpoint, images, memory
from agent.checkpoint import load_policy
from agent.dataset.demos import read_demos, save_demos
from agent.dataset.sequence import StitchedSequenceDataset
from agent.errors import CheckpointError, DatasetError, UsageError
from agent.eval import evaluate
from agent.eval.eval_agent import EvalAgent
from agent.finetune import base_policy
from agent.finetune.finetune import FinetuneAgent
from agent.pretrain.pretrain import PretrainAgent
from env.engine import renderers
from env.errors import EnvError
from env.normalizer import NormalizedVectorEnv
from model.types import ShapeError
from tests.agent import vision_runs as runs
from tests.point_mass import PointMass


class Blind:
    """The point mass with a cloth over its cameras."""

    def __init__(self, venv):
        self.venv = venv

    def __getattr__(self, name):
        return getattr(self.venv, name)

    def _covered(self, obs):
        return {**obs, "rgb": np.full_like(obs["rgb"], 40)}

    def reset(self, seed):
        return self._covered(self.venv.reset(seed))

    def step(self, chunk):
        result = self.venv.step(chunk)
        result.obs = self._covered(result.obs)
        return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``data`` with demonstrations and ``pre`` with a policy that looks."""
    folder = tmp_path_factory.mktemp("vision")
    runs.write_demonstrations(folder / "data" / "robomimic" / "point_mass_img-img", episodes=200)
    overrides = [
        "train.n_epochs=40", "train.lr_scheduler.first_cycle_steps=41", "train.train_split=0.9", "train.val_freq=20", "model.network.augment=false",
    ]  # fmt: skip
    PretrainAgent(runs.pretrain_config(f"data_root={folder / 'data'}", f"logdir={folder / 'pre'}", *overrides)).run()
    return folder


@pytest.fixture
def base(folder):
    return folder / "pre" / "checkpoint" / "state_40.pt"


def tensors(node, path=""):
    if isinstance(node, dict):
        for key, value in node.items():
            yield from tensors(value, f"{path}.{key}")
    elif isinstance(node, torch.Tensor):
        yield path, node


def assert_same_weights(one, two):
    a, b = (dict(tensors(checkpoint.load(path))) for path in (one, two))
    assert a.keys() == b.keys()
    assert not [key for key in a if not torch.equal(a[key], b[key])]


def test_a_pretrained_policy_acts_on_what_it_sees(base):
    policy = load_policy(base)
    venv = NormalizedVectorEnv(PointMass(50, 2, 16, image_size=runs.SIZE), policy.normalizer)
    seeing, blind = evaluate(policy, venv, 200), evaluate(policy, Blind(venv), 200)
    assert seeing.success_interval[0] > blind.success_interval[1], (seeing, blind)
    # one environment or fifty: an episode is a function of its seed
    few = NormalizedVectorEnv(PointMass(3, 2, 16, image_size=runs.SIZE), policy.normalizer)
    agree = np.mean(np.array(evaluate(policy, few, 20).successes) == np.array(seeing.successes[:20]))
    assert agree >= 0.95  # convolutions of other batch sizes round differently


def test_finetuning_and_evaluation_end_to_end(folder, base):
    overrides = ["env.n_envs=20", "train.n_train_itr=3"]
    result = FinetuneAgent(
        runs.finetune_config(f"base_policy_path={base}", f"logdir={folder / 'ft'}", *overrides)
    ).run()
    rows = [json.loads(line) for line in (folder / "ft" / "metrics.jsonl").read_text().splitlines()]
    assert rows[1]["self_check/max_abs_log_ratio"] < 1e-3
    assert rows[1]["updates"] == 0  # the critic warms up
    # 20 x 8 chunks of 3 pairs in minibatches of 60 pairs, two to a step: 4 steps in each of 2 epochs
    assert rows[-1]["updates"] == 8
    path = folder / "ft" / "checkpoint" / "state_3.pt"
    assert images.of_checkpoint(checkpoint.load(path))["render_quality"] == "balanced"
    assert images.of_checkpoint(checkpoint.load(path)) == result["images"]
    again = EvalAgent(runs.eval_config(f"base_policy_path={path}", "n_episodes=23", f"logdir={folder / 'eval'}")).run()
    assert again["successes"] == result["after"]["successes"] and again["images"] == result["images"]


def test_a_stopped_finetuning_goes_on_exactly(folder, base, tmp_path):
    common = [f"base_policy_path={base}", "train.val_freq=9", "env.reset_at_iteration=false"]
    FinetuneAgent(runs.finetune_config(*common, f"logdir={tmp_path / 'whole'}", "train.n_train_itr=4")).run()
    FinetuneAgent(runs.finetune_config(*common, f"logdir={tmp_path / 'cut'}", "train.n_train_itr=2")).run()
    (tmp_path / "cut" / "result.json").unlink()
    FinetuneAgent(
        runs.finetune_config(*common, f"logdir={tmp_path / 'cut'}", "train.n_train_itr=4", "resume=true")
    ).run()
    names = ("model", "algorithm", "generator")
    one, two = (checkpoint.load(tmp_path / x / "checkpoint" / "state_4.pt") for x in ("whole", "cut"))
    a, b = (dict(tensors({name: payload[name] for name in names})) for payload in (one, two))
    assert not [key for key in a if not torch.equal(a[key], b[key])]


def test_a_stopped_pretraining_goes_on_exactly(folder, tmp_path):
    common = [
        f"data_root={folder / 'data'}",
        "train.lr_scheduler.first_cycle_steps=30",
        "train_dataset.max_n_episodes=20",
    ]
    PretrainAgent(runs.pretrain_config(*common, f"logdir={tmp_path / 'whole'}", "train.n_epochs=4")).run()
    PretrainAgent(runs.pretrain_config(*common, f"logdir={tmp_path / 'cut'}", "train.n_epochs=2")).run()
    (tmp_path / "cut" / "result.json").unlink()
    again = [f"logdir={tmp_path / 'cut'}", "train.n_epochs=4", "resume=true"]
    PretrainAgent(runs.pretrain_config(*common, *again)).run()
    assert_same_weights(*(tmp_path / x / "checkpoint" / "state_4.pt" for x in ("whole", "cut")))


def test_pretraining_refuses_images_of_another_size(folder, tmp_path):
    cfg = runs.pretrain_config(
        f"data_root={folder / 'data'}", f"logdir={tmp_path / 'x'}", "shape_meta.obs.rgb.shape=[3,20,23]"
    )
    with pytest.raises(ShapeError, match=r"\(3, 20, 23\), found \(3, 19, 23\)"):
        PretrainAgent(cfg).run()
    cfg = runs.pretrain_config(
        f"data_root={folder / 'data'}", f"logdir={tmp_path / 'y'}", "train_dataset.use_img=false"
    )
    with pytest.raises(ShapeError, match=r"no 'rgb'.*use_img: True"):
        PretrainAgent(cfg).run()


# Render quality


def test_the_policy_remembers_its_images(base):
    expected = {"render_quality": "balanced", "cameras": ["robot0_eye_in_hand"], "image_size": [19, 23]}
    assert load_policy(base).images == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env.render_quality=fast", r"env.render_quality: the policy was trained on 'balanced' images, found 'fast'"),
        ("env.wrappers.robomimic_image.image_keys=[agentview_image]", r"trained on \['robot0_eye_in_hand'\], found \['agentview'\]"),
    ],
)  # fmt: skip
def test_other_images_than_in_training_are_refused(base, tmp_path, override, message):
    with pytest.raises(CheckpointError, match=message):
        FinetuneAgent(runs.finetune_config(f"base_policy_path={base}", f"logdir={tmp_path / 'a'}", override))
    with pytest.raises(CheckpointError, match=message):
        EvalAgent(runs.eval_config(f"base_policy_path={base}", f"logdir={tmp_path / 'b'}", override))


def test_the_newest_policy_that_fits_was_trained_on_such_images(base, tmp_path):
    home = tmp_path / "robomimic-pretrain" / "point_mass_img_pre_x" / "1" / "checkpoint"
    home.mkdir(parents=True)
    shutil.copy(base, home / "state_40.pt")
    cfg = runs.eval_config(f"log_root={tmp_path}", "denoising_steps=7")
    assert base_policy.find(cfg) == home / "state_40.pt"
    with pytest.raises(CheckpointError, match=r"(?s)none of the 1 .*--config-name=pre_diffusion_mlp_img"):
        base_policy.find(runs.eval_config(f"log_root={tmp_path}", "env.render_quality=faithful"))


def test_demonstrations_that_do_not_say_are_taken_as_they_are(tmp_path, caplog):
    assert images.of_demonstrations(tmp_path / "train.npz") is None
    (tmp_path / "about.json").write_text('{"task": "lift"}')
    assert images.of_demonstrations(tmp_path / "train.npz") is None
    (tmp_path / "about.json").write_text("{")
    with pytest.raises(DatasetError, match=r"about\.json: damaged"):
        images.of_demonstrations(tmp_path / "train.npz")
    images.check({}, runs.eval_config(), "some.pt")
    assert "some.pt does not say how its training images were rendered" in caplog.text


@pytest.mark.parametrize(
    ("trained_by", "asked", "opengl", "drawn", "said"),
    [
        (None, "auto", True, "gl", ""),  # older than env.renderer: drawn by OpenGL
        ("gl", "auto", True, "gl", ""),
        ("gl", "auto", False, "native", "trained on images drawn by 'gl', and sees those of 'native' (there is no OpenGL here)"),
        ("native", "auto", True, "native", ""),
        ("native", "egl", True, "egl", "trained on images drawn by 'native', and sees those of 'gl'"),
        ("gl", "native", True, "native", "trained on images drawn by 'gl', and sees those of 'native'"),
        ("gl", "osmesa", True, "osmesa", ""),
    ],
)  # fmt: skip
def test_a_policy_goes_on_seeing_what_it_was_trained_on_or_is_said_not_to(
    monkeypatch, caplog, trained_by, asked, opengl, drawn, said
):
    monkeypatch.setattr(renderers, "working_backend", lambda renderer="gl": ("egl" if opengl else None, ""))
    known = {"render_quality": "balanced", "image_size": [19, 23]} | ({"renderer": trained_by} if trained_by else {})
    record, env = images.settled({"extra": {"images": known}}, runs.eval_config(f"env.renderer={asked}"))
    assert env["renderer"] == drawn and record["renderer"] == renderers.kind_of(drawn)
    assert record["image_size"] == [19, 23] and record["cameras"] == ["robot0_eye_in_hand"]
    assert caplog.text.rstrip().endswith(said) if said else not caplog.text


def test_who_draws_for_a_policy_that_does_not_say_or_is_not_there(monkeypatch):
    monkeypatch.setattr(renderers, "working_backend", lambda renderer="gl": ("egl", ""))
    monkeypatch.setattr(renderers, "gpu_draws", lambda: False)
    assert images.settled({"config": {}}, runs.eval_config())[1]["renderer"] == "gl"  # published: robosuite's own
    record, env = images.settled({}, runs.finetune_config())  # from random weights: nothing to go by but the machine
    assert env["renderer"] == "native"
    assert record == {"render_quality": "balanced", "cameras": ["robot0_eye_in_hand"], "renderer": "native"}
    with pytest.raises(EnvError, match="did you mean 'native'"):
        images.settled({}, runs.finetune_config("env.renderer=nativ"))


# Demonstrations with images


def write(path, lengths=(5, 3, 4), **arrays):
    total, rng = sum(lengths), np.random.default_rng(0)
    pictures = rng.integers(0, 256, (total, 3, 5, 7), dtype=np.uint8)
    given = {"states": np.zeros((total, 2)), "actions": np.zeros((total, 2)), "images": pictures, **arrays}
    save_demos(path, traj_lengths=np.array(lengths), **given)
    return given["images"]


def test_only_the_images_in_use_are_read(tmp_path):
    pictures = write(tmp_path / "train.npz")
    found = read_demos(tmp_path / "train.npz", use_img=True, max_n_episodes=2)["images"]
    np.testing.assert_array_equal(found, pictures[:8])
    assert found.base is None or found.base.nbytes == found.nbytes  # no view of something larger
    np.testing.assert_array_equal(read_demos(tmp_path / "train.npz", use_img=True)["images"], pictures)
    dataset = StitchedSequenceDataset(tmp_path / "train.npz", 2, 2, 2, max_n_episodes=2, use_img=True)
    assert dataset.n_bytes == 8 * (3 * 5 * 7 + 4 * 4)
    rgb = dataset.batch(torch.tensor([0, 1, 4])).conditions["rgb"]  # the third begins the second trajectory
    assert rgb.dtype == torch.uint8
    np.testing.assert_array_equal(rgb.numpy(), pictures[[[0, 0], [0, 1], [5, 5]]])


def test_damaged_images_are_named(tmp_path):
    path = tmp_path / "train.npz"
    write(path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    for change, message in (
        (lambda raw: raw[:-10], r"damaged or cut short \(images: should have 1260 bytes, and has 1250\)"),
        (lambda raw: raw + b"x", "images: should have 1260 bytes, and has 1261"),
        (lambda raw: raw.replace(b"'|u1'", b"'|i1'"), r"images: expected \(T, C, H, W\) uint8, found .*int8"),
        (lambda raw: raw.replace(b"(12, 3", b"(11, 3")[:-105], "images has 11 rows, but traj_lengths add up to 12"),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            for name, raw in content.items():
                archive.writestr(name, change(raw) if name == "images.npy" else raw)
        with pytest.raises(DatasetError, match=message):
            read_demos(path, use_img=True)


def test_too_many_images_for_this_machine_are_refused_before_they_are_read(tmp_path, monkeypatch):
    write(tmp_path / "train.npz")
    monkeypatch.setattr(memory, "free_bytes", lambda device="cpu": 1000)
    with pytest.raises(UsageError, match=r"images of 12 steps.*train_dataset.max_n_episodes"):
        read_demos(tmp_path / "train.npz", use_img=True)


def test_a_rollout_that_does_not_fit_is_refused_before_it_starts(base, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device="cpu": 2**20)
    cfg = runs.finetune_config(f"base_policy_path={base}", f"logdir={tmp_path / 'x'}", "train.n_steps=4000")
    with pytest.raises(UsageError, match=r"images of a rollout \d.*train.n_steps or env.n_envs"):
        FinetuneAgent(cfg)
