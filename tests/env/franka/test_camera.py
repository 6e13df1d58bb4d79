"""Cameras through the real drivers: a RealSense recording (.db3) made by the SDK's software device, a film (AVI) made by OpenCV."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from PIL import Image

from env.franka import camera as base
from env.franka.camera import make_camera
from env.franka.camera_mujoco import MujocoCamera
from env.franka.camera_replay import ReplayCamera
from env.franka.clock import VirtualClock, WallClock
from env.franka.episode import read_episode
from env.franka.image import Fit, as_tensor, colour_order
from env.franka.types import Camera, DeploymentError
from tests.env.franka.recorded import CAMERA, record

WIDTH, HEIGHT, FPS = 64, 48, 30
CLOCK = WallClock()


def scene(k: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A red left, a blue right, and something grey that moves: (height, width, 3) RGB."""
    image = np.full((height, width, 3), 30, np.uint8)
    image[:, : width // 2, 0], image[:, width // 2 :, 2] = 200, 180
    image[8:16, 3 * k % (width - 8) : 3 * k % (width - 8) + 8] = 128
    return image


def recording(path, images: list[np.ndarray], order: str = "rgb8"):
    """A .db3 of ``images``, given as they lie in memory."""
    rs = realsense()
    height, width = images[0].shape[:2]
    device = rs.software_device()
    sensor = device.add_sensor("RGB Camera")
    stream = rs.video_stream()
    stream.type, stream.index, stream.uid, stream.width, stream.height = rs.stream.color, 0, 1, width, height
    stream.fps, stream.bpp, stream.fmt = FPS, 3, getattr(rs.format, order)
    lens = rs.intrinsics()
    lens.width, lens.height, lens.ppx, lens.ppy, lens.fx, lens.fy = width, height, width / 2, height / 2, width, width
    lens.model, lens.coeffs = rs.distortion.none, [0.0] * 5
    stream.intrinsics = lens
    profile = sensor.add_video_stream(stream).as_video_stream_profile()
    recorder = rs.recorder(str(path), device)
    recorded, queue = recorder.query_sensors()[0], rs.frame_queue(100)
    recorded.open(recorded.get_stream_profiles()[0])
    recorded.start(queue)
    for n, image in enumerate(images):
        frame = rs.software_video_frame()
        frame.pixels, frame.bpp, frame.stride = np.ascontiguousarray(image), 3, width * 3
        frame.timestamp, frame.frame_number, frame.domain = n * 1e3 / FPS, n, rs.timestamp_domain.hardware_clock
        frame.profile = profile
        sensor.on_video_frame(frame)
        time.sleep(0.002)
    recorded.stop()
    recorded.close()
    return path


def film(path, images: list[np.ndarray]):
    """An AVI of ``images`` (RGB), compressed without loss of colour."""
    cv2 = pytest.importorskip("cv2", reason="no OpenCV here")
    height, width = images[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), FPS, (width, height))
    for image in images:
        writer.write(np.ascontiguousarray(image[..., ::-1]))
    writer.release()
    return path


def realsense():
    try:
        import pyrealsense2
    except ImportError as error:
        pytest.skip(f"pyrealsense2 cannot be imported ({error}): pip install .[real], apt-get install libusb-1.0-0")
    return pyrealsense2


KINDS = ("realsense", "opencv")


def camera_of(kind: str, folder, images: list[np.ndarray], **settings):
    """The camera of that kind that sees ``images`` (RGB), one every 1/30 s."""
    settings = {"width": WIDTH, "height": HEIGHT, **settings}
    if kind == "realsense":
        return make_camera(kind, "wrist", CLOCK, file=recording(folder / "scene.db3", images), **settings)
    return make_camera(kind, "wrist", CLOCK, source=str(film(folder / "scene.avi", images)), **settings)


