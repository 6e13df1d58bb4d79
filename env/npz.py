"""``.npz`` files of plain numbers, read with suspicion: nothing is unpickled, and a header is believed only where the file bears it out.

NumPy's own reader allocates what a header asks for before it looks at the data, and lets through whatever its parts (zip, zlib, the
parser of headers) raise when a file is damaged. Here a file does or raises ``NpzError``, and an array that was stored
uncompressed can be mapped instead of read, so that it may be larger than memory.
"""

from __future__ import annotations

import contextlib
import lzma
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from env.errors import EnvError

_DAMAGE = (
    OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, MemoryError, RuntimeError,
    NotImplementedError, SyntaxError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, zipfile.LargeZipFile, struct.error,
    tokenize.TokenError,
)  # fmt: skip
_KINDS = "biuf"
_LOCAL_HEADER = struct.Struct(
    "<4s22xHH"
)  # of a zip's member: signature, ..., lengths of its name and of its extra field
_READ_AT_ONCE = 2**24  # bytes


class NpzError(EnvError):
    """A file is no npz, is damaged, or holds something other than plain numbers."""


@dataclass(frozen=True)
class Header:
    """What a member says it is."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool

    @property
    def n_bytes(self) -> int:
        """Size of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


class NpzFile:
    """An npz file, opened: ``with NpzFile(path) as file: file.names, file.header(name), file.read(name)``.

    Raises:
        NpzError: here and in every method, naming the file and the array. ``OSError`` where the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with self._damage():
            self._zip = zipfile.ZipFile(self.path)
            self.names = tuple(n.removesuffix(".npy") for n in self._zip.namelist() if n.endswith(".npy"))

    def __enter__(self) -> NpzFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def header(self, name: str) -> Header:
        """Shape and type of the array ``name``."""
        with self.open(name) as (header, _):
            return header

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[tuple[Header, IO[bytes]]]:
        """The array's header, and a stream that stands at the first byte of its data."""
        with self._damage(name):
            info = self._zip.getinfo(f"{name}.npy")
            with self._zip.open(info) as member:
                header = self._parsed(name, member)
                if member.tell() + header.n_bytes != info.file_size:
                    raise EOFError(f"should have {header.n_bytes} bytes, and has {info.file_size - member.tell()}")
                yield header, member

    def read(self, name: str) -> np.ndarray:
        """The array, its checksum verified."""
        with self.open(name) as (header, member):
            array = np.empty(math.prod(header.shape), header.dtype)
            read_into(member, array)
            if header.dtype.kind == "b":
                array = array.view(np.uint8) != 0  # a byte that is neither 0 nor 1 is no truth value
            return array.reshape(header.shape, order="F" if header.fortran else "C")

    def map(self, name: str) -> np.ndarray | None:
        """The array as a read-only view of the file, of which only what is touched is ever read; None if it is compressed.

        Its checksum is not looked at: that would be reading all of it.
        """
        with self.open(name) as (header, member), self._damage(name):
            info = self._zip.getinfo(f"{name}.npy")
            if info.compress_type != zipfile.ZIP_STORED or not header.n_bytes:
                return None
            with self.path.open("rb") as file:
                file.seek(info.header_offset)
                signature, n_name, n_extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            start = info.header_offset + _LOCAL_HEADER.size + n_name + n_extra + member.tell()
            if signature != b"PK\x03\x04" or start + header.n_bytes > self.path.stat().st_size:
                raise EOFError("ends beyond the end of the file")
            return np.memmap(self.path, header.dtype, "r", start, header.shape, order="F" if header.fortran else "C")

    def _parsed(self, name: str, member: IO[bytes]) -> Header:
        version = np.lib.format.read_magic(member)
        if version not in {(1, 0), (2, 0)}:
            raise ValueError(f"is in npy format {version}")
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = reader(member)
        if dtype.hasobject:
            raise NpzError(f"{self.path}: {name} holds Python objects (a pickle), which could run code when read")
        if dtype.kind not in _KINDS or any(isinstance(n, bool) or n < 0 for n in shape):
            raise NpzError(f"{self.path}: {name}: expected an array of numbers, found {dtype} of shape {shape}")
        return Header(shape, dtype, fortran)

    @contextlib.contextmanager
    def _damage(self, name: str = "") -> Iterator[None]:
        """What zip, zlib and NumPy raise at a damaged file, as ``NpzError``."""
        try:
            yield
        except (EnvError, FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except _DAMAGE as error:
            what = str(error).splitlines()[0] if str(error) else type(error).__name__
            where = f"{name}: " if name else ""
            raise NpzError(f"{self.path}: damaged or cut short ({where}{what}). Make or download it again") from error


def read_into(member: IO[bytes], array: np.ndarray) -> None:
    """Fill ``array``, contiguous, from the stream, without a second copy in memory. Raises ``EOFError`` where that ends too early."""
    rest = memoryview(array.reshape(-1).view(np.uint8))
    while len(rest):
        n = member.readinto(rest[:_READ_AT_ONCE])
        if not n:
            raise EOFError(f"its data end {len(rest)} bytes too early")
        rest = rest[n:]
