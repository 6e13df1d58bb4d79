"""Kernels of the rasteriser, second part: which triangle is seen at which sample of the image.

Samples lie in rows: a pixel's ``per_pixel`` samples (4, or 1) belong to as many rows, each with its own offset within the pixel, so that a
triangle covers a run of samples in each row it meets. Row 0 is at the bottom. ``depth`` holds what is nearest: 1 / distance.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from env.engine.raster_compile import drawing_kernel, inlined
from env.engine.raster_cull import behind, facing, hidden, meets, set_planes, survey
from env.engine.raster_pose import F_MAP, W_BEHIND, W_MIRRORED

kernel = drawing_kernel(__file__)
SNAP = 256.0  # OpenGL's grid per pixel
_LEAST = 0.5 / SNAP**2  # less than any product of coordinates on that grid
_FEW = 6  # rows of samples up to which a triangle is filled sample by sample
_OFTEN, _BIG = 60, 2  # triangles drawn, and clusters to draw, when it is looked again at what is hidden


class Frame(NamedTuple):
    """An image's geometry."""

    lens: (
        np.ndarray
    )  # (6,) float64: the image's middle x, y; pixels per unit of tangent; near plane, m; tangents of half the angles
    offsets: np.ndarray  # (4,) float64: of a pixel's samples, along x
    width: int
    rows: int  # of samples
    per_pixel: int  # samples: 4 or 1
    far: float  # m


@inlined
def edges_of(ax, ay, bx, by, cx, cy):
    """A triangle's edges: what ``covered`` needs to know."""
    if ay > by:
        ax, ay, bx, by = bx, by, ax, ay
    if by > cy:
        bx, by, cx, cy = cx, cy, bx, by
        if ay > by:
            ax, ay, bx, by = bx, by, ax, ay
    bulges_left = (cx - ax) * (by - ay) > (bx - ax) * (cy - ay)
    return ax, ay, bx, by, cy, _slope(ax, ay, cx, cy), _slope(ax, ay, bx, by), _slope(bx, by, cx, cy), bulges_left


@inlined
def _slope(ax, ay, bx, by):
    return (bx - ax) / (by - ay) if by > ay else 0.0


@inlined
def first_and_last(low, high, scale, size):
    """Lines at (i + 1/2) / ``scale`` within [low, high): the first, and the one after the last, of ``size``."""
    first, last = math.ceil(low * scale - 0.5), math.ceil(high * scale - 0.5)
    return max(0, np.int64(first)), min(np.int64(size), np.int64(last))


@inlined
def covered(edges, y, offset, width):
    """First column, and the one after the last, that a triangle covers in the row of samples at height y: float64."""
    x0, y0, x1, y1, _, long, low, high, bulges_left = edges
    below = y < y1
    x, start, slope = x0 if below else x1, y0 if below else y1, low if below else high
    on_long, on_short = x0 + long * (y - y0), x + slope * (y - start)
    left, right = on_short if bulges_left else on_long, on_long if bulges_left else on_short
    return max(np.ceil(left - offset), 0.0), min(np.ceil(right - offset), width)


@inlined
def slopes_of(ax, ay, az, bx, by, bz, cx, cy, cz, area):
    """How z grows along x and y."""
    share = 1.0 / area
    zx = ((bz - az) * (cy - ay) - (cz - az) * (by - ay)) * share
    zy = ((bx - ax) * (cz - az) - (cx - ax) * (bz - az)) * share
    return zx, zy


@inlined
def area_of(ax, ay, bx, by, cx, cy):
    """Twice the area of a triangle; positive if its corners go counter-clockwise."""
    return (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)


@inlined
def _edge(ax, ay, bx, by):
    """An edge from a to b as (dx, dy, least): (x, y) is to its left if ``dx * y - dy * x >= least``, which is exact on OpenGL's grid.

    A point on the edge belongs to the triangle right of it, as in ``covered``.
    """
    dx, dy = bx - ax, by - ay
    return dx, dy, dx * ay - dy * ax + (0.0 if dy < 0.0 else _LEAST)


@inlined
def fill(ax, ay, az, bx, by, bz, cx, cy, cz, area, first, last, frame, depth, ids, limit, k):
    """Mark the samples of a triangle (counter-clockwise, in pixels; z: 1 / distance) in rows [first, last) where it is nearest so far.

    ``limit``: None, or what 1 / distance must not exceed, sample by sample.
    """
    zx, zy = slopes_of(ax, ay, az, bx, by, bz, cx, cy, cz, area)
    edges, pixel, step = edges_of(ax, ay, bx, by, cx, cy), 1.0 / frame.per_pixel, np.float32(zx)
    width = np.float64(frame.width)
    for r in range(first, last):
        y, offset = (r + 0.5) * pixel, frame.offsets[r & (frame.per_pixel - 1)]
        left, right = covered(edges, y, offset, width)
        z0 = np.float32(az + zx * (left + offset - ax) + zy * (y - ay))
        base = r * frame.width + np.int64(left)
        for c in range(np.int64(right - left)):
            z = z0 + step * np.float32(c)
            if limit is None:
                if z >= depth[base + c]:
                    depth[base + c] = z
                    ids[base + c] = k
            elif z >= depth[base + c] and z <= limit[base + c]:
                depth[base + c] = z
                ids[base + c] = k


