"""The rasteriser: what can be computed by hand, MuJoCo's own OpenGL renderer beside it, and what it refuses."""

from __future__ import annotations

import copy
import logging
from concurrent.futures import ThreadPoolExecutor

import mujoco
import numpy as np
import pytest

from env.engine import raster_scene, raster_shapes
from env.engine.pool import pose_of
from env.engine.raster import FREE_CAMERA, Rasterizer, RasterScene
from env.engine.raster_textures import load_textures
from env.errors import EnvError
from env.video import working_backend

pytestmark = pytest.mark.mujoco
needs_gl = pytest.mark.skipif(working_backend()[0] is None, reason=f"no OpenGL to compare with: {working_backend()[1]}")

WALL = """<mujoco><visual><headlight ambient=".1 .1 .1" diffuse=".4 .4 .4" specular="0 0 0"/><map znear=".01" zfar="50"/></visual>
<statistic extent="1" center="0 0 0"/><asset>
<texture name="tiles" type="2d" builtin="checker" rgb1="1 0 0" rgb2="0 0 1" width="6" height="6"/>
<material name="tiles" texture="tiles" texrepeat="1 1" specular="0"/>
<material name="dull" rgba=".8 .4 .2 1" specular="0"/></asset><worldbody>
<camera name="ahead" pos="0 0 2" fovy="90"/>
<camera name="low" pos="0 0 .05" xyaxes="1 0 0 0 .2 1" fovy="80"/>
<geom name="wall" type="plane" size="{size} {size} 1" material="{material}" group="1"/>{more}</worldbody></mujoco>"""

SCENE = """<mujoco><visual><headlight ambient=".1 .1 .1" diffuse=".3 .3 .3" specular=".2 .2 .2"/><map znear=".01" zfar="40"/></visual>
<statistic extent="1" center="0 0 0"/><asset>
<texture name="floor" type="2d" builtin="checker" rgb1=".2 .3 .4" rgb2=".6 .7 .5" width="64" height="64"/>
<texture name="sky" type="skybox" builtin="gradient" rgb1=".3 .5 .7" rgb2=".1 .1 .2" width="32" height="192"/>
<texture name="block" type="cube" builtin="gradient" rgb1=".9 .2 .1" rgb2=".2 .3 .9" width="32" height="192"/>
<material name="floor" texture="floor" texrepeat="5 5" texuniform="true" reflectance=".3"/>
<material name="block" texture="block" shininess=".3" specular=".6"/>
<mesh name="tent" vertex="-1 -1 0  1 -1 0  1 1 0  -1 1 0  0 0 1.5" scale=".15 .15 .15"/></asset><worldbody>
<light type="spot" pos=".5 -.8 2" dir="-.2 .3 -1" cutoff="40" exponent="5" diffuse=".7 .6 .6" castshadow="false"/>
<light type="directional" pos="0 0 3" dir=".3 .2 -1" diffuse=".3 .3 .3" castshadow="false"/>
<camera name="side" pos="0 -1.6 .8" xyaxes="1 0 0 0 .45 .9" fovy="50"/>
<camera name="top" pos=".2 -.1 1.3" xyaxes="1 0 0 0 1 .1" fovy="70"/>
<geom type="plane" size="1 1.2 .1" material="floor" group="1"/>
<body pos="-.4 0 .2"><freejoint/><geom type="box" size=".15 .1 .2" material="block" group="1"/></body>
<body pos=".1 .3 .25"><geom type="sphere" size=".2" rgba=".2 .7 .3 1" group="1"/></body>
<body pos=".5 .1 .2" euler="0 60 20"><geom type="capsule" size=".08 .2" rgba=".7 .6 .1 1" group="1"/></body>
<body pos=".1 -.3 .15"><geom type="ellipsoid" size=".2 .1 .12" rgba=".6 .2 .7 1" group="1"/></body>
<body pos="-.5 .5 .3"><geom type="cylinder" size=".12 .3" rgba=".3 .3 .8 1" group="1"/></body>
<body pos=".6 .6 .3"><geom type="mesh" mesh="tent" rgba=".9 .9 .9 1" group="1"/></body>
<body pos=".2 -.5 .3"><geom type="box" size=".25 .02 .2" rgba=".9 .9 1 .4" group="1"/></body></worldbody></mujoco>"""


