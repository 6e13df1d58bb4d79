"""What is fuzzed: good files of every format, ways to damage them, and the code that reads them."""

from __future__ import annotations

import os
import pickle
import random
import re
import shutil
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
LENGTHS = [5, 7, 3]
MARK = "fuzz_was_here"  # a folder that a file would make if it got something run


@dataclass(frozen=True)
class Case:
    """One kind of seed: a folder of files, which of them is damaged, and how they are read."""

    format: str  # as the report counts it
    target: str  # file inside the folder
    load: Callable[[Path], object]  # of the folder
    mutate: Callable[[bytes, random.Random], bytes]


# ------------------------------------------------------------------------------------------------------------- mutations

_NUMBERS = [0, 1, 2, 7, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]


def raw(data: bytes, rng: random.Random) -> bytes:
    """Bits flipped, bytes and numbers overwritten, pieces cut, doubled, moved or blanked."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 8, 16])):
        at, n = rng.randrange(max(len(out), 1)), rng.choice([1, 2, 4, 8, 16, 64, 256])
        kind = rng.randrange(9)
        if not out:
            break
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.randrange(256)
        elif kind in (2, 3):
            width = rng.choice([1, 2, 4, 8])
            out[at : at + width] = (rng.choice(_NUMBERS) & (256**width - 1)).to_bytes(
                width, rng.choice(["little", "big"])
            )
        elif kind == 4:
            del out[at : at + n]
        elif kind == 5:
            out[at:at] = out[at : at + n]
        elif kind == 6:
            out[at : at + n] = bytes(len(out[at : at + n]))
        elif kind == 7:
            source = rng.randrange(len(out))
            out[at : at + n] = out[source : source + n]
        elif rng.random() < 0.2:
            del out[at:]
    return bytes(out)


def archive(data: bytes, rng: random.Random) -> bytes:
    """A zip damaged from outside, or put together again, sums and all, around damaged, missing, doubled or swapped members."""
    if rng.random() < 0.3:
        return raw(data, rng)
    import io
    import warnings

    with zipfile.ZipFile(io.BytesIO(data)) as z:
        members = [(info.filename, z.read(info)) for info in z.infolist()]
    at, other = rng.randrange(len(members)), rng.randrange(len(members))
    name, content = members[at]
    kind = rng.randrange(8)
    if kind < 4:  # the first bytes are its header, or its program
        head = content[:160]
        members[at] = (name, raw(head, rng) + content[len(head) :] if rng.random() < 0.7 else raw(content, rng))
    elif kind == 4:
        del members[at]
    elif kind == 5:
        members[at], members[other] = (name, members[other][1]), (members[other][0], content)
    elif kind == 6:
        members[at] = (rng.choice(["x.npy", "../x.npy", name + "2", "a" * 300, members[other][0]]), content)
    else:
        members[at] = (name, _program(rng))
    out = io.BytesIO()
    with (
        warnings.catch_warnings(),
        zipfile.ZipFile(out, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_STORED, 8])) as z,
    ):
        warnings.simplefilter("ignore")
        for name, content in members:
            z.writestr(name, content)
    return out.getvalue()


def program(data: bytes, rng: random.Random) -> bytes:
    """A pickle damaged, or one that would run something."""
    return raw(data, rng) if rng.random() < 0.9 else _program(rng)


class _Trap:
    def __init__(self, call: str) -> None:
        self.call = call

    def __reduce__(self) -> tuple:
        return {
            "mkdir": (os.mkdir, (MARK,)),
            "system": (os.system, (f"mkdir {MARK}",)),
            "eval": (eval, (f"__import__('os').mkdir('{MARK}')",)),
        }[self.call]


def _program(rng: random.Random) -> bytes:
    trap = _Trap(rng.choice(["mkdir", "system", "eval"]))
    where = rng.choice([trap, {"model": trap}, {"states": trap}, [trap]])
    body = pickle.dumps(where, rng.choice([0, 2, 4]))
    if rng.random() < 0.5:
        return body
    header = f"{{'descr': '|O', 'fortran_order': False, 'shape': ({rng.choice([1, 3, 10**9])},), }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body


_TOKENS = [
    f"!!python/object/apply:os.mkdir ['{MARK}']", f"!!python/object/apply:os.system ['mkdir {MARK}']", "&a", "*a", "<<: *a",
    f"${{eval:'__import__(\"os\").mkdir(\"{MARK}\")'}}", "${eval:'9**9**9'}", "${eval:'\"a\" * 10**10'}", "${oc.env:NOT_THERE}",
    "${oc.create:${oc.env:HOME}}", "${oc.decode:x}", "${model}", "${.}", "${..}", "${seed}", "${seed}${", "${round_up:1e400}",
    "${product:1,x}", "null", "~", ".nan", ".inf", "-1", "0", "1e999", "9" * 40, "true", "[]", "{}", "[[[[", "- ", ": ", "? ",
    "'", '"', "|", ">", "%YAML 9.9", "---", "...", "\t", "\x00", "\ufeff", "é", "# ", "!!binary x", "!!set {a}", "!!float x",
    "_target_: os.system", "_target_: subprocess.Popen", "_target_: model.nothing.Here", "defaults: [x]", "defaults: {a: b}",
    "hydra: null", "hydra: {run: {dir: [1]}}", "2001-12-14", "0o17", "0x", "1:2:3", "=", "!<tag:x> y", "a.b.c: 1", "? [a]: b",
]  # fmt: skip


def lines(data: bytes, rng: random.Random) -> bytes:
    """A text whose lines are lost, doubled, moved, indented otherwise, or hold something else."""
    if rng.random() < 0.15:
        return raw(data, rng)
    text = data.decode().splitlines()
    for _ in range(rng.choice([1, 1, 1, 2, 3, 5])):
        at = rng.randrange(len(text))
        kind, line = rng.randrange(8), text[at]
        if kind == 0:
            del text[at]
        elif kind == 1:
            text.insert(rng.randrange(len(text)), line)
        elif kind == 2:
            text[at] = " " * rng.randrange(5) + line.lstrip()
        elif kind in (3, 4, 5) and ":" in line:
            text[at] = line.split(":")[0] + ": " + rng.choice(_TOKENS)
        elif kind == 6:
            text.insert(at, re.match(r" *", line)[0] + rng.choice(_TOKENS))
        else:
            where = rng.randrange(len(line) + 1)
            text[at] = line[:where] + rng.choice(_TOKENS) + line[where + rng.randrange(4) :]
        text = text or [""]
    return "\n".join(text).encode("utf-8", errors="replace")


# ----------------------------------------------------------------------------------------------------------------- seeds


def _arrays() -> dict[str, np.ndarray]:
    rng, total = np.random.default_rng(0), sum(LENGTHS)
    return {
        "states": rng.uniform(-1, 1, (total, 7)).astype(np.float32), "actions": rng.uniform(-1, 1, (total, 2)).astype(np.float32),
        "traj_lengths": np.array(LENGTHS), "rewards": rng.uniform(0, 1, total).astype(np.float32), "terminals": np.zeros(total, bool),
        "images": rng.integers(0, 256, (total, 3, 5, 4), np.uint8),
    }  # fmt: skip


def make_seeds(root: Path) -> None:
    """A folder per case in ``root``, with files that all load."""
    from env.normalizer import Normalizer

    for name in CASES:
        (root / name).mkdir(parents=True)
    arrays = _arrays()
    for name, save in (("demos", np.savez_compressed), ("stored", np.savez), ("statistics", np.savez)):
        save(root / name / "train.npz", **arrays)
        Normalizer.fit(arrays["states"], arrays["actions"]).save(root / name / "normalization.npz")
    padded = {"observations": np.zeros((3, 7, 4)), "actions": np.ones((3, 7, 2)), "traj_length": np.array(LENGTHS)}
    (root / "padded" / "train.pkl").write_bytes(pickle.dumps(padded, 4))
    robot = {"des_c_pos": np.ones((9, 3)), "c_pos": np.zeros((9, 3)), "time_stamp": np.arange(9.0), "name": "x"}
    (root / "d3il" / "env_000.pkl").write_bytes(pickle.dumps({"robot": robot}, 3))
    _seed_hdf5(root)
    _seed_parquet(root)
    _seed_checkpoints(root)
    _seed_yaml(root)


def _seed_hdf5(root: Path) -> None:
    import h5py

    from tests.robomimic_files import env_args, synthetic_demos, write_file

    cameras = ("robot0_eye_in_hand",)
    write_file(root / "robomimic" / "x.hdf5", synthetic_demos("lift", LENGTHS, cameras, (5, 4)), env_args("lift"))
    other = [{"actions": np.ones((n, 2)), "obs": {"a": np.ones((n, 3)), "b": np.ones(n)}} for n in LENGTHS]
    write_file(root / "generic" / "x.hdf5", other, {"env_name": "other"})
    rng = np.random.default_rng(0)
    with h5py.File(root / "minari" / "x.hdf5", "w", libver="latest") as file:
        for k, n in enumerate(LENGTHS):
            group = file.create_group(f"episode_{k}")
            group.attrs["total_steps"] = n
            group.create_dataset("observations", data=rng.normal(size=(n + 1, 11)), compression="gzip", chunks=(2, 11))
            group.create_dataset("actions", data=rng.normal(size=(n, 3)), compression="gzip", chunks=(2, 3))
            group["rewards"], group["terminations"] = np.ones(n), np.zeros(n, bool)
            group["truncations"] = np.arange(n) == n - 1
        file.attrs["dataset_id"] = "mujoco/hopper/medium-v0"
    with h5py.File(root / "d4rl" / "x.hdf5", "w") as file:
        for key, width in (("observations", 17), ("actions", 6)):
            file.create_dataset(
                key, data=rng.normal(size=(15, width)), compression="gzip", shuffle=True, fletcher32=True
            )
        file["rewards"], file["terminals"] = np.ones(15), np.isin(np.arange(15), (6, 11))
        file["timeouts"] = np.zeros(15, bool)


def _seed_parquet(root: Path) -> None:
    from tests.lerobot_files import write_lerobot

    shutil.rmtree(root / "frames")
    write_lerobot(root / "frames", LENGTHS, videos=False, stills=True)
    shutil.rmtree(root / "video")
    write_lerobot(root / "video", LENGTHS[:2])
    for name in ("episodes", "info"):
        shutil.rmtree(root / name)
        shutil.copytree(root / "frames", root / name)


def _seed_checkpoints(root: Path) -> None:
    import torch

    from agent import checkpoint
    from agent.agent import build
    from env.normalizer import Normalizer

    arrays = _arrays()
    config = {
        "model": {
            "_target_": "model.diffusion.diffusion.DiffusionModel", "horizon_steps": 4, "obs_dim": 7, "action_dim": 2, "denoising_steps": 5,
            "network": {
                "_target_": "model.diffusion.mlp_diffusion.DiffusionMLP", "horizon_steps": 4, "action_dim": 2, "cond_dim": 7, "time_dim": 4,
                "mlp_dims": [8, 8, 8],
            },
        }
    }  # fmt: skip
    policy = build(config["model"])
    state = policy.state_dict()
    scale = Normalizer.fit(arrays["states"], arrays["actions"])
    checkpoint.save(
        root / "ours" / "state_1.pt",
        {"kind": "pretrain", "epoch": 1, "model": state, "ema": state, "config": config, "normalizer": scale.to_dict(), "extra": {}},
    )  # fmt: skip
    torch.save({"epoch": 1, "model": state, "ema": state}, root / "published" / "state_1.pt")


def _seed_yaml(root: Path) -> None:
    shutil.copy(ROOT / "cfg/gym/pretrain/hopper-medium-v2/pre_diffusion_mlp.yaml", root / "leaf" / "x.yaml")
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from agent.config import register_resolvers

    register_resolvers()
    with initialize_config_dir(str(ROOT / "cfg"), version_base="1.3"):
        whole = compose("robomimic/finetune/can/ft_ppo_diffusion_mlp")
    (root / "whole" / "x.yaml").write_text(OmegaConf.to_yaml(whole))
    (root / "theirs" / "x.yaml").write_text(_PUBLISHED)


_PUBLISHED = """\
defaults:
  - _self_
