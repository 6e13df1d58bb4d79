"""Where in MuJoCo's structs the pointers are that the kernels need and the engine's handles do not have."""

from __future__ import annotations

import ctypes
import functools

import mujoco

from env.errors import MissingSimulatorError

# of ``pointers()``: in mjData, in mjData, in mjModel (of each degree of freedom), in mjModel
EQ_ACTIVE, EFC_FORCE, FRICTION, EXCLUDE = range(4)
_FARTHEST = 2**15  # bytes that are searched
_PROBE = (  # with a pair: an array that is empty begins where the next one does
    "<mujoco><worldbody><body name='b'><joint name='a' type='slide'/><geom name='g' size='.1'/></body><geom name='h' size='.1'/>"
    "<body name='c'/></worldbody><equality><joint joint1='a'/></equality>"
    "<contact><pair geom1='g' geom2='h'/><exclude body1='b' body2='c'/></contact></mujoco>"
)


@functools.cache
def pointers() -> tuple[int, ...]:
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
        _find(model._address, model._address, model.exclude_signature.ctypes.data),
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
