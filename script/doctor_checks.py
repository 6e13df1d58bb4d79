"""The checks of ``doctor.py`` that need no other process. Each returns findings and may fail in any way: the doctor says so and goes on.

Nothing heavy is imported here: on a machine where torch or numpy is missing, saying so is the doctor's task.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OK, NOTE, WARN, BAD = "ok", "note", "warn", "bad"
SET_UP = "bash script/setup.sh"
GIB = 2**30
TASKS = ("lift", "can", "square", "transport")
SHOWN = ("torch", "mujoco", "robosuite", "numba", "numpy", "hydra-core", "gymnasium", "h5py", "wandb")


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``mend`` is the one command (or sentence) that helps, empty where nothing is wrong."""

    section: str
    item: str
    status: str  # OK, NOTE: worth knowing, WARN: something will not work or be slow, BAD: nothing will
    found: str
    mend: str = ""

    def as_dict(self) -> dict[str, str]:
        """For ``--json``."""
        return asdict(self)


# --------------------------------------------------------------------------------------------------- this process


def python(version: tuple[int, ...] = sys.version_info[:3]) -> list[Finding]:
    """The interpreter, and whether it is one of ours."""
    text = f"{'.'.join(map(str, version))} at {sys.executable}"
    if not (3, 10) <= version[:2] <= (3, 12):
        return [Finding("software", "Python", BAD, f"{text}; expected 3.10, 3.11 or 3.12", SET_UP)]
    if sys.prefix == sys.base_prefix and (ROOT / ".venv" / "bin" / "python").exists():
        return [Finding("software", "Python", NOTE, f"{text}, not the one of .venv", "source .venv/bin/activate")]
    return [Finding("software", "Python", OK, text)]


def pins() -> dict[str, set[str]]:
    """Tested versions by package, from constraints.txt."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        match = re.match(r"([A-Za-z0-9_.-]+)==([^\s;]+)", line)
        if match:
            found.setdefault(_canonical(match[1]), set()).add(match[2])
    return found


def packages() -> list[Finding]:
    """Every requirement of pyproject.toml: installed, within its range, and whether it is the version that was tested."""
    try:
        from script.requirements import requirements
    except ImportError as error:  # it reads pyproject.toml with pip's own libraries
        return [Finding("software", "packages", BAD, f"nothing is installed here, not even pip ({error})", SET_UP)]
    tested, findings, fine = pins(), [], []
    for requirement in sorted(requirements([]), key=lambda r: r.name):
        expected = str(requirement.specifier) or "any version"
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding("software", requirement.name, BAD, f"not installed; expected {expected}", SET_UP))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found = f"{version}; expected {expected}"
            findings.append(Finding("software", requirement.name, BAD, found, SET_UP))
            continue
        pin = tested.get(_canonical(requirement.name), {version})
        told = "" if version.split("+")[0] in pin else f" (tested with {' or '.join(sorted(pin))})"
        if told or requirement.name in SHOWN:
            findings.append(Finding("software", requirement.name, NOTE if told else OK, version + told))
        else:
            fine.append(requirement.name)
    if fine:
        findings.append(Finding("software", f"{len(fine)} others", OK, ", ".join(fine)))
    return findings


def machine() -> list[Finding]:
    """Cores and memory, a container's limits included, and how busy the machine is."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota()
    text = f"{cores} usable" + (f", limited to {quota:g} by the container" if quota and quota < cores else "")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    busy = load > 1.5 * cores
    findings = [
        Finding("machine", "CPU cores", NOTE if busy else OK, f"{text}; load {load:.1f}" + (", busy" if busy else ""))
    ]
    total, free = memory()
    if free is None:
        return [*findings, Finding("machine", "memory", NOTE, "the system does not say")]
    low = free < 2 * GIB
    found = f"{free / GIB:.1f} GiB free of {(total or free) / GIB:.1f}"
    mend = "close other programs, or set env.n_envs and train.batch_size lower" if low else ""
    return [*findings, Finding("machine", "memory", WARN if low else OK, found, mend)]


