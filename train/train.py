"""Trains CEST or IEST: ``accelerate launch train/train.py --config train/configs/NAME.yaml``.

Stop it whenever you like; the same command goes on from the last checkpoint.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm import tqdm

import checkpoints
from averaging import MovingAverage
from cest.data import Batches, FrameBatch, StreamedClips, load_clips
from cest.data.augmentation import Relighter
from cest.data.synthetic import SyntheticClips
from cest.evaluation import evaluate
from cest.known_factors import KnownFactors, known_factor_errors
from cest.modeling import FaceEstimator, FaceParameters
from cest.objective import objective
from cest.segmentation import FaceSegmenter
from log import Log, start_tracker
from publishing import Publisher
from settings import Settings
from synchronised import synchronise

# More than a run draws; each is made when it is drawn.
SYNTHETIC_CLIPS = 2**31


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="YAML file, see train/configs")
    parser.add_argument("--push_to_hub", metavar="OWNER/NAME", help="push checkpoints meanwhile")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. recipe.clips=8")
    arguments = parser.parse_args()
    if arguments.push_to_hub:
        arguments.overrides.append(f"push_to_hub={arguments.push_to_hub}")
    try:
        train(Settings.load(arguments.config, arguments.overrides))
    except (ValueError, OSError) as error:
        sys.exit(f"train.py: {error}")
    except RuntimeError as error:
        if "gloo" in str(error) or isinstance(error, torch.distributed.DistError):
            sys.exit("train.py: another process ended; its message says why.")
        raise
    except KeyboardInterrupt:
        sys.exit("train.py: stopped; the same command goes on from the last checkpoint.")


def train(settings: Settings) -> None:
    """Runs, or goes on with, one training run."""
    output = Path(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(
        gradient_accumulation_steps=settings.accumulation,
        log_with=settings.tracker or None,
        project_dir=output,
    )
    set_seed(settings.seed)
    main_process = accelerator.is_main_process
    publisher = None
    if main_process:
        settings.record(output)
        if settings.push_to_hub:  # now, so that a token that may not push is refused at once
            publisher = Publisher(settings.push_to_hub, private=settings.private)

    model = initial_model(settings).to(memory_format=torch.channels_last)
    average = MovingAverage(model, settings.ema) if settings.ema else None
    model = synchronise(model, accelerator)
    if settings.compile:
        for network in model.children():
            network.compile()
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, settings))
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(schedule)
    if average is not None:
        average = accelerator.prepare_model(average, evaluation_mode=True)
    bare = accelerator.unwrap_model(model)
    best = bare if average is None else accelerator.unwrap_model(average).model
    start, position = checkpoints.resume(accelerator, output / "checkpoints")
    # The rate may be another now: schedule and optimiser remember the one they had.
    schedule.base_lrs = [settings.learning_rate] * len(schedule.base_lrs)
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * rate(start, settings)

    if settings.truth_weight and bare.face_model.name != "open":
        raise ValueError(
            f"truth_weight is {settings.truth_weight}, but rendered frames know the truth of the "
            f"open face model, not of {bare.face_model.name!r}: set it to 0."
        )
    relighter = Relighter(bare.face_model) if settings.recipe.relight else None
    batches = iter(open_batches(settings, accelerator, relighter, start, position))
    segmenter = None
    if settings.segmenter:
        segmenter = FaceSegmenter.from_pretrained(settings.segmenter).to(accelerator.device)
    validation = load_clips(settings.validation, settings.columns) if settings.validation else None
    start_tracker(accelerator, settings.tracker, asdict(settings))
    log = Log(output, start, accelerator) if main_process else None

    def look(step: int) -> None:
        figures = evaluate(best, validation, max_frames=settings.evaluation_frames)
        log.write("validation", step, figures)

    looking = log is not None and validation is not None
    if looking and start and start % settings.evaluate_every == 0 and not log.looked(start):
        look(start)  # a kill may have come before this, last time

    bar = tqdm(initial=start, total=settings.steps, disable=not main_process, unit="step")
    model.train()
    for step in range(start + 1, settings.steps + 1):
        sums = None
        for _ in range(settings.accumulation):
            batch, position = next(batches)
            batch = on_device(batch, accelerator.device, segmenter, relighter)
            with accelerator.accumulate(model):
                estimate = model(batch.image)
                terms = objective(
                    estimate,
                    batch.image,
                    batch.mask,
                    batch.landmarks,
                    batch.clip,
                    batch.partner,
                    bare.face_model.landmarks,
                    settings.objective,
                )
                if batch.truth is not None:
                    terms = with_truth(terms, estimate, batch.truth, bare, settings)
                accelerator.backward(terms["loss"])
                values = torch.stack([value.detach() for value in terms.values()])
                sums = values if sums is None else sums + values
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(model.parameters(), settings.gradient_norm)
                optimizer.step()
                optimizer.zero_grad()
        used = optimizer.param_groups[0]["lr"]
        schedule.step()
        if average is not None:
            average.update(bare, step)
        bar.update()

        saving = step % settings.save_every == 0 or step == settings.steps
        if saving or step % settings.log_every == 0:
            # Nothing before this waited for the device.
            means = accelerator.reduce(sums / settings.accumulation, "mean").tolist()
            figures = dict(zip(terms, means)) | {"gradient_norm": float(norm)}
            check(figures, step, output, scaled=accelerator.scaler is not None)
            if log:
                log.write("train", step, figures | {"rate": used})
                bar.set_postfix(loss=f"{figures['loss']:.4f}")
        if saving:  # before looking, which may meet a full disk or a damaged picture
            checkpoints.save(accelerator, output / "checkpoints", step, settings.keep, position)
            if main_process:
                hand_out(best, output, step, publisher)
        if log and step % settings.picture_every == 0:
            log.picture(step, batch, best)
        if looking and step % settings.evaluate_every == 0:
            look(step)
    bar.close()
    if main_process and start >= settings.steps:  # a kill may have come before this, last time
        hand_out(best, output, start, publisher)
    if publisher:
        publisher.close()
    accelerator.end_training()


def with_truth(
    terms: dict[str, torch.Tensor],
    estimate: FaceParameters,
    truth: KnownFactors,
    model: FaceEstimator,
    settings: Settings,
) -> dict[str, torch.Tensor]:
    """The objective's terms, its loss now with what is known of the rendered frames."""
    errors = known_factor_errors(estimate, truth, model.face_model, model.texel_map)
    # A decimetre of shape is about a unit of the image frame, in which landmarks are weighed.
    error = (
        settings.objective.landmark_weight * errors["true_shape"]
        + errors["true_reflectance"]
        + errors["true_light"]
    )
    return terms | {"loss": terms["loss"] + settings.truth_weight * error} | errors


