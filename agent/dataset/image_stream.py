"""Demonstrations with images, written frame by frame: a data set of many gigabytes needs a few megabytes of memory."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Mapping
from typing import IO

import numpy as np

from agent.dataset.demos import check_arrays
from agent.errors import DatasetError
from agent.files import atomic_write

# zlib's fastest level: a sixth of the default's time, 36 % of the bytes instead of 31 % (Lift's wrist camera, measured)
COMPRESSION = 1
_DTYPES = {
    "states": np.float32,
    "actions": np.float32,
    "rewards": np.float32,
    "traj_lengths": np.int64,
    "terminals": np.bool_,
}


def save_demos_streamed(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    frames: Iterable[np.ndarray],
    image_shape: tuple[int, int, int],
    compress: bool = True,
) -> None:
    """Write ``train.npz`` as ``demos.save_demos`` does, its images from an iterator, in one atomic step.

    Args:
        path: ``.../train.npz``; missing folders are made.
        arrays: ``states``, ``actions``, ``traj_lengths`` and optionally ``rewards``, ``terminals``; see ``save_demos``.
        frames: pieces ``(n, C, H, W)`` uint8 in the order of the transitions, ``ΣT`` rows together.
        image_shape: ``(C, H, W)``.
        compress: False makes a larger file whose images are never read into memory as a whole (``demos.read_demos``).

    Raises:
        DatasetError: the arrays break a rule of ``read_demos``, the pieces are of another shape or do not add up, or
            the file cannot be written. Nothing is left behind then.
    """
    check_arrays(arrays, str(path))
    total = int(np.sum(arrays["traj_lengths"]))
    header = {"descr": "|u1", "fortran_order": False, "shape": (total, *image_shape)}
    try:
        with (
            atomic_write(path) as file,
            zipfile.ZipFile(
                file, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED, compresslevel=COMPRESSION
            ) as z,
        ):
            for name, array in arrays.items():
                with z.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array, _DTYPES[name]), allow_pickle=False)
            with z.open("images.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                _write_frames(member, frames, image_shape, total, str(path))
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be written ({error.strerror or error}). Free space or set DPPO_DATA_DIR"
        ) from error


def _write_frames(
    member: IO[bytes], frames: Iterable[np.ndarray], shape: tuple[int, int, int], total: int, where: str
) -> None:
    written = 0
    for piece in frames:
        if piece.dtype != np.uint8 or piece.shape[1:] != shape:
            raise DatasetError(
                f"{where}: images: expected pieces (n, {shape}) uint8, found {piece.shape} {piece.dtype}"
            )
        written += len(piece)
        if written > total:
            break
        member.write(np.ascontiguousarray(piece).data)
    if written != total:
        raise DatasetError(f"{where}: images: expected {total} frames like states, found {written}")
