"""Kernels of the rasteriser: which clusters of triangles need not be looked at."""

from __future__ import annotations

import math

import numpy as np

from env.engine.raster_compile import drawing_kernel, inlined
from env.engine.raster_pose import F_EYE, F_MAP

kernel = drawing_kernel(__file__)
TILE = 4  # pixels
_FLAT = np.float32(-1e-3)  # sine of an angle


@inlined
def set_planes(item, item_floats, lens, planes):
    """The field of view's sides and the near plane in an item's own frame: (5, 4), positive inside."""
    for k in range(4):
        m = item_floats[item, F_MAP + k]
        u, w = item_floats[item, F_MAP + 4 + k], item_floats[item, F_MAP + 8 + k]
        planes[0, k] = -m - lens[4] * w
        planes[1, k] = m - lens[4] * w
        planes[2, k] = -u - lens[5] * w
        planes[3, k] = u - lens[5] * w
        planes[4, k] = -w
    planes[4, 3] -= lens[3]


@inlined
def meets(boxes, cones, c, planes, item, item_floats, both_sides):
    """0: nothing of cluster ``c`` is seen. 1: it lies before the near plane. 2: the near plane cuts it."""
    x, y, z = boxes[c, 0], boxes[c, 1], boxes[c, 2]
    hx, hy, hz = boxes[c, 3], boxes[c, 4], boxes[c, 5]
    answer = 1
    for k in range(5):
        away = planes[k, 0] * x + planes[k, 1] * y + planes[k, 2] * z + planes[k, 3]
        reach = abs(planes[k, 0]) * hx + abs(planes[k, 1]) * hy + abs(planes[k, 2]) * hz
        if away + reach < 0.0:
            return 0
        if k == 4 and away - reach <= 1e-5:
            answer = 2
    if cones[c, 3] <= 1.0 and not both_sides:
        x -= item_floats[item, F_EYE]
        y -= item_floats[item, F_EYE + 1]
        z -= item_floats[item, F_EYE + 2]
        along = x * cones[c, 0] + y * cones[c, 1] + z * cones[c, 2]
        if along >= cones[c, 3] * math.sqrt(x * x + y * y + z * z) + 1.5 * math.sqrt(hx * hx + hy * hy + hz * hz):
            return 0
    return answer


@inlined
def facing(scene, cluster, item, item_floats, both_sides, sides, found):
    """Which triangles of a cluster may show their front -> ``found``; returns how many. ``sides``: scratch.

    Those seen at so flat an angle that OpenGL's grid can turn them stay.
    """
    first, n = scene.clusters[cluster, 2], scene.clusters[cluster, 3]
    x, y, z = item_floats[item, F_EYE], item_floats[item, F_EYE + 1], item_floats[item, F_EYE + 2]
    least = np.float32(-1e30) if both_sides else _FLAT * (abs(x) + abs(y) + abs(z))
    a, b = scene.planes[0, first : first + n], scene.planes[1, first : first + n]
    c, d = scene.planes[2, first : first + n], scene.planes[3, first : first + n]
    for t in range(n):
        sides[t] = a[t] * x + b[t] * y + c[t] * z + d[t]
    count = 0
    for t in range(n):  # (without branches)
        found[count] = t
        count += 1 if sides[t] > least else 0
    return count


@kernel
def survey(depth, frame, tiles, line):
    """How far it is to the farthest sample of each tile of the image (as 1 / distance) -> ``tiles``, row by row. ``line (W,)``: scratch."""
    width, lines = frame.width, TILE * frame.per_pixel
    across = (width + TILE - 1) // TILE
    for start in range(0, frame.rows, lines):
        line[:] = np.float32(1e30)
        for r in range(start, min(start + lines, frame.rows)):
            row = depth[r * width : r * width + width]
            for c in range(len(line)):
                line[c] = min(line[c], row[c])
        first = start // lines * across
        for tile in range(across):
            farthest = np.float32(1e30)
            for c in range(TILE * tile, min(TILE * tile + TILE, width)):
                farthest = min(farthest, line[c])
            tiles[first + tile] = farthest


@inlined
def behind(left, right, low, high, near, frame, tiles):
    """Whether something small lies behind what is there: between grid lines ``left`` and ``right``, rows ``low`` and ``high``."""
    shift = 4 if frame.per_pixel == 4 else 2  # a tile has TILE * per_pixel lines
    left, right, low, high = left >> shift, right >> shift, low >> shift, high >> shift
    if right > left + 1 or high > low + 1:
        return False
    across, near = (frame.width + TILE - 1) // TILE, near * np.float32(1.00001)
    nearer = near < tiles[low * across + left] and near < tiles[low * across + right]
    return nearer and near < tiles[high * across + left] and near < tiles[high * across + right]


@inlined
def hidden(screen, n, frame, tiles):
    """Whether a projected cluster lies outside the image, or behind what is there."""
    left, right, low, high, near = screen[0, 0], screen[0, 0], screen[1, 0], screen[1, 0], screen[2, 0]
    for k in range(1, n):
        left, right = min(left, screen[0, k]), max(right, screen[0, k])
        low, high = min(low, screen[1, k]), max(high, screen[1, k])
        near = max(near, screen[2, k])
    height = frame.rows // frame.per_pixel
    if right <= 0.0 or left >= frame.width or high <= 0.0 or low >= height:
        return True
    across = (frame.width + TILE - 1) // TILE
    first, last = np.int64(max(left, 0.0)) // TILE, min(np.int64(right) // TILE, across - 1)
    near *= np.float32(1.00001)
    for r in range(np.int64(max(low, 0.0)) // TILE, min(np.int64(high), height - 1) // TILE + 1):
        for c in range(first, last + 1):
            if near >= tiles[r * across + c]:
                return False
    return True
