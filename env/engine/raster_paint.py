"""Kernels of the rasteriser, fifth part: colours for the samples of an image, what shows through transparent things, and the mean."""

from __future__ import annotations

import numpy as np

from env.engine.raster_compile import drawing_kernel, inlined
from env.engine.raster_cull import hidden, meets, set_planes
from env.engine.raster_fill import area_of, clipped, covered, edges_of, first_and_last, project, slopes_of
from env.engine.raster_light import LANES, describe_triangles
from env.engine.raster_pose import F_RGBA, W_BEHIND, W_LAYING, W_MIRRORED, W_TEXTURE
from env.engine.raster_sample import cube_face, level_of_detail, on_face, sample
from env.engine.raster_shade import detail_at, shade

kernel = drawing_kernel(__file__)
_SEEN = 0  # in place of a record's number: there will be one
_BYTE, _GREEN, _BLUE = np.uint32(255), np.uint32(8), np.uint32(16)


@inlined
def _sky_at(cam_mat, lens, x, y):
    """Direction of a point of the image, as the skybox's texture has it: y up."""
    right, up = (x - lens[0]) / lens[2], (y - lens[1]) / lens[2]
    wx = cam_mat[0] * right + cam_mat[1] * up - cam_mat[2]
    wy = cam_mat[3] * right + cam_mat[4] * up - cam_mat[5]
    wz = cam_mat[6] * right + cam_mat[7] * up - cam_mat[8]
    return wx, wz, -wy


@inlined
def _sky(scene, cam_mat, lens, column, row):
    """The skybox's colour at a pixel; black without one."""
    if scene.skybox < 0:
        return np.uint32(0)
    x, y, z = _sky_at(cam_mat, lens, column + 0.5, row + 0.5)
    face = cube_face(x, y, z)
    s, t = on_face(face, x, y, z)
    left, low = (column & ~1) + 0.5, (row & ~1) + 0.5
    x, y, z = _sky_at(cam_mat, lens, left, low)
    s0, t0 = on_face(face, x, y, z)
    x, y, z = _sky_at(cam_mat, lens, left + 1.0, low)
    s1, t1 = on_face(face, x, y, z)
    x, y, z = _sky_at(cam_mat, lens, left, low + 1.0)
    s2, t2 = on_face(face, x, y, z)
    size = scene.levels[scene.heads[scene.skybox, 1], 1]
    spread = max((s1 - s0) ** 2 + (t1 - t0) ** 2, (s2 - s0) ** 2 + (t2 - t0) ** 2)
    lanes = sample(scene, scene.skybox, face, s, t, level_of_detail(size * size * spread))
    byte = np.uint64(255)
    return np.uint32(
        (lanes & byte)
        | ((lanes >> np.uint64(32)) & byte) << np.uint64(8)
        | ((lanes >> np.uint64(16)) & byte) << np.uint64(16)
    )


@inlined
def _collect(scene, kept, row, last, record, batch):
    """The next triangles among rows ``row`` to ``last`` of ``kept`` that are marked, of one item, into ``batch``; ``record``: of the first.

    Returns (how many, the row after them, their item).
    """
    n, item = 0, -1
    while row < last and n < LANES:
        if kept[row, 3] == _SEEN:
            if n > 0 and kept[row, 0] != item:
                break
            item = kept[row, 0]
            batch.triangles[n], batch.places[n] = kept[row, 1], scene.clusters[kept[row, 2], 0]
            kept[row, 3] = record + n
            n += 1
        row += 1
    return n, row, item


@kernel
def describe_seen(scene, frame, ids, kept, first, last, item_floats, item_words, lights, records, n_records, batch):
    """Records for what ``ids`` shows, of rows ``first`` to ``last`` of ``kept``; returns how many ``records`` are in use."""
    for at in range(frame.rows * frame.width):
        kept[ids[at], 3] = _SEEN  # nothing, -1, marks the last row, which no triangle has
    row = first
    while row < last:
        n, row, item = _collect(scene, kept, row, last, n_records, batch)
        if n > 0:
            describe_triangles(scene, item, n, item_floats, item_words, lights, frame.lens, records, n_records, batch)
            n_records += n
    return n_records


