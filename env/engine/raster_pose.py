"""Kernels of the rasteriser, first part: where everything is, seen from a camera.

All that follows happens in the camera's frame: x right, y up, the view along -z. What is drawn as an *item* (a geom, or a part of one) gets a
record in ``item_floats`` and ``item_words``.
"""

from __future__ import annotations

import math

import mujoco

from env.engine.raster_compile import drawing_kernel, inlined
from env.engine.raster_scene import (
    BOTTOM,
    I_GEOM,
    I_PART,
    M_EMISSION,
    M_REFLECTANCE,
    M_REPEAT,
    M_RGBA,
    M_SHININESS,
    M_SPECULAR,
    M_UNIFORM,
    TOP,
)  # fmt: skip

kernel = drawing_kernel(__file__)
PLANE, SPHERE, CAPSULE, CYLINDER, BOX = (
    int(getattr(mujoco.mjtGeom, f"mjGEOM_{k}")) for k in ("PLANE", "SPHERE", "CAPSULE", "CYLINDER", "BOX")
)
# columns of item_floats: shape -> eye (3, 4), normals -> eye (3, 3), the eye in the shape's frame, colours, texture scales
F_MAP, F_NORMAL, F_EYE, F_RGBA, F_EMISSION, F_SPECULAR, F_SHININESS, F_TEXTURE, N_FLOATS = (
    0,
    12,
    21,
    24,
    28,
    29,
    30,
    31,
    34,
)
# columns of item_words: texture (-1: none), how it is laid on, seen mirrored, seen from behind
W_TEXTURE, W_LAYING, W_MIRRORED, W_BEHIND, N_WORDS = 0, 1, 2, 3, 4
OWN_UV, FLAT_UV, CUBE_UV = range(3)  # ways to lay on a texture
# columns of a light
L_SPOT, L_PLACE, L_AIM, L_AMBIENT, L_DIFFUSE, L_SPECULAR, L_FADE, L_CUTOFF, L_EXPONENT, N_LIGHT = (
    0,
    1,
    4,
    7,
    10,
    13,
    16,
    19,
    20,
    21,
)


@inlined
def rotation(quat, out):
    """Unit quaternion -> matrix (9,), row by row."""
    w, x, y, z = quat[0], quat[1], quat[2], quat[3]
    out[0], out[4], out[8] = w * w + x * x - y * y - z * z, w * w - x * x + y * y - z * z, w * w - x * x - y * y + z * z
    out[1], out[2] = 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)
    out[3], out[5] = 2.0 * (x * y + w * z), 2.0 * (y * z - w * x)
    out[6], out[7] = 2.0 * (x * z - w * y), 2.0 * (y * z + w * x)


@inlined
def _carried(mat, pos, point, out):
    """A point of a body's frame in the world."""
    for r in range(3):
        out[r] = pos[r] + mat[3 * r] * point[0] + mat[3 * r + 1] * point[1] + mat[3 * r + 2] * point[2]


@inlined
def _multiplied(a, b, out):
    """Matrix product of (9,) with (9,)."""
    for r in range(3):
        for c in range(3):
            out[3 * r + c] = a[3 * r] * b[c] + a[3 * r + 1] * b[3 + c] + a[3 * r + 2] * b[6 + c]


@inlined
def place_frames(pose, bodies, local_pos, local_quat, world_pos, world_mat, scratch):
    """Frames fixed to ``bodies (N,)`` at ``local_pos (N, 3)``, ``local_quat (N, 4)`` -> (N, 3) and (N, 9) in the world."""
    body_mat, local_mat = scratch[0:9], scratch[9:18]
    last = -1
    for i in range(len(bodies)):
        b = bodies[i]
        if b != last:
            rotation(pose[b, 3:7], body_mat)
            last = b
        rotation(local_quat[i], local_mat)
        _multiplied(body_mat, local_mat, world_mat[i])
        _carried(body_mat, pose[b], local_pos[i], world_pos[i])


@inlined
def place_arrows(pose, bodies, local_pos, local_dir, world_pos, world_dir, scratch):
    """Points and directions fixed to ``bodies`` -> (N, 3) and (N, 3) in the world."""
    mat, nowhere = scratch[0:9], scratch[9:12]
    nowhere[:] = 0.0
    for i in range(len(bodies)):
        rotation(pose[bodies[i], 3:7], mat)
        _carried(mat, pose[bodies[i]], local_pos[i], world_pos[i])
        _carried(mat, nowhere, local_dir[i], world_dir[i])


