"""From a camera's picture to the image a policy sees: a square cut out, made small by averaging, RGB."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from env.franka.types import DeploymentError

_COARSE = (8, 8)
_COLOURFUL = 4.0  # grey levels by which red and blue must differ on average, for their order to be told


@dataclass(frozen=True)
class Fit:
    """``Fit(size, crop)(image)``: ``(H, W, 3)`` uint8 RGB -> ``(*size, 3)``.

    Args:
        size: height and width of the policy's image, equal.
        crop: left, top and side of the square that is cut out, in pixels of the picture; None: the largest in the middle.

    Raises:
        DeploymentError: a size or crop that is no square, no picture, or a square that leaves the picture.
    """

    size: tuple[int, int]
    crop: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if len(self.size) != 2 or self.size[0] != self.size[1] or self.size[0] < 1:
            raise DeploymentError(f"camera size: expected as many rows as columns, found {tuple(self.size)}")
        if self.crop is not None and (len(self.crop) != 3 or min(self.crop) < 0 or self.crop[2] < 1):
            raise DeploymentError(f"camera crop: expected left, top and side in pixels, found {tuple(self.crop)}")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        left, top, side = self._square(image)
        if (side, side) == tuple(self.size):
            return image[top : top + side, left : left + side].copy()
        part = Image.fromarray(np.ascontiguousarray(image[top : top + side, left : left + side]))
        return np.asarray(part.resize(tuple(self.size), Image.Resampling.BOX))

    def _square(self, image: np.ndarray) -> tuple[int, int, int]:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise DeploymentError(f"expected a picture (H, W, 3) uint8, found {image.shape} {image.dtype}")
        height, width = image.shape[:2]
        if self.crop is None:
            side = min(height, width)
            return (width - side) // 2, (height - side) // 2, side
        left, top, side = self.crop
        if left + side > width or top + side > height:
            raise DeploymentError(
                f"camera crop: the square from ({left}, {top}) with side {side} leaves the picture of {width} x {height} pixels"
            )
        return left, top, side


def as_tensor(image: np.ndarray) -> np.ndarray:
    """``(H, W, 3)`` -> ``(3, H, W)``, as policies have it."""
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def read_picture(path: str | Path) -> np.ndarray:
    """A PNG or JPEG as ``(H, W, 3)`` uint8 RGB. Raises ``DeploymentError``."""
    try:
        with Image.open(Path(path).expanduser()) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError as error:
        raise DeploymentError(f"{path}: expected a picture of the scene, PNG or JPEG ({error})") from error


def colour_order(image: np.ndarray, reference: np.ndarray) -> str:
    """Whether ``image`` has red and blue as ``reference``, a picture of the same scene, has: "rgb", or "bgr" where they are exchanged;
    "unclear" where there is too little colour, or too little likeness, to say. Both ``(H, W, 3)`` uint8, of any size."""
    seen, wanted = (Fit(_COARSE)(picture).astype(np.float64) for picture in (image, reference))
    colourful = np.abs(wanted - wanted[..., ::-1]).mean()
    closer = (
        np.abs(seen[..., ::-1] - wanted).mean() - np.abs(seen - wanted).mean()
    )  # by how much as it is than exchanged
    if colourful < _COLOURFUL or abs(closer) < colourful / 4:
        return "unclear"
    return "rgb" if closer > 0 else "bgr"
