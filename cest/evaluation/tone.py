"""Skin tone groups, so that figures can be read for each of them.

By the individual typology angle of a colour, atan2(L* - 50, b*) in degrees (Chardon et al. 1991;
Del Bino et al. 2006). Of a true albedo it is the skin's; of a photo it is the skin's under that
light and camera, and groups by it mix dark skin with dim light.
"""

import cv2
import numpy as np

LIMITS = (41.0, 28.0, 10.0, -30.0)
"""Degrees, between the groups from light to dark."""
GROUPS = ("1 light", "2 intermediate", "3 tan", "4 brown", "5 dark")
"""Numbered, so that their order is that of their names."""


def typology_angle(colour: np.ndarray) -> float:
    """Of one sRGB colour (3,) in [0, 1], degrees."""
    pixel = np.float32(colour).reshape(1, 1, 3)
    lightness, _, b = cv2.cvtColor(pixel, cv2.COLOR_RGB2LAB)[0, 0].tolist()
    return float(np.degrees(np.arctan2(lightness - 50, b)))


def tone_group(image: np.ndarray, mask: np.ndarray) -> str:
    """One of GROUPS, by the median colour of (H, W, 3) uint8 sRGB where (H, W) is above 0."""
    pixels = image[mask > 0]
    if not len(pixels):
        return "unknown"
    angle = typology_angle(np.median(pixels, axis=0) / 255)
    return GROUPS[sum(angle <= limit for limit in LIMITS)]
