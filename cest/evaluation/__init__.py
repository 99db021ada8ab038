"""Metrics and their protocols (see `metrics` for the definitions)."""

from cest.evaluation.metrics import normalised_mean_error, photometric_error_255
from cest.evaluation.validation import evaluate

__all__ = ["evaluate", "normalised_mean_error", "photometric_error_255"]