hydra:
  run:
    dir: ${logdir}
_target_: agent.pretrain.train_diffusion_agent.TrainDiffusionAgent

name: ${env}_pre_diffusion_mlp_ta${horizon_steps}_td${denoising_steps}
logdir: ${oc.env:DPPO_LOG_DIR}/gym-pretrain/${name}/${now:%Y-%m-%d}_${now:%H-%M-%S}_${seed}
train_dataset_path: ${oc.env:DPPO_DATA_DIR}/gym/${env}/train.npz

seed: 42
device: cuda:0
env: hopper-medium-v2
obs_dim: 11
action_dim: 3
denoising_steps: 20
horizon_steps: 4
cond_steps: 1

wandb:
  entity: ${oc.env:DPPO_WANDB_ENTITY}
  project: gym-${env}-pretrain
  run: ${now:%H-%M-%S}_${name}

train:
  n_epochs: 3000
  batch_size: 128
  learning_rate: 1e-3
  weight_decay: 1e-6
  lr_scheduler:
    first_cycle_steps: 3000
    warmup_steps: 1
    min_lr: 1e-4
  epoch_start_ema: 20
  update_ema_freq: 10
  save_model_freq: 100

model:
  _target_: model.diffusion.diffusion.DiffusionModel
  predict_epsilon: True
  denoised_clip_value: 1.0
  network:
    _target_: model.diffusion.mlp_diffusion.DiffusionMLP
    time_dim: 16
    mlp_dims: [512, 512, 512]
    activation_type: ReLU
    residual_style: True
    cond_dim: ${eval:'${obs_dim} * ${cond_steps}'}
    horizon_steps: ${horizon_steps}
    action_dim: ${action_dim}
  horizon_steps: ${horizon_steps}
  obs_dim: ${obs_dim}
  action_dim: ${action_dim}
  denoising_steps: ${denoising_steps}
  device: ${device}

