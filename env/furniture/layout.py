"""Where in MuJoCo's structs the pointers are that the kernels need and the engine's handles do not have."""

from __future__ import annotations

import ctypes
import functools

import mujoco

from env.errors import MissingSimulatorError

EQ_ACTIVE, EFC_FORCE, FRICTION = range(
    3
)  # of ``pointers()``: in mjData, in mjData, in mjModel (of each degree of freedom)
_FARTHEST = 2**15  # bytes that are searched
_PROBE = (
    "<mujoco><worldbody><body><joint name='a' type='slide'/><geom size='.1'/></body></worldbody>"
    "<equality><joint joint1='a'/></equality></mujoco>"
)


@functools.cache
def pointers() -> tuple[int, int, int]:
    """Bytes from the start of ``mjData`` (``mjModel``) to each of the pointers, found by looking for the addresses that the bindings give.

    Raises:
        MissingSimulatorError: this mujoco lays out its structs differently.
    """
    model = mujoco.MjModel.from_xml_string(_PROBE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    first = data.energy.ctypes.data  # an array within the struct, before its pointers
    return (
        _find(data._address, first, data.eq_active.ctypes.data),
        _find(data._address, first, data.efc_force.ctypes.data),
        _find(model._address, model._address, model.dof_frictionloss.ctypes.data),
    )


def _find(struct: int, first: int, wanted: int) -> int:
    """No further than to what is looked for: nobody says how long the struct is."""
    for at in range(first, first + _FARTHEST, 8):
        if ctypes.c_int64.from_address(at).value == wanted:
            return at - struct
    raise MissingSimulatorError(
        f"mujoco {mujoco.__version__} lays out its data differently: the addresses of its arrays are not where they were. "
        "Run: pip install 'mujoco>=3.3,<3.10'"
    )
