"""Clips: rows of frames with landmarks, and the batches that training takes from them."""

from cest.data.batches import Batches, Frame, FrameBatch, Recipe
from cest.data.clips import load_clips, read_frame
from cest.data.streams import StreamedClips

__all__ = [
    "Batches",
    "Frame",
    "FrameBatch",
    "Recipe",
    "StreamedClips",
    "load_clips",
    "read_frame",
]
