"""Published files come whole or not at all, whatever the network does; and what a run needs is fetched, or the way to it is shown."""

from __future__ import annotations

import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from agent.download import Patience, catalogue, ensure, fetch, find, forget, notes, recorded, sources
from agent.download.catalogue import DRIVE
from agent.download.transfer import DamagedError, check
from agent.errors import DownloadError
from agent.finetune import base_policy
from agent.pretrain.pretrain import _load_normalizer
from script import download as script
from tests.agent.faulty_server import FAULTS, serve

LIFT = "robomimic/lift/train.npz"
STATE = "robomimic-pretrain/lift/lift_pre_diffusion_mlp_ta4_td20/2024-06-28_14-47-58/checkpoint/state_5000.pt"
ROOT = Path(__file__).resolve().parents[2]
HASTY = Patience(timeout_s=0.25, window_bytes=40, tries=4, progress_bytes=500, pause_s=0.0)


def npz(seed: int, rows: int = 131) -> bytes:
    """A small demonstration file's content; half of it compresses, half does not."""
    rng = np.random.default_rng(seed)
    file = io.BytesIO()
    save = np.savez_compressed if seed % 2 else np.savez
    save(file, states=rng.standard_normal((rows, 7), np.float32), actions=np.zeros((rows, 3), np.float32))
    return file.getvalue()


def pt(seed: int) -> bytes:
    file = io.BytesIO()
    torch.save({"model": {"network.weight": torch.randn(31, 17, generator=torch.Generator().manual_seed(seed))}}, file)
    return file.getvalue()