def wall(size: str = "5", material: str = "dull", more: str = "") -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(WALL.format(size=size, material=material, more=more))


def poses(model: mujoco.MjModel) -> np.ndarray:
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return pose_of(data)


def drawn(model: mujoco.MjModel, camera: int = 0, size: tuple[int, int] = (16, 24), **more: object) -> np.ndarray:
    """(H, W, 3) int."""
    image = np.zeros((3, *size), np.uint8)
    Rasterizer(RasterScene(model, "faithful", **more), [camera], size, True).draw(poses(model), (), image)
    return image.transpose(1, 2, 0).astype(int)


@pytest.fixture(scope="module")
def scene() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(SCENE)


# ------------------------------------------------------------------------------------------------------------- by hand


def test_a_wall_before_the_camera_has_the_colour_of_the_light_formula():
    image = drawn(wall())
    assert (image == np.rint(255 * np.array([0.8, 0.4, 0.2]) * (0.1 + 0.4)).astype(int)).all()


def test_an_edge_covers_the_samples_left_of_it():
    # 16 rows see 4 m: a pixel is 0.25 m; the panel's right edge lies at column 12 + 3.5: samples at .125 and .375 are covered
    panel = '<geom type="box" size=".5 9 .5" pos=".0 0 .5" rgba="1 1 1 1" group="1"/>'
    model = wall(more=panel)
    model.geom_pos[1] = [3.5 * 0.125 - 0.5, 0, 0.5]  # its front face is 1 m away: there a pixel is 0.125 m
    image = drawn(model)
    front, back = 127, 102  # white with specular 0.5 of a light without any; the wall
    row = image[8, :, 0]
    assert (row[9:15] == front + (row[9] - front)).all() and abs(row[9] - 128) <= 1
    assert abs(row[15] - (row[9] + back) / 2) <= 1 and row[16] == back


def test_distances_are_those_of_the_geometry_even_where_the_near_plane_cuts():
    model, height, width = wall(), 18, 26
    depth, objects = np.zeros((2, height, width), np.float32), np.zeros((2, height, width, 2), np.int32)
    rasterizer = Rasterizer(RasterScene(model, "faithful"), [0, 1], (height, width), False)
    rasterizer.draw_depth(poses(model), (), depth)
    rasterizer.draw_segmentation(poses(model), (), objects)
    assert np.allclose(depth[0], 2.0, atol=1e-5)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    tangent = np.tan(np.radians(40))
    x, y = (
        (np.arange(width) + 0.5 - width / 2) / (height / 2) * tangent,
        -(np.arange(height) + 0.5 - height / 2) / (height / 2) * tangent,
    )
    across, up = np.meshgrid(x, y)
    ray = np.stack([across, up, -np.ones_like(up)], -1) @ data.cam_xmat[1].reshape(3, 3).T
    hit = ray[..., 2] < 0
    distance = np.where(hit, -0.05 / np.where(hit, ray[..., 2], 1), 1e9)
    reached = hit & (np.abs(distance[..., None] * ray)[..., :2] < 4.9).all(-1)
    assert reached.sum() > 100 and np.allclose(
        depth[1][reached], distance[reached], rtol=2e-3
    )  # corners snap to 1/256 pixel, as in OpenGL
    missed = ~hit
    assert (objects[1][reached] == [0, int(mujoco.mjtObj.mjOBJ_GEOM)]).all() and (objects[1][missed] == -1).all()
    assert np.allclose(depth[1][missed], 50.0)


