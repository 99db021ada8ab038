"""The rasteriser's speed beside pytorch3d's, on the same mesh in one run.

    python benchmarks/rasterizer.py                  # six to ten minutes, nearly all pytorch3d's
    python benchmarks/rasterizer.py --batches 1      # one or two
    python benchmarks/rasterizer.py --without-pytorch3d

Prints a Markdown table: milliseconds an image at 256 x 256, forward, and forward with the
gradients of barycentric coefficients and depth. On the CPU, with as many threads as torch takes
(OMP_NUM_THREADS). The mesh is a bulging sheet that covers 72 % of the image, as a face does its
crop. Ours are medians of repetitions, pytorch3d's is one call; each after a warm-up. The ratio
of CPU times, all threads together, also holds on a machine that is busy with other things.

pytorch3d must have been built with optimisation: its forward pass then takes about 7 ns for each
pair of pixel and triangle, and sixty times as much without.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from cest.rendering.rasterizer import rasterize

SIZE = (256, 256)
GRIDS = (72, 188)  # vertices a side: 10,082 and 69,938 triangles
SECONDS = 2.0  # of repetitions for each of our figures


def bulging_sheet(n: int) -> tuple[Tensor, Tensor]:
    """Vertices (n^2, 3) in the normalised image frame, triangles (2 (n - 1)^2, 3)."""
    y, x = torch.meshgrid(torch.linspace(1, -1, n), torch.linspace(-1, 1, n), indexing="ij")
    z = torch.sqrt(1.2 - 0.5 * (x**2 + y**2))
    vertices = torch.stack([0.8 * x, 0.9 * y, z], -1).reshape(-1, 3)
    i = torch.arange(n * (n - 1)).reshape(n - 1, n)[:, :-1].reshape(-1)
    triangles = [torch.stack([i, i + n, i + 1], 1), torch.stack([i + 1, i + n, i + n + 1], 1)]
    return vertices, torch.cat(triangles)


@cache
def ones(shape: torch.Size) -> Tensor:
    """The gradient that comes in: made once, not part of what is measured."""
    return torch.ones(shape)


def forward(projected: Tensor, triangles: Tensor, backend: str) -> None:
    with torch.no_grad():
        rasterize(projected, triangles, SIZE, backend=backend)


def forward_and_backward(projected: Tensor, triangles: Tensor, backend: str) -> None:
    leaf = projected.detach().requires_grad_()
    fragments = rasterize(leaf, triangles, SIZE, backend=backend)
    outputs = (fragments.barycentric, fragments.depth)
    torch.autograd.backward(outputs, tuple(ones(output.shape) for output in outputs))


def milliseconds(
    run: Callable[[Tensor, Tensor, str], None],
    projected: Tensor,
    triangles: Tensor,
    backend: str,
    budget: float,
) -> tuple[float, float]:
    """Wall and CPU milliseconds an image: medians of the calls that fit into `budget` seconds,
    of which there is at least one."""
    run(projected, triangles[:1], backend)
    wall: list[float] = []
    cpu: list[float] = []
    while not wall or sum(wall) < budget:
        start = time.perf_counter(), time.process_time()
        run(projected, triangles, backend)
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    scale = 1e3 / len(projected)
    return statistics.median(wall) * scale, statistics.median(cpu) * scale


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [x for x in information.read_text().splitlines() if x.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    packages = ["torch", "numba"]
    packages += ["pytorch3d"] if importlib.util.find_spec("pytorch3d") else []
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return (
        f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, load before {load}; "
        f"Python {platform.python_version()}, {versions}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--without-pytorch3d", action="store_true")
    arguments = parser.parse_args()
    compare = not arguments.without_pytorch3d and importlib.util.find_spec("pytorch3d") is not None
    print(f"{machine()}\n", flush=True)
    print(
        "| triangles | batch | pass | numba, ms | torch on CPU, ms | pytorch3d, ms "
        "| ratio | ratio of CPU time |\n|---|---|---|---|---|---|---|---|"
    )
    for n in GRIDS:
        vertices, triangles = bulging_sheet(n)
        for batch in arguments.batches:
            projected = vertices.expand(batch, -1, -1).contiguous()
            for run in (forward, forward_and_backward):
                ours, our_cpu = milliseconds(run, projected, triangles, "numba", SECONDS)
                plain, _ = milliseconds(run, projected, triangles, "torch", SECONDS)
                row = f"| {len(triangles):,} | {batch} | {run.__name__.replace('_', ' ')} "
                row += f"| {ours:.2f} | {plain:.1f} "
                if compare:
                    theirs, their_cpu = milliseconds(run, projected, triangles, "pytorch3d", 0)
                    row += f"| {theirs:,.0f} | {theirs / ours:,.0f} | {their_cpu / our_cpu:,.0f} |"
                else:
                    row += "| - | - | - |"
                print(row, flush=True)


if __name__ == "__main__":
    main()