ema:
  decay: 0.995

train_dataset:
  _target_: agent.dataset.sequence.StitchedSequenceDataset
  dataset_path: ${train_dataset_path}
  horizon_steps: ${horizon_steps}
  cond_steps: ${cond_steps}
  device: ${device}
"""


# --------------------------------------------------------------------------------------------------------------- loaders


def _demos(folder: Path) -> None:
    import torch

    from agent.dataset.sequence import StitchedSequenceDataset

    dataset = StitchedSequenceDataset(folder / "train.npz", horizon_steps=3, use_img=True)
    dataset.batch(torch.arange(len(dataset)))
    _whatever(folder / "train.npz", cameras=())


def _whatever(path: Path, cameras: tuple[str, ...] | None = None) -> None:
    from agent.dataset.formats import Wishes, read_any

    demos = read_any(path, Wishes(cameras=cameras))
    for _ in demos.images.frames(range(len(demos))) if demos.images else ():
        pass


def _statistics(folder: Path) -> None:
    from env.normalizer import Normalizer

    Normalizer.load(folder / "normalization.npz")


def _images_of_lift(folder: Path) -> None:
    _whatever(folder / "x.hdf5")
    _whatever(folder / "x.hdf5", cameras=())


def _policy(folder: Path) -> None:
    from agent.checkpoint import load_policy

    load_policy(folder / "state_1.pt")


def _weights(folder: Path) -> None:
    from agent import checkpoint

    checkpoint.load(folder / "state_1.pt")


def _config(folder: Path) -> None:
    """As ``script/run.py`` reads it, up to where it would build and run."""
    from hydra import compose, initialize_config_dir
    from hydra._internal.utils import get_args_parser
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    from agent import compat
    from agent.config import validate
    from script.run import check_readable

    GlobalHydra.instance().clear()
    argv = ["--config-dir", str(folder), "--config-name", "x"]
    check_readable(argv)
    argv = compat.prepare(argv)
    overrides = [f"hydra.searchpath=[file://{ROOT / 'cfg'}]", *get_args_parser().parse_args(argv).overrides]
    with initialize_config_dir(str(folder), version_base="1.3"):
        cfg = compose("x", overrides=overrides)
    OmegaConf.set_struct(cfg, False)
    validate(compat.adapt(cfg, []))


_CAMERA = "observation.images.front"
CASES = {
    "demos": Case("npz", "train.npz", _demos, archive),
    "stored": Case("npz", "train.npz", _demos, archive),
    "statistics": Case("npz", "normalization.npz", _statistics, archive),
    "padded": Case("pickle", "train.pkl", lambda f: _whatever(f / "train.pkl"), program),
    "d3il": Case("pickle", "env_000.pkl", _whatever, program),
    "ours": Case("pt", "state_1.pt", _policy, archive),
    "published": Case("pt", "state_1.pt", _weights, archive),
    "leaf": Case("yaml", "x.yaml", _config, lines),
    "whole": Case("yaml", "x.yaml", _config, lines),
    "theirs": Case("yaml", "x.yaml", _config, lines),
    "robomimic": Case("hdf5", "x.hdf5", _images_of_lift, raw),
    "generic": Case("hdf5", "x.hdf5", lambda f: _whatever(f / "x.hdf5"), raw),
    "minari": Case("hdf5", "x.hdf5", lambda f: _whatever(f / "x.hdf5"), raw),
    "d4rl": Case("hdf5", "x.hdf5", lambda f: _whatever(f / "x.hdf5"), raw),
    "frames": Case("parquet", "data/chunk-000/file-000.parquet", lambda f: _whatever(f, cameras=()), raw),
    "episodes": Case("parquet", "meta/episodes/chunk-000/file-000.parquet", _whatever, raw),
    "video": Case("mp4", f"videos/{_CAMERA}/chunk-000/file-000.mp4", lambda f: _whatever(f, cameras=("front",)), raw),
    "info": Case("parquet", "meta/info.json", _whatever, lines),
}


def _refuse(text: str) -> None:
    from agent.errors import DatasetError

    raise DatasetError(text)


PROBES = {  # what must be noticed, one by one; never planned
    "fine": ("loaded", lambda folder: None),
    "clear": ("refused", lambda folder: _refuse(f"{folder}: damaged")),
    "unnamed": ("mute", lambda folder: _refuse("damaged")),
    "library": ("leak", lambda folder: {}["x"]),
    "folder": ("executed", lambda folder: Path(MARK).mkdir()),
    "code": ("executed", lambda folder: exec("1")),
    "written": ("executed", lambda folder: (folder / "x").write_text("x")),
    "large": ("memory", lambda folder: bytearray(2**36)),
    "dead": ("crash", lambda folder: os._exit(3)),
    "endless": ("hang", lambda folder: time.sleep(3600)),
}
CASES_AND_PROBES = CASES | {name: Case("npz", "x", load, raw) for name, (_, load) in PROBES.items()}