@inlined
def set_view(cam_pos, cam_mat, mirror, mirrored, view):
    """World -> eye, (3, 4); through ``mirror`` (normal and offset, (4,)) if ``mirrored``."""
    for r in range(3):
        for c in range(3):
            view[r, c] = cam_mat[3 * c + r]
        view[r, 3] = -(view[r, 0] * cam_pos[0] + view[r, 1] * cam_pos[1] + view[r, 2] * cam_pos[2])
    if mirrored:
        for r in range(3):
            along = 2.0 * (view[r, 0] * mirror[0] + view[r, 1] * mirror[1] + view[r, 2] * mirror[2])
            for c in range(3):
                view[r, c] -= along * mirror[c]
            view[r, 3] += along * mirror[3]


@inlined
def see_lights(view, world_pos, world_dir, facts, lights):
    """``facts (L, N_LIGHT)`` with their places and directions in the eye's frame -> ``lights``."""
    for i in range(len(facts)):
        for k in range(N_LIGHT):
            lights[i, k] = facts[i, k]
        for r in range(3):
            lights[i, L_AIM + r] = (
                view[r, 0] * world_dir[i, 0] + view[r, 1] * world_dir[i, 1] + view[r, 2] * world_dir[i, 2]
            )
            lights[i, L_PLACE + r] = (
                view[r, 0] * world_pos[i, 0] + view[r, 1] * world_pos[i, 1] + view[r, 2] * world_pos[i, 2] + view[r, 3]
            )
        x, y, z = lights[i, L_AIM], lights[i, L_AIM + 1], lights[i, L_AIM + 2]
        length = math.sqrt(x * x + y * y + z * z)
        if length > 0.0:
            for r in range(3):
                lights[i, L_AIM + r] /= length


@inlined
def _scales(kind, part, scaled, size, out):
    """How a geom stretches its shape: (x, y, z, shift along z)."""
    out[0], out[1], out[2], out[3] = 1.0, 1.0, 1.0, 0.0
    if scaled:
        return
    out[0], out[1], out[2] = size[0], size[1], size[2]
    if kind == SPHERE:
        out[1], out[2] = size[0], size[0]
    elif kind in (CYLINDER, CAPSULE):
        out[1], out[2] = size[0], size[1]
        if part in (TOP, BOTTOM):
            out[2] = size[0]
            out[3] = (size[1] - size[0]) * (1.0 if part == TOP else -1.0)


@inlined
def _lay_texture(scene, geom, kind, size, floats, words):
    """How the material's texture is laid on a geom."""
    material = scene.geom_material[geom]
    texture = scene.material_texture[material] if material >= 0 else -1
    words[W_TEXTURE] = texture
    if texture < 0:
        return
    uniform = scene.materials[material, M_UNIFORM] > 0.0
    if scene.geom_uv[geom] == 1:
        words[W_LAYING] = OWN_UV
    elif scene.heads[texture, 0] == 0:
        words[W_LAYING] = FLAT_UV
        for k in range(2):
            scale = scene.materials[material, M_REPEAT + k]
            extent = size[0] if kind == SPHERE or (kind in (CYLINDER, CAPSULE) and k == 1) else size[k]
            if extent > 0.0:
                if scene.geom_scaled[geom] == 1:
                    scale /= extent
                if uniform:
                    scale *= extent
            floats[F_TEXTURE + k] = 0.5 * scale if k == 0 else -0.5 * scale
    else:
        words[W_LAYING] = CUBE_UV
        for k in range(3):
            extent = size[k]
            if kind in (SPHERE, CYLINDER, CAPSULE):
                extent = size[0] if kind == SPHERE or k < 2 else size[1]
            floats[F_TEXTURE + k] = extent if uniform else 1.0


@inlined
def _colour(scene, geom, rgba, floats):
    """Colours of a geom: its own unless they are the default, then its material's."""
    material = scene.geom_material[geom]
    own = material < 0 or rgba[0] != 0.5 or rgba[1] != 0.5 or rgba[2] != 0.5 or rgba[3] != 1.0
    for k in range(4):
        floats[F_RGBA + k] = rgba[k] if own else scene.materials[material, M_RGBA + k]
    floats[F_EMISSION], floats[F_SPECULAR], floats[F_SHININESS] = 0.0, 0.5, 0.5
    if material >= 0:
        floats[F_EMISSION] = scene.materials[material, M_EMISSION]
        floats[F_SPECULAR] = scene.materials[material, M_SPECULAR]
        floats[F_SHININESS] = scene.materials[material, M_SHININESS]