@kernel
def paint(scene, frame, ids, kept, item_words, records, colours):
    """Colour every sample of ``ids`` that shows something; returns how many samples show nothing."""
    empty = 0
    per_pixel, width, height = frame.per_pixel, frame.width, frame.rows // frame.per_pixel
    for corner_row in range(0, height, 2):
        for corner_column in range(0, width, 2):
            last, last_detail = -1, 0
            for inner in range(4):
                row, column = corner_row + (inner >> 1), corner_column + (inner & 1)
                if row >= height or column >= width:
                    continue
                known, colour = -1, np.uint32(0)
                for k in range(per_pixel):
                    at = (row * per_pixel + k) * width + column
                    found = ids[at]
                    if found < 0:
                        empty += 1
                        continue
                    if found != known:
                        known, item, r = found, kept[found, 0], kept[found, 3]
                        texture, laying = item_words[item, W_TEXTURE], item_words[item, W_LAYING]
                        if texture >= 0 and found != last:
                            last = found
                            last_detail = detail_at(scene, texture, laying, records, r, column, row)
                        colour = np.uint32(shade(scene, texture, laying, records, r, column, row, last_detail))
                    colours[at] = colour
    return empty


@kernel
def paint_sky(scene, frame, ids, cam_mat, colours):
    """Colour every sample of ``ids`` that shows nothing."""
    per_pixel, width = frame.per_pixel, frame.width
    for row in range(frame.rows // per_pixel):
        for column in range(width):
            known, colour = False, np.uint32(0)
            for k in range(per_pixel):
                at = (row * per_pixel + k) * width + column
                if ids[at] < 0:
                    if not known:
                        known, colour = True, np.uint32(_sky(scene, cam_mat, frame.lens, column, row))
                    colours[at] = colour


@inlined
def _mixed(over, under, alpha):
    """``over`` with opacity ``alpha`` (0 to 255) before ``under``: colours as bytes."""
    result = np.uint32(0)
    for k in range(3):
        shift = np.uint32(8 * k)
        mixed = np.int64((over >> shift) & _BYTE) * alpha + np.int64((under >> shift) & _BYTE) * (255 - alpha) + 127
        result = np.uint32(result | np.uint32(mixed // 255) << shift)
    return result


@inlined
def _veil(scene, item, a, b, c, area, frame, depth, limit, records, r, item_words, alpha, colours, shades):
    """Blend one triangle of a transparent item (corners ``a``, ``b``, ``c``: x, y, 1 / distance) over what is behind it.

    ``shades (2, width)``: scratch, for a pixel's colour is found once.
    """
    zx, zy = slopes_of(a[0], a[1], a[2], b[0], b[1], b[2], c[0], c[1], c[2], area)
    edges, pixel = edges_of(a[0], a[1], b[0], b[1], c[0], c[1]), 1.0 / frame.per_pixel
    first, last = first_and_last(min(a[1], b[1], c[1]), max(a[1], b[1], c[1]), frame.per_pixel, frame.rows)
    texture, laying = item_words[item, W_TEXTURE], item_words[item, W_LAYING]
    shades[0, :] = -1
    for line in range(first, last):
        y, row, offset = (line + 0.5) * pixel, line // frame.per_pixel, frame.offsets[line & (frame.per_pixel - 1)]
        left, right = covered(edges, y, offset, np.float64(frame.width))
        for column in range(np.int64(left), np.int64(right)):
            at = line * frame.width + column
            z = np.float32(a[2] + zx * (column + offset - a[0]) + zy * (y - a[1]))
            if z < depth[at] or z > limit[at]:
                continue
            if shades[0, column] != row:  # the first sample of this pixel
                shades[0, column] = row
                detail = detail_at(scene, texture, laying, records, r, column, row) if texture >= 0 else 0
                shades[1, column] = shade(scene, texture, laying, records, r, column, row, detail)
            colours[at] = _mixed(np.uint32(shades[1, column]), colours[at], alpha)


@inlined
def _faces_away(scene, cluster, triangle, flip, screen):
    """Whether a projected triangle shows its back."""
    i, j, k = scene.corners[triangle, 0], scene.corners[triangle, 1], scene.corners[triangle, 2]
    area = area_of(screen[0, i], screen[1, i], screen[0, j], screen[1, j], screen[0, k], screen[1, k])
    return area >= 0.0 if flip else area <= 0.0


@inlined
def _facing(scene, cluster, cut, flip, screen, batch):
    """Triangles of a cluster that do not face away, or all of one that the near plane cuts, into ``batch``; returns how many."""
    n, first = 0, scene.clusters[cluster, 2]
    for t in range(first, first + scene.clusters[cluster, 3]):
        if cut or not _faces_away(scene, cluster, t, flip, screen):
            batch.triangles[n], batch.places[n] = t, scene.clusters[cluster, 0]
            n += 1
    return n


@kernel
def veil_item(scene, at, shift, item_floats, item_words, lights, frame, depth, limit, records, batch, colours, scratch):
    """Blend a transparent item, triangle by triangle; the first ``LANES`` of ``records`` are scratch."""
    item, shape = at + shift, scene.items[at, 1]
    behind = item_words[item, W_BEHIND] == 1
    flip = (item_words[item, W_MIRRORED] == 1) != behind
    alpha = np.int64(min(item_floats[item, F_RGBA + 3], 1.0) * 255.0 + 0.5)
    polygon = scratch.polygon
    set_planes(item, item_floats, frame.lens, scratch.planes)
    for c in range(scene.shapes[shape, 0], scene.shapes[shape, 0] + scene.shapes[shape, 1]):
        seen = meets(scene.boxes, scene.cones, c, scratch.planes, item, item_floats, behind)
        if seen == 0:
            continue
        if seen == 1:
            project(scene, scene.clusters[c, 0], scene.clusters[c, 1], item, item_floats, frame.lens, scratch.screen)
            if hidden(scratch.screen, scene.clusters[c, 1], frame, scratch.tiles):
                continue
        facing = _facing(scene, c, seen == 2, flip, scratch.screen, batch)
        if facing > 0:
            describe_triangles(scene, item, facing, item_floats, item_words, lights, frame.lens, records, 0, batch)
        for i in range(facing):
            n = clipped(scene, batch.places[i], batch.triangles[i], item, item_floats, frame.lens, scratch.eye, polygon)
            for m in range(1, n - 1):
                p, q, s = polygon[0], polygon[m + 1 if flip else m], polygon[m if flip else m + 1]
                area = area_of(p[0], p[1], q[0], q[1], s[0], s[1])
                if area > 0.0:
                    _veil(
                        scene, item, p, q, s, area, frame, depth, limit, records, i, item_words, alpha, colours, scratch.shades
                    )  # fmt: skip


@kernel
def mirror_limit(scene, ids, kept, mirror, depth, limit, mirrored_depth, far):
    """What a mirror shows may not seem nearer than the mirror is, nor show where that is hidden. Returns how many samples show it."""
    n = 0
    for at in range(len(ids)):
        limit[at], mirrored_depth[at] = depth[at], np.float32(1e30)
        if ids[at] >= 0 and scene.items[kept[ids[at], 0], 0] == mirror:
            mirrored_depth[at] = np.float32(1.0 / far)
            n += 1
    return n


@kernel
def add_mirrored(scene, ids, kept, mirror, reflected, colours):
    """Add what the mirror shows to what it is."""
    for at in range(len(ids)):
        if reflected[at] != 0 and ids[at] >= 0 and scene.items[kept[ids[at], 0], 0] == mirror:
            result = np.uint32(0)
            for k in range(3):
                shift = np.uint32(8 * k)
                both = ((colours[at] >> shift) & _BYTE) + ((reflected[at] >> shift) & _BYTE)
                result = np.uint32(result | np.uint32(min(both, _BYTE)) << shift)
            colours[at] = result


@kernel
def resolve(frame, colours, image):
    """The mean of each pixel's four samples -> ``image (3, H, W)``, top row first."""
    height, width = frame.rows // 4, frame.width
    for row in range(height):
        first = 4 * row * width
        a, b = colours[first : first + width], colours[first + width : first + 2 * width]
        c, d = colours[first + 2 * width : first + 3 * width], colours[first + 3 * width : first + 4 * width]
        red, green, blue = image[0, height - 1 - row], image[1, height - 1 - row], image[2, height - 1 - row]
        for x in range(width):
            pair = np.uint32(0xFF00FF)
            both = (a[x] & pair) + (b[x] & pair) + (c[x] & pair) + (d[x] & pair) + np.uint32(0x20002)
            red[x] = np.uint8((both >> np.uint32(2)) & _BYTE)
            blue[x] = np.uint8((both >> np.uint32(18)) & _BYTE)
            middle = ((a[x] >> _GREEN) & _BYTE) + ((b[x] >> _GREEN) & _BYTE) + ((c[x] >> _GREEN) & _BYTE)
            green[x] = np.uint8((middle + ((d[x] >> _GREEN) & _BYTE) + np.uint32(2)) >> np.uint32(2))