def members(content: bytes) -> dict[str, bytes]:
    """What a reader gets out of an npz or pt file."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(autouse=True)
def no_drive(monkeypatch):
    """Nothing listens where Google Drive should be; no mirror, not offline."""
    monkeypatch.setattr(sources, "DRIVE", "http://127.0.0.1:9")
    monkeypatch.setattr(sources, "_list_folder", lambda folder_id, patience: {"train.npz": f"file-in-{folder_id}"})
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.delenv("DPPO_MIRROR", raising=False)
    monkeypatch.delenv("DPPO_OFFLINE", raising=False)


@pytest.fixture
def server(monkeypatch):
    """A mirror on this machine, and it is set as one."""
    with serve() as running:
        monkeypatch.setenv("DPPO_MIRROR", running.address)
        yield running


def leftovers(folder) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


# ---- the catalogue


def test_the_catalogue_is_the_published_one():
    entries = catalogue()
    assert [sum(e.kind == kind for e in entries) for kind in ("dataset", "normalization", "checkpoint")] == [20, 20, 62]
    assert len({e.drive_id for e in entries}) == len({e.target for e in entries}) == 102
    # the ids, in the order of the published list: no letter of them may change
    digest = hashlib.sha256("\n".join(e.drive_id for e in entries).encode()).hexdigest()
    assert digest == "328a0320eefe14f1fe058e236a8cd311e120a3330160eb28d13a93eeec1420dc"


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/anywhere/at/all/robomimic/lift/train.npz", LIFT),
        ("data/robomimic/lift/val.npz", None),
        ("data/robomimic/lift2/train.npz", None),
        ("lift/train.npz", None),
        ("data/robomimic/lift-img/normalization.npz", "robomimic/lift-img/normalization.npz"),
        (f"log/{STATE}", STATE),
        (f"log/{STATE.replace('/lift/', '/')}", STATE),  # D2PPO's image configurations leave the task's folder out
        (f"log/{STATE.replace('5000', '3000')}", None),
    ],
)
def test_a_path_is_recognised_by_its_end(path, target):
    entry = find(path)
    assert (entry.target if entry else None) == target


def test_each_file_has_a_page_and_an_alternative():
    said = {e.target: (e.link, e.alternative) for e in catalogue()}
    assert said[LIFT][0] == f"{DRIVE}/drive/folders/1lbXgMKBTAiFdJqPZqWXpwjEyrVW16MBu"
    assert said[LIFT][1].endswith("collect_demos.py --task lift")
    assert said["robomimic/can-img/train.npz"][1].endswith("--task can --images")
    assert said["gym/hopper-medium-v2/normalization.npz"][1].endswith("--task hopper")
    assert said["d3il/avoid_m2/train.npz"][1].endswith("--task avoid_m2")
    assert said[STATE][0] == f"{DRIVE}/file/d/1Ngr-DNxoB9XNCZ2O-NF5p60NzmYlzmWG/view"
    assert said[STATE][1].endswith("--config-name=pre_diffusion_mlp --config-dir=cfg/robomimic/pretrain/lift")
    avoid = next(text for target, (_, text) in said.items() if "avoid_d57_r12_pre_diffusion" in target)
    assert avoid.endswith("--config-name=pre_diffusion_mlp --config-dir=cfg/d3il/pretrain/avoid_m2")


# ---- bar 3: faults


def check_one_run(server, folder, seed: int) -> int:
    """One download through a few random faults; returns how often a partial file was gone on from."""
    rng = np.random.default_rng(seed)
    entry = find(LIFT if rng.random() < 0.5 else STATE)
    content, address = (npz(seed) if entry.target == LIFT else pt(seed)), f"/{entry.target}"
    given = rng.random() < 0.5  # whether the mirror has a .sha256
    server.files = {address: content}
    if given:
        server.files[f"{address}.sha256"] = f"{hashlib.sha256(content).hexdigest()}  x\n".encode()
    slow = rng.random() < 0.2  # each stall takes the time that a client waits
    choices = [f for f in (*FAULTS, *["cut"] * 5) if slow or f not in ("stall", "drip", "silent")]
    server.faults = {
        address: [(str(rng.choice(choices)), int(rng.integers(len(content)))) for _ in range(rng.integers(0, 5))]
    }
    path = folder / str(seed) / entry.target
    for _ in range(5):  # a person who tries again after an error
        try:
            ensure(path, HASTY)
        except DownloadError as error:
            assert str(path) in str(error) and DRIVE in str(error) and "python script/" in str(error)
            assert not path.exists() and not notes.note_of(path).exists()
            continue
        found = path.read_bytes()
        assert members(found) == members(content), f"seed {seed}: a wrong file was accepted"
        assert found == content or not given
        assert recorded(path) == hashlib.sha256(found).hexdigest()
        assert sorted(os.listdir(path.parent)) == [path.name, f"{path.name}.sha256"]
        return sum(bool(wanted) for wanted in server.ranges(address))
    raise AssertionError(f"seed {seed}: never came although the faults were over: {server.asked}")


def test_a_hundred_downloads_through_random_faults(server, tmp_path):
    resumed = 0
    for seed in range(100):
        server.asked.clear()
        resumed += check_one_run(server, tmp_path, seed)
    assert resumed > 30


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_never_ends_is_refused(server, tmp_path, fault):
    content = npz(2)
    path, address = tmp_path / LIFT, f"/{LIFT}"
    server.files = {address: content, f"{address}.sha256": hashlib.sha256(content).hexdigest().encode()}
    server.faults = {address: [(fault, 77)] * 99}
    if fault == "no_range":  # that one is no obstacle
        ensure(path, HASTY)
        assert path.read_bytes() == content
        return
    if fault in (
        "cut",
        "moved_range",
        "moved_end",
    ):  # 77 bytes at a time; and without an interruption nobody asks for a range
        ensure(path, Patience(tries=3, progress_bytes=77, pause_s=0))
        assert path.read_bytes() == content
        assert len(server.ranges(address)) == (-(-len(content) // 77) if fault == "cut" else 1)
        return
    began = time.monotonic()
    with pytest.raises(DownloadError, match="mirror http://127") as caught:
        ensure(path, HASTY)
    assert time.monotonic() - began < 10 and not path.exists()
    expected = {
        "404": "HTTP 404", "403": "HTTP 403", "500": "HTTP 500", "503": "after 4 attempts.*HTTP 503", "page": "Quota exceeded",
        "plain_page": "Quota exceeded", "loop": "HTTP 302", "elsewhere": "redirects to ftp:", "stall": "stalls", "drip": "stalls",
        "silent": "does not answer", "gzip": "compresses", "flip": "does not match its checksum|sha256|damaged", "short": "no whole .npz",
        "long": f"{len(content)} of {len(content) + 5} bytes, then .*HTTP 416", "endless": "no whole .npz", "other": "no whole .npz", "joined": "no whole .npz",
    }  # fmt: skip
    assert re.search(expected[fault], str(caught.value)), str(caught.value)
    if fault in ("404", "403", "page", "elsewhere", "gzip"):
        assert server.ranges(address) == [""]  # asked once and not again


def test_an_interrupted_download_goes_on_where_it_stopped(server, tmp_path):
    content = npz(3)
    path, address = tmp_path / LIFT, f"/{LIFT}"
    server.files, server.faults = {address: content}, {address: [("cut", 613), ("cut", 411)]}
    once = Patience(tries=1)
    with pytest.raises(DownloadError, match="first 613 bytes are kept"):
        ensure(path, once)
    with pytest.raises(DownloadError, match="first 1024 bytes are kept"):
        ensure(path, once)
    ensure(path, once)
    assert server.ranges(address) == ["", "bytes=613-", "bytes=1024-"]
    assert path.read_bytes() == content and leftovers(tmp_path) == ["train.npz", "train.npz.sha256"]


def test_bytes_of_two_versions_are_never_joined(server, tmp_path):
    old, new = npz(4), npz(6)
    path, address = tmp_path / LIFT, f"/{LIFT}"
    server.files, server.faults = {address: old}, {address: [("cut", 613)]}
    with pytest.raises(DownloadError):
        ensure(path, Patience(tries=1))
    server.files[address] = new
    ensure(path, Patience(tries=1))
    assert path.read_bytes() == new and server.ranges(address) == ["", "bytes=613-"]


@pytest.mark.parametrize("fault", ["moved_range", "moved_end", "joined"])
def test_a_range_that_does_not_fit_is_not_joined_in_the_first_place(server, tmp_path, caplog, fault):
    content = npz(4)
    path, address = tmp_path / LIFT, f"/{LIFT}"
    server.files, server.faults = {address: content}, {address: [("cut", 613), (fault, 0)]}
    ensure(path, HASTY)
    assert path.read_bytes() == content and server.ranges(address) == ["", "bytes=613-", ""]
    assert not caplog.records  # nothing damaged had to be thrown away


@pytest.mark.parametrize("given", [True, False])
def test_damage_on_the_way_is_fetched_anew_once(server, tmp_path, caplog, given):
    content = npz(4)
    path, address = tmp_path / LIFT, f"/{LIFT}"
    server.files, server.faults = {address: content}, {address: [("cut", 613), ("flip", 900)]}
    if given:
        server.files[f"{address}.sha256"] = hashlib.sha256(content).hexdigest().encode()
    ensure(path, HASTY)
    assert path.read_bytes() == content and server.ranges(address) == ["", "bytes=613-", ""]
    assert "damaged" in caplog.text


def test_a_partial_file_of_another_source_is_not_gone_on_from(server, tmp_path, monkeypatch):
    content = npz(5)
    path, address = tmp_path / LIFT, f"/{LIFT}"
    server.files, server.faults = {address: content}, {address: [("cut", 613)]}
    with pytest.raises(DownloadError):
        ensure(path, Patience(tries=1))
    monkeypatch.setenv("DPPO_MIRROR", server.address.replace("127.0.0.1", "localhost"))
    ensure(path, Patience(tries=1))
    assert path.read_bytes() == content and server.ranges(address) == ["", ""]


# ---- sha256


def test_a_changed_file_is_noticed_at_use_and_at_the_next_download(server, tmp_path):
    path, address = tmp_path / LIFT, f"/{LIFT}"
    server.files = {address: npz(7)}
    ensure(path, HASTY)
    first = recorded(path)
    assert notes.note_of(path).read_text() == f"{first}  train.npz\n"  # as sha256sum writes it
    damaged = bytearray(path.read_bytes())
    damaged[300] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DownloadError, match=f"{path}: not what was downloaded.*Delete it to fetch it again"):
        ensure(path, HASTY)
    path.unlink()
    server.files = {address: npz(8)}  # whole, but not the file of the first time
    with pytest.raises(
        DownloadError, match=f"(?s)expected {first} .noted in .*delete that if the file was published anew"
    ):
        ensure(path, HASTY)
    assert not path.exists()
    forget(path)
    ensure(path, HASTY)
    assert path.read_bytes() == npz(8)


def test_the_sha256_of_a_mirror_decides(server, tmp_path):
    path, address = tmp_path / LIFT, f"/{LIFT}"
    server.files = {address: npz(7), f"{address}.sha256": hashlib.sha256(npz(8)).hexdigest().upper().encode()}
    with pytest.raises(DownloadError, match=r"its sha256 is .* \(given beside it\)"):
        ensure(path, HASTY)
    assert leftovers(tmp_path) == []
    server.files[f"{address}.sha256"] = b"<!DOCTYPE html>Not here"  # some servers answer so in place of 404
    ensure(path, HASTY)
    assert path.read_bytes() == npz(7)
    path.unlink()
    forget(path)
    for status in ("500", "503"):  # a sha256 that may be there is not gone without
        server.faults = {f"{address}.sha256": [(status, 0)] * 9}
        with pytest.raises(DownloadError, match=rf"train\.npz\.sha256: .*HTTP {status}"):
            ensure(path, HASTY)


def test_a_file_of_ones_own_is_left_alone(server, tmp_path):
    path = tmp_path / LIFT
    path.parent.mkdir(parents=True)
    path.write_bytes(b"my own")
    ensure(path, HASTY)
    assert path.read_bytes() == b"my own" and not server.asked and leftovers(tmp_path) == ["train.npz"]


def test_published_statistics_do_not_join_demonstrations_of_ones_own(server, tmp_path):
    path = tmp_path / "robomimic/lift/normalization.npz"
    server.files = {f"/{LIFT}": npz(1), "/robomimic/lift/normalization.npz": npz(2)}
    path.parent.mkdir(parents=True)
    (path.parent / "train.npz").write_bytes(b"my own")
    with pytest.raises(
        DownloadError, match=r"train\.npz beside it was not downloaded.*script/download\.py robomimic/lift/norm"
    ):
        ensure(path, HASTY)
    (path.parent / "train.npz").unlink()
    ensure(path.parent / "train.npz", HASTY)
    ensure(path, HASTY)
    assert path.read_bytes() == npz(2)


@pytest.mark.parametrize("note", ["", "<html>", "abc  train.npz"])
def test_a_note_that_is_none_is_not_believed(server, tmp_path, note):
    path = tmp_path / LIFT
    server.files = {f"/{LIFT}": npz(1)}
    ensure(path, HASTY)
    notes.note_of(path).write_text(note)
    with pytest.raises(DownloadError, match=r"train\.npz\.sha256: not a sha256.*Delete it"):
        ensure(path, HASTY)


# ---- what is looked at where no sha256 is known


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        (".npz", b"", "0 bytes came"),
        (".npz", b" \n<html><title>Sign in</title>", r'web page.*"Sign in"'),
        (".npz", b"\x80\x04K\x01.", "no whole .npz"),
        (".npz", npz(1)[:-1], "no whole .npz"),
        (".npz", npz(1) + b"\n", "no whole .npz"),
        (".npz", npz(1) + npz(2), "more or less came"),
        (".npz", npz(1)[:500] + npz(1), "more or less came"),
        (".npz", npz(2)[:700] + b"?" + npz(2)[701:], "does not match its checksum|damaged"),
        (".npz", pt(1), "another kind than .npz"),
        (".pt", npz(1), "another kind than .pt"),
    ],
)
def test_damage_is_seen_without_a_sha256(tmp_path, kind, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DamagedError, match=message):
        check(tmp_path / "file", kind)


def test_what_is_whole_passes_and_a_bomb_is_not_inflated(tmp_path):
    for kind, content in ((".npz", npz(1)), (".npz", npz(2)), (".pt", pt(1)), (".pth", pt(2)), (".zip", npz(3))):
        (tmp_path / "file").write_bytes(content)
        check(tmp_path / "file", kind)
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as member:
        member.write(bytes(2**16))
    content = bytearray((tmp_path / "bomb").read_bytes())
    size = content.index(b"PK\x01\x02") + 24  # in the directory: how long the member says it is
    content[size : size + 4] = (2**31).to_bytes(4, "little")
    (tmp_path / "bomb").write_bytes(content)
    with pytest.raises(DamagedError, match="inflates to 2147483648 bytes"):
        check(tmp_path / "bomb", ".npz")


# ---- sources


def test_a_folder_as_mirror_needs_no_network(tmp_path, monkeypatch):
    mirror, path = tmp_path / "mirror", tmp_path / "here" / LIFT
    (mirror / LIFT).parent.mkdir(parents=True)
    (mirror / LIFT).write_bytes(npz(1))
    monkeypatch.setenv("DPPO_MIRROR", str(mirror))
    monkeypatch.setenv("DPPO_OFFLINE", "1")
    notes.write(mirror / LIFT, "0" * 64)
    with pytest.raises(
        DownloadError, match="(?s)mirror .*expected 0000.*given beside it.*DPPO_OFFLINE is set|DPPO_OFFLINE"
    ):
        ensure(path)
    assert leftovers(tmp_path / "here") == []
    notes.write(mirror / LIFT, hashlib.sha256(npz(1)).hexdigest())
    ensure(path)
    assert path.read_bytes() == npz(1)
    with pytest.raises(DownloadError, match=r"can/train\.npz: No such file"):
        ensure(tmp_path / "here/robomimic/can/train.npz")
    assert not (tmp_path / "here/robomimic/can").exists()  # nothing is left of a download that never began


def test_offline_says_so_at_once(server, tmp_path, monkeypatch):
    monkeypatch.setenv("DPPO_OFFLINE", "1")
    with pytest.raises(DownloadError, match="DPPO_OFFLINE is set: the mirror and Google Drive"):
        ensure(tmp_path / LIFT)
    assert not server.asked and not list(tmp_path.iterdir())
    ensure(tmp_path / "robomimic/lift/unpublished.npz")


def test_without_internet_there_is_one_quick_attempt(tmp_path):
    began = time.monotonic()
    with pytest.raises(DownloadError) as caught:
        ensure(tmp_path / STATE, Patience(pause_s=60))
    assert time.monotonic() - began < 5 and not list(tmp_path.iterdir())
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tmp_path / STATE} is not there and could not be fetched."
    assert lines[1].startswith("  Google Drive: no connection (Connection refused")
    assert lines[2:] == [
        f"By hand: get it from {find(STATE).link}",
        f"  and put it at {tmp_path / STATE}",
        find(STATE).alternative,
    ]


@pytest.mark.parametrize("mirror", ["ftp://example.org/x", "no/such/folder", "file:///etc"])
def test_a_mirror_that_is_none_is_named(tmp_path, monkeypatch, mirror):
    monkeypatch.setenv("DPPO_MIRROR", mirror)
    with pytest.raises(DownloadError, match=f"DPPO_MIRROR: expected .*{re.escape(repr(mirror))}"):
        ensure(tmp_path / LIFT)


def test_google_drive_and_its_pages(server, tmp_path, monkeypatch):
    """A data set's folder is listed, the page that warns of unscanned files is passed, the quota page is not taken for the file."""
    monkeypatch.delenv("DPPO_MIRROR")
    monkeypatch.setattr(sources, "DRIVE", server.address)
    path, question = tmp_path / LIFT, f"/uc?id=file-in-{find(LIFT).drive_id}"
    form = '<form id="download-form" action="{}"><input type="hidden" name="id" value="7"></form>'
    content = npz(9)
    server.files = {"/download?id=7": content}
    server.pages = {question: form.format(f"{server.address}/download").encode()}
    server.faults = {"/download?id=7": [("cut", 501)]}
    ensure(path, HASTY)
    assert path.read_bytes() == content and server.ranges("/download?id=7") == ["", "bytes=501-"]
    for page, message in (
        ('<p class="uc-error-subcaption">Too many users have viewed this file.</p>', "Too many users have viewed"),
        (form.format("http://evil.example.org/download"), "leads to http://evil.example.org"),
        ("<html>nothing of use</html>", "not shared any more, or too many downloads"),
    ):
        path.unlink(missing_ok=True)
        server.pages = {question: page.encode()}
        with pytest.raises(DownloadError, match=message):
            ensure(path, HASTY)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"a.txt": "1", "deep/train.npz": "2", "x.zip": "3"}, (".npz", "2")),
        ({"a.txt": "1", "all.ZIP": "3"}, (".zip", "3")),
        ({"a/train.npz": "1", "b/train.npz": "2"}, None),
        ({"a.zip": "1", "b.zip": "2"}, None),
        ({}, None),
    ],
)
def test_the_file_in_a_folder(files, found):
    if found is None:
        with pytest.raises(sources.RefusedError, match=r"the folder holds .*; expected one train\.npz or one zip file"):
            sources._pick(files, "train.npz")
    else:
        assert sources._pick(files, "train.npz") == found


