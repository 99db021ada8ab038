"""The real Hub clients against the stand-in: models and clip sets by their Hub ids."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from cest.configuration import FaceEstimatorConfig
from cest.modeling import FaceEstimator
from clip_factory import write_clips
from hub import READ, HubStandIn


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with HubStandIn(tmp_path_factory.mktemp("hub")) as hub:
        yield hub
        assert not hub.unknown, "a client asked for something that the stand-in does not have"


@pytest.fixture(scope="module")
def checkpoint(face_model, tmp_path_factory):
    """A folder that save_pretrained wrote."""
    torch.manual_seed(0)
    config = FaceEstimatorConfig(image_size=64, width=0.125)
    folder = tmp_path_factory.mktemp("checkpoint")
    FaceEstimator(config, face_model=face_model).save_pretrained(folder)
    return folder


# What from_pretrained says of each "id" or "id@token", as JSON: "" where it loaded and saved again.
LOAD = """
    import json, sys
    from cest.configuration import CheckpointError
    from cest.modeling import FaceEstimator

    out, *names = sys.argv[1:]
    said = {}
    for name in names:
        id, _, token = name.partition("@")
        try:
            FaceEstimator.from_pretrained(id, token=token or None).save_pretrained(f"{out}/{id}")
            said[name] = ""
        except CheckpointError as error:
            said[name] = str(error)
    print(json.dumps(said))
"""


def test_a_pushed_model_is_what_is_loaded(hub, checkpoint, tmp_path):
    """create, upload, load: bit by bit; and again from the cache while the Hub is away."""
    code = """
        import sys
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo("tester/model", private=True)
        api.create_repo("tester/model", exist_ok=True)
        api.upload_folder(repo_id="tester/model", folder_path=sys.argv[1])
        assert api.whoami()["name"] == "tester"
        assert api.model_info("tester/model").private
        (weights,) = api.get_paths_info("tester/model", "model.safetensors")
        assert weights.lfs.size == weights.size
    """
    hub.client(code, checkpoint)
    assert hub.files("tester/model").keys() == {
        *(".gitattributes", "README.md", "config.json", "model.safetensors"),
    }
    expected = load_file(checkpoint / "model.safetensors")
    (said,) = hub.client(LOAD, tmp_path, "tester/model")
    found = load_file(tmp_path / "tester/model/model.safetensors")
    assert json.loads(said) == {"tester/model": ""} and expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    with hub.outage():
        (said,) = hub.client(LOAD, tmp_path, "tester/model")
    assert json.loads(said) == {"tester/model": ""}


def test_what_cannot_be_loaded_is_one_sentence(hub, checkpoint, tmp_path):
    weights, config = (
        (checkpoint / name).read_bytes() for name in ("model.safetensors", "config.json")
    )
    for name, files in {
        "cut-weights": {"model.safetensors": weights[:-100], "config.json": config},
        "cut-config": {"model.safetensors": weights, "config.json": config[:-20]},
        "no-config": {"model.safetensors": weights},
        "gated": {"model.safetensors": weights, "config.json": config},
        "secret": {"model.safetensors": weights, "config.json": config},
    }.items():
        for path, content in files.items():
            hub.put(f"tester/{name}", path, content)
    hub.repositories["model", "tester/gated"].gated = True
    hub.repositories["model", "tester/secret"].private = True
    expected = {
        "tester/cut-weights": "not a whole safetensors file",
        "tester/cut-config": "not readable JSON",
        "tester/no-config": r"tester/no-config has no config\.json on the Hub",
        "tester/gated": "tester/gated .* Hub",
        "tester/absent": "tester/absent .* Hub",
        "tester/secret@hf_revoked": "tester/secret .* Hub .* token",
    }
    (said,) = hub.client(LOAD, tmp_path, *expected)
    said = json.loads(said)
    for name, message in expected.items():
        assert re.search(message, said[name]) and "\n" not in said[name], said[name]


def test_reading_does_not_need_a_token_that_writes(hub):
    code = """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        api = HfApi()
        api.auth_check("tester/open")
        for attempt in (
            lambda: api.auth_check("tester/open", write=True),
            lambda: api.create_repo("tester/new"),
            lambda: api.upload_file(repo_id="tester/open", path_or_fileobj=b"", path_in_repo="x"),
        ):
            try:
                attempt()
            except HfHubHTTPError as error:
                print(error.response.status_code)
    """
    hub.put("tester/open", "config.json", b"{}")
    assert hub.client(code, token=READ) == ["403", "403", "403"]
    assert hub.messages("tester/open") == ["initial commit", "put config.json"]


def test_a_clip_set_is_read_by_its_id(hub, face_model, tmp_path):
    """Pushed as Parquet by the client; read whole and as a stream."""
    path = write_clips(tmp_path / "clips.parquet", face_model, clips=3, frames=2)
    code = """
        import json, sys
        from datasets import load_dataset
        from huggingface_hub import HfApi
        from cest.data import load_clips

        api = HfApi()
        api.create_repo("tester/clips", repo_type="dataset", exist_ok=True)
        api.upload_file(
            repo_id="tester/clips",
            repo_type="dataset",
            path_or_fileobj=sys.argv[1],
            path_in_repo="data/train-00000-of-00001.parquet",
        )
        print([row["clip_id"] for row in load_clips("tester/clips")])
        stream = load_dataset("tester/clips", split="train", streaming=True)
        print([(row["clip_id"], len(row["frames"])) for row in stream])
        for name in ("tester/absent", "tester/gated"):
            try:
                load_clips(name)
            except ValueError as error:
                print(str(error).count("\\n"), error)
    """
    hub.put("tester/gated", "data/train.parquet", path.read_bytes(), kind="dataset")
    hub.repositories["dataset", "tester/gated"].gated = True
    clips, stream, absent, gated = hub.client(code, path)
    assert clips == str([f"clip{i}" for i in range(3)])
    assert stream == str([(f"clip{i}", 2) for i in range(3)])
    assert absent.startswith("0 No clips could be read from 'tester/absent'")
    assert gated.startswith("0 No clips could be read from 'tester/gated'")
    assert hub.files("tester/clips", "dataset")["data/train-00000-of-00001.parquet"] == (
        path.read_bytes()
    )


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("unavailable", "HfHubHTTPError"),
        ("refused", "ConnectError"),
        ("silent", "ReadTimeout"),
        ("cut", "RemoteProtocolError"),
    ],
)
def test_an_outage_looks_like_one_and_ends(hub, kind, error):
    code = """
        from huggingface_hub import HfApi, get_session

        get_session().timeout = 0.5
        try:
            print(HfApi().whoami()["name"])
        except Exception as error:
            print(type(error).__name__)
    """
    with hub.outage(kind):
        assert hub.client(code) == [error]
    assert hub.client(code) == ["tester"]


def test_a_download_that_breaks_off_is_one_sentence(hub, checkpoint, tmp_path):
    for name in ("config.json", "model.safetensors"):
        hub.put("tester/breaks", name, (checkpoint / name).read_bytes())
    with hub.outage("cut", only="GET /tester/breaks/resolve/main/model.safetensors"):
        (said,) = hub.client(LOAD, tmp_path, "tester/breaks")
    assert "could not be loaded from the Hub" in said
