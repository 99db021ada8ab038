"""The square of a photo that an estimator is shown, and the way back.

Photo coordinates are pixel-edge: the photo spans [0, W] x [0, H], x right, y down. A crop's own
coordinates are the estimators' normalised image frame: [-1, 1] from edge to edge, x right, y up.
Angles are radians, counter-clockwise as the picture is seen.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

LANDMARK_BOX_TO_CROP = 1.65
"""Side of the crop over the longer side of the box of the 68 landmarks, as in the training data."""


@dataclass(frozen=True)
class SquareCrop:
    """A square in a photo: centre and side in photo pixels, turned by `angle` radians."""

    center_x: float
    center_y: float
    size: float
    angle: float = 0.0

    def __post_init__(self) -> None:
        values = (self.center_x, self.center_y, self.size, self.angle)
        if not all(map(math.isfinite, values)) or self.size <= 0:
            raise ValueError(f"A crop needs finite numbers and a size above 0, not {values}.")

    def _axes(self) -> np.ndarray:
        """(2, 2): rows are the crop's x and y axes, half a side long, in photo pixels."""
        c, s = (self.size / 2 * f(self.angle) for f in (math.cos, math.sin))
        return np.array([[c, -s], [-s, -c]])

    def to_photo(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) crop-normalised -> (..., 2) photo pixels."""
        return np.asarray(points) @ self._axes() + (self.center_x, self.center_y)

    def from_photo(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) photo pixels -> (..., 2) crop-normalised."""
        return (np.asarray(points) - (self.center_x, self.center_y)) @ np.linalg.inv(self._axes())

    def corners(self) -> np.ndarray:
        """(4, 2) photo pixels: top left, top right, bottom right, bottom left of the crop."""
        return self.to_photo(np.array([[-1, 1], [1, 1], [1, -1], [-1, -1]], float))


def crop_image(photo: np.ndarray, crop: SquareCrop, size: int) -> np.ndarray:
    """Cut `crop` out of a photo and scale it.

    photo (H, W, 3) uint8 -> (size, size, 3) uint8. Bilinear; when it shrinks, the part of the photo
    is first reduced by area averaging, so that nothing aliases. Outside the photo the nearest edge
    pixel is repeated, as in the training data.
    """
    height, width = photo.shape[:2]
    corners = crop.corners()
    # Only the part of the photo under the crop is touched: photos can be large.
    left, top = np.clip(np.floor(corners.min(0)).astype(int) - 2, 0, (width - 1, height - 1))
    right, bottom = np.clip(
        np.ceil(corners.max(0)).astype(int) + 2, (left + 1, top + 1), (width, height)
    )
    part = photo[top:bottom, left:right]
    shrink = np.array([1.0, 1.0])
    if crop.size > 2 * size:
        wanted = np.maximum(np.round(np.array(part.shape[1::-1]) * 1.5 * size / crop.size), 1)
        shrink = np.array(part.shape[1::-1]) / wanted
        part = cv2.resize(part, wanted.astype(int).tolist(), interpolation=cv2.INTER_AREA)
    # OpenCV counts from pixel centres; ours are pixel edges.
    to_pixel = np.array([[2 / size, 0, 1 / size - 1], [0, -2 / size, 1 - 1 / size]])
    matrix = crop._axes().T @ to_pixel
    matrix[:, 2] += np.array([crop.center_x - left, crop.center_y - top])
    matrix = matrix / shrink[:, None]
    matrix[:, 2] -= 0.5
    return cv2.warpAffine(
        part,
        matrix,
        (size, size),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def covered(photo: np.ndarray, crop: SquareCrop, size: int) -> np.ndarray:
    """(size, size) bool: which pixels of `crop_image` the photo shows, and not its repeated rim."""
    height, width = photo.shape[:2]
    x = (2 * np.arange(size) + 1) / size - 1
    points = crop.to_photo(np.stack(np.meshgrid(x, -x), axis=-1).reshape(-1, 2))
    inside = (points >= 0) & (points <= (width, height))
    return inside.all(-1).reshape(size, size)


def roll_of(landmarks: np.ndarray) -> float:
    """In-plane roll of 68 iBUG points (68, 2) in photo pixels: radians, counter-clockwise.

    The direction from the subject's right eye to the left, and from mouth to eyes turned by 90
    degrees, weighted by their lengths: the second holds where yaw shortens the first.
    """
    right_eye, left_eye = landmarks[36:42].mean(0), landmarks[42:48].mean(0)
    up = (right_eye + left_eye) / 2 - landmarks[48:68].mean(0)
    x, y = (left_eye - right_eye) + np.array([-up[1], up[0]])
    return float(math.atan2(-y, x))


def crop_from_landmarks(landmarks: np.ndarray) -> SquareCrop:
    """68 iBUG points (68, 2), photo pixels -> the square the estimators were trained on.

    The points' box is taken, and the square turned, along the face's roll. The square's centre is
    the box's, its side 1.65 times the box's longer side.
    """
    angle = roll_of(landmarks)
    turned = SquareCrop(0.0, 0.0, 2.0, angle)
    points = turned.from_photo(landmarks)
    low, high = points.min(0), points.max(0)
    x, y = turned.to_photo((low + high) / 2)
    return SquareCrop(float(x), float(y), float((high - low).max()) * LANDMARK_BOX_TO_CROP, angle)
