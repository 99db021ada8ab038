import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file

from cest.data import load_clips
from cest.modeling import FaceEstimator
from clip_factory import write_clips
from hub import HubStandIn

TRAIN = Path(__file__).parent.parent / "train"
sys.path.insert(0, str(TRAIN))

from averaging import MovingAverage  # noqa: E402
from log import Log  # noqa: E402
from settings import Settings  # noqa: E402


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
        "ema": 0.5,
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


def launch(
    configuration: Path, *overrides: str, processes: int = 1, **options
) -> subprocess.CompletedProcess:
    # `accelerate launch --cpu` starts one process, whatever the number asked for.
    several = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    several += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    arguments = command(configuration, *overrides)
    if processes > 1:
        arguments = several + arguments[arguments.index(str(TRAIN / "train.py")) :]
    # One thread: sums in a fixed order, so that two runs can be compared bit by bit.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment | options.pop("environment", {}),
        **options,
    )


def complaint(result: subprocess.CompletedProcess) -> str:
    """The one sentence that a run ended with."""
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if line.startswith("train.py: ")]
    assert len(lines) == 1, result.stderr[-3000:]
    return lines[0]


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
    written = records(finished, "train")
    assert [record["step"] for record in written] == list(range(1, 9))
    assert {"loss", "photometric", "landmarks", "gradient_norm", "rate"} <= written[0].keys()
    assert [record["step"] for record in records(finished, "validation")] == [4, 8]
    assert {path.name for path in (finished / "pictures").iterdir()} == {
        "00000004.jpg",
        "00000008.jpg",
    }
    assert list((finished / "cest").glob("events.out.tfevents*"))


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
        (["ema=1"], "ema is 1.0"),
        (["truth_weight=-1"], "truth_weight is -1.0"),
        (["recipe.clips=0", "recipe.stills=0"], "no frame"),
        (["recipe.pairing=friend"], "pairing is 'friend'"),
        (["objective.partner=all"], "partner is 'all'"),
        (["model.reflectance=mesh"], "reflectance is 'mesh'"),
        (["steps=abc"], "steps is 'abc', not a number"),
        (["steps.x=3"], "steps has no keys"),
        (["log_every=0"], "log_every is 0"),
        (["steps=.inf"], "steps is inf, not a whole number"),
        (["columns={a"], "is no YAML value"),
        (["model.conditioning=both"], "conditioning"),
        (["clips=absent.parquet"], "No clips could be read"),
    ],
)
def test_bad_settings_are_one_sentence(configuration, tmp_path, overrides, message):
    with pytest.raises(ValueError) as caught:
        settings = Settings.load(str(configuration), [f"output={tmp_path}", *overrides])
        load_clips(settings.clips)
    assert message in str(caught.value)


def test_the_saved_model_is_the_moving_average(finished):
    """With decay 0.5 the average is not the weights; both are in the checkpoint."""
    saved = load_file(finished / "model" / "model.safetensors")
    checkpoint = finished / "checkpoints" / "step_00000008"
    weights = load_file(checkpoint / "model.safetensors")
    average = load_file(checkpoint / "model_1.safetensors")
    name = "shape_network.0.0.weight"
    assert torch.equal(saved[name], average[f"model.{name}"])
    assert not torch.equal(saved[name], weights[name])
    assert not list(checkpoint.glob("*.bin.index*")) and len(list(checkpoint.glob("*.safe*"))) == 2


def test_the_moving_average_by_hand():
    model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.BatchNorm1d(1))
    torch.nn.init.zeros_(model[0].weight)
    average = MovingAverage(model, decay=0.25)
    torch.nn.init.ones_(model[0].weight)
    model[1].running_mean.fill_(2.0)
    model[1].num_batches_tracked.fill_(7)
    average.update(model, step=1)  # the decay is 2 / 11 still
    assert average.model[0].weight.item() == pytest.approx(9 / 11)
    average.update(model, step=100)
    assert average.model[0].weight.item() == pytest.approx(1 - 2 / 11 / 4)
    assert average.model[1].running_mean.item() == pytest.approx(2 - 2 * 2 / 11 / 4)
    assert average.model[1].num_batches_tracked.item() == 7


@pytest.fixture(scope="module")
def half_way(finished, tmp_path_factory):
    """A folder that a run can go on from at step 6 of 8."""

    def copy() -> Path:
        folder = tmp_path_factory.mktemp("half_way") / "run"
        shutil.copytree(finished, folder)
        shutil.rmtree(folder / "checkpoints" / "step_00000008")
        return folder

    return copy


