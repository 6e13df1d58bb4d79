"""How much memory a run will need, said before it is taken; and a clear end where the machine has less.

Images make runs big: an hour into a run is the wrong moment to be killed by the system without a word.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from agent.errors import UsageError

log = logging.getLogger(__name__)

GIB = 2**30
_MEMINFO = Path("/proc/meminfo")
_CGROUPS = (  # limit, use, counters of the cache that would give way
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
ADAM = 4  # weights, their gradients and two moments


def free_bytes(device: str | torch.device = "cpu") -> int | None:
    """Memory that a process can still take: of the GPU, or of this machine (the container's limit included).

    None where the system does not say.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [_machine_free(), *(_cgroup_free(*files) for files in _CGROUPS)]
    return min((n for n in found if n is not None), default=None)


def preflight(parts: Mapping[str, int], keys: Iterable[str], device: str | torch.device = "cpu") -> None:
    """Log what each part will need in bytes; stop if together they need more than is free.

    Args:
        parts: name -> bytes, all on ``device``.
        keys: configuration keys that make them smaller.

    Raises:
        UsageError: not enough memory; names the parts and the keys.
    """
    needed, free = sum(parts.values()), free_bytes(device)
    listed = ", ".join(f"{name} {_human(n)}" for name, n in parts.items())
    where = "" if torch.device(device).type == "cpu" else f" on {device}"
    log.info("memory%s: %s (%s); free: %s", where, _human(needed), listed, "unknown" if free is None else _human(free))
    if free is not None and needed > free:
        raise UsageError(
            f"this run needs {_human(needed)} of memory{where} ({listed}), but only {_human(free)} are free. "
            f"Lower {' or '.join(keys)}, or close what else is running"
        )


def training_bytes(module: nn.Module) -> int:
    """Weights and, for those that are trained, gradients and Adam's moments."""
    return sum(
        p.numel() * p.element_size() * (ADAM if p.requires_grad else 1) for p in dict.fromkeys(module.parameters())
    )


def saved_bytes(run: Callable[[], Tensor], parameters: Iterable[Tensor]) -> int:
    """What ``run`` keeps for its backward pass, without ``parameters``; counted by running it.

    Global random numbers are left as they were.
    """
    known = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        result = run()  # alive until everything is counted: a freed address could be given out twice
        del result
    return sum(kept.values())


def _machine_free() -> int | None:
    for line in _lines(_MEMINFO):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_free(limit: str, used: str, stat: str) -> int | None:
    """Limit minus use of this container; cached file pages do not count as used. None where there is no limit."""
    values = [_lines(Path(name)) for name in (limit, used)]
    if not all(values) or not all(v[0].isdecimal() for v in values):
        return None
    cached = next((int(x.split()[1]) for x in _lines(Path(stat)) if x.startswith("inactive_file ")), 0)
    return max(0, int(values[0][0]) - int(values[1][0]) + cached)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _human(n: int) -> str:
    return f"{n / GIB:.2f} GiB" if n >= GIB / 10 else f"{n / 2**20:.1f} MiB"