def test_a_zip_file_gives_its_one_member_and_writes_nowhere_else(server, tmp_path, monkeypatch):
    monkeypatch.delenv("DPPO_MIRROR")
    monkeypatch.setattr(sources, "DRIVE", server.address)
    monkeypatch.setattr(sources, "_list_folder", lambda folder_id, patience: {"lift.zip": "zipped"})
    path = tmp_path / "data" / LIFT

    def zipped(*names: str) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name in names:
                archive.writestr(name, npz(11))
        return file.getvalue()

    server.files = {"/uc?id=zipped": zipped("../../../train.npz", "/etc/evil.txt", "../other.npz")}
    ensure(path, HASTY)
    assert path.read_bytes() == npz(11) and leftovers(tmp_path) == ["train.npz", "train.npz.sha256"]
    path.unlink()
    forget(path)
    server.files = {"/uc?id=zipped": zipped("a/train.npz", "b/train.npz")}
    with pytest.raises(DownloadError, match=r"holds 2 files called train\.npz, expected one"):
        ensure(path, HASTY)


# ---- this machine


def test_two_at_once_fetch_once(server, tmp_path):
    path, address = tmp_path / LIFT, f"/{LIFT}"
    server.files, server.faults = {address: npz(1)}, {address: [("stall", 300)]}
    errors: list[BaseException] = []

    def one() -> None:
        try:
            ensure(path, HASTY)
        except BaseException as error:  # noqa: BLE001  shown by the test
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and path.read_bytes() == npz(1)
    assert server.ranges(address) == ["", "bytes=300-"]
    assert leftovers(tmp_path) == ["train.npz", "train.npz.sha256"]