@inlined
def fill_few(ax, ay, az, bx, by, bz, cx, cy, cz, area, first, last, frame, depth, ids, limit, k):
    """``fill`` for a small triangle, most of which hold no sample at all."""
    left, right = min(ax, bx, cx), max(ax, bx, cx)
    pixel, sloped, zx, zy = 1.0 / frame.per_pixel, False, 0.0, 0.0
    dx0, dy0, least0 = _edge(ax, ay, bx, by)
    dx1, dy1, least1 = _edge(bx, by, cx, cy)
    dx2, dy2, least2 = _edge(cx, cy, ax, ay)
    for r in range(first, last):
        y, offset = (r + 0.5) * pixel, frame.offsets[r & (frame.per_pixel - 1)]
        start = max(0, np.int64(math.ceil(left - offset)))
        in0, in1, in2 = dx0 * y - least0, dx1 * y - least1, dx2 * y - least2
        for c in range(start, min(frame.width, np.int64(math.ceil(right - offset)))):
            x = c + offset
            if (in0 >= dy0 * x) & (in1 >= dy1 * x) & (in2 >= dy2 * x):  # (without branches)
                if not sloped:
                    sloped = True
                    zx, zy = slopes_of(ax, ay, az, bx, by, bz, cx, cy, cz, area)
                z, at = np.float32(az + zx * (x - ax) + zy * (y - ay)), r * frame.width + c
                if limit is None:
                    if z >= depth[at]:
                        depth[at] = z
                        ids[at] = k
                elif z >= depth[at] and z <= limit[at]:
                    depth[at] = z
                    ids[at] = k


@inlined
def project(scene, first, n, item, item_floats, lens, screen):
    """Positions on the screen, snapped to OpenGL's grid, and 1 / distance of a cluster's places: rows of ``screen``."""
    f = item_floats[item]
    a, b, c, d = f[F_MAP], f[F_MAP + 1], f[F_MAP + 2], f[F_MAP + 3]
    e, g, h, i = f[F_MAP + 4], f[F_MAP + 5], f[F_MAP + 6], f[F_MAP + 7]
    p, q, s, t = f[F_MAP + 8], f[F_MAP + 9], f[F_MAP + 10], f[F_MAP + 11]
    scale, half, unit = np.float32(lens[2] * SNAP), np.float32(0.5), np.float32(1.0 / SNAP)
    x0, y0 = np.float32(lens[0] * SNAP), np.float32(lens[1] * SNAP)
    xs, ys, zs = scene.x[first : first + n], scene.y[first : first + n], scene.z[first : first + n]
    for k in range(n):
        x, y, z = xs[k], ys[k], zs[k]
        near = np.float32(-1.0) / (p * x + q * y + s * z + t)
        screen[0, k] = np.floor(x0 + scale * (a * x + b * y + c * z + d) * near + half) * unit
        screen[1, k] = np.floor(y0 + scale * (e * x + g * y + h * z + i) * near + half) * unit
        screen[2, k] = near


@inlined
def eye_place(scene, place, item, item_floats, out):
    """A place in the eye's frame, (3,)."""
    for r in range(3):
        m = F_MAP + 4 * r
        out[r] = (
            item_floats[item, m] * np.float64(scene.x[place])
            + item_floats[item, m + 1] * np.float64(scene.y[place])
            + item_floats[item, m + 2] * np.float64(scene.z[place])
            + item_floats[item, m + 3]
        )


@inlined
def clipped(scene, first, triangle, item, item_floats, lens, eye, polygon):
    """The part of a triangle beyond the near plane, on the screen: rows (x, y, 1 / distance) of ``polygon``; returns how many."""
    for k in range(3):
        eye_place(scene, first + scene.corners[triangle, k], item, item_floats, eye[k])
    n = 0
    for k in range(3):
        j = (k + 1) % 3
        here, there = -eye[k, 2] - lens[3], -eye[j, 2] - lens[3]
        for crossing in range(2):
            if (crossing == 0 and here <= 0.0) or (crossing == 1 and (here > 0.0) == (there > 0.0)):
                continue
            part = here / (here - there) if crossing == 1 else 0.0
            near = -1.0 / (eye[k, 2] + part * (eye[j, 2] - eye[k, 2]))
            for i in range(2):
                across = eye[k, i] + part * (eye[j, i] - eye[k, i])
                polygon[n, i] = math.floor((lens[i] + lens[2] * across * near) * SNAP + 0.5) / SNAP
            polygon[n, 2] = near
            n += 1
    return n


