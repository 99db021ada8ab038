"""Groups of frames that figures are also shown for: by skin tone and by yaw.

Tone is the individual typology angle of a colour, atan2(L* - 50, b*) in degrees (Chardon et al.
1991; Del Bino et al. 2006). Of a true albedo it is the skin's; of a photo it is the skin's under
that light and camera, and groups by it mix dark skin with dim light.
"""

import re
from collections.abc import Sequence

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

TONE_LIMITS = (41.0, 28.0, 10.0, -30.0)
"""Degrees, between the groups from light to dark."""
TONE_GROUPS = ("1 light", "2 intermediate", "3 tan", "4 brown", "5 dark")
"""Numbered, so that their order is that of their names."""
YAW_LIMITS = (30, 60)
YAW_GROUPS = ("[0, 30)", "[30, 60)", "[60, 90)")
"""Degrees to either side; what is beyond 90 counts in the last."""


def typology_angle(colour: np.ndarray) -> float:
    """Of one sRGB colour (3,) in [0, 1], degrees."""
    pixel = np.float32(colour).reshape(1, 1, 3)
    lightness, _, b = cv2.cvtColor(pixel, cv2.COLOR_RGB2LAB)[0, 0].tolist()
    return float(np.degrees(np.arctan2(lightness - 50, b)))


def tone_group(image: np.ndarray, mask: np.ndarray) -> str:
    """One of TONE_GROUPS, by the median colour of (H, W, 3) uint8 sRGB where (H, W) is above 0."""
    pixels = image[mask > 0]
    if not len(pixels):
        return "unknown"
    angle = typology_angle(np.median(pixels, axis=0) / 255)
    return TONE_GROUPS[sum(angle <= limit for limit in TONE_LIMITS)]


def yaw_of(viewpoint: Sequence[float]) -> float:
    """Degrees by which a face (7,) looks to the picture's right."""
    x, _, z = Rotation.from_rotvec(np.asarray(viewpoint[1:4], float)).apply((0.0, 0.0, 1.0))
    return float(np.degrees(np.arctan2(x, z)))


def yaw_group(degrees: float) -> str:
    """One of YAW_GROUPS."""
    return YAW_GROUPS[int(np.digitize(abs(degrees), YAW_LIMITS))]


def group_title(group: str) -> str:
    """A group's name without the number that orders it."""
    return re.sub(r"^\d ", "", group)
