"""One view of a scene: the passes MuJoCo's renderer makes, in its order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from env.engine.raster_compile import drawing_kernel, inlined
from env.engine.raster_cull import survey
from env.engine.raster_fill import fill_items
from env.engine.raster_light import LANES, Batch
from env.engine.raster_paint import add_mirrored, describe_seen, mirror_limit, paint, paint_sky, resolve, veil_item
from env.engine.raster_pose import F_RGBA, describe_items, place_arrows, place_frames, see_lights, set_view, sort_items
from env.engine.raster_scene import M_REFLECTANCE

kernel = drawing_kernel(__file__)


class Scratch(NamedTuple):
    """Small arrays that functions share; none keeps anything there."""

    planes: np.ndarray  # (5, 4) float32
    screen: np.ndarray  # (3, 256) float32
    tiles: np.ndarray  # (tiles,) float32, see ``survey``
    line: np.ndarray  # (W,) float32
    shades: np.ndarray  # (2, W) int64
    sides: np.ndarray  # (CLUSTER,) float32, see ``facing``
    found: np.ndarray  # (CLUSTER,) int32
    eye: np.ndarray  # (3, 3)
    polygon: np.ndarray  # (4, 3)
    small: np.ndarray  # (32,)


class Work(NamedTuple):
    """One thread's memory. Pairs: what is seen, and what is seen in the mirror."""

    depth: np.ndarray  # (2, n) float32, n samples: 1 / distance
    ids: np.ndarray  # (2, n) int32: row of ``kept``
    colours: np.ndarray  # (2, n) uint32
    limit: np.ndarray  # (2, n) float32: what ``depth`` must not exceed
    kept: np.ndarray  # (K, 4) int32: item, triangle, cluster, record
    records: np.ndarray  # (R, N_RECORD) float32
    item_floats: np.ndarray  # (2 I, N_FLOATS) float32
    item_words: np.ndarray  # (2 I, N_WORDS) int32
    order: np.ndarray  # (I,) int32
    distance: np.ndarray  # (I,) float64
    lights: np.ndarray  # (2, L, N_LIGHT) float32
    batch: Batch
    eye_map: np.ndarray  # (3, 4) float64: the world in the camera's frame
    scratch: Scratch


class Posed(NamedTuple):
    """Where everything is, and looks that may differ between episodes."""

    geom_pos: np.ndarray  # (G, 3)
    geom_mat: np.ndarray  # (G, 9)
    geom_size: np.ndarray  # (G, 3)
    geom_rgba: np.ndarray  # (G, 4) float32
    geom_rbound: np.ndarray  # (G,)
    light_pos: np.ndarray  # (L, 3): of all lights that shine, the headlight first
    light_dir: np.ndarray
    light_facts: np.ndarray  # (L, N_LIGHT) float32


@kernel
def place_all(pose, bodies, geom_pos, geom_quat, posed, cam_bodies, cam_pos, cam_quat, cams, cam_mats, small):
    """Geoms and cameras of bodies at ``pose (nbody, 7)``."""
    place_frames(pose, bodies, geom_pos, geom_quat, posed.geom_pos, posed.geom_mat, small)
    place_frames(pose, cam_bodies, cam_pos, cam_quat, cams, cam_mats, small)


@kernel
def place_lights(pose, bodies, local_pos, local_dir, posed, first, small):
    """Lights, behind the headlight if there is one."""
    place_arrows(pose, bodies, local_pos, local_dir, posed.light_pos[first:], posed.light_dir[first:], small)


@kernel
def look(scene, work, posed, cam_pos, cam_mat, mirror):
    """Records of items and lights as the camera sees them, in a mirror (a geom) if that is not negative."""
    plane, which = work.scratch.small[16:20], 1 if mirror >= 0 else 0
    plane[:] = 0.0
    n = len(scene.items)
    if mirror >= 0:
        for k in range(3):
            plane[k] = posed.geom_mat[mirror, 3 * k + 2]
            plane[3] += plane[k] * posed.geom_pos[mirror, k]
    set_view(cam_pos, cam_mat, plane, mirror >= 0, work.eye_map)
    see_lights(work.eye_map, posed.light_pos, posed.light_dir, posed.light_facts, work.lights[which])
    describe_items(
        scene, work.eye_map, mirror >= 0, posed.geom_pos, posed.geom_mat, posed.geom_size, posed.geom_rgba,
        work.item_floats[which * n : which * n + n], work.item_words[which * n : which * n + n], work.scratch.small,
    )  # fmt: skip
    if mirror >= 0:
        reflectance = scene.materials[scene.geom_material[mirror], M_REFLECTANCE]
        for i in range(n, 2 * n):
            for k in range(3):
                work.item_floats[i, F_RGBA + k] *= reflectance