def test_light_falls_on_corners_as_opengl_has_it():
    # a wall of 2 x 2 squares; along y = 0 its colour lies between those of three corners
    lamps = (
        '<light type="spot" pos=".6 .4 1.4" dir="-.3 .1 -1" cutoff="70" exponent="7" attenuation=".5 .2 .1" ambient=".05 .1 0" '
        'diffuse=".4 .4 .7" specular=".2 .3 .4" castshadow="false"/>'
        '<light type="directional" dir=".2 -.1 -1" diffuse=".1 .2 .1" specular=".3 .2 .3" castshadow="false"/>'
    )
    model = wall("1.5", more=lamps)
    model.geom_size[0, 2] = 3.0  # of its grid
    dull = model.geom_matid[0]
    model.mat_specular[dull], model.mat_shininess[dull], model.mat_emission[dull] = 0.7, 0.13, 0.08
    own, eye, normal = model.mat_rgba[dull, :3].astype(float), np.array([0, 0, 2.0]), np.array([0, 0, 1.0])

    def unit(v: np.ndarray) -> np.ndarray:
        return v / np.linalg.norm(v)

    def colour(place: np.ndarray) -> np.ndarray:
        total, gleam = np.full(3, 0.08), np.zeros(3)
        lights = [(np.full(3, 0.1), np.full(3, 0.4), np.zeros(3), normal, 1.0)]  # the headlight
        for i in range(2):
            towards = model.light_pos[i] - place if i == 0 else -model.light_dir[i]
            away, strength = np.linalg.norm(towards), 1.0
            if i == 0:
                along = -unit(towards) @ unit(model.light_dir[i])
                strength = (along > np.cos(np.radians(70))) * along**7 / (0.5 + 0.2 * away + 0.1 * away**2)
            of_light = (model.light_ambient[i], model.light_diffuse[i], model.light_specular[i])
            lights.append((*of_light, unit(towards), strength))
        for ambient, diffuse, specular, towards, strength in lights:
            total = total + strength * (ambient + max(normal @ towards, 0) * diffuse)
            half = normal @ unit(towards + unit(eye - place))
            gleam = gleam + 0.7 * strength * specular * half ** (0.13 * 128)
        return np.minimum(own * total + gleam, 1)

    image = drawn(model, size=(33, 33))
    middle, right, left = (colour(np.array([x, 0, 0])) for x in (0, 1.5, -1.5))
    assert min(np.ptp([middle, right, left], axis=0)) > 0.1 and max(middle) < 1  # or it would show nothing
    for column in range(5, 28):
        part = abs(column - 16) * 4 / 33 / 1.5
        expected = 255 * (middle + part * ((right if column > 16 else left) - middle))
        assert np.abs(image[16, column] - expected).max() <= 1, column


def test_a_magnified_texture_is_interpolated_between_its_texels():
    model = wall(size="2", material="tiles")
    image = drawn(model, size=(24, 24))
    texels = load_textures(model).texels[:36].reshape(6, 6)
    colours = np.stack([texels & 255, texels >> 8 & 255, texels >> 16 & 255], -1).astype(float)
    for row, column in ((3, 5), (11, 11), (12, 20), (22, 1)):
        x, y = (column + 0.5) / 6 - 2, 2 - (row + 0.5) / 6  # of the wall, m
        s, t = 0.5 * 0.5 * x - 0.5, -0.5 * 0.5 * y - 0.5
        u, v = s * 6 - 0.5, t * 6 - 0.5
        i, j = int(np.floor(u)), int(np.floor(v))
        mixed = sum(
            colours[(j + b) % 6, (i + a) % 6] * abs(1 - a - (u - i)) * abs(1 - b - (v - j))
            for a in (0, 1)
            for b in (0, 1)
        )
        assert np.abs(image[row, column] - 0.5 * mixed).max() <= 1.5


def test_levels_of_detail_halve_and_keep_the_mean():
    textures = load_textures(mujoco.MjModel.from_xml_string(SCENE))
    kind, first, levels, faces = textures.heads[0]
    assert (kind, faces) == (0, 1) and textures.heads[2].tolist()[0] == 1 and textures.heads[2][3] == 6
    assert textures.levels[first : first + levels, 1].tolist() == [64, 32, 16, 8, 4, 2, 1] and textures.skybox == 1
    means = [(textures.texels[at : at + w * h] & 255).mean() for at, w, h in textures.levels[first : first + levels]]
    assert np.ptp(means) < 1.0


