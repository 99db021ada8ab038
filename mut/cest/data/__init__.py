"""Clips: rows of frames with landmarks, and the batches that training takes from them."""

from cest.data.clips import ClipDraws, FrameBatch, Recipe, StepSampler, load_clips, read_frame

__all__ = ["ClipDraws", "FrameBatch", "Recipe", "StepSampler", "load_clips", "read_frame"]
