"""Trains CEST or IEST: ``accelerate launch train/train.py --config train/configs/NAME.yaml``.

Stop it whenever you like; the same command goes on from the last checkpoint.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

import checkpoints
from cest.data import ClipDraws, FrameBatch, StepSampler, load_clips
from cest.data.augmentation import Relighter
from cest.evaluation import evaluate
from cest.modeling import FaceEstimator
from cest.objective import choose_partners, objective
from cest.pictures import grid, panels, to_uint8
from settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="YAML file, see train/configs")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. recipe.clips=8")
    arguments = parser.parse_args()
    try:
        train(Settings.load(arguments.config, arguments.overrides))
    except (ValueError, OSError) as error:
        sys.exit(f"train.py: {error}")


def train(settings: Settings) -> None:
    """Runs, or goes on with, one training run."""
    accelerator = Accelerator()
    set_seed(settings.seed)
    output = Path(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    model = FaceEstimator(settings.model).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, settings))
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(schedule)
    if accelerator.is_main_process:
        settings.record(output)
    start = checkpoints.resume(accelerator, output / "checkpoints")
    batches = batch_loader(settings, accelerator, accelerator.unwrap_model(model), start)
    validation = load_clips(settings.validation) if settings.validation else None
    log = Log(output, start) if accelerator.is_main_process else None

    bar = tqdm(
        initial=start, total=settings.steps, disable=not accelerator.is_main_process, unit="step"
    )
    for step, batch in enumerate(batches, start=start + 1):
        batch = batch.to(accelerator.device)
        model.train()
        estimate = model(batch.image)
        # A function of seed and step alone, as the batch is: a resumed run draws the same.
        seed = (settings.seed * 1_000_003 + step) * 1_009 + accelerator.process_index
        generator = torch.Generator().manual_seed(seed)
        partners = choose_partners(batch.clip.cpu(), generator)
        terms = objective(
            estimate,
            batch.image,
            batch.mask,
            batch.landmarks,
            partners.to(accelerator.device),
            accelerator.unwrap_model(model).face_model.landmarks,
            settings.objective,
        )
        if not torch.isfinite(terms["loss"]):
            raise ValueError(
                f"the loss is {terms['loss'].item()} at step {step}: lower learning_rate; the "
                f"last checkpoint in {output / 'checkpoints'} is untouched."
            )
        accelerator.backward(terms["loss"])
        accelerator.clip_grad_norm_(model.parameters(), settings.gradient_norm)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        bar.update()

        if log and step % settings.log_every == 0:
            log.write("train", step, {name: value.item() for name, value in terms.items()})
            bar.set_postfix(loss=f"{terms['loss'].item():.4f}")
        if log and step % settings.picture_every == 0:
            log.picture(step, batch, accelerator.unwrap_model(model))
        if log and validation is not None and step % settings.evaluate_every == 0:
            bare = accelerator.unwrap_model(model)
            log.write(
                "validation",
                step,
                evaluate(bare, validation, max_frames=settings.evaluation_frames),
            )
        if step % settings.save_every == 0 or step == settings.steps:
            checkpoints.save(accelerator, output / "checkpoints", step, settings.keep)
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(output / "model")
    accelerator.end_training()


def rate(step: int, settings: Settings) -> float:
    """Factor of the learning rate: a linear rise, then half a cosine to zero."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.5 * (1 + torch.cos(torch.tensor(torch.pi * min(1.0, done))).item())


def batch_loader(
    settings: Settings, accelerator: Accelerator, model: FaceEstimator, start: int
) -> DataLoader:
    """This process's batches start, start + 1, … of the run."""
    clips, stills = (
        load_clips(name) if name else None for name in (settings.clips, settings.stills)
    )
    recipe = settings.recipe
    draws = ClipDraws(
        clips,
        stills,
        recipe,
        settings.model.image_size,
        Relighter(model.face_model.to("cpu")) if recipe.relight else None,
    )
    sampler = StepSampler(
        recipe,
        len(clips or ()),
        len(stills or ()),
        settings.seed,
        start,
        settings.steps,
        process=accelerator.process_index,
    )
    return DataLoader(
        draws,
        batch_sampler=sampler,
        collate_fn=FrameBatch.stack,
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
    )


class Log:
    """metrics.jsonl and pictures of a run."""

    def __init__(self, output: Path, start: int) -> None:
        self.pictures = output / "pictures"
        self.pictures.mkdir(parents=True, exist_ok=True)
        self.path = output / "metrics.jsonl"
        # What a killed run wrote after its last checkpoint is going to be written again.
        # A kill can also leave half a last line.
        text = self.path.read_text() if self.path.exists() else ""
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        self.path.write_text("".join(line for line in lines if json.loads(line)["step"] <= start))

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        record = {"kind": kind, "step": step, "time": round(time.time(), 1), **values}
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")

    def picture(self, step: int, batch: FrameBatch, model: FaceEstimator) -> None:
        model.eval()
        image = batch.image[:: max(1, len(batch.image) // 8)]
        with torch.no_grad():
            estimate = model(image)
        picture = to_uint8(grid(panels(image, estimate, model.face_model)))
        Image.fromarray(picture.numpy()).save(self.pictures / f"{step:08d}.jpg", quality=88)


if __name__ == "__main__":
    main()
