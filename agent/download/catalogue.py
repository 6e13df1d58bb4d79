"""Which files are published: ``cfg/base/downloads.yaml``, and what there is to say about each of them."""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from omegaconf import OmegaConf

from agent.errors import DownloadError

CFG = Path(__file__).resolve().parents[2] / "cfg"
CATALOGUE = CFG / "base" / "downloads.yaml"
DRIVE = "https://drive.google.com"
KINDS = {"datasets": "dataset", "normalizations": "normalization", "checkpoints": "checkpoint"}  # sections of CATALOGUE
_MODES = {"avoid_d56_r12": "avoid_m1", "avoid_d57_r12": "avoid_m2", "avoid_d58_r12": "avoid_m3"}  # D3IL's run names


@dataclass(frozen=True)
class Entry:
    """One published file."""

    kind: str  # a value of KINDS
    target: str  # where it belongs, below the data or log folder: robomimic/lift/train.npz
    drive_id: str  # of the file; of the folder that holds it for a data set

    @property
    def link(self) -> str:
        """Its page, for a browser."""
        return (
            f"{DRIVE}/drive/folders/{self.drive_id}"
            if self.kind == "dataset"
            else f"{DRIVE}/file/d/{self.drive_id}/view"
        )

    @property
    def place(self) -> Path:
        """Where it belongs on this machine (``DPPO_DATA_DIR``, ``DPPO_LOG_DIR``)."""
        variable, default = ("DPPO_LOG_DIR", "log") if self.kind == "checkpoint" else ("DPPO_DATA_DIR", "data")
        return Path(os.environ.get(variable) or default).expanduser() / self.target

    @property
    def alternative(self) -> str:
        """How to do without it."""
        suite, name = self.target.split("/")[0].removesuffix("-pretrain"), self.target.split("/")[-2]
        if self.kind == "checkpoint":
            run = self.target.split("/")[-4]
            task, method = re.fullmatch(r"(.+?)_(pre_.+?)_ta\d+.*", run).groups()
            folder = CFG / suite / "pretrain" / _MODES.get(task, task.removesuffix("_dim"))
            if not (folder / f"{method}.yaml").is_file():
                return "Or pre-train a policy: cfg/pretraining.md"
            return f"Or pre-train one: python script/run.py --config-name={method} --config-dir={folder.relative_to(CFG.parent)}"
        images = " --images" if name.endswith("-img") else ""
        task = name.removesuffix("-img").removesuffix("-medium-v2")
        return f"Or make demonstrations, scripted ones instead of the papers': python script/collect_demos.py --task {task}{images}"


@functools.cache
def catalogue() -> tuple[Entry, ...]:
    """All published files.

    Raises:
        DownloadError: ``cfg/base/downloads.yaml`` is absent or not what it should be.
    """
    try:
        sections = OmegaConf.to_container(OmegaConf.load(CATALOGUE))
        entries = tuple(Entry(KINDS[name], path, i) for name, files in sections.items() for path, i in files.items())
    except Exception as error:  # noqa: BLE001  any parser's error
        raise DownloadError(f"{CATALOGUE}: cannot be read as three tables of path: id ({error})") from error
    for entry in entries:
        path, name = PurePosixPath(entry.target), str(entry.drive_id)
        if path.is_absolute() or ".." in path.parts or len(path.parts) < 3 or not re.fullmatch(r"[-\w]{20,}", name):
            raise DownloadError(f"{CATALOGUE}: expected <suite>/<task>/<file>: <Google Drive id>, found {path}: {name}")
    return entries


def find(path: str | os.PathLike[str]) -> Entry | None:
    """The published file that ``path`` stands for, whatever the data and log folders are called; None: it is not a published one."""
    parts = Path(path).parts
    for entry in catalogue():
        own = PurePosixPath(entry.target).parts
        own = own[-4:] if entry.kind == "checkpoint" else own  # some D2PPO configurations leave out the task's folder
        if parts[-len(own) :] == own:
            return entry
    return None