@pytest.mark.parametrize("name", ["sphere", "cylinder", "box"])
def test_primitives_are_closed_and_face_outwards(name):
    soup = {
        "sphere": lambda: raster_shapes.sphere(7, 6),
        "cylinder": lambda: raster_shapes.cylinder(7, 6),
        "box": lambda: raster_shapes.box(3),
    }[name]()
    shape = raster_shapes.make_shape(soup)
    corners = np.concatenate(
        [shape.places[p : p + n][shape.corners[t : t + m]] for p, n, t, m in shape.clusters]
    ).round(5)
    edges: dict[tuple, int] = {}
    for triangle in corners + 0.0:
        for k in range(3):
            ends = tuple(triangle[k]), tuple(triangle[(k + 1) % 3])
            edges[ends] = edges.get(ends, 0) + 1
    assert all(n == 1 and edges.get((b, a)) == 1 for (a, b), n in edges.items())
    volume = np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6
    assert volume > 0.7 * {"sphere": 4.19, "cylinder": 6.28, "box": 8.0}[name]
    for (p, n, _, _), low_high in zip(shape.clusters, shape.boxes):
        assert (np.abs(shape.places[p : p + n] - low_high[:3]) <= low_high[3:] + 1e-6).all()


# ---------------------------------------------------------------------------------------------------------- beside GL


def by_opengl(model: mujoco.MjModel, cameras: list[int], size: tuple[int, int]) -> np.ndarray:
    from env.engine.camera_gl import choose_backend
    from env.engine.camera_renderer import QUALITIES, Renderer

    renderer = Renderer(model, cameras, size, QUALITIES["faithful"], choose_backend())
    image = np.zeros((3 * len(cameras), *size), np.uint8)
    renderer.draw(poses(model), (), image)
    renderer.close()
    return image


@needs_gl
@pytest.mark.parametrize("size", [(96, 96), (61, 47)])
def test_every_kind_of_thing_looks_as_mujoco_draws_it(scene, size):
    theirs, ours = by_opengl(scene, [0, 1], size).astype(int), np.zeros((6, *size), np.uint8)
    Rasterizer(RasterScene(scene, "faithful"), [0, 1], size, True).draw(poses(scene), (), ours)
    difference = np.abs(ours - theirs)
    assert difference.mean() < 1.0 and (difference > 16).mean() < 0.004, (difference.mean(), (difference > 16).mean())
    plain = np.zeros_like(ours)
    Rasterizer(RasterScene(scene, "faithful"), [0, 1], size, False).draw(poses(scene), (), plain)
    assert np.abs(plain - theirs).mean() > 2 * difference.mean()  # the mirror image is there


# ------------------------------------------------------------------------------------------------------------- promises


def test_images_do_not_depend_on_threads_or_on_what_was_drawn_before(scene):
    shared, size, pose = RasterScene(scene, "balanced"), (53, 59), poses(scene)
    moved = np.stack([pose] * 7)
    moved[:, 1, 0] += np.linspace(-0.4, 0.5, 7)
    single = np.zeros((7, 6, *size), np.uint8)
    rasterizer = Rasterizer(shared, [0, 1], size, True)
    for k in range(7):
        rasterizer.draw(moved[k], (), single[k])
    assert len({image.tobytes() for image in single}) == 7
    again = np.zeros_like(single)

    def work(k: int) -> None:
        Rasterizer(shared, [0, 1], size, True).draw(moved[k], (), again[k])

    with ThreadPoolExecutor(3) as executor:
        list(executor.map(work, reversed(range(7))))
    assert np.array_equal(again, single)


