"""What data sets call the parts of a head, brought to the three values f_seg learns from.

A label is (H, W) uint8: `FACE` where the pixel shows what the renderer covers (skin of the face,
brows, eyes, nose, mouth), `OTHER` where it does not, `UNKNOWN` where the data set does not say.
"""

import cv2
import numpy as np
import torch

from cest.face_model import FaceModel
from cest.face_region import FOREHEAD, face_region
from cest.rendering import rasterize

FACE, UNKNOWN, OTHER = 255, 128, 0

CELEBAMASK_CLASSES = {
    "background": OTHER,
    "skin": FACE,
    "nose": FACE,
    "eye_g": OTHER,  # glasses, lenses and all: clear ones are not told from dark ones
    "l_eye": FACE,
    "r_eye": FACE,
    "l_brow": FACE,
    "r_brow": FACE,
    "l_ear": OTHER,  # the face models end before ears and neck
    "r_ear": OTHER,
    "mouth": FACE,  # the face models close it by a surface of its own
    "u_lip": FACE,
    "l_lip": FACE,
    "hair": OTHER,
    "hat": OTHER,
    "ear_r": OTHER,  # earring
    "neck_l": OTHER,  # necklace
    "neck": OTHER,
    "cloth": OTHER,
}
"""CelebAMask-HQ's 19 classes in the order of their numbers, 0 first."""

_SKIN, _HAIR, _BACKGROUND, _NOSE, _MOUTH, _EYES = range(6)
FASSEG_COLOURS = np.array(
    [[255, 255, 0], [127, 0, 0], [255, 0, 0], [0, 255, 255], [0, 255, 0], [0, 0, 255]]
)
"""RGB of skin, hair, background, nose, mouth, eyes in FASSEG's label pictures."""


def from_classes(label: np.ndarray) -> np.ndarray:
    """CelebAMask-HQ's numbers (H, W) -> a label.

    Raises:
        ValueError: a number that is not one of the 19.
    """
    values = np.array(list(CELEBAMASK_CLASSES.values()), np.uint8)
    if label.ndim != 2 or label.max() >= len(values):
        raise ValueError(
            f"A label map of shape {label.shape} with values up to {label.max()} is not one of "
            f"CelebAMask-HQ's: give (H, W) of 0 to {len(values) - 1}."
        )
    return values[label]


