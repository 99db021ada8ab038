import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from cest.data import load_clips
from cest.modeling import FaceEstimator
from clip_factory import write_clips

TRAIN = Path(__file__).parent.parent / "train"
sys.path.insert(0, str(TRAIN))

from settings import Settings  # noqa: E402
from train import Log  # noqa: E402


@pytest.fixture(scope="module")
def configuration(face_model, tmp_path_factory):
    """A YAML file of a run of seconds."""
    folder = tmp_path_factory.mktemp("training")
    write_clips(folder / "clips.parquet", face_model, clips=4, frames=3)
    write_clips(folder / "stills.parquet", face_model, clips=4, frames=1, seed=1)
    values = {
        "output": str(folder / "run"),
        "clips": str(folder / "clips.parquet"),
        "stills": str(folder / "stills.parquet"),
        "validation": str(folder / "stills.parquet"),
        "model": {"conditioning": "cest", "image_size": 64, "width": 0.125},
        "recipe": {"clips": 2, "frames": 2, "stills": 2, "relight": 0.3},
        "steps": 8,
        "warmup": 2,
        "workers": 1,
        "log_every": 1,
        "picture_every": 4,
        "evaluate_every": 4,
        "save_every": 2,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def command(configuration: Path, *overrides: str) -> list[str]:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1", "--cpu"]
    return [*launcher, str(TRAIN / "train.py"), "--config", str(configuration), *overrides]


def launch(configuration: Path, *overrides: str) -> subprocess.CompletedProcess:
    # One thread: sums in a fixed order, so that two runs can be compared bit by bit.
    return subprocess.run(
        command(configuration, *overrides),
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def finished(configuration):
    result = launch(configuration)
    assert result.returncode == 0, result.stderr[-3000:]
    return Path(yaml.safe_load(configuration.read_text())["output"])


def records(run: Path, kind: str) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_a_run_leaves_model_checkpoints_metrics_and_pictures(finished):
    model = FaceEstimator.from_pretrained(finished / "model")
    assert model.config.conditioning == "cest"
    kept = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert kept == ["step_00000006", "step_00000008"]
    assert [record["step"] for record in records(finished, "train")] == list(range(1, 9))
    assert [record["step"] for record in records(finished, "validation")] == [4, 8]
    assert {path.name for path in (finished / "pictures").iterdir()} == {
        "00000004.jpg",
        "00000008.jpg",
    }


def test_a_killed_run_goes_on_to_the_same_weights(configuration, finished, tmp_path):
    """kill -9 in the middle, then the same command: bit by bit what the whole run gave."""
    process = subprocess.Popen(
        command(configuration, f"output={tmp_path}"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.time() + 200
    while not list((tmp_path / "checkpoints").glob("step_*")) and time.time() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    saved = sorted((tmp_path / "checkpoints").glob("step_*"))
    assert saved and saved[-1].name != "step_00000008", "the kill came too late to mean anything"
    result = launch(configuration, f"output={tmp_path}")
    assert result.returncode == 0, result.stderr[-3000:]
    expected = load_file(finished / "model" / "model.safetensors")
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    whole = [{k: v for k, v in r.items() if k != "time"} for r in records(finished, "train")]
    again = [{k: v for k, v in r.items() if k != "time"} for r in records(tmp_path, "train")]
    assert again == whole


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["steps"], "is no override"),
        (["stepz=3"], "unknown key(s) stepz"),
        (["steps=abc"], "steps is 'abc', not a number"),
        (["steps.x=3"], "steps has no keys"),
        (["log_every=0"], "log_every is 0"),
        (["model.conditioning=both"], "conditioning"),
        (["clips=absent.parquet"], "No clips could be read"),
    ],
)
def test_bad_settings_are_one_sentence(configuration, tmp_path, overrides, message):
    with pytest.raises(ValueError) as caught:
        settings = Settings.load(str(configuration), [f"output={tmp_path}", *overrides])
        load_clips(settings.clips)
    assert message in str(caught.value)


def test_a_bad_setting_ends_the_command_with_that_sentence(configuration):
    result = launch(configuration, "stepz=3")
    assert result.returncode != 0
    complaints = [line for line in result.stderr.splitlines() if line.startswith("train.py: ")]
    assert len(complaints) == 1 and "unknown key(s) stepz" in complaints[0]


def test_a_run_is_not_resumed_with_other_settings(finished, configuration):
    same = Settings.load(str(configuration), ["steps=20"])
    same.record(finished)
    other = Settings.load(str(configuration), ["seed=1", "model.conditioning=iest"])
    with pytest.raises(ValueError, match="another model, seed"):
        other.record(finished)


def test_half_a_line_of_metrics_does_not_stop_a_run(tmp_path):
    whole = '{"kind": "train", "step": 1}\n'
    (tmp_path / "metrics.jsonl").write_text(whole + '{"kind": "tr')
    Log(tmp_path, start=1)
    assert (tmp_path / "metrics.jsonl").read_text() == whole


@pytest.mark.parametrize("path", sorted((TRAIN / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configurations_are_readable(path):
    settings = Settings.load(str(path), [])
    assert settings.recipe.batch_size > 0


def test_cest_and_iest_get_the_same_budget_data_and_seed():
    cest, iest = (
        yaml.safe_load((TRAIN / "configs" / f"small-{name}.yaml").read_text())
        for name in ("cest", "iest")
    )
    assert (cest["model"].pop("conditioning"), iest["model"].pop("conditioning")) == (
        "cest",
        "iest",
    )
    assert cest.pop("output") != iest.pop("output")
    assert cest == iest
