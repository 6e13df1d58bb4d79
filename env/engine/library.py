"""libmujoco for nopython kernels: its symbols, the addresses of a simulation's arrays, the cache of compiled kernels.

A *kernel* is a Numba function that runs without Python and without the GIL. It receives addresses (plain integers)
and views them as arrays with ``floats(address, n)``; so kernels of every family have one signature, can be called
through their address by the one generic driver (``driver.py``), and are compiled once per machine.

* ``control_kernel``: ``int64 (handles, memory, ids, facts, action, reward)``, one control step of one simulation. It
  returns the sum of ``SOLVED`` and ``TERMINATED`` where they apply and writes one float to ``reward``.
* ``observe_kernel``: ``void (handles, memory, ids, facts, obs)``, the full observation of one simulation.
* ``begin_kernel``, where a family has one: ``void (handles, memory, ids, facts, start)``, what ``Family.begin`` does.

``handles`` are the addresses listed in ``HANDLES`` (index them with the constants of the same name), ``memory`` the
simulation's own controller state, ``ids`` and ``facts`` the family's integers and floats (sizes, object ids; gains,
thresholds).
"""

from __future__ import annotations

import contextlib
import ctypes  # (also: Numba resolves external symbols only once it is loaded)
import functools
import glob
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import mujoco
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from env.errors import MissingSimulatorError

_logger = logging.getLogger(__name__)

# ---------------------------------------------------------------------------------------------------- versions

_OLDEST, _FIRST_BAD = (3, 3), (3, 10)  # robosuite 1.5.2 breaks from mujoco 3.10 on
ROBOSUITE_VERSION = "1.5.2"


def _release(version: str) -> tuple[int, ...]:
    """'3.10.0rc1' -> (3, 10): enough to compare minor releases."""
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in version.split(".")[:2])


def check_versions(robosuite: bool = False) -> None:
    """Raise ``MissingSimulatorError`` unless mujoco (and, if asked, robosuite) are of a version known to work."""
    found = mujoco.__version__
    if _release(found) < _OLDEST or (robosuite and _release(found) >= _FIRST_BAD):
        limit = f">= {_OLDEST[0]}.{_OLDEST[1]}" + (f", < {_FIRST_BAD[0]}.{_FIRST_BAD[1]}" if robosuite else "")
        beside = f" beside robosuite {ROBOSUITE_VERSION}" if robosuite else ""
        raise MissingSimulatorError(
            f"mujoco {found} is installed, but{beside} it must be {limit}. Run: pip install 'mujoco>=3.3,<3.10'"
        )
    if not robosuite:
        return
    try:
        suite = metadata.version("robosuite")
    except metadata.PackageNotFoundError as error:
        raise MissingSimulatorError(
            f"robosuite {ROBOSUITE_VERSION} is not installed. Run: pip install robosuite=={ROBOSUITE_VERSION}"
        ) from error
    if suite != ROBOSUITE_VERSION:
        raise MissingSimulatorError(
            f"robosuite {suite} is installed, but {ROBOSUITE_VERSION} is needed: the simulation engine reproduces that "
            f"version step by step. Run: pip install robosuite=={ROBOSUITE_VERSION}"
        )


# ----------------------------------------------------------------------------------------------------- symbols


def _load_libmujoco() -> None:
    """Make libmujoco's symbols resolvable by name, so that compiled kernels hold no absolute address and can be
    cached.
    """
    folder = os.path.dirname(mujoco.__file__)
    found = [
        path
        for name in ("libmujoco.so*", "libmujoco*.dylib", "mujoco.dll")
        for path in glob.glob(os.path.join(folder, name))
    ]
    if not found:
        raise MissingSimulatorError(
            f"no MuJoCo library in {folder}: the installation is damaged. Run: pip install --force-reinstall mujoco"
        )
    llvm.load_library_permanently(found[0])


_load_libmujoco()
_address, _int32 = types.intp, types.intc


def _symbol(name: str, *arguments: types.Type) -> types.ExternalFunction:
    return types.ExternalFunction(name, types.void(*arguments))


mj_step = _symbol("mj_step", _address, _address)
mj_forward = _symbol("mj_forward", _address, _address)
mj_reset_data = _symbol("mj_resetData", _address, _address)
mj_step1 = _symbol("mj_step1", _address, _address)
mj_step2 = _symbol("mj_step2", _address, _address)
mj_full_m = _symbol("mj_fullM", _address, _address, _address)
mj_jac_site = _symbol("mj_jacSite", _address, _address, _address, _address, _int32)

# ----------------------------------------------------------------------------------------------------- handles

