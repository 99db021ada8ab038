"""The rasteriser's speed beside pytorch3d's, on the same mesh in one run.

    python benchmarks/rasterizer.py                  # six to ten minutes, nearly all pytorch3d's
    python benchmarks/rasterizer.py --without-pytorch3d

Prints a Markdown table: milliseconds an image at 256 x 256, forward, and forward with the
gradients of barycentric coefficients and depth. On the CPU, with as many threads as torch takes
(OMP_NUM_THREADS). The mesh is a bulging sheet that covers 72 % of the image, as a face does its
crop. Ours are medians of repetitions, pytorch3d's is one call; each after a warm-up.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from cest.rendering.rasterizer import rasterize

SIZE = (256, 256)
GRIDS = (72, 188)  # vertices a side: 10,082 and 69,938 triangles
BATCHES = (1, 8)
SECONDS = 2.0  # of repetitions for each of our figures


def bulging_sheet(n: int) -> tuple[Tensor, Tensor]:
    """Vertices (n^2, 3) in the normalised image frame, triangles (2 (n - 1)^2, 3)."""
    y, x = torch.meshgrid(torch.linspace(1, -1, n), torch.linspace(-1, 1, n), indexing="ij")
    z = torch.sqrt(1.2 - 0.5 * (x**2 + y**2))
    vertices = torch.stack([0.8 * x, 0.9 * y, z], -1).reshape(-1, 3)
    i = torch.arange(n * (n - 1)).reshape(n - 1, n)[:, :-1].reshape(-1)
    triangles = [torch.stack([i, i + n, i + 1], 1), torch.stack([i + 1, i + n, i + n + 1], 1)]
    return vertices, torch.cat(triangles)


def forward(projected: Tensor, triangles: Tensor, backend: str) -> None:
    with torch.no_grad():
        rasterize(projected, triangles, SIZE, backend=backend)


def forward_and_backward(projected: Tensor, triangles: Tensor, backend: str) -> None:
    leaf = projected.clone().requires_grad_()
    fragments = rasterize(leaf, triangles, SIZE, backend=backend)
    torch.autograd.backward(
        (fragments.barycentric, fragments.depth),
        (torch.ones_like(fragments.barycentric), torch.ones_like(fragments.depth)),
    )


def milliseconds(
    run: Callable[[Tensor, Tensor, str], None],
    projected: Tensor,
    triangles: Tensor,
    backend: str,
    budget: float,
) -> float:
    """The median, an image, of as many calls as fit into `budget` seconds; at least one call."""
    run(projected, triangles[:1], backend)
    times: list[float] = []
    while not times or sum(times) < budget:
        start = time.perf_counter()
        run(projected, triangles, backend)
        times.append(time.perf_counter() - start)
    return statistics.median(times) / len(projected) * 1e3


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
    parser.add_argument("--without-pytorch3d", action="store_true")
    compare = not parser.parse_args().without_pytorch3d
    compare = compare and importlib.util.find_spec("pytorch3d") is not None
    print(f"{machine()}\n", flush=True)
    print("| triangles | batch | pass | numba, ms | torch on CPU, ms | pytorch3d, ms | ratio |")
    print("|---|---|---|---|---|---|---|")
    for n in GRIDS:
        vertices, triangles = bulging_sheet(n)
        for batch in BATCHES:
            projected = vertices.expand(batch, -1, -1).contiguous()
            for run in (forward, forward_and_backward):
                ours = milliseconds(run, projected, triangles, "numba", SECONDS)
                plain = milliseconds(run, projected, triangles, "torch", SECONDS)
                theirs = milliseconds(run, projected, triangles, "pytorch3d", 0) if compare else 0
                print(
                    f"| {len(triangles):,} | {batch} | {run.__name__.replace('_', ' ')} "
                    f"| {ours:.2f} | {plain:.1f} "
                    + (f"| {theirs:,.0f} | {theirs / ours:,.0f} x |" if compare else "| - | - |"),
                    flush=True,
                )


if __name__ == "__main__":
    main()
