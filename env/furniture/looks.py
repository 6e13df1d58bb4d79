"""What the parts look like in videos: primitives, or the meshes of the ``furniture_bench`` package where that is installed (it need not be
importable: ``pip install --no-deps furniture-bench``). Nothing here weighs or touches anything.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

from env.d3il.panda import text
from env.furniture.facts import Furniture

GROUP = 1  # of geoms that are seen; shapes that touch are in ``HIDDEN``
HIDDEN = 3
_WOOD, _LIGHT, _DARK, _GLASS, _RED = ".52 .33 .18 1", ".80 .62 .40 1", ".16 .12 .09 1", ".96 .93 .78 1", ".72 .24 .20 1"
_COLOURS = {
    "square_table_top": _LIGHT, "lamp_base": _WOOD, "lamp_bulb": _GLASS, "lamp_hood": _RED,
    "round_table_top": _LIGHT, "round_table_leg": _WOOD, "round_table_base": _WOOD,
}  # fmt: skip
_QUARTER = (math.sqrt(0.5), math.sqrt(0.5), 0.0, 0.0)


def looks(name: str) -> str:
    """MJCF geoms of a part: its mesh, or primitives."""
    colour = _COLOURS.get(name, _WOOD)
    if mesh_file(name) is not None:
        return _seen(f'type="mesh" mesh="{name}"', colour)
    return _PRIMITIVES[name]


def assets(furniture: Furniture) -> str:
    """MJCF mesh assets of the parts whose meshes are installed."""
    files = {name: mesh_file(name) for name in furniture.parts}
    return "".join(f'<mesh name="{name}" file="{file}"/>' for name, file in files.items() if file is not None)


def mesh_file(name: str) -> Path | None:
    """The published mesh of a part, in metres in the part's own frame; None where the package is not installed."""
    spec = importlib.util.find_spec("furniture_bench")
    if spec is None or not spec.submodule_search_locations:
        return None
    family = "square_table" if name.startswith(("square", "leg")) else name.rsplit("_", 1)[0]
    file = f"square_table_{name}.obj" if name.startswith("leg") else f"{name}.obj"
    path = Path(spec.submodule_search_locations[0]) / "assets" / "furniture" / "mesh" / family / file
    return path if path.is_file() else None


def _seen(shape: str, colour: str) -> str:
    return f'<geom {shape} contype="0" conaffinity="0" mass="0" group="{GROUP}" rgba="{colour}"/>'


def _box(half: Sequence[float], at: Sequence[float], colour: str, more: str = "") -> str:
    return _seen(f'type="box" size="{text(half)}" pos="{text(at)}" {more}', colour)


def _rod(radius: float, low: float, high: float, colour: str, along: str = "y", x: float = 0.0, z: float = 0.0) -> str:
    """A cylinder about the y (or z) axis through x, z."""
    middle, half = (low + high) / 2, (high - low) / 2
    at = (x, middle, z) if along == "y" else (0.0, 0.0, middle)
    turn = f'quat="{text(_QUARTER)}"' if along == "y" else ""
    return _seen(f'type="cylinder" size="{radius} {half!r}" pos="{text(at)}" {turn}', colour)


def _ball(radius: float, y: float, colour: str) -> str:
    return _seen(f'type="sphere" size="{radius}" pos="0 {y} 0"', colour)


def _square_top() -> str:
    out, corner = _box((0.08125, 0.0015625, 0.08125), (0, -0.0140625, 0), _LIGHT), 0.05625
    for s in (-1, 1):
        out += _box((0.003125, 0.0156, 0.08125), (s * 0.078125, 0, 0), _LIGHT) + _box(
            (0.08125, 0.0156, 0.003125), (0, 0, s * 0.078125), _LIGHT
        )
        for t in (-1, 1):
            out += _rod(0.01625, -0.0125, 0.0156, _WOOD, x=s * corner, z=t * corner)
            out += _rod(0.0125, 0.0, 0.0159, _DARK, x=s * corner, z=t * corner)
    return out


def _cone() -> str:
    """The hood: twenty-four staves."""
    out, lean, n = "", math.atan(0.14), 24
    for k in range(n):
        angle = math.tau * k / n
        x, z = 0.035 * math.cos(angle), 0.035 * math.sin(angle)
        out += _box((0.002, 0.0502, 0.0053), (x, -0.0014, z), _RED, f'euler="0 {-angle!r} {-lean!r}"')
    return out


def _rim() -> str:
    """Of the round table: forty blocks."""
    out, n = "", 40
    for k in range(n):
        angle = math.tau * k / n
        out += _box(
            (0.003, 0.008, 0.0085),
            (0.097 * math.cos(angle), 0.097 * math.sin(angle), 0.0085),
            _LIGHT,
            f'euler="0 0 {angle!r}"',
        )
    return out


_LEG = _box((0.015, 0.03125, 0.015), (0, 0, 0), _WOOD) + _rod(0.01, -0.05625, -0.03125, _LIGHT)
_PRIMITIVES = {
    "square_table_top": _square_top(),
    **{f"leg{i}": _LEG for i in (1, 2, 3, 4)},
    "lamp_base": _box((0.04235, 0.0025, 0.04235), (0, 0.0147, 0), _WOOD)
    + _box((0.034, 0.004, 0.034), (0, 0.0082, 0), _WOOD)
    + _box((0.024, 0.005, 0.024), (0, -0.0008, 0), _WOOD)
    + _rod(0.018, -0.042, 0.0, _WOOD)
    + _box((0.0275, 0.0019, 0.0275), (0, -0.0439, 0), _LIGHT)
    + _rod(0.0125, -0.0462, -0.04, _DARK),
    "lamp_bulb": _rod(0.01, -0.053, -0.022, _LIGHT)
    + _rod(0.0224, -0.022, -0.013, _GLASS)
    + _rod(0.0175, -0.013, 0.013, _GLASS)
    + _ball(0.03, 0.038, _GLASS),
    "lamp_hood": _cone(),
    "round_table_top": _rod(0.1, 0.0, 0.004, _LIGHT, "z")
    + _rim()
    + _rod(0.02125, 0.004, 0.03125, _WOOD, "z")
    + _rod(0.0125, 0.03, 0.0316, _DARK, "z"),
    "round_table_leg": _rod(0.01, -0.0394, -0.013, _LIGHT)
    + _rod(0.01625, -0.013, 0.013, _WOOD)
    + _rod(0.02125, 0.013, 0.0519, _WOOD)
    + _rod(0.0125, 0.05, 0.0523, _DARK),
    "round_table_base": _box((0.065, 0.015, 0.006125), (0, 0, 0.005125), _WOOD)
    + _box((0.015, 0.065, 0.006125), (0, 0, 0.005125), _WOOD)
    + _rod(0.01, -0.02875, -0.001, _LIGHT, "z"),
}
