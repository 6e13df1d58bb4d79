"""A torch file of anybody's, read without running anything in it.

``torch.load(weights_only=True)`` refuses every Python object but tensors and plain containers. Numbers that came from
numpy (a logged ``epoch`` or loss) are let through by name, ``ALLOWED``: stand-ins of ours take their bytes, numpy itself is
never called. Everything else is refused by name.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from agent.errors import CheckpointError

_CODES = {
    **{"f8": "d", "f4": "f", "f2": "e", "b1": "?"},
    **{"i8": "q", "i4": "i", "i2": "h", "i1": "b"},
    **{"u8": "Q", "u4": "I", "u2": "H", "u1": "B"},
}  # numpy's names of number types: struct's
_MEND = "Use an older checkpoint or copy it again"


class _Dtype:
    """Stands for ``numpy.dtype`` while a file is read; remembers which number type, and nothing else."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _number(dtype: _Dtype, data: bytes) -> bool | int | float:
    """Stands for ``numpy.core.multiarray.scalar``: the plain number."""
    if type(dtype) is not _Dtype or dtype.code not in _CODES:
        raise ValueError(f"expected a number of numpy's, found one of type {getattr(dtype, 'code', dtype)!r}")
    (number,) = struct.unpack(dtype.order + _CODES[dtype.code], data)
    return number


ALLOWED = [
    (_Dtype, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]


def read_torch_file(path: Path) -> Any:
    """The content of ``path``, on the CPU.

    Raises:
        CheckpointError: damaged (a sum that is wrong counts), no torch file, or with Python objects inside.
    """
    _check_archive(path)
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make torch.load raise almost anything
        said = str(error)
        refused = re.search(r"GLOBAL ([\w.]+)", said)
        if refused:
            raise CheckpointError(
                f"{path}: holds a Python object, {refused[1]}, which is refused because reading it could run code; expected "
                "tensors, numbers, strings, lists and dicts. Where the file was made, save it again with its weights only: "
                "torch.save({key: old[key] for key in ('model', 'ema', 'epoch', 'itr') if key in old}, new_path)"
            ) from error
        raise CheckpointError(
            f"{path}: damaged, or holds Python objects that are refused because they could run code "
            f"({type(error).__name__}: {said.splitlines()[0] if said else 'no details'}). {_MEND}"
        ) from error


def _check_archive(path: Path) -> None:
    """Torch reads weights without looking at the archive's checksums: a flipped bit would become a wrong weight.

    Torch never compresses; an archive that claims to hold more than its own size is not one of torch's.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise CheckpointError(
                f"{path}: damaged (cut short?) or not a checkpoint: expected a torch zip file, found "
                f"{path.stat().st_size:,} bytes of something else. {_MEND}"
            )
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            if not stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise CheckpointError(
                    f"{path}: damaged or not a checkpoint: expected a torch zip file, found a compressed one"
                )
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}). {_MEND}") from error
    if broken is not None:
        raise CheckpointError(f"{path}: damaged ({broken} does not match its checksum). {_MEND}")