def test_a_run_begins_with_given_weights_and_learns_from_known_truth(
    finished, configuration, tmp_path
):
    result = launch(
        configuration,
        *(f"output={tmp_path}", f"initial={finished / 'model'}", "steps=1", "learning_rate=1e-9"),
        *("recipe.synthetic=1", "truth_weight=1", "ema=0", "evaluate_every=2"),
    )
    assert result.returncode == 0, result.stderr[-3000:]
    terms = records(tmp_path, "train")[0]
    weight = Settings.load(str(configuration), []).objective
    known = weight.landmark_weight * terms["true_shape"] + terms["true_reflectance"]
    unsupervised = (
        2 * terms["photometric"]
        + weight.landmark_weight * terms["landmarks"]
        + weight.regularisation_weight * terms["regularisation"]
    )
    expected = unsupervised + known + terms["true_light"]
    assert terms["loss"] == pytest.approx(expected, rel=1e-5)  # float32 sums
    before, after = (load_file(run / "model" / "model.safetensors") for run in (finished, tmp_path))
    weights = [name for name in before if name.endswith("weight")]
    # One step of Adam moves a weight by no more than the rate, rounded to float32.
    assert weights and all(
        torch.allclose(before[name], after[name], rtol=1e-6, atol=2e-9) for name in weights
    )


def test_two_processes_train_as_one_does(finished, half_way, configuration):
    """Another number of processes goes on with a run, and the next loss is the same.

    That needs the same frames, batch normalisation over both processes, and the same weights,
    moments and rate. Later losses drift apart as any rounding does in float32: how far is for
    test_synchronised, in float64.
    """
    folder = half_way()
    result = launch(configuration, f"output={folder}", "picture_every=100", processes=2)
    assert result.returncode == 0, result.stderr[-3000:]
    one, two = records(finished, "train")[6], records(folder, "train")[6]
    assert one["step"] == two["step"] == 7
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    assert FaceEstimator.from_pretrained(folder / "model")