def hand_out(model: FaceEstimator, output: Path, step: int, publisher: Publisher | None) -> None:
    """Writes the folder that `from_pretrained` loads, and pushes it if it is to be."""
    checkpoints.save_model(model, output / "model")
    if publisher:
        publisher.publish(output / "model", f"Step {step}")


def initial_model(settings: Settings) -> FaceEstimator:
    """Random weights, or those the run is to begin with.

    Raises:
        ValueError: they cannot be had, or belong to another model than the settings ask for.
    """
    if not settings.initial:
        return FaceEstimator(settings.model)
    model = FaceEstimator.from_pretrained(settings.initial)
    asked = replace(
        settings.model,
        face_model=model.config.face_model,
        face_model_hash=model.config.face_model_hash,
    )
    if model.config != asked:
        raise ValueError(
            f"initial={settings.initial} holds {model.config}, but model asks for {asked}: give "
            "the model of these weights, or other weights."
        )
    return model


def on_device(
    batch: FrameBatch,
    device: torch.device,
    segmenter: FaceSegmenter | None,
    relighter: Relighter | None,
) -> FrameBatch:
    """A batch where the model is: its mask by f_seg, if there is one, then relit."""
    batch = batch.to(device)
    if segmenter is not None:
        with torch.no_grad():
            batch = replace(batch, mask=(segmenter(batch.image) > 0.5).float())
    return batch.lit(relighter)


def check(figures: dict[str, float], step: int, output: Path, scaled: bool) -> None:
    """Stops a run that has left the numbers, before it is saved.

    Under float16 with a loss scale, a gradient that is not finite is nothing unusual: its step is
    left out.
    """
    values = [value for name, value in figures.items() if not (scaled and name == "gradient_norm")]
    if not all(torch.isfinite(torch.tensor(values))):
        raise ValueError(
            f"the loss or its gradient is no number any more at step {step}: the last checkpoint "
            f"in {output / 'checkpoints'} is good; go on from it with a lower learning_rate or "
            "gradient_norm."
        )


def rate(step: int, settings: Settings) -> float:
    """Factor of the learning rate: a linear rise, then half a cosine to zero."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.5 * (1 + torch.cos(torch.tensor(torch.pi * min(1.0, done))).item())


def open_batches(
    settings: Settings,
    accelerator: Accelerator,
    relighter: Relighter | None,
    start: int,
    position: dict,
) -> Iterator[tuple[FrameBatch, dict]]:
    """This process's share of batches start, start + 1, … of the run."""
    process = accelerator.process_index, accelerator.num_processes
    sources = {}
    for name in ("clips", "stills"):
        if source := getattr(settings, name):
            sources[name] = load_clips(source, settings.columns, settings.streaming)
            if settings.streaming:
                sources[name] = StreamedClips(
                    sources[name], settings.seed, *process, position.get(name)
                )
    if settings.recipe.synthetic:
        sources["synthetic"] = SyntheticClips(
            SYNTHETIC_CLIPS,
            settings.seed,
            settings.recipe.frames,
            settings.model.image_size,
            truth=settings.truth_weight > 0,
        )
    return Batches(
        sources,
        settings.recipe,
        settings.model.image_size,
        relighter,
        seed=settings.seed,
        start=start,
        stop=settings.steps,
        process=process[0],
        processes=process[1],
        accumulation=settings.accumulation,
        threads=max(1, settings.workers),
        pin=accelerator.device.type == "cuda",
        # f_seg makes masks on the device.
        masks=not settings.segmenter,
        # A clip of one frame would be consistent with itself alone.
        least=2 if settings.objective.constraints == "consistency" else 1,
    )


if __name__ == "__main__":
    main()