@inlined
def _fill_cluster(scene, cluster, item, flip, frame, depth, ids, limit, kept, n_kept, scratch, n_found):
    """Draw the ``n_found`` triangles of a projected cluster that ``scratch.found`` names; returns the number of rows of ``kept`` in use."""
    sx, sy, sz, tiles = scratch.screen[0], scratch.screen[1], scratch.screen[2], scratch.tiles
    first = scene.clusters[cluster, 2]
    for at in range(n_found):
        t = first + scratch.found[at]
        i, j, k = scene.corners[t, 0], scene.corners[t, 1], scene.corners[t, 2]
        if flip:
            j, k = k, j
        ax, ay, bx, by, cx, cy = sx[i], sy[i], sx[j], sy[j], sx[k], sy[k]
        area = area_of(ax, ay, bx, by, cx, cy)
        if area <= 0.0:
            continue
        low, high = first_and_last(min(ay, by, cy), max(ay, by, cy), frame.per_pixel, frame.rows)
        left, right = first_and_last(min(ax, bx, cx), max(ax, bx, cx), frame.per_pixel, frame.width * frame.per_pixel)
        if low >= high or left >= right:
            continue
        if behind(left, right - 1, low, high - 1, max(sz[i], sz[j], sz[k]), frame, tiles):
            continue
        a, b, c, d, e, f, g = (np.float64(ax), np.float64(ay), np.float64(bx), np.float64(by), np.float64(cx), np.float64(cy), np.float64(area))  # fmt: skip
        z0, z1, z2 = np.float64(sz[i]), np.float64(sz[j]), np.float64(sz[k])
        if high - low <= _FEW and right - left <= 2 * _FEW:
            fill_few(a, b, z0, c, d, z1, e, f, z2, g, low, high, frame, depth, ids, limit, n_kept)
        else:
            fill(a, b, z0, c, d, z1, e, f, z2, g, low, high, frame, depth, ids, limit, n_kept)
        kept[n_kept, 0], kept[n_kept, 1], kept[n_kept, 2], kept[n_kept, 3] = item, t, cluster, -1
        n_kept += 1
    return n_kept


@kernel
def _fill_cut_cluster(scene, cluster, item, item_floats, flip, frame, depth, ids, limit, kept, n_kept, eye, polygon):
    """As ``_fill_cluster``, of a cluster that the near plane cuts."""
    first = scene.clusters[cluster, 2]
    for t in range(first, first + scene.clusters[cluster, 3]):
        n = clipped(scene, scene.clusters[cluster, 0], t, item, item_floats, frame.lens, eye, polygon)
        drawn = False
        for m in range(1, n - 1):
            b, c = (polygon[m + 1], polygon[m]) if flip else (polygon[m], polygon[m + 1])
            a = polygon[0]
            area = area_of(a[0], a[1], b[0], b[1], c[0], c[1])
            low, high = first_and_last(min(a[1], b[1], c[1]), max(a[1], b[1], c[1]), frame.per_pixel, frame.rows)
            if area > 0.0:
                fill(
                    a[0],
                    a[1],
                    a[2],
                    b[0],
                    b[1],
                    b[2],
                    c[0],
                    c[1],
                    c[2],
                    area,
                    low,
                    high,
                    frame,
                    depth,
                    ids,
                    limit,
                    n_kept,
                )
                drawn = True
        if drawn:
            kept[n_kept, 0], kept[n_kept, 1], kept[n_kept, 2], kept[n_kept, 3] = item, t, cluster, -1
            n_kept += 1
    return n_kept


@kernel
def fill_items(
    scene, order, first, last, shift, item_floats, item_words, frame, depth, ids, limit, kept, n_kept, scratch
):
    """Draw the items ``order[first:last]`` into ``depth`` and ``ids``: rows of ``kept`` (item, triangle, cluster, -1).

    ``shift``: 0, or the number of items for their mirror images, whose records come behind. Returns the number of rows of ``kept`` that are
    in use.
    """
    planes, screen, tiles, surveyed = scratch.planes, scratch.screen, scratch.tiles, n_kept
    survey(depth, frame, tiles, scratch.line)
    for at in range(first, last):
        item, shape = order[at] + shift, scene.items[order[at], 1]
        turned = item_words[item, W_BEHIND] == 1
        flip = (item_words[item, W_MIRRORED] == 1) != turned
        set_planes(item, item_floats, frame.lens, planes)
        if n_kept - surveyed > _OFTEN and scene.shapes[shape, 1] >= _BIG:
            survey(depth, frame, tiles, scratch.line)
            surveyed = n_kept
        for c in range(scene.shapes[shape, 0], scene.shapes[shape, 0] + scene.shapes[shape, 1]):
            seen = meets(scene.boxes, scene.cones, c, planes, item, item_floats, turned)
            if seen == 1:
                project(scene, scene.clusters[c, 0], scene.clusters[c, 1], item, item_floats, frame.lens, screen)
                if not hidden(screen, scene.clusters[c, 1], frame, tiles):
                    n = facing(scene, c, item, item_floats, turned, scratch.sides, scratch.found)
                    n_kept = _fill_cluster(scene, c, item, flip, frame, depth, ids, limit, kept, n_kept, scratch, n)
            elif seen == 2:
                n_kept = _fill_cut_cluster(
                    scene,
                    c,
                    item,
                    item_floats,
                    flip,
                    frame,
                    depth,
                    ids,
                    limit,
                    kept,
                    n_kept,
                    scratch.eye,
                    scratch.polygon,
                )
    return n_kept