@kernel
def describe_items(scene, view, mirrored, geom_pos, geom_mat, geom_size, geom_rgba, item_floats, item_words, scratch):
    """Fill the items' records."""
    scales, turned = scratch[0:4], scratch[4:13]
    for i in range(len(scene.items)):
        g, part = scene.items[i, I_GEOM], scene.items[i, I_PART]
        kind = scene.geom_type[g]
        floats, words = item_floats[i], item_words[i]
        _scales(kind, part, scene.geom_scaled[g] == 1, geom_size[g], scales)
        for r in range(3):
            for c in range(3):
                turned[3 * r + c] = (
                    view[r, 0] * geom_mat[g, c] + view[r, 1] * geom_mat[g, 3 + c] + view[r, 2] * geom_mat[g, 6 + c]
                )
        for r in range(3):
            moved = view[r, 0] * geom_pos[g, 0] + view[r, 1] * geom_pos[g, 1] + view[r, 2] * geom_pos[g, 2] + view[r, 3]
            floats[F_MAP + 4 * r + 3] = moved + turned[3 * r + 2] * scales[3]
            for c in range(3):
                floats[F_MAP + 4 * r + c] = turned[3 * r + c] * scales[c]
                floats[F_NORMAL + 3 * r + c] = turned[3 * r + c] / scales[c]
        for c in range(3):
            floats[F_EYE + c] = (
                -(
                    turned[c] * floats[F_MAP + 3]
                    + turned[3 + c] * floats[F_MAP + 7]
                    + turned[6 + c] * floats[F_MAP + 11]
                )
                / scales[c]
            )
        words[W_MIRRORED] = 1 if mirrored else 0
        words[W_BEHIND] = (
            1
            if kind == PLANE
            and turned[2] * floats[F_MAP + 3] + turned[5] * floats[F_MAP + 7] + turned[8] * floats[F_MAP + 11] > 0.0
            else 0
        )
        _colour(scene, g, geom_rgba[g], floats)
        _lay_texture(scene, g, kind, geom_size[g], floats, words)
        if words[W_BEHIND] == 1:
            floats[F_RGBA + 3] *= 0.3


@inlined
def _distance(a, b):
    return math.sqrt((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 + (a[2] - b[2]) ** 2)


@inlined
def _insert(order, distance, start, count, item, away):
    """Put an item among ``order[start:count]``, behind those that are as near; returns the new count."""
    at = count
    while at > start and distance[at - 1] > away:
        order[at], distance[at] = order[at - 1], distance[at - 1]
        at -= 1
    order[at], distance[at] = item, away
    return count + 1


@kernel
def sort_items(scene, cam_pos, geom_pos, geom_rbound, item_floats, item_words, order, distance):
    """MuJoCo's order of drawing: ``order`` holds opaque items, the mirror's last, then transparent ones from the front.

    Returns (opaque items, all items, geom that mirrors or -1).
    """
    n = len(scene.items)
    mirror = -1
    for i in range(n):
        g = scene.items[i, I_GEOM]
        material = scene.geom_material[g]
        alpha = item_floats[i, F_RGBA + 3]
        shiny = material >= 0 and scene.materials[material, M_REFLECTANCE] > 0.0 and alpha >= 0.995
        if mirror < 0 and shiny and scene.geom_type[g] in (PLANE, BOX):
            mirror = g
    count = 0
    for turn in range(3):  # from the front, planes behind the rest, and the mirror last
        start = count
        for i in range(n):
            g = scene.items[i, I_GEOM]
            if item_floats[i, F_RGBA + 3] < 0.995 or item_words[i, W_BEHIND] == 1:
                continue
            if turn == (2 if g == mirror else 1 if scene.geom_type[g] == PLANE else 0):
                count = _insert(order, distance, start, count, i, _distance(cam_pos, geom_pos[g]))
    opaque = count
    for i in range(n):
        alpha = item_floats[i, F_RGBA + 3]
        if alpha == 0.0 or (alpha >= 0.995 and item_words[i, W_BEHIND] == 0):
            continue
        g = scene.items[i, I_GEOM]
        away = 1e10 if scene.geom_type[g] == PLANE else _distance(cam_pos, geom_pos[g]) - geom_rbound[g]
        count = _insert(order, distance, opaque, count, i, away)
    return opaque, count, mirror
