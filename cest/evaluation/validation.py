"""Means on a held-out clip set for one model: what training looks at on its way."""

from cest.data.clips import ClipSet
from cest.evaluation.clip_sets import evaluate_clips
from cest.evaluation.methods import Estimate
from cest.modeling import FaceEstimator


def evaluate(
    model: FaceEstimator,
    clips: ClipSet,
    batch_size: int = 32,
    max_frames: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Figures on a clip set.

    Args:
        model: in evaluation mode while this runs; its mode is restored.
        clips, batch_size, max_frames, seed: as in `evaluate_clips`.

    Returns:
        Means of what `evaluate_clips` measures, and "frames", how many.

    Raises:
        ValueError: there is no frame, or one that cannot be read.
    """
    training = model.training
    model.eval()
    try:
        measured = evaluate_clips(
            {"model": Estimate(model)},
            clips,
            batch_size,
            max_frames,
            seed,
            device=next(model.parameters()).device,
        )
    finally:
        model.train(training)
    means = {name: measured.mean("model", name) for name in measured.values["model"]}
    return means | {"frames": len(measured.frames)}
