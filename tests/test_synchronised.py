"""Two processes and one train alike, in float64, where nothing but a mistake makes a difference."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from clip_factory import write_clips

WORKER = textwrap.dedent("""
    import json, sys
    import torch
    from accelerate import Accelerator
    from cest.configuration import FaceEstimatorConfig
    from cest.data import Batches, Recipe, load_clips
    from cest.modeling import FaceEstimator
    from cest.objective import ObjectiveConfig, objective
    from synchronised import synchronise

    clips, output = sys.argv[1:]
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    config = FaceEstimatorConfig(image_size=64, width=0.0625)
    model = synchronise(FaceEstimator(config), accelerator).double()
    face_model = model.face_model
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    model, optimizer = accelerator.prepare(model, optimizer)
    batches = Batches(
        {"clips": load_clips(clips)}, Recipe(clips=2, frames=3), 64, stop=3,
        process=accelerator.process_index, processes=accelerator.num_processes,
    )
    losses = []
    for batch, _ in batches:
        batch = batch.to(accelerator.device)
        image = batch.image.double()
        loss = objective(
            model(image), image, batch.mask.double(), batch.landmarks.double(), batch.clip,
            batch.partner, face_model.landmarks, ObjectiveConfig(),
        )["loss"]
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), 1e9)
        optimizer.step()
        optimizer.zero_grad()
        losses.append([accelerator.reduce(loss.detach(), "mean").item(), norm.item()])
    buffers = [b.double().sum().item() for b in accelerator.unwrap_model(model).buffers()]
    if accelerator.is_main_process:
        json.dump([losses, buffers], open(output, "w"))
    accelerator.end_training()
""")


@pytest.fixture(scope="module")
def runs(face_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("synchronised")
    clips = write_clips(folder / "clips.parquet", face_model, clips=4, frames=3)
    (folder / "worker.py").write_text(WORKER)
    results = []
    train = os.path.join(os.path.dirname(__file__), "..", "train")
    for processes in (1, 2):
        output = folder / f"{processes}.json"
        result = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run"),
                *(f"--nproc_per_node={processes}", "--master_port=0", "--rdzv_backend=c10d"),
                *("--rdzv_endpoint=localhost:0", folder / "worker.py", clips, output),
            ],
            env=os.environ | {"PYTHONPATH": train, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        results.append(json.loads(output.read_text()))
    return results


def test_losses_gradients_and_running_statistics_are_the_same(runs):
    """Rounding is 1e-16; gradients through normalisation by six frames may magnify it a
    millionfold, and the steps are too small to magnify it further."""
    (losses, buffers), (shared_losses, shared_buffers) = runs
    for one, two in zip(losses, shared_losses):
        assert one == pytest.approx(two, rel=1e-9)
    assert buffers == pytest.approx(shared_buffers, rel=1e-9, abs=1e-9)
    assert losses[0][0] != losses[2][0]
