"""The face mask M for images that come with landmarks but without a segmentation.

The hull of the landmarks plus a forehead, less what does not have the face's colour: hair over
the forehead and temples, and hats. Occluders below the brows stay in; the objective's
``outlier_factor`` keeps them from pulling on the reflectance.
"""

import cv2
import numpy as np
import torch
from torch import Tensor

from cest.geometry import to_pixels

# Of the distance from brows to the base of the nose, which in a face is the distance from
# brows to the hairline, too ("thirds"); shorter, so that the hairline itself stays out.
FOREHEAD = 0.75
# How much of that each of the ten brow points (17..26) rises: the hairline is an arch.
ARCH = np.float32([0.35, 0.7, 0.9, 1.0, 1.0, 1.0, 1.0, 0.9, 0.7, 0.35])
# A pixel of the forehead is skin within this many robust standard deviations of the colour of
# cheeks and nose; the floors are those of JPEG noise on an evenly lit face.
DEVIATIONS = 3.0
FLOOR = np.array([0.12, 0.03, 0.03])


def face_region(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """M for one image.

    Args:
        image: (H, W, 3) uint8 sRGB.
        landmarks: (68, 2) pixel-edge coordinates of the image.

    Returns:
        (H, W) uint8, 1 on the face.
    """
    height, width = image.shape[:2]
    points = landmarks.astype(np.float32)
    brows, nose_base = points[17:27], points[33]
    up = brows.mean(0) - nose_base
    arch = brows + FOREHEAD * ARCH[:, None] * up
    outline = np.concatenate((points[:17], points[26:16:-1], arch))
    hull = _filled([cv2.convexHull(outline)], height, width)
    lower = _filled([cv2.convexHull(np.concatenate((points[:17], points[17:27])))], height, width)
    cheeks = _filled(
        [points[[1, 2, 3, 4, 31, 36, 41]], points[[15, 14, 13, 12, 35, 45, 46]], points[27:36]],
        height,
        width,
    )
    if cheeks.sum() < 20:
        return hull
    colours = _log_colour(image)
    skin = colours[cheeks > 0]
    centre = np.median(skin, axis=0)
    spread = np.maximum(1.4826 * np.median(np.abs(skin - centre), axis=0), FLOOR)
    distance = np.sqrt((((colours - centre) / (DEVIATIONS * spread)) ** 2).sum(-1))
    skin_coloured = (distance < 1).astype(np.uint8)
    # Specks of the noise go, and so do single hairs' gaps.
    kernel = np.ones((3, 3), np.uint8)
    skin_coloured = cv2.morphologyEx(skin_coloured, cv2.MORPH_OPEN, kernel)
    skin_coloured = cv2.morphologyEx(skin_coloured, cv2.MORPH_CLOSE, kernel)
    # Light falls off towards the sides of a lit face: below the brows colour is no argument.
    return hull & (skin_coloured | lower)


def face_regions(image: Tensor, landmarks: Tensor) -> Tensor:
    """M (B, 1, S, S), 1 or 0, of images (B, 3, S, S) in [0, 1] with landmarks (B, 68, 2).

    The landmarks are in the image frame. Works on the CPU, wherever the images are.
    """
    size = image.shape[-1]
    pixels = (255 * image).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    points = to_pixels(landmarks, size, size).cpu().numpy()
    masks = [face_region(*each) for each in zip(np.ascontiguousarray(pixels), points)]
    return torch.from_numpy(np.stack(masks))[:, None].to(image)


def _filled(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    for polygon in polygons:
        cv2.fillPoly(mask, [np.round(polygon).astype(np.int32)], 1)
    return mask


def _log_colour(image: np.ndarray) -> np.ndarray:
    """(H, W, 3): log luminance and two log ratios, which white light leaves as they are."""
    log = np.log(image.astype(np.float32) + 8)
    return np.stack((log.mean(-1), log[..., 0] - log[..., 1], log[..., 1] - log[..., 2]), -1)