def test_a_killed_process_leaves_a_part_that_the_next_one_goes_on_from(server, tmp_path):
    path, address = tmp_path / LIFT, f"/{LIFT}"
    content = npz(12)
    server.files, server.faults = {address: content}, {address: [("stall", 801)]}
    program = f"from agent.download import ensure; ensure({str(path)!r})"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    part = path.with_name("train.npz.download")
    until = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size == 801) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not path.exists() and part.stat().st_size == 801
    ensure(path, HASTY)
    assert path.read_bytes() == content and server.ranges(address) == ["", "bytes=801-"]
    assert leftovers(tmp_path) == ["train.npz", "train.npz.sha256"]  # neither the lock nor the part


def test_a_full_disk_is_said_and_not_left_full(server, tmp_path):
    path, program = tmp_path / LIFT, "import resource; from agent.download import ensure; "
    server.files = {f"/{LIFT}": npz(1)}
    program += (
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); ensure({str(path)!r})"  # no file may be longer
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert re.search(r"the disk is full.*Free space or set DPPO_DATA_DIR", done.stderr), done.stderr
    assert leftovers(tmp_path) == []


def test_too_little_space_is_seen_before_the_first_byte(server, tmp_path, monkeypatch):
    server.files = {f"/{LIFT}": npz(1)}
    monkeypatch.setattr("agent.download.transfer.shutil.disk_usage", lambda folder: SimpleNamespace(free=10))
    with pytest.raises(DownloadError, match=r"are still to come, but only 0\.0 MB are free"):
        ensure(tmp_path / LIFT, HASTY)
    assert not (tmp_path / "robomimic").exists()


