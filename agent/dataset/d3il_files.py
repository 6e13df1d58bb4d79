"""D3IL's own demonstrations (``env_*.pkl``) as data: read without unpickling anything.

A pickle is a program. ``plain_data`` does not run it: it reads the instructions one by one and understands only those that make
dictionaries, lists, tuples, numbers, texts and NumPy arrays of numbers, which is all that D3IL's files consist of. Anything
else, a function to call above all, is an error that names it.

A file holds ``{"robot": {"des_c_pos": (T, 3), "c_pos": (T, 3), ...}, ...}``, metres, one row per 35 ms. A demonstration is

    state t  = [desired x y, actual x y] of row t,        action t = desired x y of row t + 1 minus that of row t.
"""

from __future__ import annotations

import math
import os
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import DatasetError

MAX_BYTES = 2**28  # of one file; D3IL's have 30 kB
_MARK = object()
_KEYS = ("des_c_pos", "c_pos")


@dataclass(frozen=True)
class Demo:
    """One demonstration: ``states (T, 4)`` and ``actions (T, 2)``, metres."""

    name: str
    states: np.ndarray
    actions: np.ndarray


@dataclass(frozen=True)
class _Named:
    """Something the file names and would call, if it were unpickled."""

    name: str


class _Array:
    """An array whose contents come later in the file."""

    value: np.ndarray | None = None


_SAFE = {  # what the four names that an array needs are called, in every version of NumPy
    "numpy.core.multiarray._reconstruct": "array",
    "numpy._core.multiarray._reconstruct": "array",
    "numpy.ndarray": "ndarray",
    "numpy.dtype": "dtype",
    "numpy.core.multiarray.scalar": "scalar",
    "numpy._core.multiarray.scalar": "scalar",
    "_codecs.encode": "encode",
}


def plain_data(data: bytes, where: str) -> Any:
    """What the pickle ``data`` holds, if it is plain data; ``where`` names it in errors.

    Raises:
        DatasetError: not a pickle, damaged, or something in it that is not plain data.
    """
    try:
        return _arrays_out(_Reader(where).read(data))
    except DatasetError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise DatasetError(f"{where}: damaged, or no pickle of plain data ({type(error).__name__}: {error})") from error


