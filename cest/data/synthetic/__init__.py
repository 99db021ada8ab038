"""Synthetic clips with known truth: seeded, made on the fly.

Faces of the face model with procedural skin under known light, with a head, hair and things around
them, as a camera would see them.
"""

from cest.data.synthetic.appearance import AppearanceRanges
from cest.data.synthetic.clip import SyntheticClips
from cest.data.synthetic.scene import Scene
from cest.data.synthetic.shards import write_shards

__all__ = ["AppearanceRanges", "Scene", "SyntheticClips", "write_shards"]