def memory(root: Path = Path("/")) -> tuple[int | None, int | None]:
    """Bytes in all and free, of the machine or of its container, whichever is less; None where nothing says so."""
    total = free = None
    try:
        lines = dict(re.findall(r"(\w+):\s+(\d+) kB", (root / "proc/meminfo").read_text(encoding="ascii")))
        total, free = 1024 * int(lines["MemTotal"]), 1024 * int(lines["MemAvailable"])
    except (OSError, KeyError, ValueError):
        pass
    try:
        limit = int((root / "sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int((root / "sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        total, free = min(limit, total or limit), min(max(0, limit - used), limit if free is None else free)
    except (OSError, ValueError):  # no container, or no limit ("max")
        pass
    return total, free


def folders(environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Where data and runs go: writable, and with room."""
    findings = []
    for variable, default, what in (("DPPO_DATA_DIR", "data", "demonstrations"), ("DPPO_LOG_DIR", "log", "runs")):
        given = environment.get(variable)
        path = Path(given or default).expanduser().absolute()
        said = f"{path} ({'' if given else 'default; '}{what})"
        existing = next(p for p in (path, *path.parents) if p.exists())
        if not existing.is_dir() or not writable(existing):
            what_is_wrong = "not writable" if existing.is_dir() else f"{existing} is no folder"
            mend = f"export {variable}=<a folder of yours>"
            findings.append(Finding("folders", variable, BAD, f"{said}: {what_is_wrong}", mend))
            continue
        free = shutil.disk_usage(existing).free
        status = BAD if free < GIB // 4 else WARN if free < 5 * GIB else OK
        mend = f"free some space, or export {variable}=<a folder on a larger disk>" if status != OK else ""
        findings.append(Finding("folders", variable, status, f"{said}, {free / GIB:.1f} GiB free", mend))
    entity = environment.get("DPPO_WANDB_ENTITY")
    said = entity or "not set: your own account"
    return [*findings, Finding("folders", "DPPO_WANDB_ENTITY", OK, said)]


def wandb(environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Whether runs go on line: an account is configured, or not. Only its presence is looked at."""
    mode = environment.get("WANDB_MODE", "")
    if mode in ("offline", "disabled", "dryrun"):
        return [Finding("folders", "wandb", OK, f"WANDB_MODE={mode}: nothing goes on line")]
    here = bool(environment.get("WANDB_API_KEY"))
    host = (environment.get("WANDB_BASE_URL") or "https://api.wandb.ai").split("//")[-1].split("/")[0]
    if not here:
        import netrc

        try:
            file = environment.get("NETRC") or Path(environment.get("HOME") or "~").expanduser() / ".netrc"
            here = host in netrc.netrc(str(file)).hosts
        except (OSError, netrc.NetrcParseError):
            here = False
    if here:
        return [Finding("folders", "wandb", OK, f"logged in at {host}")]
    return [
        Finding(
            "folders", "wandb", NOTE, "no account: runs are recorded off line (wandb=null: not at all)", "wandb login"
        )
    ]


def demonstrations(environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Which demonstrations are there, and whether they can be read."""
    data = Path(environment.get("DPPO_DATA_DIR") or "data").expanduser()
    present = sorted(
        {p.parent for p in data.glob("*/*/train.npz")} | {p.parent for p in data.glob("*/*/normalization.npz")}
    )
    findings = [_demonstrations_in(folder, f"{folder.parent.name}/{folder.name}") for folder in present]
    absent = [task for task in TASKS if not any(f.name == task and f.parent.name == "robomimic" for f in present)]
    if absent:
        mend = f"python script/collect_demos.py --task {absent[0]}"
        findings.append(Finding("work", "no demonstrations", NOTE, f"of robomimic {', '.join(absent)}", mend))
    return findings


def _demonstrations_in(folder: Path, name: str) -> Finding:
    task = folder.name.removesuffix("-img")
    again = f"python script/collect_demos.py --task {task} --overwrite" if task in TASKS else "fetch it again"
    for file in ("train.npz", "normalization.npz"):
        if not (folder / file).exists():
            return Finding("work", name, WARN, f"{file} is missing", again)
    try:
        import numpy as np

        with np.load(folder / "train.npz", allow_pickle=False) as archive:
            lengths, images = archive["traj_lengths"], "images" in archive.files
        with np.load(folder / "normalization.npz", allow_pickle=False) as archive:
            columns = archive["obs_min"].size, archive["action_min"].size
    except ImportError:
        return Finding("work", name, NOTE, "there, but numpy is needed to look inside", SET_UP)
    except Exception as error:
        return Finding("work", name, BAD, f"damaged: {error}".splitlines()[0], again)
    size = sum(f.stat().st_size for f in folder.glob("*.npz")) / 2**20
    text = f"{lengths.size} demonstrations, {int(lengths.sum())} steps, states {columns[0]}, actions {columns[1]}"
    return Finding("work", name, OK, f"{text}{', images' if images else ''} ({size:.0f} MB)")


def checkpoints(environment: Mapping[str, str] = os.environ, patience: float = 2.0) -> list[Finding]:
    """Runs with checkpoints under the log folder, counted by their first folder (<suite>-<stage>)."""
    log, deadline = Path(environment.get("DPPO_LOG_DIR") or "log").expanduser(), time.monotonic() + patience
    runs: dict[str, list[Path]] = {}
    for folder in _walk(log, depth=6, deadline=deadline):
        states = [p for p in folder.glob("state_*.pt") if p.is_file()] if folder.name == "checkpoint" else []
        if states:
            runs.setdefault(folder.relative_to(log).parts[0], []).append(max(states, key=lambda p: p.stat().st_mtime))
    findings = []
    for group, newest in sorted(runs.items()):
        latest = max(newest, key=lambda p: p.stat().st_mtime)
        said = f"{len(newest)} run{'s' if len(newest) > 1 else ''} with checkpoints, newest {latest.relative_to(log)}"
        findings.append(Finding("work", group, OK, said))
    if not findings:
        findings.append(Finding("work", "checkpoints", NOTE, f"none in {log}", "bash script/quickstart.sh"))
    if time.monotonic() > deadline:
        findings.append(Finding("work", "log folder", NOTE, f"too large to be looked through in {patience:g} s"))
    return findings


# -------------------------------------------------------------------------------------------------------- helpers


def writable(folder: Path) -> bool:
    """Whether a file can be made in it."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _cpu_quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    try:
        quota, period = file.read_text(encoding="ascii").split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no container, or no limit ("max")
        return None


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _walk(folder: Path, depth: int, deadline: float) -> Iterator[Path]:
    """Folders below ``folder``, links not followed, until the deadline."""
    if depth == 0 or time.monotonic() > deadline:
        return
    try:
        inside = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
    except OSError:
        return
    for path in map(Path, inside):
        yield path
        yield from _walk(path, depth - 1, deadline)
