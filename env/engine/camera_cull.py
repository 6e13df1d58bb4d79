"""Which geoms a camera image can show, decided exactly: whatever is left out could not have coloured a pixel.

Three reasons to leave a geom out: its bounding box lies outside the camera's field of view; an opaque box (a table
top, a wall, a bin) hides all of it; or, for the mirror image that MuJoCo draws in a reflecting floor, the same two
hold of the mirrored box. MuJoCo itself leaves nothing out, and half a million vertices are most of an image's cost.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numba import types

from env.engine.library import compiled

# void mj_local2Global(mjData*, xpos[3], xmat[9], pos[3], quat[4], int body, mjtByte sameframe)
_local_to_global = types.ExternalFunction("mj_local2Global", types.void(*[types.intp] * 5, types.intc, types.intc))
_quat_to_mat = types.ExternalFunction("mju_quat2Mat", types.void(types.intp, types.intp))
_SLACK = 1e-4  # m: OpenGL works in float32, and draws to the edge
_HIDDEN_SLACK = 2e-3  # m: how far inside its shadow a thing must be to count as hidden


@compiled(
    "void(int64, float64[:,::1], float64[:,::1], float64[:,::1], float64[:,::1], float64[:,::1], float64[:,::1], "
    "float64[:,::1], uint8[::1], float64[:,::1], float64[:,::1], float64[:,::1], float64[:,::1], int32[::1], uint8[::1])",
    __file__,
)
def place(
    data, xpos, xquat, xmat, xipos, ximat, body_ipos, body_iquat, body_sameframe,
    geom_xpos, geom_xmat, geom_pos, geom_quat, geom_bodyid, geom_sameframe,
):  # fmt: skip
    """Put the geoms where the bodies are, as MuJoCo's kinematics does (to the bit: it is its own function that runs).

    ``data`` is the address of the MjData whose ``xpos (nbody, 3)`` and ``xquat (nbody, 4)`` are given; everything named
    ``x...`` after them is written.
    """
    for b in range(1, len(xpos)):
        _quat_to_mat(xmat[b].ctypes.data, xquat[b].ctypes.data)
        _local_to_global(
            data, xipos[b].ctypes.data, ximat[b].ctypes.data, body_ipos[b].ctypes.data, body_iquat[b].ctypes.data,
            b, body_sameframe[b],
        )  # fmt: skip
    for g in range(len(geom_xpos)):
        _local_to_global(
            data, geom_xpos[g].ctypes.data, geom_xmat[g].ctypes.data, geom_pos[g].ctypes.data, geom_quat[g].ctypes.data,
            geom_bodyid[g], geom_sameframe[g],
        )  # fmt: skip


@numba.njit
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@numba.njit
def _set_plane(plane, x, y, z, point):
    """``plane``: unit normal and offset of the plane through ``point``; False where the normal has no length."""
    length = math.sqrt(x * x + y * y + z * z)
    if length < 1e-12:
        return False
    plane[0], plane[1], plane[2] = x / length, y / length, z / length
    plane[3] = _dot(plane, point)
    return True


@numba.njit
def _field_of_view(eye, mat, half_width, half_height, planes):
    """The four sides and the camera's own plane, normals inwards: planes (5, 4). ``mat`` (9): columns right, up, back."""
    for k in range(4):
        right = (half_width if k == 0 else -half_width) if k < 2 else 0.0
        up = 0.0 if k < 2 else (half_height if k == 2 else -half_height)
        # a side contains the eye and the edge direction; its normal, in the camera's frame, is (-1/right, 0, -1) scaled
        nx = 0.0 if k >= 2 else (-1.0 if right > 0 else 1.0)
        ny = 0.0 if k < 2 else (-1.0 if up > 0 else 1.0)
        nz = -(half_width if k < 2 else half_height)
        _set_plane(
            planes[k],
            mat[0] * nx + mat[1] * ny + mat[2] * nz,
            mat[3] * nx + mat[4] * ny + mat[5] * nz,
            mat[6] * nx + mat[7] * ny + mat[8] * nz,
            eye,
        )
    _set_plane(planes[4], -mat[2], -mat[5], -mat[8], eye)


@numba.njit
def _mirror_planes(planes, n, mirror, out):
    """``out[k]``: on which side of plane k the mirror image of a point lies, asked of the point itself."""
    for k in range(n):
        along = 2.0 * _dot(planes[k], mirror)
        for c in range(3):
            out[k, c] = planes[k, c] - along * mirror[c]
        out[k, 3] = planes[k, 3] - along * mirror[3]


@numba.njit
def _extent(box, plane):
    """Half the thickness of a box (centre, then three half axes: (12,)) along a plane's normal."""
    return (
        math.fabs(_dot(plane, box[3:6])) + math.fabs(_dot(plane, box[6:9])) + math.fabs(_dot(plane, box[9:12]))
    )  # fmt: skip


@numba.njit
def _meets(box, planes, n):
    """Whether the box reaches to the inner side of all planes (it may still miss their intersection)."""
    for k in range(n):  # noqa: SIM110
        if _dot(planes[k], box) - planes[k, 3] + _extent(box, planes[k]) < -_SLACK:
            return False
    return True


@numba.njit
def _inside(box, planes, n):
    """Whether all of the box is on the inner side of all planes."""
    for k in range(n):  # noqa: SIM110
        if _dot(planes[k], box) - planes[k, 3] - _extent(box, planes[k]) < _HIDDEN_SLACK:
            return False
    return True