def test_a_damaged_checkpoint_is_one_sentence_and_the_one_before_is_used(
    finished, configuration, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    weights = folder / "checkpoints" / "step_00000008" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "step_00000008 is damaged, or" in complaint(launch(configuration, f"output={folder}"))
    shutil.rmtree(weights.parent)
    result = launch(configuration, f"output={folder}")
    assert result.returncode == 0, result.stderr[-3000:]


def test_accumulated_parts_make_one_step(finished, configuration, tmp_path):
    """The same frames in two parts: the same number of steps, and nearly the same first loss.

    Nearly, because each part is normalised by its own statistics.
    """
    result = launch(configuration, f"output={tmp_path}", "accumulation=2", "steps=2", "ema=0")
    assert result.returncode == 0, result.stderr[-3000:]
    (first, second) = records(tmp_path, "train")
    assert (first["step"], second["step"]) == (1, 2)
    # Half of twelve frames has other means and deviations than the twelve, by some per cent.
    assert first["loss"] == pytest.approx(records(finished, "train")[0]["loss"], rel=0.15)


def test_a_streaming_run_goes_on_exactly_and_with_as_many_processes(configuration, tmp_path):
    clips = Path(yaml.safe_load(configuration.read_text())["clips"])
    rows = load_clips(str(clips))
    rows.to_parquet(str(tmp_path / "clips.parquet"), batch_size=1)
    stream = ["streaming=true", f"clips={tmp_path / 'clips.parquet'}", "recipe.stills=0", "ema=0"]
    whole = launch(configuration, f"output={tmp_path / 'whole'}", *stream)
    assert whole.returncode == 0, whole.stderr[-3000:]
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "checkpoints" / "step_00000008")
    part = launch(configuration, f"output={tmp_path / 'part'}", *stream)
    assert part.returncode == 0, part.stderr[-3000:]
    models = [load_file(tmp_path / n / "model" / "model.safetensors") for n in ("whole", "part")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    shutil.rmtree(tmp_path / "part" / "checkpoints" / "step_00000008")
    other = launch(configuration, f"output={tmp_path / 'part'}", *stream, processes=2)
    assert other.returncode != 0
    assert "launch with --num_processes=1" in other.stderr


def test_a_run_that_leaves_the_numbers_stops_at_its_last_good_state(half_way, configuration):
    folder = half_way()
    settings = json.loads((folder / "settings.json").read_text())
    settings["objective"]["landmark_weight"] = 1e39  # beyond float32
    (folder / "settings.json").write_text(json.dumps(settings))
    arguments = [f"output={folder}", "objective.landmark_weight=1e39", "log_every=100"]
    result = launch(configuration, *arguments, "picture_every=100")
    assert "is no number any more at step" in complaint(result)
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["step_00000006"]
    weights = load_file(folder / "checkpoints" / "step_00000006" / "model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


def test_it_goes_on_with_a_lower_rate(half_way, configuration):
    """What the sentence above advises, from the first step on; of 8 steps 2 are a rise."""
    folder = half_way()
    result = launch(configuration, f"output={folder}", "learning_rate=1e-5", "picture_every=100")
    assert result.returncode == 0, result.stderr[-3000:]
    before, first, second = (record["rate"] for record in records(folder, "train")[5:8])
    falling = [0.5 * (1 + math.cos(math.pi * (step - 2) / 6)) for step in (5, 6, 7)]
    assert before == pytest.approx(1e-3 * falling[0], rel=1e-5)
    assert [first, second] == pytest.approx([1e-5 * f for f in falling[1:]], rel=1e-5)


def test_what_a_kill_prevented_after_the_last_step_is_done_by_the_same_command(
    half_way, finished, configuration
):
    folder = half_way()
    shutil.copytree(finished / "checkpoints", folder / "checkpoints", dirs_exist_ok=True)
    (folder / "model" / "model.safetensors").rename(folder / "model" / ".model.safetensors.abc123")
    expected = records(folder, "validation")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-1]))
    assert records(folder, "validation") == expected[:-1]
    result = launch(configuration, f"output={folder}")
    assert result.returncode == 0, result.stderr[-3000:]
    # From the weights of the checkpoint, to the digit.
    again = records(folder, "validation")
    assert [one | {"time": 0} for one in again] == [one | {"time": 0} for one in expected]
    assert sorted(path.name for path in (folder / "model").iterdir()) == sorted(
        path.name for path in (finished / "model").iterdir()
    )
    models = [load_file(run / "model" / "model.safetensors") for run in (finished, folder)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_what_cannot_be_looked_at_does_not_keep_a_step_from_being_saved(configuration, tmp_path):
    stills = yaml.safe_load(configuration.read_text())["stills"]
    rows = datasets.Dataset.from_parquet(stills)
    column = [[{"bytes": b"damaged", "path": None}]] * len(rows)
    kind = datasets.List(datasets.Image(decode=False))
    rows = rows.remove_columns("frames").add_column("frames", column, feature=kind)
    rows.to_parquet(str(tmp_path / "damaged.parquet"))
    result = launch(
        configuration,
        *(f"output={tmp_path / 'run'}", f"validation={tmp_path / 'damaged.parquet'}"),
        *("evaluate_every=2", "save_every=2"),
    )
    assert "not a readable image" in complaint(result)
    assert (tmp_path / "run" / "checkpoints" / "step_00000002").is_dir()


def test_a_full_disk_is_one_sentence_and_loses_nothing(half_way, configuration):
    """Files of more than 300 kB cannot be written, as on a disk that is full."""
    folder = half_way()
    limit = (300_000, 300_000)
    result = launch(
        configuration,
        f"output={folder}",
        "picture_every=100",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert "could not be written" in complaint(result) and "make room" in result.stderr
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_00000006"]
    result = launch(configuration, f"output={folder}", "picture_every=100")
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stepz=3"], "unknown key(s) stepz"),
        (["output=/proc/nowhere"], "nowhere"),
        (["columns={landmarks: points}"], "has no column 'points'"),
        (["segmenter=/nowhere/at/all"], "/nowhere/at/all"),
        (["initial=/nowhere/at/all"], "/nowhere/at/all"),
        (["initial=model_card/cest"], "give the model of these weights"),
    ],
)
def test_what_cannot_be_trained_ends_with_one_sentence(configuration, tmp_path, overrides, message):
    assert message in complaint(launch(configuration, f"output={tmp_path}", *overrides))