def test_a_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "robomimic").write_text("a file where a folder should be")
    with pytest.raises(DownloadError, match=r"lift cannot be written \(Not a directory\).*DPPO_DATA_DIR"):
        ensure(tmp_path / LIFT, HASTY)


# ---- where runs ask


def test_runs_fetch_what_they_need(tmp_path, monkeypatch, caplog):
    mirror = tmp_path / "mirror"
    statistics = {"obs_min": -np.ones(5), "obs_max": np.ones(5), "action_min": -np.ones(3), "action_max": np.ones(3)}
    (mirror / "robomimic/lift").mkdir(parents=True)
    np.savez(mirror / "robomimic/lift/normalization.npz", **statistics)
    (mirror / STATE).parent.mkdir(parents=True)
    (mirror / STATE).write_bytes(pt(1))
    monkeypatch.setenv("DPPO_MIRROR", str(mirror))
    monkeypatch.setenv("DPPO_OFFLINE", "1")
    for name in ("a", "b"):
        cfg = OmegaConf.create(
            {
                "base_policy_path": str(tmp_path / name / STATE),
                "normalization_path": str(tmp_path / name / "robomimic/lift/normalization.npz"),
                "obs_dim": 5,
                "action_dim": 3,
            }
        )
        normalizer = _load_normalizer(cfg) if name == "a" else base_policy.normalizer_of({}, cfg)
        assert (normalizer.obs_dim, normalizer.action_dim) == (5, 3)
        assert base_policy.find(cfg).read_bytes() == pt(1)
    assert not caplog.records
    forget(tmp_path / "b/robomimic/lift/normalization.npz")
    base_policy.normalizer_of({}, cfg)
    assert "a published checkpoint works with the published statistics only" in caplog.text


