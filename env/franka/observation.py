"""What a policy is shown on a robot: the observation it was trained on, key by key, from what the robot and its cameras say.

Keys are robomimic's, in the checkpoint's order; units, frames and the normaliser (``env/normalizer.py``, with the checkpoint's own
statistics) are those of training. Two things a real arm does not know by itself are settled here: the sign of quaternions (q and -q are
one orientation to a robot and two observations to a network) and where the robot's base stands in the world of the observations.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from env.franka.frames import SUITE_BASE, Transform, quat_inverse, quat_multiply, quat_rotate, same_sign
from env.franka.types import DeploymentError, Frame, GripperState, Observation, RobotState
from env.normalizer import Normalizer

ObjectPose = Callable[[], tuple[np.ndarray, np.ndarray]]  # position (3,) and quaternion (x, y, z, w) in the base frame
ImageFit = Callable[[np.ndarray], np.ndarray]  # (H, W, 3) as captured -> (h, w, 3) as the policy sees it, uint8 RGB
_SIZES = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
STATE_KEYS = (*_SIZES, "object")
RELATIVE = (
    "can",
    "square",
)  # whose object is also given in the gripper's frame; lift's has the way from it to the gripper
# where signs of an episode begin: robosuite's hand points down with x near 1, and it turns objects about z by 0 to 2 pi
_HAND, _OBJECT = np.array([1.0, 0.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0, 0.0])


@dataclass(frozen=True)
class ObservationSpec:
    """What a policy was trained to see; ``agent/deployment.py`` reads it from the checkpoint."""

    task: str
    low_dim_keys: tuple[str, ...]
    cameras: tuple[str, ...] = ()  # in the order of the image's channels
    image_size: tuple[int, int] = (96, 96)  # height, width
    state_steps: int = 1  # To of the state
    image_steps: int = 1  # To of the images
    render_quality: str | None = None  # of the images it was trained on; None: unknown, real or no images
    renderer: str | None = None  # that drew them


class ObservationBuilder:
    """Builds observations; called once per action tick, because it keeps the history.

    Args:
        spec: what the policy sees.
        normalizer: the checkpoint's own.
        world: where the robot's base stands in the world of the observations.
        object_pose: asked for the object's pose where the policy sees ``object``.
        fit: how each camera's picture becomes the policy's image; None for a camera whose pictures already are.

    Raises:
        DeploymentError: a policy that sees something this robot cannot tell it, or a normaliser of another size.
    """

    def __init__(
        self,
        spec: ObservationSpec,
        normalizer: Normalizer,
        world: Transform = SUITE_BASE,
        object_pose: ObjectPose | None = None,
        fit: Mapping[str, ImageFit] | None = None,
    ) -> None:
        unknown = [key for key in spec.low_dim_keys if key not in STATE_KEYS]
        if unknown:
            raise DeploymentError(
                f"the policy observes {', '.join(unknown)}, which one arm cannot tell; it knows {', '.join(STATE_KEYS)}"
            )
        if "object" in spec.low_dim_keys and object_pose is None:
            raise DeploymentError(
                "the policy observes the object's pose, which this robot does not know: use a policy that sees images, or name "
                "a pose estimator of yours by object_pose=<package.module.function> (returns position and quaternion "
                "x y z w in the robot's base frame). robot=mujoco knows it"
            )
        self.spec, self.normalizer, self._world, self._object_pose = spec, normalizer, world, object_pose
        self._fit = dict(fit or {})
        sizes = {**_SIZES, "object": 14 if spec.task in RELATIVE else 10}
        found = sum(sizes[key] for key in spec.low_dim_keys)
        if found != normalizer.obs_dim:
            raise DeploymentError(
                f"the checkpoint's normaliser has {normalizer.obs_dim} observation columns, {', '.join(spec.low_dim_keys)} of task "
                f"{spec.task!r} have {found}"
            )
        self.reset()

    def reset(self) -> None:
        """A new episode: forget the history, and the signs."""
        self._states: deque[np.ndarray] = deque(maxlen=self.spec.state_steps)
        self._images: deque[np.ndarray] = deque(maxlen=self.spec.image_steps)
        self._hand, self._object = _HAND, _OBJECT

    def build(self, state: RobotState, gripper: GripperState | None, frames: Mapping[str, Frame]) -> Observation:
        """The observation of now. Raises ``DeploymentError`` where the gripper or a camera the policy needs says nothing."""
        raw = self._raw(state, gripper)
        columns = np.concatenate([raw[key] for key in self.spec.low_dim_keys])
        self._states.append(self.normalizer.normalize_obs(columns))
        values = {"state": _stacked(self._states)}
        if self.spec.cameras:
            for camera in self.spec.cameras:
                raw[f"{camera}_image"] = self._image(camera, frames.get(camera))
            channels = [raw[f"{camera}_image"].transpose(2, 0, 1) for camera in self.spec.cameras]
            self._images.append(np.concatenate(channels))
            values["rgb"] = _stacked(self._images)
        exposed = [frames[camera].t_host for camera in self.spec.cameras]
        return Observation(values, raw, state.t_host, state.t_host - min(exposed) if exposed else 0.0)

    def _raw(self, state: RobotState, gripper: GripperState | None) -> dict[str, np.ndarray]:
        """The state by published key, in the units and the frame of training."""
        if gripper is None:
            raise DeploymentError("the policy observes the gripper, and there is none")
        position = self._world.point(state.position)
        self._hand = same_sign(self._world.orientation(state.quaternion), self._hand)
        raw = {
            "robot0_eef_pos": position,
            "robot0_eef_quat": self._hand,
            "robot0_gripper_qpos": np.array([0.5, -0.5]) * gripper.width,
        }
        if "object" in self.spec.low_dim_keys:
            raw["object"] = self._object_columns(position)
        return raw

    def _object_columns(self, hand: np.ndarray) -> np.ndarray:
        """The published ``object``: its pose in the world, and where the gripper is from there."""
        position, quaternion = self._object_pose()
        position = self._world.point(position)
        self._object = same_sign(self._world.orientation(quaternion), self._object)
        if self.spec.task not in RELATIVE:
            return np.concatenate([position, self._object, hand - position])
        back = quat_inverse(self._hand)
        turned = same_sign(quat_multiply(back, self._object), None)
        return np.concatenate([position, self._object, quat_rotate(back, position - hand), turned])

    def _image(self, camera: str, frame: Frame | None) -> np.ndarray:
        if frame is None:
            raise DeploymentError(f"the policy sees through camera {camera!r}, which has no picture yet")
        fit = self._fit.get(camera)
        image = frame.image if fit is None else fit(frame.image)
        if image.shape != (*self.spec.image_size, 3) or image.dtype != np.uint8:
            raise DeploymentError(
                f"camera {camera!r}: the policy sees uint8 images of {self.spec.image_size} and 3 colours, found {image.dtype} "
                f"{image.shape}; camera.crop and camera.resize fit it"
            )
        return image


def _stacked(history: Sequence[np.ndarray]) -> np.ndarray:
    """The last To, oldest first, padded with the oldest there is: (To, ...)."""
    missing = history.maxlen - len(history)
    return np.stack([history[0]] * missing + list(history))
