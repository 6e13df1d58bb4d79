"""Messages between a robot and a policy server: msgpack maps with arrays in them. Nothing that is read can run anything.

An array is extension 1: dtype (one of ``DTYPES``), shape and bytes. ``unpack`` refuses everything else by name: other dtypes, sizes that do
not fit, other extensions, messages too long, too deep or with too many entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from env.franka.types import DeploymentError

DTYPES = ("<f4", "<f8", "|u1", "<i4", "<i8", "|b1")
MAX_BYTES = 2**24  # of a message: a policy's images of two steps and two cameras are 0.2 MB
_ENTRIES, _DIMS, _ARRAY = 256, 6, 1


class WireError(DeploymentError):
    """A message that is not what the other side may send."""


def pack(message: Mapping[str, Any]) -> bytes:
    """A message of plain values, lists, maps and arrays. Raises ``WireError`` for anything else."""
    try:
        data = _msgpack().packb(message, default=_array_out, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"a message that cannot be sent: {error}") from error
    if len(data) > MAX_BYTES:
        raise WireError(f"a message of {len(data)} bytes; expected at most {MAX_BYTES}")
    return data


def unpack(data: bytes | str, kind: str | None = None) -> dict[str, Any]:
    """The message, which must be a map with a word ``type`` (``kind``, where one is expected). Raises ``WireError``."""
    if not isinstance(data, bytes):
        raise WireError("expected a binary message, found text")
    if len(data) > MAX_BYTES:
        raise WireError(f"a message of {len(data)} bytes; expected at most {MAX_BYTES}")
    message = _unpacked(data, _array_in)
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise WireError(f"expected a map with a word 'type', found {str(message)[:80]}")
    if kind is not None and message["type"] != kind:
        raise WireError(f"expected a message of type {kind!r}, found {message['type'][:40]!r}")
    return message


def field(message: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    """An entry of a message, which must be of that kind. Raises ``WireError``."""
    value = message.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise WireError(f"{message.get('type')}: {name}: expected {kind}, found {str(value)[:80]!r}")
    return value


def _msgpack() -> Any:
    try:
        import msgpack
    except ImportError as error:
        raise DeploymentError(
            f"a remote policy needs msgpack ({error}): pip install -c constraints.txt -e '.[real]'"
        ) from error
    return msgpack


def _unpacked(data: bytes, extension: Any) -> Any:
    try:
        return _msgpack().unpackb(data, ext_hook=extension, raw=False, max_array_len=_ENTRIES, max_map_len=_ENTRIES)
    except WireError:
        raise
    except Exception as error:  # noqa: BLE001  msgpack has a dozen kinds; none may get past here
        raise WireError(f"no message: {type(error).__name__} {error}") from error


def _array_out(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value[()] if value.ndim else np.asarray(value)
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{type(value).__name__} is no plain value")
    value = np.asarray(value, value.dtype.newbyteorder("<"))
    if value.dtype.str not in DTYPES or value.ndim > _DIMS:
        raise TypeError(
            f"arrays are of {', '.join(DTYPES)} with at most {_DIMS} dimensions, found {value.dtype.str} {value.shape}"
        )
    module = _msgpack()
    return module.ExtType(
        _ARRAY, module.packb([value.dtype.str, list(value.shape), value.tobytes()], use_bin_type=True)
    )


def _array_in(code: int, data: bytes) -> np.ndarray:
    if code != _ARRAY:
        raise WireError(f"extension {code}: expected arrays only (extension {_ARRAY})")
    parts = _unpacked(bytes(data), _no_extension)
    if (
        not isinstance(parts, list)
        or len(parts) != 3
        or not isinstance(parts[1], list)
        or not isinstance(parts[2], bytes)
    ):
        raise WireError("an array that is not [dtype, shape, bytes]")
    dtype, shape, content = parts
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise WireError(f"an array of dtype {str(dtype)[:40]!r}; expected one of {', '.join(DTYPES)}")
    if len(shape) > _DIMS or not all(type(n) is int and 0 <= n <= MAX_BYTES for n in shape):
        raise WireError(f"an array of shape {str(shape)[:80]}")
    expected = np.dtype(dtype).itemsize
    for n in shape:
        expected *= n
    if len(content) != expected:
        raise WireError(f"an array of shape {tuple(shape)} {dtype} with {len(content)} bytes; expected {expected}")
    if dtype == "|b1" and content.strip(b"\0\1"):
        raise WireError("an array of truth values with others than 0 and 1")
    return np.frombuffer(content, dtype).reshape(shape).copy()


def _no_extension(code: int, data: bytes) -> Any:
    raise WireError(f"extension {code} inside an array")