# ---- the command


def test_the_command_lists_fetches_and_verifies(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DPPO_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("DPPO_LOG_DIR", str(tmp_path / "log"))
    server.files = {f"/{LIFT}": npz(1), "/robomimic/lift/normalization.npz": npz(2), f"/{STATE}": pt(1)}

    def run(*arguments: str) -> tuple[int, str, str]:
        status = 0
        try:
            script.main(list(arguments))
        except SystemExit as stop:
            status = stop.code
        return (status or 0, *capsys.readouterr())

    assert "0 of 102 files are here" in run()[1]
    status, out, _ = run("robomimic/lift", "*/lift/lift_pre_diffusion_mlp_ta4*")
    assert status == 0 and out.count("as downloaded") == 3
    assert (tmp_path / "data" / LIFT).read_bytes() == npz(1) and (tmp_path / "log" / STATE).read_bytes() == pt(1)
    assert re.search(rf"dataset +0\.0 MB +{LIFT}\n", run()[1]) and "3 of 102 files are here" in run()[1]
    assert run("--verify")[:2] == (0, out)
    (tmp_path / "log" / STATE).write_bytes(pt(2))
    status, _, err = run("--verify")
    assert status == 1 and "not what was downloaded" in err
    status, _, err = run("robomimic/can")
    assert status == 1 and "collect_demos.py --task can" in err
    status, _, err = run("robomimic/lyft")
    assert status == 2 and "nearest: robomimic/lift" in err
    assert run("--all", "robomimic/lift")[0] == 2


def test_what_is_here_already_is_not_fetched(server, tmp_path):
    path = tmp_path / LIFT
    path.parent.mkdir(parents=True)
    path.write_bytes(b"put here by hand")
    fetch(find(LIFT), path, HASTY)
    assert path.read_bytes() == b"put here by hand" and not server.asked
