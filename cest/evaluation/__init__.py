"""Figures of merit, the protocols that take them, baselines beside them; see docs/evaluation.md."""

from cest.evaluation.clip_sets import evaluate, evaluate_clips
from cest.evaluation.metrics import normalised_mean_error, photometric_error_255
from cest.evaluation.synthetic_truth import evaluate_synthetic

__all__ = [
    "evaluate",
    "evaluate_clips",
    "evaluate_synthetic",
    "normalised_mean_error",
    "photometric_error_255",
]