def test_what_is_passed_over_because_it_faces_away_would_not_show(scene):
    everything = RasterScene(scene, "faithful")
    everything.arrays = everything.arrays._replace(planes=np.zeros_like(everything.arrays.planes))  # nothing faces away
    pose, size = poses(scene), (61, 67)
    for turn in np.linspace(0, 3, 7):
        pose[1, 3:] = np.cos(turn), *(np.sin(turn) * np.array([0.6, 0.64, 0.48]))
        ours, all_of_it = np.zeros((6, *size), np.uint8), np.zeros((6, *size), np.uint8)
        for picture, image in ((RasterScene(scene, "faithful"), ours), (everything, all_of_it)):
            Rasterizer(picture, [0, 1], size, True).draw(pose, (), image)
        assert np.array_equal(ours, all_of_it)


def test_an_appearance_is_worn_and_taken_off(scene):
    rasterizer, pose = Rasterizer(RasterScene(scene, "faithful"), [0], (32, 32), False), poses(scene)
    plain, other, after = (np.zeros((3, 32, 32), np.uint8) for _ in range(3))
    rasterizer.draw(pose, (), plain)
    rasterizer.draw(pose, (("geom_size", np.array([1]), np.array([[0.3, 0.3, 0.3]])),), other)
    rasterizer.draw(pose, (), after)
    assert (plain != other).any() and np.array_equal(plain, after)
    with pytest.raises(EnvError, match="mat_rgba"):
        rasterizer.draw(pose, (("mat_rgba", np.array([0]), np.ones((1, 4))),), other)


def test_cameras_that_follow_something_and_the_free_one():
    ball = '<body pos="1 0 .3"><freejoint/><camera name="follow" mode="trackcom" pos="0 0 2"/><geom size=".2" rgba="0 1 0 1" group="1"/></body>'
    model = wall(more=ball)
    for camera in (2, FREE_CAMERA):
        image = drawn(model, camera, (32, 32))
        assert image[16, 16].argmax() == (1 if camera == 2 else 0)


def test_a_model_without_materials_lights_or_things_is_drawn():
    camera = '<camera pos="0 0 2"/>'
    bare = mujoco.MjModel.from_xml_string(f'<mujoco><worldbody>{camera}<geom size="9" group="1"/></worldbody></mujoco>')
    empty = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{camera}</worldbody></mujoco>")
    assert drawn(bare).shape == (16, 24, 3) and not drawn(empty).any()


def test_what_is_malformed_is_refused(scene):
    for field, row, value, said in (
        ("mesh_face", 0, 77, "tent.*mesh_face.*77"),
        ("mesh_facenormal", 0, -4, "tent.*mesh_facenormal"),
        ("mesh_vert", 0, np.nan, "tent.*finite"),
        ("tex_adr", 1, 10**7, "sky"),
        ("tex_height", 0, 0, "floor"),
        ("mat_texid", 0, 99, "mat_texid"),
    ):
        broken = copy.copy(scene)
        getattr(broken, field)[row] = value
        with pytest.raises(EnvError, match=said):
            RasterScene(broken, "faithful")
    with pytest.raises(EnvError, match="render_quality"):
        RasterScene(scene, "best")
    rasterizer = Rasterizer(RasterScene(scene, "faithful"), [0], (8, 9), False)
    for pose, image in (
        (poses(scene)[1:], np.zeros((3, 8, 9), np.uint8)),
        (poses(scene), np.zeros((3, 9, 8), np.uint8)),
    ):
        with pytest.raises(EnvError, match="found"):
            rasterizer.draw(pose, (), image)
    with pytest.raises(EnvError, match="camera 2"):
        Rasterizer(RasterScene(scene, "faithful"), [2], (8, 9), False)


def test_what_is_not_drawn_is_named_once(caplog, monkeypatch):
    monkeypatch.setattr(raster_scene, "_said", set())
    model = wall(more='<light pos="0 0 3" castshadow="true"/>')
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            RasterScene(model, "faithful")
    assert [record.message for record in caplog.records if "shadows" in record.message] and len(caplog.records) == 1