def until(true, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    return bool(true())


def gone(camera) -> bool:
    try:
        camera.latest()
    except DeploymentError:
        return True
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_come_as_they_are_and_at_their_pace(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "LOST", 0.4)
    images = [scene(k) for k in range(31)]
    camera = camera_of(kind, tmp_path, images)
    assert isinstance(camera, Camera) and camera.latest() is None
    camera.start()
    seen = {}
    assert until(lambda: gone(camera) or seen.setdefault(camera.latest().number, camera.latest()) is None)
    frames = list(seen.values())
    assert len(frames) >= 8 and all(b.number > a.number and b.t_host > a.t_host for a, b in itertools.pairwise(frames))
    first = frames[0].number
    for frame in frames:  # JPEG's colours bleed at edges; red and blue as they are all the same
        error = np.abs(frame.image.astype(int) - images[frame.number - (kind == "opencv")]).mean()
        assert error < (4.0 if kind == "opencv" else 1e-9)
    paced = [(f.t_host - frames[0].t_host) * FPS / (f.number - first) for f in frames[1:]]
    assert min(paced[3:]) > 0.9, "a recording is not faster than the camera was"
    with pytest.raises(
        DeploymentError, match=r"camera wrist: gone: no picture for .* unplugged\?"
    ):  # the recording has ended
        camera.latest()
    assert "unplugged" in camera.trouble()
    camera.close()
    camera.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_camera_is_an_ageing_frame(kind, tmp_path):
    """New numbers, the same picture to the bit: its age grows past the 150 ms of the watchdog, and the camera says why."""
    camera = camera_of(kind, tmp_path, [scene(min(k, 5)) for k in range(60)])
    camera.start()
    assert until(
        lambda: (
            np.abs(camera.latest().image.astype(int) - scene(5)).mean() < 4
            and CLOCK.now() - camera.latest().t_host > 0.15
        )
    )
    held = camera.latest()
    assert until(lambda: camera.trouble() is not None)
    assert camera.latest() is held and CLOCK.now() - held.t_host >= base.FROZEN
    assert "frozen for" in camera.trouble() and "repeat picture" in camera.trouble()
    camera.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_camera_of_another_size_is_refused(kind, tmp_path):
    camera = camera_of(kind, tmp_path, [scene(k) for k in range(5)], width=WIDTH * 2, height=HEIGHT * 2)
    with pytest.raises(
        DeploymentError, match=rf"expected pictures of {WIDTH * 2} x {HEIGHT * 2} .* found \({WIDTH}, {HEIGHT}\)"
    ):
        camera.start()


@pytest.mark.parametrize("kind", KINDS)
def test_exchanged_colours_are_refused(kind, tmp_path):
    """A reference with true colours: the true camera starts, one that sends BGR for RGB does not."""
    Image.fromarray(scene(9, 320, 240)).save(tmp_path / "reference.png")
    for name, order in (("true", slice(None)), ("exchanged", slice(None, None, -1))):
        (tmp_path / name).mkdir()
        images = [scene(k)[..., order] for k in range(9)]
        camera = camera_of(kind, tmp_path / name, images, reference=tmp_path / "reference.png")
        if name == "true":
            camera.start()
            camera.close()
        else:
            with pytest.raises(DeploymentError, match="red and blue are exchanged"):
                camera.start()


def test_a_realsense_that_says_bgr_is_turned_round(tmp_path):
    path = recording(tmp_path / "bgr.db3", [scene(k)[..., ::-1] for k in range(9)], "bgr8")
    camera = make_camera("realsense", "wrist", CLOCK, file=path, width=WIDTH, height=HEIGHT)
    camera.start()
    frame = camera.latest()
    assert np.array_equal(frame.image, scene(frame.number))
    camera.close()


def test_cameras_that_are_not_there(tmp_path):
    pytest.importorskip("cv2")
    for source, what in ((97, "/dev/video97"), (str(tmp_path / "none.avi"), "none.avi")):
        with pytest.raises(DeploymentError, match=f"cannot open .*{what}"):
            make_camera("opencv", "wrist", CLOCK, source=source).start()
    with pytest.raises(DeploymentError, match="expected one of realsense, opencv"):
        make_camera("webcam", "wrist", CLOCK)
    with pytest.raises(DeploymentError, match="unexpected keyword argument 'sorce'"):
        make_camera("opencv", "wrist", CLOCK, sorce=1)
    with pytest.raises(DeploymentError, match=r"suffix \.db3, found .*a\.bag"):
        realsense() and make_camera("realsense", "wrist", CLOCK, file=tmp_path / "a.bag").start()
    with pytest.raises(DeploymentError, match="no RealSense with serial number 123; connected: none"):
        make_camera("realsense", "wrist", CLOCK, serial="123").start()


def test_a_driver_that_raises_is_a_camera_that_is_gone():
    class Broken(base.CapturingCamera):
        released = False

        def _open(self): ...

        def _grab(self):
            if self._frame is not None:
                raise RuntimeError("USB reset")
            return np.zeros((5, 7, 3), np.uint8), CLOCK.now(), 0

        def _release(self):
            self.released = True

    camera = Broken("wrist", CLOCK, width=7, height=5)
    with pytest.raises(DeploymentError, match=r"camera wrist: gone \(USB reset\)"):
        camera.start()
        assert until(lambda: gone(camera))
        camera.latest()
    assert until(lambda: camera.released)


def test_the_twins_camera_draws_once_a_moment():
    clock, drawn = VirtualClock(), []
    camera = MujocoCamera("agentview", lambda: drawn.append(1) or np.full((5, 7, 3), len(drawn), np.uint8), clock)
    camera.start()
    frames = [camera.latest(), camera.latest()]
    clock.sleep_until(0.05)
    frames.append(camera.latest())
    assert [(f.number, f.t_host, f.image[0, 0, 0]) for f in frames] == [(0, 0.0, 1), (0, 0.0, 1), (1, 0.05, 2)]
    assert isinstance(camera, Camera)


def test_a_recorded_camera_shows_what_its_policy_saw(tmp_path):
    given, clock = record(tmp_path / "e", 13, camera=True), VirtualClock(7.0)
    camera = ReplayCamera(CAMERA, read_episode(tmp_path / "e"), clock)
    clock.sleep_until(9.0)
    camera.start()
    for t, row in ((9.0, 0), (9.049, 0), (9.05, 1), (9.32, 6), (99.0, 12)):
        clock.sleep_until(t)
        frame = camera.latest()
        assert frame.number == row and frame.t_host == pytest.approx(9.0 + 0.05 * row)
        assert np.array_equal(frame.image, given[row].raw[f"{CAMERA}_image"])
    with pytest.raises(DeploymentError, match="no column obs/left_image"):
        ReplayCamera("left", read_episode(tmp_path / "e"), clock)


def test_fit_cuts_a_square_and_averages():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (12, 20, 3), np.uint8)
    blocks = lambda part: part.reshape(3, 4, 3, 4, 3).mean(axis=(1, 3))  # noqa: E731  4 x 4 pixels each
    assert np.abs(Fit((3, 3))(image) - blocks(image[:, 4:16].astype(float))).max() < 1.0  # rounded twice
    wide = rng.integers(0, 256, (19, 23, 3), np.uint8)
    assert np.abs(Fit((3, 3), (7, 5, 12))(wide) - blocks(wide[5:17, 7:19].astype(float))).max() < 1.0
    assert np.array_equal(Fit((12, 12), (3, 0, 12))(image), image[:, 3:15])
    assert np.array_equal(as_tensor(image)[1], image[..., 1])
    for crop in ((9, 0, 12), (0, 1, 12)):
        with pytest.raises(DeploymentError, match="leaves the picture of 20 x 12"):
            Fit((3, 3), crop)(image)
    with pytest.raises(DeploymentError, match="as many rows as columns"):
        Fit((3, 4))
    with pytest.raises(DeploymentError, match=r"\(H, W, 3\) uint8, found \(12, 20\)"):
        Fit((3, 3))(image[..., 0])


def test_fit_is_opencvs_area_average():
    cv2 = pytest.importorskip("cv2")
    image = np.random.default_rng(1).integers(0, 256, (480, 640, 3), np.uint8)
    theirs = cv2.resize(image[:, 80:560], (96, 96), interpolation=cv2.INTER_AREA)
    assert np.abs(Fit((96, 96))(image).astype(int) - theirs).max() <= 1


def test_the_order_of_colours():
    reference = scene(0, 640, 480)
    brighter = np.clip(scene(11).astype(float) * 1.2 + 10, 0, 255).astype(np.uint8)
    grey = np.full((48, 64, 3), 90, np.uint8)
    assert colour_order(brighter, reference) == "rgb"
    assert colour_order(brighter[..., ::-1], reference) == "bgr"
    assert colour_order(grey, reference) == "unclear"
    assert colour_order(scene(0), np.full((9, 9, 3), 90, np.uint8)) == "unclear"
