"""Images that stay in the file: a data set larger than memory trains."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from agent import memory
from agent.dataset import demos
from agent.dataset.demos import read_demos
from agent.dataset.image_stream import save_demos_streamed
from agent.dataset.sequence import StitchedSequenceDataset
from agent.errors import DatasetError, UsageError

ROOT = Path(__file__).resolve().parent.parent.parent
LENGTHS, SHAPE = [7, 5, 11], (3, 5, 7)
# Loads images of 192 MiB in a process that may take 48 MiB more than it has, and reads two batches from them.
CHILD = """
import resource, sys, torch
from agent.dataset.sequence import StitchedSequenceDataset
used = int(next(s for s in open("/proc/self/status") if s.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 48 * 2**20,) * 2)
try:
    bytearray(96 * 2**20)
except MemoryError:
    print("limited")
dataset = StitchedSequenceDataset(sys.argv[1], horizon_steps=2, use_img=True)
rgb = dataset.batch(torch.tensor([0, len(dataset) - 1])).conditions["rgb"]
print(rgb.shape, rgb[0].unique().tolist(), rgb[1].unique().tolist())
"""


def arrays(lengths) -> dict[str, np.ndarray]:
    rng, total = np.random.default_rng(0), int(np.sum(lengths))
    states, actions = (rng.uniform(-1, 1, (total, n)).astype(np.float32) for n in (7, 5))
    return {"states": states, "actions": actions, "traj_lengths": np.array(lengths)}


def images(total: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (total, *SHAPE), np.uint8)


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "train.npz"
    save_demos_streamed(path, arrays(LENGTHS), np.split(images(23), [4, 9]), SHAPE, compress=False)
    return path


def test_uncompressed_images_are_a_view_of_the_file(stored, tmp_path):
    found = read_demos(stored, use_img=True, max_n_episodes=2)["images"]
    assert isinstance(found, np.memmap) and not found.flags.writeable
    np.testing.assert_array_equal(found, images(23)[:12])
    save_demos_streamed(tmp_path / "small.npz", arrays(LENGTHS), [images(23)], SHAPE)
    assert not isinstance(read_demos(tmp_path / "small.npz", use_img=True)["images"], np.memmap)
    mapped, loaded = (
        StitchedSequenceDataset(p, horizon_steps=3, cond_steps=2, img_cond_steps=2, use_img=True)
        for p in (stored, tmp_path / "small.npz")
    )
    order = torch.randperm(len(mapped))
    for key in ("state", "rgb"):
        assert torch.equal(mapped.batch(order).conditions[key], loaded.batch(order).conditions[key])
    assert loaded.n_bytes - mapped.n_bytes == images(23).nbytes
    np.savez(tmp_path / "plain.npz", **arrays(LENGTHS), images=images(23))  # what np.savez makes is mapped, too
    np.testing.assert_array_equal(read_demos(tmp_path / "plain.npz", use_img=True)["images"], images(23))


def test_images_larger_than_memory(stored, tmp_path, monkeypatch):
    save_demos_streamed(tmp_path / "small.npz", arrays(LENGTHS), [images(23)], SHAPE)
    monkeypatch.setattr(memory, "free_bytes", lambda device: images(23).nbytes - 1)
    assert len(read_demos(stored, use_img=True)["images"]) == 23
    with pytest.raises(UsageError, match=r"images of 23 steps.*max_n_episodes or store its images uncompressed"):
        read_demos(tmp_path / "small.npz", use_img=True)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory as Linux has them")
def test_a_process_that_could_not_hold_them_trains(tmp_path):
    lengths, shape = [1024, 1024], (3, 128, 256)
    pieces = (np.full((64, *shape), k, np.uint8) for k in range(32))
    save_demos_streamed(tmp_path / "train.npz", arrays(lengths), pieces, shape, compress=False)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "train.npz")],
        capture_output=True, text=True, cwd=ROOT, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["limited", "torch.Size([2, 1, 3, 128, 256]) [0] [31]"]


def rezipped(path: Path, change) -> None:
    """``change`` applied to the bytes of every member, checksums and sizes made anew."""
    with zipfile.ZipFile(path) as z:
        members = {name: change(z.read(name)) for name in z.namelist()}
    with zipfile.ZipFile(path, "w") as z:
        for name, data in members.items():
            z.writestr(name, data)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(23, 3, 5, 7)", "(23, 3, 5, 8)", "images: should have 2760 bytes, and has 2415"),
        ("(23, 3, 5, 7)", "(22, 3, 5, 7)", "images: should have 2310 bytes"),
        ("(23, 3, 5, 7)", "(69, 1, 5, 7)", "images has 69 rows, but traj_lengths add up to 23"),
        ("(23, 3, 5, 7)", "(23,-3,-5, 7)", "images: expected an array of numbers"),
        ("(23, 3, 5, 7)", "(23, 15, 7  )", r"images: expected \(T, C, H, W\) uint8"),
        ("(23, 7)", "(7, 23)", "traj_lengths holds 11, but states has 7 rows"),
        ("(23, 7)", "(2**7) ", "damaged"),
        ("(23, 7)", "(23 , 7", "damaged"),
        ("'<f4'", "'|O8'", r"states holds Python objects \(a pickle\)"),
        ("'<f4'", "'|S4'", "states: expected an array of numbers, found |S4"),
        ("NUMPY\x01\x00", "NUMPY\x03\x00", r"states: is in npy format \(3, 0\)"),
    ],
)
def test_headers_are_believed_only_as_far_as_the_file_goes(stored, old, new, message):
    rezipped(stored, lambda data: data.replace(old.encode(), new.encode()))
    with pytest.raises(DatasetError, match=rf"train\.npz: (damaged or cut short \()?{message}"):
        read_demos(stored, use_img=True)


def test_every_cut_is_an_error(stored):
    data = stored.read_bytes()
    for end in range(0, len(data), 37):
        stored.write_bytes(data[:end])
        with pytest.raises(DatasetError, match="damaged"):
            read_demos(stored, use_img=True)


def test_a_small_file_that_would_fill_memory(tmp_path, monkeypatch):
    """A compressed array of a thousand times its size: refused by its header, before anything is allocated."""
    many = {"states": np.zeros((2**18, 7), np.float32), "actions": np.zeros((2**18, 5), np.float32)}
    np.savez_compressed(tmp_path / "train.npz", **many, traj_lengths=np.array([2**18]))
    assert (tmp_path / "train.npz").stat().st_size < 2**16
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**22)
    monkeypatch.setattr(demos, "WORTH_A_WORD", 2**23)
    with pytest.raises(UsageError, match="needs 12.0 MiB of memory"):
        read_demos(tmp_path / "train.npz")