def test_smoke_train_push_kill_resume_reload(configuration, tmp_path):
    """train/configs/smoke.yaml against a Hub: data from it, checkpoints to it, and back."""
    clips, stills = (yaml.safe_load(configuration.read_text())[n] for n in ("clips", "stills"))
    smoke = TRAIN / "configs" / "smoke.yaml"
    with HubStandIn(tmp_path / "hub") as hub:
        for name, path in (("clips", clips), ("stills", stills)):
            hub.put(f"owner/{name}", "data/train.parquet", Path(path).read_bytes(), "dataset")
        environment = os.environ | hub.environment() | {"OMP_NUM_THREADS": "1"}
        arguments = [
            *(f"output={tmp_path / 'run'}", "clips=owner/clips"),
            "stills=hf://datasets/owner/stills/data/*.parquet",
            *("validation=owner/stills", "recipe.clips=2", "recipe.stills=2"),
            *("--push_to_hub", "tester/smoke"),
        ]
        process = subprocess.Popen(
            command(smoke, *arguments),
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.time() + 150
        while len(hub.messages("tester/smoke")) < 2 and time.time() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        before = hub.messages("tester/smoke")
        assert before[1].startswith("Step ") and before[-1] != "Step 20"
        result = launch(smoke, *arguments, environment=environment)
        assert result.returncode == 0, result.stderr[-3000:]
        assert hub.messages("tester/smoke")[-1] == "Step 20"
        found = hub.client(
            """
            from cest import FaceEstimator
            print(FaceEstimator.from_pretrained("tester/smoke").config.conditioning)
            """
        )
        assert found == ["cest"]
        pushed = hub.files("tester/smoke")["model.safetensors"]
    assert pushed == (tmp_path / "run" / "model" / "model.safetensors").read_bytes()


def test_a_run_is_not_resumed_with_other_settings(finished, configuration):
    same = Settings.load(str(configuration), ["steps=20"])
    same.record(finished)
    other = Settings.load(str(configuration), ["seed=1", "model.conditioning=iest"])
    with pytest.raises(ValueError, match="another model, seed"):
        other.record(finished)


@pytest.mark.parametrize("change", [{"seed": "one"}, {"columns": 3}, {"streaming": "perhaps"}])
def test_a_value_of_another_kind_is_refused(tmp_path, change):
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"output": "x"} | change))
    with pytest.raises(ValueError, match=next(iter(change))):
        Settings.load(str(tmp_path / "x.yaml"), [])


def test_a_file_says_what_differs_from_its_base(tmp_path):
    (tmp_path / "base.yaml").write_text("output: x\nrecipe: {clips: 3, frames: 5}\nsteps: 7")
    (tmp_path / "other.yaml").write_text("base: base.yaml\nrecipe: {clips: 4}")
    settings = Settings.load(str(tmp_path / "other.yaml"), ["steps=8"])
    assert (settings.recipe.clips, settings.recipe.frames, settings.steps) == (4, 5, 8)
    (tmp_path / "lost.yaml").write_text("base: absent.yaml")
    with pytest.raises(ValueError, match=r"absent\.yaml cannot be read"):
        Settings.load(str(tmp_path / "lost.yaml"), [])


def test_half_a_line_of_metrics_does_not_stop_a_run(tmp_path):
    whole = '{"kind": "train", "step": 1}\n'
    (tmp_path / "metrics.jsonl").write_text(whole + '{"kind": "tr')
    Log(tmp_path, 1, Accelerator(cpu=True))
    assert (tmp_path / "metrics.jsonl").read_text() == whole


@pytest.mark.parametrize("path", sorted((TRAIN / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configurations_are_readable(path):
    settings = Settings.load(str(path), [])
    assert settings.recipe.batch_size > 0


@pytest.mark.parametrize(
    "name",
    [
        *("small-{}", "rendered-{}", "photographs-{}", "balanced-{}", "released-{}"),
        *("paper-voxceleb{}", "paper-300wlp{}"),
    ],
)
def test_cest_and_iest_get_the_same_budget_data_and_seed(name):
    folder = TRAIN / "configs"
    first, second = ("cest", "iest") if not name.startswith("paper") else ("", "-iest")
    cest, iest = (
        asdict(Settings.load(str(folder / f"{name.format(part)}.yaml"), []))
        for part in (first, second)
    )
    assert cest["model"].pop("conditioning") == "cest"
    assert iest["model"].pop("conditioning") == "iest"
    assert cest.pop("output") != iest.pop("output")
    # Each goes on from its own first stage, which had the same of all these.
    assert cest.pop("initial").replace("cest", "iest") == iest.pop("initial")
    assert cest == iest
