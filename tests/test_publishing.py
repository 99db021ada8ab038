"""Pushing in the background, with the real client over HTTP and a Hub that comes and goes."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cest.configuration import FaceEstimatorConfig
from cest.modeling import FaceEstimator
from hub import READ, HubStandIn

REPOSITORY = "tester/run"

# A run that does what stdin says, a line at a time, and answers on stdout: "publish STEP" writes
# a model folder, publishes it and thins it out; "keep STEP" leaves it; "close SECONDS" ends.
RUN = """
import shutil, sys, time
from pathlib import Path
import publishing

publishing.START, publishing.SILENCE = 1.0, 0.5
publishing.FIRST_PAUSE, publishing.LONGEST_PAUSE = 0.05, 0.1
time.sleep = lambda seconds: None  # the client's own retries
folder = Path(sys.argv[1])
try:
    publisher = publishing.Publisher(sys.argv[2])
except ValueError as error:
    sys.exit(f"train.py: {error}")
print("started", flush=True)
for line in sys.stdin:
    command, value = line.split()
    if command == "close":
        print(publisher.close(float(value)), flush=True)
        break
    folder.mkdir(exist_ok=True)
    for name in publishing.FILES:
        (folder / name).write_text(f"{name} of step {value}")
    start = time.perf_counter()
    publisher.publish(folder, f"step {value}")
    print(time.perf_counter() - start, flush=True)
    if command == "publish":
        shutil.rmtree(folder)
"""


class Run:
    """A training run in a process of its own."""

    def __init__(self, hub: HubStandIn, folder: Path, *, repository: str = REPOSITORY, **token):
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(folder), repository],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | hub.environment(**token),
        )

    def heard(self) -> str:
        return self.process.stdout.readline().strip()

    def say(self, line: str) -> str:
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.heard()

    def publish(self, step: int, command: str = "publish") -> None:
        assert float(self.say(f"{command} {step}")) < 0.5, "publish() held the run up"

    def close(self, seconds: float = 20) -> tuple[bool, list[str]]:
        """What close() returned, and all that the run has said on stderr; it ended well."""
        answer = self.say(f"close {seconds}")
        lines = self.end().splitlines()
        assert self.process.returncode == 0, lines
        return answer == "True", lines

    def end(self) -> str:
        return self.process.communicate(timeout=20)[1]


@pytest.fixture
def hub(tmp_path):
    with HubStandIn(tmp_path / "hub") as hub:
        yield hub
        assert not hub.unknown


@pytest.fixture
def start(hub, tmp_path):
    runs = []

    def start(**options) -> Run:
        runs.append(Run(hub, tmp_path / "a model", **options))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.01)


def test_every_checkpoint_becomes_a_commit(hub, start):
    run = start()
    assert run.heard() == "started"
    for step in (1, 2, 3):
        run.publish(step)  # and its folder is gone
        eventually(lambda step=step: f"step {step}" in hub.messages(REPOSITORY), f"step {step}")
    assert run.close() == (True, [])
    assert hub.messages(REPOSITORY) == ["initial commit", "step 1", "step 2", "step 3"]
    assert hub.repositories["model", REPOSITORY].private
    files = hub.files(REPOSITORY)
    del files[".gitattributes"]
    assert files == {
        name: f"{name} of step 3".encode()
        for name in ("config.json", "model.safetensors", "README.md")
    }


@pytest.mark.parametrize("kind", ["unavailable", "refused", "silent"])
def test_an_outage_is_caught_up_with(hub, start, kind):
    """The newest checkpoint is pushed, what was given up for it is not, and little is said."""
    run = start()
    run.heard()
    run.publish(1)
    eventually(lambda: "step 1" in hub.messages(REPOSITORY), "the first push")
    with hub.outage(kind):
        for step in (2, 3, 4):
            run.publish(step)
        asked = hub.requests.total()
        if kind == "refused":
            time.sleep(1)
        else:
            eventually(lambda: hub.requests.total() >= asked + 3, "attempts")
        assert hub.messages(REPOSITORY)[-1] == "step 1"
    eventually(lambda: "step 4" in hub.messages(REPOSITORY), "the push of the last checkpoint")
    done, said = run.close()
    assert done and hub.messages(REPOSITORY) == ["initial commit", "step 1", "step 4"]
    assert len(said) == 2, said
    assert said[0].startswith(f"publishing: {REPOSITORY} cannot be pushed to (")
    assert said[0].endswith("the newest checkpoint is pushed when it can be.")
    assert said[1] == f"publishing: The Hub lets {REPOSITORY} be pushed to again."


@pytest.mark.parametrize("request_", ["PUT /lfs/", "POST /api/models/tester/run/commit/"])
def test_an_outage_in_the_middle_of_a_push(hub, start, request_):
    run = start()
    run.heard()
    with hub.outage(only=request_):
        run.publish(1)
        failed = lambda: sum(n for name, n in hub.requests.items() if name.startswith(request_))  # noqa: E731
        eventually(lambda: failed() >= 8, "the client's retries and a second attempt")
    done, said = run.close()
    assert done and hub.messages(REPOSITORY) == ["initial commit", "step 1"]
    assert hub.files(REPOSITORY)["model.safetensors"] == b"model.safetensors of step 1"
    assert len(said) == 2, said


@pytest.mark.parametrize("kind", ["unavailable", "refused", "silent"])
def test_a_run_starts_while_the_hub_is_away(hub, start, kind):
    with hub.outage(kind):
        run = start()
        assert run.heard() == "started"
        run.publish(1)
    assert run.close()[0]
    assert hub.messages(REPOSITORY) == ["initial commit", "step 1"]


def test_a_hub_that_stays_away_costs_a_sentence(hub, start, tmp_path):
    """The run ends well, in time, and the sentence's command does what it promises."""
    run = start()
    run.heard()
    with hub.outage():
        run.publish(7, command="keep")
        begin = time.monotonic()
        done, said = run.close(seconds=60)
        assert not done and time.monotonic() - begin < 10
    assert len(said) == 2 and said[1].startswith("publishing: step 7 is not on the Hub (")
    command = said[1].split("`")[1]
    assert shlex.split(command) == (
        ["hf", "upload", REPOSITORY, str(tmp_path / "a model"), ".", "--private"]
    )
    subprocess.run(
        [Path(sys.executable).parent / "hf", *shlex.split(command)[1:]],
        env=os.environ | hub.environment(),
        capture_output=True,
        check=True,
    )
    assert hub.files(REPOSITORY)["model.safetensors"] == b"model.safetensors of step 7"


