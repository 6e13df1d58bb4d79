"""Which geoms a camera image can show, decided exactly: whatever is left out could not have coloured a pixel.

A geom's surface is held by a few boxes (``split_meshes``). One of them is of no account when it lies outside the
camera's field of view; when a face of an opaque box (a table top, a wall, a bin) hides all of it that is inside; or, for
the mirror image that MuJoCo draws in a reflecting floor, when the same hold of the mirrored box. A geom without a box
that matters is left out. MuJoCo itself leaves nothing out, and half a million vertices are most of an image's cost.
"""

from __future__ import annotations

import math

import mujoco
import numba
import numpy as np
from numba import types

from env.engine.library import compiled

# void mj_local2Global(mjData*, xpos[3], xmat[9], pos[3], quat[4], int body, mjtByte sameframe)
_local_to_global = types.ExternalFunction("mj_local2Global", types.void(*[types.intp] * 5, types.intc, types.intc))
_quat_to_mat = types.ExternalFunction("mju_quat2Mat", types.void(types.intp, types.intp))
_PIECES, _PIECE_FACES = 32, 100  # boxes per mesh at most, faces per box at least
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
def _field_of_view(eye, mat, half_width, half_height, near, planes, rays):
    """The four sides and the near plane, normals inwards: planes (5, 4); and the directions of the corners: rays (4, 3).

    ``mat`` (9): columns right, up, back.
    """
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
    planes[4, 3] += near
    for k in range(4):
        right, up = half_width * (1.0 - 2.0 * (k % 2)), half_height * (1.0 - 2.0 * (k // 2))
        for c in range(3):
            rays[k, c] = mat[3 * c] * right + mat[3 * c + 1] * up - mat[3 * c + 2]


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
def _out_of_view_before(box, view, face):
    """Whether the part of the box on the near side of ``face`` (a plane) lies outside the field of view.

    The farthest that part reaches across a side of the view is a linear programme; every ``weight`` >= 0 of the near
    side's inequality bounds it from above, and one of the four tried here is the best there is.
    """
    room = face[3] + _HIDDEN_SLACK - _dot(face, box)
    for k in range(5):
        reach = _dot(view[k], box) - view[k, 3]
        for choice in range(4):
            weight = 0.0
            if choice < 3:
                along = _dot(face, box[3 + 3 * choice : 6 + 3 * choice])
                weight = _dot(view[k], box[3 + 3 * choice : 6 + 3 * choice]) / along if math.fabs(along) > 1e-9 else 0.0
            if weight >= 0.0:
                bound = weight * room
                for axis in range(3):
                    half = box[3 + 3 * axis : 6 + 3 * axis]
                    bound += math.fabs(_dot(view[k], half) - weight * _dot(face, half))
                if reach + bound < -_SLACK:
                    return True
    return False


@numba.njit
def _inside(box, planes, needed, view):
    """Whether what the field of view (``view``) has of the box is on the inner side of all planes that are needed."""
    if _dot(planes[0], box) - planes[0, 3] + _extent(box, planes[0]) < 0.0:
        return False  # all of it before the face
    for k in range(1, 5):
        if needed[k] and _dot(planes[k], box) - planes[k, 3] - _extent(box, planes[k]) < _HIDDEN_SLACK:
            return False
    beyond = _dot(planes[0], box) - planes[0, 3] - _extent(box, planes[0]) >= _HIDDEN_SLACK
    return beyond or _out_of_view_before(box, view, planes[0])


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


@numba.njit
def _covers(planes, rays, needed):
    """Which planes of a face's shadow still have to be asked about: not those that the whole field of view is inside of."""
    needed[0] = True
    for k in range(1, 5):
        needed[k] = False
        for ray in range(4):
            if _dot(planes[k], rays[ray]) < _SLACK:
                needed[k] = True


@compiled(
    "int64(float64[::1], float64[::1], float64, float64, float64, float64[:,::1], float64[:,::1], float64[:,::1], "
    "int64[::1], int64[::1], int64[::1], int64, boolean[::1])",
    __file__,
)
def find_visible(
    eye, mat, half_width, half_height, near, geom_xpos, geom_xmat, boxes_of_geoms, first, drawn, opaque_boxes,
    mirror_geom, visible,
):  # fmt: skip
    """Mark the geoms that can show, by themselves or in the mirror; returns how many show in the mirror.

    Args:
        eye (3,), mat (9,): the camera's pose; half_width, half_height: tangents of half its angles; near: m.
        geom_xpos (G, 3), geom_xmat (G, 9): poses.
        boxes_of_geoms (B, 6): boxes (centre and half sizes in the geom's frame) which together hold a geom's surface;
            those of geom g are rows first[g] to first[g + 1].
        drawn: geoms that are drawn at all. opaque_boxes: those of them that can hide others.
        mirror_geom: the reflecting plane, or -1.
        visible (G,): the answer.
    """
    n = 0
    for g in drawn:
        n += first[g + 1] - first[g]
    boxes, owner, row_of = np.empty((n, 12)), np.empty(n, np.int64), np.full(len(geom_xpos), -1, np.int64)
    planes, mirrored, mirror, rays = np.empty((5, 4)), np.empty((5, 4)), np.empty(4), np.empty((4, 3))
    shadow, mirrored_shadow, needed = np.empty((5, 4)), np.empty((5, 4)), np.empty(5, np.bool_)
    direct, reflected = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    _field_of_view(eye, mat, half_width, half_height, near, planes, rays)
    r = 0
    for g in drawn:
        row_of[g] = r
        m = geom_xmat[g]
        for k in range(first[g], first[g + 1]):
            box = boxes_of_geoms[k]
            for c in range(3):
                boxes[r, c] = geom_xpos[g, c] + m[3 * c] * box[0] + m[3 * c + 1] * box[1] + m[3 * c + 2] * box[2]
                for axis in range(3):
                    boxes[r, 3 + 3 * axis + c] = m[3 * c + axis] * box[3 + axis]
            direct[r] = _meets(boxes[r], planes, 5)
            owner[r] = g
            r += 1
    floor = -1 if mirror_geom < 0 else row_of[mirror_geom]
    if floor >= 0:
        m = geom_xmat[mirror_geom]
        _set_plane(mirror, m[2], m[5], m[8], geom_xpos[mirror_geom])
        if _dot(mirror, eye) < mirror[3]:
            floor = -1  # seen from behind, it mirrors nothing
    if floor >= 0:
        _mirror_planes(planes, 5, mirror, mirrored)
        for r in range(n):
            above = _dot(mirror, boxes[r]) - mirror[3] + _extent(boxes[r], mirror) > -_SLACK
            reflected[r] = r != floor and above and _meets(boxes[r], mirrored, 5)
    for g in opaque_boxes:
        hider = row_of[g]
        if hider < 0 or not direct[hider]:
            continue
        for side in range(6):
            if not _shadow(eye, boxes[hider], side // 2, 1.0 - 2.0 * (side % 2), near, shadow):
                continue
            _covers(shadow, rays, needed)
            if floor >= 0:
                _mirror_planes(shadow, 5, mirror, mirrored_shadow)
            for r in range(n):
                if direct[r] and _inside(boxes[r], shadow, needed, planes):
                    direct[r] = False
                if reflected[r] and _inside(boxes[r], mirrored_shadow, needed, mirrored):
                    reflected[r] = False
    mirroring = 0
    visible[:] = False
    for r in range(n):
        in_mirror = reflected[r] and floor >= 0 and direct[floor]
        visible[owner[r]] |= direct[r] or in_mirror
        mirroring += in_mirror
    return mirroring


def split_meshes(model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
    """``boxes_of_geoms`` and ``first`` of ``find_visible``: a mesh in up to 32 pieces, anything else in its own box."""
    pieces: dict[int, np.ndarray] = {}
    boxes, first = [], [0]
    for geom in range(model.ngeom):
        own = np.array(model.geom_aabb[geom])[None]
        if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH and model.geom_dataid[geom] >= 0:
            mesh = int(model.geom_dataid[geom])
            if mesh not in pieces:
                vertex, face = model.mesh_vertadr[mesh], model.mesh_faceadr[mesh]
                faces = model.mesh_face[face : face + model.mesh_facenum[mesh]]
                corners = model.mesh_vert[vertex : vertex + model.mesh_vertnum[mesh]].astype(np.float64)[faces]
                pieces[mesh] = _pieces(corners, _PIECES)
            own = pieces[mesh]
        boxes.append(own)
        first.append(first[-1] + len(own))
    return np.concatenate(boxes), np.array(first, np.int64)


def _pieces(corners: np.ndarray, n: int) -> np.ndarray:
    """Boxes (<= n, 6) that hold the triangles ``corners (F, 3, 3)``: halved along the longest side, again and again."""
    low, high = corners.min(axis=(0, 1)), corners.max(axis=(0, 1))
    if n == 1 or len(corners) < 2 * _PIECE_FACES:
        return np.concatenate([(low + high) / 2, (high - low) / 2])[None]
    order = np.argsort(corners.mean(axis=1)[:, np.argmax(high - low)], kind="stable")
    half = len(order) // 2
    return np.concatenate([_pieces(corners[part], n // 2) for part in (order[:half], order[half:])])


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
