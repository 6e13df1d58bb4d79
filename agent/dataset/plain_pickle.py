"""Pickles of plain data, read without unpickling anything.

A pickle is a program. ``plain_data`` does not run it: it reads the instructions one by one and understands only those that make
dictionaries, lists, tuples, numbers, texts and NumPy arrays of numbers. Anything else, a function to call above all, is an error
that names it. The ancestors and D3IL kept demonstrations in such files.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import DatasetError

_MARK, _OPEN = object(), object()


@dataclass(frozen=True)
class _Named:
    """Something the file names and would call, if it were unpickled."""

    name: str


class _Array:
    """An array whose contents come later in the file."""

    value: np.ndarray | None = None


_SAFE = {  # what the names that an array needs are called, in every version of NumPy
    "numpy.core.multiarray._reconstruct": "array",
    "numpy._core.multiarray._reconstruct": "array",
    "numpy.ndarray": "ndarray",
    "numpy.dtype": "dtype",
    "numpy.core.multiarray.scalar": "scalar",
    "numpy._core.multiarray.scalar": "scalar",
    "numpy.core.numeric._frombuffer": "frombuffer",  # protocol 5
    "numpy._core.numeric._frombuffer": "frombuffer",
    "_codecs.encode": "encode",
}


def read_plain(path: Path, max_bytes: int) -> Any:
    """What the pickle ``path`` holds. Raises ``DatasetError`` as ``plain_data``, and where it is absent or larger than ``max_bytes``."""
    try:
        if (size := path.stat().st_size) > max_bytes:
            raise DatasetError(f"{path}: has {size} bytes; expected at most {max_bytes}")
        return plain_data(path.read_bytes(), str(path))
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from error


def plain_data(data: bytes, where: str) -> Any:
    """What the pickle ``data`` holds, if it is plain data; ``where`` names it in errors.

    Raises:
        DatasetError: not a pickle, damaged, or something in it that is not plain data.
    """
    try:
        return _arrays_out(_Reader(where).read(data), {})
    except DatasetError:
        raise
    except (
        ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError, RecursionError
    ) as error:  # fmt: skip
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
        if len(values) != n or any(value is _MARK for value in values):
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
        elif kind == "frombuffer":
            raw, dtype, shape, order = arguments
            self._stack.append(_filled(raw, dtype, shape, order))
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
            target.value = _filled(raw, dtype, shape, "F" if fortran else "C")
        else:
            raise ValueError("state for something that is no array")


def _dtype(code: Any) -> np.dtype:
    if not isinstance(code, str) or code[:1] not in "biuf" or not code[1:].isdigit():
        raise ValueError(f"an array of {code!r}; expected numbers")
    return np.dtype(code)


def _filled(raw: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if isinstance(raw, str):  # protocol 2 and NumPy of Python 2
        raw = raw.encode("latin1")
    if not isinstance(dtype, np.dtype) or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(raw):
        raise ValueError("an array's size does not fit its contents")
    return np.frombuffer(raw, dtype).reshape(shape, order=order).copy()


def _arrays_out(value: Any, done: dict[int, Any]) -> Any:
    """``value`` with every ``_Array`` replaced by its contents.

    ``done``: what came of the containers met so far, by identity, so that one that is in many places is looked at once (a few
    hundred bytes can say "a list of two lists of two lists of ..." a hundred levels deep).
    """
    if isinstance(value, _Array):
        if value.value is None:
            raise ValueError("an array without contents")
        return value.value
    if isinstance(value, (_Named, np.dtype)) or value is _MARK:
        raise ValueError("a name where a value should be")
    if not isinstance(value, (dict, list, tuple)):
        return value
    if done.get(id(value)) is _OPEN:
        raise ValueError("something contains itself")
    if id(value) not in done:
        done[id(value)] = _OPEN
        if isinstance(value, dict):
            done[id(value)] = {_key(key): _arrays_out(item, done) for key, item in value.items()}
        else:
            done[id(value)] = type(value)(_arrays_out(item, done) for item in value)
    return done[id(value)]


def _key(key: Any) -> Any:
    if not isinstance(key, (str, bytes, int, float, type(None))):
        raise ValueError(f"a dictionary's key is a {type(key).__name__}")
    return key


def _itself(value: Any) -> Any:
    return value


_LITERAL: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(
        (
            "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BININT",
            "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT", "STRING", "BINSTRING",
            "SHORT_BINSTRING", "BYTEARRAY8",
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