def test_what_the_repository_has_is_not_pushed_again(hub, start):
    run = start()
    run.heard()
    run.publish(1)
    assert run.close()[0]
    again = start()
    again.heard()
    again.publish(1)
    assert again.close() == (True, [])
    assert hub.messages(REPOSITORY) == ["initial commit", "step 1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": ""}, "There is no token to push to tester/run with"),
        ({"token": "hf_revoked"}, "does not let this token push to tester/run (Client error '401"),
        ({"token": READ}, "does not let this token push to tester/run (403 Forbidden"),
        ({"repository": "run"}, "'run' is no repository of the Hub: give owner/name."),
        ({"repository": "tester/a run"}, "'tester/a run' is no repository of the Hub"),
    ],
)
def test_what_cannot_work_is_one_sentence_at_the_start(hub, start, options, message):
    run = start(**options)
    said = run.end().splitlines()
    assert run.process.returncode == 1
    assert len(said) == 1 and said[0].startswith("train.py: ") and message in said[0]


def test_a_token_that_is_revoked_meanwhile_does_not_stop_the_run(hub, start, monkeypatch):
    run = start()
    run.heard()
    monkeypatch.setattr("hub.WRITE", "hf_another")
    run.publish(1)
    done, said = run.close()
    assert not done and len(said) == 2 and "401" in said[0]


def test_a_pushed_estimator_is_the_trained_one(hub, face_model, tmp_path):
    """Weights pushed in the background and loaded by the repository's id are equal bit by bit."""
    torch.manual_seed(0)
    config = FaceEstimatorConfig(conditioning="iest", image_size=64, width=0.125)
    FaceEstimator(config, face_model=face_model).save_pretrained(tmp_path / "model")
    code = """
        import sys
        from publishing import Publisher
        from cest.modeling import FaceEstimator

        publisher = Publisher("tester/model")
        publisher.publish(sys.argv[1], "step 5")
        assert publisher.close()
        FaceEstimator.from_pretrained("tester/model").save_pretrained(sys.argv[2])
    """
    hub.client(code, tmp_path / "model", tmp_path / "loaded")
    expected, found = (
        load_file(tmp_path / name / "model.safetensors") for name in ("model", "loaded")
    )
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert "A IEST checkpoint" in hub.files("tester/model")["README.md"].decode()