class _Reader:
    """A stack machine that knows the instructions of data, and no others."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def read(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            name = opcode.name
            if name == "STOP":
                return self._stack.pop()
            if name in _LITERAL:
                self._stack.append(_LITERAL[name](argument))
            elif name in _DO:
                _DO[name](self, argument)
            elif name not in {"PROTO", "FRAME"}:
                raise DatasetError(
                    f"{self._where}: holds a {name} instruction; only plain data are read, nothing is run"
                )
        raise ValueError("it ends without STOP")

    def _since_mark(self) -> list[Any]:
        at = max(i for i, value in enumerate(self._stack) if value is _MARK)
        values = self._stack[at + 1 :]
        del self._stack[at:]
        return values

    def _tuple(self, n: int) -> None:
        values = tuple(self._stack[-n:])
        if len(values) != n or _MARK in values:
            raise ValueError("a tuple lacks items")
        self._stack[-n:] = [values]

    def _set_items(self, values: list[Any]) -> None:
        if type(self._stack[-1]) is not dict or len(values) % 2:
            raise ValueError("items without a dictionary")
        self._stack[-1].update(zip(values[::2], values[1::2], strict=True))

    def _append(self, values: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise ValueError("values without a list")
        self._stack[-1].extend(values)

    def _memoize(self, key: int | None) -> None:
        self._memo[len(self._memo) if key is None else key] = self._stack[-1]

    def _name(self, module: str, attribute: str) -> None:
        full = f"{module}.{attribute}"
        if full not in _SAFE:
            raise DatasetError(
                f"{self._where}: names {full}, which is not plain data; expected numbers, texts and NumPy arrays only. "
                "Nothing of it was run"
            )
        self._stack.append(_Named(_SAFE[full]))

    def _call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        kind = function.name
        if kind == "array":
            self._stack.append(_Array())
        elif kind == "dtype":
            self._stack.append(_dtype(arguments[0]))
        elif kind == "encode" and arguments[1] == "latin1":  # how protocol 2 writes bytes
            self._stack.append(arguments[0].encode("latin1"))
        elif kind == "scalar":
            self._stack.append(np.frombuffer(arguments[1], arguments[0])[0])
        else:
            raise ValueError(f"{kind} is called in an unknown way")

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, np.dtype):  # (version, byte order, ...)
            self._stack[-1] = target.newbyteorder(state[1]) if state[1] in "<>" else target
            for key, value in self._memo.items():
                if value is target:
                    self._memo[key] = self._stack[-1]
        elif isinstance(target, _Array):
            _, shape, dtype, fortran, raw = state
            if not isinstance(dtype, np.dtype) or math.prod(shape) * dtype.itemsize != len(raw):
                raise ValueError("an array's size does not fit its contents")
            target.value = np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C").copy()
        else:
            raise ValueError("state for something that is no array")


def _dtype(code: Any) -> np.dtype:
    if not isinstance(code, str) or code[:1] not in "biuf" or not code[1:].isdigit():
        raise ValueError(f"an array of {code!r}; expected numbers")
    return np.dtype(code)


def _arrays_out(value: Any) -> Any:
    """``value`` with every ``_Array`` replaced by its contents."""
    if isinstance(value, _Array):
        if value.value is None:
            raise ValueError("an array without contents")
        return value.value
    if isinstance(value, dict):
        return {key: _arrays_out(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_arrays_out(item) for item in value)
    if isinstance(value, (_Named, np.dtype)) or value is _MARK:
        raise ValueError("a name where a value should be")
    return value


def _itself(value: Any) -> Any:
    return value


_LITERAL: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(
        (
            "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BININT",
            "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT", "STRING", "BINSTRING",
            "SHORT_BINSTRING",
        ),
        _itself,
    ),
    "NONE": lambda _: None, "NEWTRUE": lambda _: True, "NEWFALSE": lambda _: False, "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [], "EMPTY_TUPLE": lambda _: (), "MARK": lambda _: _MARK,
}  # fmt: skip
_DO: dict[str, Callable[[_Reader, Any], None]] = {
    "TUPLE": lambda r, _: r._stack.append(tuple(r._since_mark())),
    "TUPLE1": lambda r, _: r._tuple(1),
    "TUPLE2": lambda r, _: r._tuple(2),
    "TUPLE3": lambda r, _: r._tuple(3),
    "LIST": lambda r, _: r._stack.append(r._since_mark()),
    "SETITEM": lambda r, _: r._set_items([r._stack.pop(-2), r._stack.pop()]),
    "SETITEMS": lambda r, _: r._set_items(r._since_mark()),
    "APPEND": lambda r, _: r._append([r._stack.pop()]),
    "APPENDS": lambda r, _: r._append(r._since_mark()),
    "POP": lambda r, _: r._stack.pop(),
    "MEMOIZE": lambda r, _: r._memoize(None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda r, key: r._memoize(key)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda r, key: r._stack.append(r._memo[key])),
    "GLOBAL": lambda r, names: r._name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda r, _: r._name(r._stack.pop(-2), r._stack.pop()),
    "REDUCE": lambda r, _: r._call(),
    "BUILD": lambda r, _: r._build(),
}


def read_demo(path: str | os.PathLike[str]) -> Demo:
    """One of D3IL's files.

    Raises:
        DatasetError: absent, too large, not plain data, an array missing or of a wrong shape, values that are not finite.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DatasetError(f"{path}: {path.stat().st_size} bytes; a demonstration of D3IL has 30 kB")
        robot = plain_data(path.read_bytes(), str(path))
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from error
    robot = robot.get("robot") if isinstance(robot, dict) else None
    if not isinstance(robot, dict) or any(key not in robot for key in _KEYS):
        found = ", ".join(map(str, robot)) if isinstance(robot, dict) else type(robot).__name__
        raise DatasetError(f'{path}: expected {{"robot": {{{", ".join(_KEYS)}, ...}}}}, found {found or "nothing"}')
    desired, actual = (np.asarray(robot[key]) for key in _KEYS)
    for key, array in zip(_KEYS, (desired, actual), strict=True):
        if (
            array.ndim != 2
            or array.shape[1] < 2
            or len(array) < 2
            or array.dtype.kind != "f"
            or len(array) != len(desired)
        ):
            raise DatasetError(
                f"{path}: robot/{key}: expected (T, 3) numbers, T >= 2, found {array.shape}, {array.dtype}"
            )
        if not np.isfinite(array[:, :2]).all():
            raise DatasetError(
                f"{path}: robot/{key}: NaN or infinity in row {int(np.argwhere(~np.isfinite(array))[0, 0])}"
            )
    states = np.concatenate([desired[:-1, :2], actual[:-1, :2]], axis=1)
    return Demo(path.stem, states, np.diff(desired[:, :2], axis=0))


def find_demos(folder: str | os.PathLike[str]) -> list[Path]:
    """The demonstration files in ``folder``, by name. Raises ``DatasetError`` without any."""
    found = sorted(Path(folder).expanduser().glob("*.pkl"))
    if not found:
        raise DatasetError(
            f"{folder}: no *.pkl in it; D3IL keeps its demonstrations in environments/dataset/data/avoiding/data"
        )
    return found