@numba.njit
def _shadow(eye, box, axis, sign, near, planes):
    """What a face of an opaque box hides from ``eye``: planes (5, 4), normals inwards. False: the face is turned away,
    or too close.
    """
    n, u, v = box[3 + 3 * axis : 6 + 3 * axis], (axis + 1) % 3, (axis + 2) % 3
    centre = np.empty(3)
    for c in range(3):
        centre[c] = box[c] + sign * n[c]
    if not _set_plane(planes[0], -sign * n[0], -sign * n[1], -sign * n[2], centre):
        return False
    if planes[0, 3] - _dot(planes[0], eye) < 3.0 * near + _SLACK:
        return False
    a, b, edge = np.empty(3), np.empty(3), 1
    for k in range(4):
        su, sv = (1.0 if k in (0, 3) else -1.0), (1.0 if k < 2 else -1.0)
        tu, tv = (1.0 if k in (3, 2) else -1.0), (1.0 if k in (0, 3) else -1.0)
        for c in range(3):
            a[c] = centre[c] + su * box[3 + 3 * u + c] + sv * box[3 + 3 * v + c] - eye[c]
            b[c] = centre[c] + tu * box[3 + 3 * u + c] + tv * box[3 + 3 * v + c] - eye[c]
        x, y, z = a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]
        if not _set_plane(planes[edge], x, y, z, eye):
            return False
        if _dot(planes[edge], centre) < planes[edge, 3]:
            for c in range(4):
                planes[edge, c] = -planes[edge, c]
        edge += 1
    return True


@compiled(
    "int64(float64[::1], float64[::1], float64, float64, float64, float64[:,::1], float64[:,::1], float64[:,::1], "
    "int64[::1], int64[::1], int64, boolean[::1])",
    __file__,
)
def find_visible(
    eye, mat, half_width, half_height, near, geom_xpos, geom_xmat, aabb, drawn, opaque_boxes, mirror_geom, visible
):
    """Mark the geoms that can show, by themselves or in the mirror; returns how many show in the mirror.

    Args:
        eye (3,), mat (9,): the camera's pose; half_width, half_height: tangents of half its angles; near: m.
        geom_xpos (G, 3), geom_xmat (G, 9), aabb (G, 6): poses and bounding boxes (centre and half sizes in the geom's
            frame).
        drawn: geoms that are drawn at all. opaque_boxes: those of them that can hide others.
        mirror_geom: the reflecting plane, or -1.
        visible (G,): the answer.
    """
    boxes, planes, shadow = np.empty((len(drawn), 12)), np.empty((5, 4)), np.empty((5, 4))
    mirrored, mirrored_shadow, mirror = np.empty((5, 4)), np.empty((5, 4)), np.empty(4)
    direct, reflected = np.zeros(len(drawn), np.bool_), np.zeros(len(drawn), np.bool_)
    _field_of_view(eye, mat, half_width, half_height, planes)
    row_of = np.full(len(geom_xpos), -1, np.int64)
    for r in range(len(drawn)):
        g = drawn[r]
        row_of[g] = r
        m = geom_xmat[g]
        for c in range(3):
            boxes[r, c] = (
                geom_xpos[g, c] + m[3 * c] * aabb[g, 0] + m[3 * c + 1] * aabb[g, 1] + m[3 * c + 2] * aabb[g, 2]
            )
            for axis in range(3):
                boxes[r, 3 + 3 * axis + c] = m[3 * c + axis] * aabb[g, 3 + axis]
        direct[r] = _meets(boxes[r], planes, 5)
    floor = -1 if mirror_geom < 0 else row_of[mirror_geom]
    if floor >= 0:
        m = geom_xmat[mirror_geom]
        _set_plane(mirror, m[2], m[5], m[8], geom_xpos[mirror_geom])
        if _dot(mirror, eye) < mirror[3]:
            floor = -1  # seen from behind, it mirrors nothing
    if floor >= 0:
        _mirror_planes(planes, 5, mirror, mirrored)
        for r in range(len(drawn)):
            above = _dot(mirror, boxes[r]) - mirror[3] + _extent(boxes[r], mirror) > -_SLACK
            reflected[r] = r != floor and above and _meets(boxes[r], mirrored, 5)
    for k in range(len(opaque_boxes)):
        hider = row_of[opaque_boxes[k]]
        if hider < 0 or not direct[hider]:
            continue
        for side in range(6):
            if not _shadow(eye, boxes[hider], side // 2, 1.0 - 2.0 * (side % 2), near, shadow):
                continue
            if floor >= 0:
                _mirror_planes(shadow, 5, mirror, mirrored_shadow)
            for r in range(len(drawn)):
                if direct[r] and _inside(boxes[r], shadow, 5):
                    direct[r] = False
                if reflected[r] and _inside(boxes[r], mirrored_shadow, 5):
                    reflected[r] = False
    mirroring = 0
    visible[:] = False
    for r in range(len(drawn)):
        in_mirror = reflected[r] and floor >= 0 and direct[floor]
        visible[drawn[r]] = direct[r] or in_mirror
        mirroring += in_mirror
    return mirroring


@compiled("void(uint8[:,:,::1], uint8[:,:,::1])", __file__)
def unpack(pixels, image):
    """OpenGL's ``pixels (s H, s W, 3)``, bottom row first -> ``image (3, H, W)``, top row first; s x s pixels are
    averaged.
    """
    _, height, width = image.shape
    s = pixels.shape[0] // height
    half = s * s // 2
    for y in range(height):
        for x in range(width):
            for c in range(3):
                total = half
                for dy in range(s):
                    for dx in range(s):
                        total += np.int64(pixels[s * (height - 1 - y) + dy, s * x + dx, c])
                image[c, y, x] = total // (s * s)