HANDLES = (
    "model", "data", "qpos", "qvel", "ctrl", "qfrc_bias", "qM", "site_xpos", "site_xmat", "xpos", "xquat",
    "actuator_ctrlrange", "warning", "geom_xpos", "ncon", "contact_geoms",
)  # fmt: skip
N_HANDLES = len(HANDLES)
MODEL, DATA, QPOS, QVEL, CTRL, QFRC_BIAS, QM, SITE_XPOS, SITE_XMAT, XPOS, XQUAT, CTRLRANGE, WARNING, GEOM_XPOS, NCON, CONTACT_GEOMS = (
    range(N_HANDLES)
)  # fmt: skip
N_WARNINGS = int(mujoco.mjtWarning.mjNWARNING)
SOLVED, TERMINATED, UNSTABLE = 1, 2, 4  # bits of a control step's and a chunk's outcome


def handles_of(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """Addresses of one simulation, in the order of ``HANDLES``: (N_HANDLES,) int64. Valid as long as ``model`` and
    ``data`` live.
    """
    counters = data.warning.number  # a view with a stride: mjWarningStat is {int lastinfo; int number;}
    if counters.strides != (8,):
        raise MissingSimulatorError(
            f"mujoco {mujoco.__version__} lays out its warning counters differently: expected a stride of 8 bytes, "
            f"found {counters.strides}. Run: pip install 'mujoco>=3.3,<3.10'"
        )
    special = {
        "model": model._address,
        "data": data._address,
        "warning": counters.ctypes.data,
        "ncon": data._address + _ncon_offset(),
        "contact_geoms": data.contact.geom.__array_interface__["data"][0],
    }
    return np.array([special[n] if n in special else _array_of(model, data, n).ctypes.data for n in HANDLES], np.int64)


@functools.cache
def _ncon_offset() -> int:
    """Bytes from the start of ``mjData`` to its number of contacts, which the bindings give by value only: found by
    watching a scene whose number of contacts is known.

    Raises ``MissingSimulatorError`` where no integer, or more than one, behaves like it.
    """
    ball = "<geom size='.1'/><geom size='.1' pos='.3 0 0'/>"  # two: so that contacts are not as many as islands
    bodies = "".join(f"<body pos='{i} 0 1'><freejoint/>{ball}</body>" for i in range(7))
    xml = f"<mujoco><worldbody><geom type='plane' size='9 9 1'/>{bodies}</worldbody></mujoco>"
    model = mujoco.MjModel.from_xml_string(xml)
    data = mujoco.MjData(model)
    first, last = data.warning.number.ctypes.data - 4, data.energy.ctypes.data  # the counters lie between these two
    words = (ctypes.c_int32 * max(0, (last - first) // 4)).from_address(first)
    candidates = set(range(len(words)))
    for touching in (3, 1, 5, 7, 2, 6, 0, 4):  # up and down, without a reset: not the largest number so far
        data.qpos[2::7] = np.where(np.arange(7) < touching, 0.05, 1.0)
        mujoco.mj_forward(model, data)
        candidates = {i for i in candidates if words[i] == 2 * touching == data.ncon}
    if len(candidates) != 1:
        raise MissingSimulatorError(
            f"mujoco {mujoco.__version__} lays out its data differently: {len(candidates)} integers count contacts, "
            "expected one. Run: pip install 'mujoco>=3.3,<3.10'"
        )
    return first + 4 * candidates.pop() - data._address


CONTACT_STRIDE = int(mujoco.MjData(mujoco.MjModel.from_xml_string("<mujoco/>")).contact.geom.strides[0])  # bytes


def _array_of(model: mujoco.MjModel, data: mujoco.MjData, name: str) -> np.ndarray:
    return getattr(model if name.startswith("actuator_") else data, name)


# -------------------------------------------------------------------------------------------- addresses in kernels


@intrinsic
def _float_pointer(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float64)(types.int64), generate


@intrinsic
def _int_pointer(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int64)(types.int64), generate


@intrinsic
def _int32_pointer(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int32)(types.int64), generate


@numba.njit(inline="always")
def floats(address: int, n: int) -> np.ndarray:
    """The ``n`` float64 at ``address``, as a view."""
    return numba.carray(_float_pointer(address), (n,))


@numba.njit(inline="always")
def integers(address: int, n: int) -> np.ndarray:
    """The ``n`` int64 at ``address``, as a view."""
    return numba.carray(_int_pointer(address), (n,))


@numba.njit(inline="always")
def int32s(address: int, n: int) -> np.ndarray:
    """The ``n`` int32 at ``address``, as a view."""
    return numba.carray(_int32_pointer(address), (n,))


@intrinsic
def take_next(typing_context: Any, address: Any) -> Any:
    """Atomically read and increment the int64 at ``address``: how threads share one queue of simulations."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.int64), generate


def _caller(n_arguments: int, result: types.Type) -> Callable[..., Any]:
    """An intrinsic's code generator that calls the function at the address given first."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        returned = ir.VoidType() if result is types.void else word
        function = ir.FunctionType(returned, [word] * n_arguments)
        called = builder.call(builder.inttoptr(arguments[0], function.as_pointer()), arguments[1:])
        return context.get_dummy_value() if result is types.void else called

    return generate


@intrinsic
def call_control(
    typing_context: Any, kernel: Any, handles: Any, memory: Any, ids: Any, facts: Any, action: Any, reward: Any
) -> Any:
    """Call the control kernel at address ``kernel``."""
    return types.int64(*[types.int64] * 7), _caller(6, types.int64)


@intrinsic
def call_observe(typing_context: Any, kernel: Any, handles: Any, memory: Any, ids: Any, facts: Any, obs: Any) -> Any:
    """Call the observe kernel at address ``kernel``."""
    return types.void(*[types.int64] * 6), _caller(5, types.void)


call_begin = call_observe  # one signature


# --------------------------------------------------------------------------------------------------- compilation


def _fingerprint(file: str) -> str:
    """Hash of all a kernel in ``file`` can be built from: sources with Numba code, here and in the file's folder.

    Numba's own cache looks only at the file of the outermost function, and would go on running a stale controller.
    """
    versions = mujoco.__version__, numba.__version__, llvm.llvm_version_info  # enumerators are compiled in, too
    digest = hashlib.sha256(repr(versions).encode())
    for folder in sorted({Path(__file__).parent, Path(file).parent}):
        for source in sorted(folder.glob("*.py")):
            text = source.read_bytes()
            if any(mark in text for mark in (b"import numba", b"kernel(__file__)", b"raster_compile")):
                digest.update(source.name.encode() + b"\0" + text)
    return digest.hexdigest()[:16]


def kernel_folder(file: str) -> str:
    """Where the compiled kernels of ``file`` belong, as its sources stand; it need not exist."""
    base = numba.config.CACHE_DIR or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "d2ppo"
    )
    return os.path.join(base, "kernels-" + _fingerprint(file))


def _cache_folder(file: str) -> str:
    """A writable folder for compiled kernels; without one, a temporary folder (they are then compiled anew each
    time).
    """
    folder = kernel_folder(file)
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        _logger.warning(
            "compiled kernels cannot be kept in %s (%s): set NUMBA_CACHE_DIR to a writable folder for faster starts",
            folder,
            error,
        )
        return tempfile.mkdtemp(prefix="d2ppo-kernels-")


@contextlib.contextmanager
def _cache_at(folder: str) -> Iterator[None]:
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = folder
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


def compiled(signature: str, file: str) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: a GIL-free Numba function, compiled now for ``signature`` (or loaded); ``file`` is the caller's
    ``__file__``.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        with _cache_at(_cache_folder(file)):
            return numba.njit(signature, nogil=True, cache=True)(function)

    return decorate


def compiled_lazily(file: str, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: as ``compiled``, but for the types it is first called with; ``options`` are those of ``numba.njit``."""

    def decorate(function: Callable[..., Any]) -> Any:
        with _cache_at(_cache_folder(file)):
            return numba.njit(nogil=True, cache=True, **options)(function)

    return decorate


def _c_kernel(signature: str, file: str) -> Callable[[Callable[..., Any]], int]:
    def decorate(function: Callable[..., Any]) -> int:
        with _cache_at(_cache_folder(file)):
            kernel = numba.cfunc(signature, cache=True)(function)
        _kernels.append(kernel)  # its machine code must outlive every address handed out
        return kernel.address

    return decorate


_kernels: list[Any] = []


def control_kernel(file: str) -> Callable[[Callable[..., Any]], int]:
    """Decorator: compile a control kernel (see the module docstring) and return its address. ``file`` is the caller's
    ``__file__``.
    """
    return _c_kernel("int64(int64, int64, int64, int64, int64, int64)", file)


def observe_kernel(file: str) -> Callable[[Callable[..., Any]], int]:
    """Decorator: compile an observe kernel (see the module docstring) and return its address. ``file`` is the
    caller's ``__file__``.
    """
    return _c_kernel("void(int64, int64, int64, int64, int64)", file)


begin_kernel = observe_kernel  # one signature
