"""Where a training step's time goes, on whatever device there is, against the networks' own time.

    python benchmarks/training.py --clips CLIPS [--size 256 --width 1.0 --batch 32 --bf16]

The floor is what the four networks need forward and backward for inputs of the same shapes, with
nothing between them: no data, rendering, loss or optimiser.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

import torch

from cest.configuration import FaceEstimatorConfig
from cest.data import Batches, FrameBatch, Recipe, load_clips
from cest.data.augmentation import Relighter
from cest.modeling import FaceEstimator
from cest.objective import ObjectiveConfig, objective


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", required=True, help="a clip set, see cest.data.load_clips")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=24, help="frames, four a clip")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2, help="that read and augment")
    parser.add_argument("--bf16", action="store_true", help="networks in bfloat16")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    config = FaceEstimatorConfig(image_size=arguments.size, width=arguments.width)
    model = FaceEstimator(config).to(device, memory_format=torch.channels_last)
    relighter = Relighter(model.face_model)
    recipe = Recipe(clips=arguments.batch // 4, frames=4, relight=0.3)
    batches = Batches(
        {"clips": load_clips(arguments.clips)},
        recipe,
        arguments.size,
        relighter,
        stop=10**9,
        threads=arguments.threads,
        pin=device.type == "cuda",
    )
    loader = iter(batches)
    read = [next(loader)[0] for _ in range(arguments.steps + 2)]
    start = time.perf_counter()
    for _ in islice(loader, arguments.steps):
        pass
    reading = (time.perf_counter() - start) / arguments.steps

    clock = Clock(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    step = make_step(model, optimizer, relighter, device, arguments.bf16)
    for batch in read[:2]:  # compiles and tunes
        step(batch, clock)
    clock.seconds.clear()
    inputs = record_inputs(model)
    for batch in read[2:]:
        step(batch, clock)
    split = {name: seconds / arguments.steps for name, seconds in clock.seconds.items()}

    floor = networks_alone(model, inputs, device, arguments.bf16, arguments.steps)
    silent = Clock(None)
    start = now(device)
    for batch in read[2:]:
        step(batch, silent)
    whole = (now(device) - start) / arguments.steps
    next(loader)
    start = now(device)
    for batch, _ in islice(loader, arguments.steps):
        step(batch, silent)
    running = (now(device) - start) / arguments.steps
    loader.close()
    frames = recipe.batch_size
    print(
        f"{device}, {torch.get_num_threads()} threads; {frames} frames of {arguments.size} pixels, "
        f"width {arguments.width}, networks in {'bfloat16' if arguments.bf16 else 'float32'}\n"
    )
    print("| part | ms a step | frames a second, alone |\n|---|---|---|")
    for name, seconds in {
        f"reading and augmenting, {arguments.threads} threads": reading,
        **split,
        "step, reading left out": whole,
        "step, readers running": running,
        "floor: the networks' forward and backward": floor,
    }.items():
        print(f"| {name} | {1e3 * seconds:.1f} | {frames / seconds:.0f} |")
    beside = whole - floor - split["optimiser"]
    print(f"\nstep / floor: {whole / floor:.2f}; with readers running {running / floor:.2f}")
    print(f"rendering, losses and relighting: {100 * beside / whole:.0f} % of the step")
    if device.type == "cuda":
        print(f"memory at most: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


def now(device: torch.device | None) -> float:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock:
    """Adds up seconds by name; without a device it measures nothing and waits for nothing."""

    def __init__(self, device: torch.device | None) -> None:
        self.device, self.seconds = device, defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self.device is None:
            yield
            return
        start = now(self.device)
        yield
        self.seconds[name] += now(self.device) - start


def make_step(
    model: FaceEstimator,
    optimizer: torch.optim.Optimizer,
    relighter: Relighter,
    device: torch.device,
    bf16: bool,
) -> Callable[[FrameBatch, Clock], None]:
    def step(batch: FrameBatch, clock: Clock) -> None:
        with clock("to the device, relighting"):
            batch = batch.to(device).lit(relighter)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
        with clock("forward: networks, geometry, unwrapping"), autocast:
            estimate = model(batch.image)
        with clock("forward: rendering and losses"):
            loss = objective(
                estimate,
                batch.image,
                batch.mask,
                batch.landmarks,
                batch.clip,
                batch.partner,
                model.face_model.landmarks,
                ObjectiveConfig(),
            )["loss"]
        with clock("backward"):
            loss.backward()
        with clock("optimiser"):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad()

    return step


def record_inputs(model: FaceEstimator) -> dict[str, torch.Tensor]:
    """What each network was given last, once a step has been made."""
    inputs: dict[str, torch.Tensor] = {}
    for name, network in model.named_children():
        network.register_forward_pre_hook(
            lambda _, given, name=name: inputs.__setitem__(name, given[0].detach())
        )
    return inputs


def networks_alone(
    model: FaceEstimator,
    inputs: dict[str, torch.Tensor],
    device: torch.device,
    bf16: bool,
    steps: int,
) -> float:
    """Seconds of the networks' forward and backward."""
    inputs = dict(inputs)
    for repeat in range(steps + 2):
        if repeat == 2:
            start = now(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            outputs = [network(inputs[name]) for name, network in model.named_children()]
        sum(output.float().mean() for output in outputs).backward()
        model.zero_grad()
    return (now(device) - start) / steps


if __name__ == "__main__":
    main()