def from_landmarks(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """What `face_region` is sure of, for photos that come with landmarks alone.

    Unknown are a seam along its outline, the forehead above it, where it stops short of the
    hairline, and what does not have the face's colour: eyes and lips, but glasses and hands too.
    Above it, a colour far from the face's is hair.

    Args:
        image: (H, W, 3) uint8 sRGB.
        landmarks: (68, 2) pixel-edge coordinates.
    """
    region = face_region(image, landmarks)
    up = landmarks[17:27].mean(0) - landmarks[33]
    seam = _disc(0.05 * float(np.hypot(*up)))
    hairline = (1.6 - FOREHEAD) * up
    shift = np.float32([[1, 0, hairline[0]], [0, 1, hairline[1]]])
    around = cv2.dilate(region, seam)
    above = cv2.warpAffine(around, shift, region.shape[::-1])
    inside = cv2.erode(region, seam) > 0
    distance = np.zeros(region.shape, np.float32)
    for channel in np.moveaxis(np.log(image.astype(np.float32) + 8), -1, 0):
        face = channel[inside] if inside.any() else channel
        centre = np.median(face)
        spread = max(1.4826 * np.median(np.abs(face - centre)), 0.1)
        distance = np.maximum(distance, np.abs(channel - centre) / spread)
    label = np.full(region.shape, OTHER, np.uint8)
    label[(around > 0) | ((above > 0) & (distance < 5))] = UNKNOWN
    label[inside & (distance < 3)] = FACE
    return label


class FassegLabels:
    """FASSEG's colours to labels, with a mean face to tell the face's skin from ears and neck.

    FASSEG calls all of it skin. The yaw of its pictures is known, so the mean face is turned by it
    and laid over eyes, nose and mouth: skin well inside its outline is face, skin far outside is
    ears or neck, and what is between is unknown.
    """

    MARGIN = 0.08
    """Of the face's height: skin further from the mean face than this is neck or ear."""

    def __init__(self, face_model: FaceModel) -> None:
        self.vertices = face_model.mean.numpy()
        self.triangles = face_model.triangles
        self.landmarks = face_model.landmarks.numpy()

    def __call__(self, label: np.ndarray, yaw: float) -> np.ndarray:
        """A label picture (H, W, 3) uint8 and its yaw (degrees, positive when the subject looks
        to the picture's left) -> a label.

        Raises:
            ValueError: no eyes, nose or mouth in the picture.
        """
        parts = _nearest_colour(label)
        covered, height = self._mean_face(parts, yaw)
        other = np.isin(parts, (_HAIR, _BACKGROUND))
        # Brows have the colour of hair; they are its small islands in the face.
        number, islands, statistics, _ = cv2.connectedComponentsWithStats(
            (parts == _HAIR).astype(np.uint8)
        )
        small = statistics[:, cv2.CC_STAT_AREA] < 0.03 * height**2
        small[0] = False
        touched = np.bincount(islands[covered > 0], minlength=number) > 0
        brows = (small & touched)[islands]
        sure = cv2.erode(covered, _disc(0.25 * self.MARGIN * height)) > 0
        near = cv2.dilate(covered, _disc(self.MARGIN * height))
        # Ahead of a turned face there is neither neck nor ear: what the mean face lacks of a high
        # forehead or a long nose is not to be taken for one.
        ahead = np.float32([[1, 0, -0.15 * height * np.sin(np.radians(yaw))], [0, 1, 0]])
        possible = (near | cv2.warpAffine(near, ahead, near.shape[::-1])) > 0
        features = np.isin(parts, (_NOSE, _MOUTH, _EYES))
        found = np.where(sure, np.uint8(FACE), np.where(possible, UNKNOWN, OTHER).astype(np.uint8))
        found[other] = OTHER
        found[features | brows] = FACE
        return found

    def _mean_face(self, parts: np.ndarray, yaw: float) -> tuple[np.ndarray, float]:
        """Where the mean face lies (H, W), 1 or 0, and its height in pixels."""
        centres = []
        for part in (_EYES, _NOSE, _MOUTH):
            rows, columns = np.nonzero(parts == part)
            if not len(rows):
                raise ValueError("A label picture of FASSEG's colours lacks eyes, nose or mouth.")
            centres.append((columns.mean() + 0.5) - 1j * (rows.mean() + 0.5))
        angle = np.radians(yaw)
        turn = np.array(
            [[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]]
        )
        turned = self.vertices @ turn.T
        points = turned[self.landmarks]
        own = []
        for ids in (range(36, 48), range(29, 34), range(48, 60)):
            feature = points[list(ids)]
            near = feature[:, 2] > feature[:, 2].max() - 0.5  # the far eye is hidden by the nose
            own.append(feature[near, :2].mean(0))
        source, target = np.array(own) @ (1, 1j), np.array(centres)
        # The similarity between two planes is a complex line.
        middle, centred = source.mean(), source - source.mean()
        factor = (centred.conj() * (target - target.mean())).sum() / (abs(centred) ** 2).sum()
        placed = factor * (turned[:, :2] @ (1, 1j) - middle) + target.mean()
        side = max(parts.shape)
        scale = 2 / side
        projected = np.column_stack(
            (placed.real * scale - 1, placed.imag * scale + 1, turned[:, 2] * abs(factor) * scale)
        )
        fragments = rasterize(
            torch.from_numpy(np.float32(projected))[None], self.triangles, (side, side)
        )
        covered = (fragments.pix_to_face[0].numpy() >= 0).reshape(side, side)
        height = abs(factor) * float(np.ptp(points[:, 1]))
        return covered[: parts.shape[0], : parts.shape[1]].astype(np.uint8), height


def _nearest_colour(label: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> the number (H, W) of the nearest of FASSEG_COLOURS; edges are blended."""
    colours = FASSEG_COLOURS.astype(np.float32)
    # |l - c|² less |l|², which is the same for every colour.
    return ((colours**2).sum(1) - 2 * (label.astype(np.float32) @ colours.T)).argmin(-1)


def _disc(radius: float) -> np.ndarray:
    """A structuring element for a radius in pixels."""
    size = 2 * max(round(radius), 1) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