@kernel
def veil(scene, work, first, last, which, frame):
    """Transparent items, from the front to the back and from the back to the front, as MuJoCo blends them."""
    n = len(scene.items)
    if first < last:
        survey(work.depth[which], frame, work.scratch.tiles, work.scratch.line)
    for k in range(2 * (last - first)):
        at = work.order[first + k if k < last - first else 2 * last - first - 1 - k]
        veil_item(
            scene, at, which * n, work.item_floats, work.item_words, work.lights, frame, work.depth[which], work.limit[which],
            work.records, work.batch, work.colours[which], work.scratch,
        )  # fmt: skip


@inlined
def _colour(scene, work, which, frame, first, last, records):
    """Colours of what ``work.ids`` shows, rows ``first`` to ``last`` of ``work.kept``. Returns (records in use, samples without)."""
    records = describe_seen(
        scene, frame, work.ids[which], work.kept, first, last, work.item_floats, work.item_words, work.lights, work.records, records,
        work.batch,
    )  # fmt: skip
    return records, paint(scene, frame, work.ids[which], work.kept, work.item_words, work.records, work.colours[which])


@kernel
def _mirror(scene, work, posed, cam_pos, cam_mat, frame, opaque, count, mirror, kept):
    """What is seen in the mirror -> ``work.colours[1]``. Returns the number of records in use."""
    last = opaque
    while last > 0 and scene.items[work.order[last - 1], 0] == mirror:
        last -= 1
    look(scene, work, posed, cam_pos, cam_mat, mirror)
    work.ids[1, :] = -1
    work.colours[1, :] = 0
    all_kept = fill_items(
        scene, work.order, 0, last, len(scene.items), work.item_floats, work.item_words, frame, work.depth[1], work.ids[1],
        work.limit[1], work.kept, kept, work.scratch,
    )  # fmt: skip
    records, _ = _colour(scene, work, 1, frame, kept, all_kept, LANES)
    veil(scene, work, opaque, count, 1, frame)
    return records


@inlined
def _sorted(scene, work, posed, cam_pos):
    return sort_items(
        scene, cam_pos, posed.geom_pos, posed.geom_rbound, work.item_floats, work.item_words, work.order, work.distance
    )


@kernel
def draw_view(scene, work, posed, cam_pos, cam_mat, frame, reflections, image):
    """Draw what a camera sees into ``image (3, H, W)``."""
    look(scene, work, posed, cam_pos, cam_mat, -1)
    opaque, count, mirror = _sorted(scene, work, posed, cam_pos)
    work.depth[0, :] = np.float32(1.0 / frame.far)
    work.ids[0, :] = -1
    kept = fill_items(
        scene, work.order, 0, opaque, 0, work.item_floats, work.item_words, frame, work.depth[0], work.ids[0], None, work.kept, 0,
        work.scratch,
    )  # fmt: skip
    mirrored, records = False, LANES
    if reflections and mirror >= 0:
        mirrored = mirror_limit(
            scene, work.ids[0], work.kept, mirror, work.depth[0], work.limit[1], work.depth[1], frame.far
        ) > 0  # fmt: skip
    if mirrored:
        records = _mirror(scene, work, posed, cam_pos, cam_mat, frame, opaque, count, mirror, kept)
    _, empty = _colour(scene, work, 0, frame, 0, kept, records)
    if mirrored:
        add_mirrored(scene, work.ids[0], work.kept, mirror, work.colours[1], work.colours[0])
    if empty > 0:
        paint_sky(scene, frame, work.ids[0], cam_mat, work.colours[0])
    veil(scene, work, opaque, count, 0, frame)
    resolve(frame, work.colours[0], image)


@kernel
def draw_geoms(scene, work, posed, cam_pos, cam_mat, frame, depth, geoms):
    """Distance (m) and geom (-1: none) at the middle of each pixel -> (H, W), (H, W), top row first; everything counts as opaque."""
    look(scene, work, posed, cam_pos, cam_mat, -1)
    n = frame.rows * frame.width
    count = 0
    for i in range(len(scene.items)):
        if work.item_floats[i, F_RGBA + 3] > 0.0:
            work.order[count] = i
            count += 1
    work.depth[0, :n] = np.float32(1.0 / frame.far)
    work.ids[0, :n] = -1
    fill_items(
        scene, work.order, 0, count, 0, work.item_floats, work.item_words, frame, work.depth[0], work.ids[0], None, work.kept, 0,
        work.scratch,
    )  # fmt: skip
    for row in range(frame.rows):
        for column in range(frame.width):
            at = row * frame.width + column
            depth[frame.rows - 1 - row, column] = np.float32(1.0) / work.depth[0, at]
            found = work.ids[0, at]
            geoms[frame.rows - 1 - row, column] = scene.items[work.kept[found, 0], 0] if found >= 0 else -1
