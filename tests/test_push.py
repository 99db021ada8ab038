"""A release goes to the Hub (its stand-in) and is used from there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import metadata_load
from safetensors.torch import load_file

from hub import READ, HubStandIn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "model_card"))

from push import REPOSITORIES, Upload, checkpoints, space  # noqa: E402

NAMES = [name for name in REPOSITORIES if (ROOT / "model_card" / name).is_dir()]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with HubStandIn(tmp_path_factory.mktemp("hub")) as hub:
        yield hub
        assert not hub.unknown


def push(hub: HubStandIn, *arguments: str, **token: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "model_card" / "push.py", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | hub.environment(**token),
    )


@pytest.fixture(scope="module")
def release(hub):
    """What is on the Hub after a first push."""
    result = push(hub, "--owner", "tester", "--space", "faces")
    assert result.returncode == 0, result.stderr
    return hub


def test_a_dry_run_lists_and_asks_nothing(hub):
    asked = hub.requests.total()
    result = push(hub, "--owner", "nobody", "--space", "faces", "--dry-run")
    assert result.returncode == 0, result.stderr
    listed = result.stdout.splitlines()
    for name in NAMES:
        assert any(line.startswith(f"model nobody/{REPOSITORIES[name]}: ") for line in listed)
    assert {"  app.py", "  model_card/cest/model.safetensors"} < set(listed)
    assert not any("__pycache__" in line for line in listed)
    assert hub.requests.total() == asked


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_goes_as_it_is_but_for_its_owner(release, name):
    """One commit, the folder's files; in the card the owner's name instead of OWNER."""
    repository = f"tester/{REPOSITORIES[name]}"
    assert release.messages(repository) == ["initial commit", "Release"]
    files = release.files(repository)
    del files[".gitattributes"]
    card = files.pop("README.md").decode()
    folder = ROOT / "model_card" / name
    original = (folder / "README.md").read_text()
    assert card == original.replace("OWNER/", "tester/") and repository in card
    assert files == {
        path.relative_to(folder).as_posix(): path.read_bytes().replace(b"OWNER/", b"tester/")
        if path.suffix == ".yaml"
        else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "README.md"
    }


def test_a_second_push_makes_no_commit(release):
    before = {key: len(found.commits) for key, found in release.repositories.items()}
    result = push(release, "--owner", "tester", "--space", "faces")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("nothing new") == len(NAMES) + 1
    assert {key: len(found.commits) for key, found in release.repositories.items()} == before


def test_what_the_project_no_longer_has_leaves_the_space(release):
    """Its own folders are kept as here; what somebody else put beside them stays."""
    for path in ("cest/old.py", "notes.txt"):
        release.put("tester/faces", path, b"", kind="space")
    assert push(release, "--owner", "tester", "--space", "faces").returncode == 0
    files = release.files("tester/faces", "space")
    assert "cest/old.py" not in files and "notes.txt" in files


def test_the_pushed_models_are_loaded_by_their_ids(release, tmp_path):
    code = """
        import sys
        from cest.modeling import FaceEstimator

        for name in ("cest-small", "iest-small"):
            FaceEstimator.from_pretrained(f"tester/{name}").save_pretrained(f"{sys.argv[1]}/{name}")
    """
    release.client(code, tmp_path)
    for name in ("cest", "iest"):
        expected = load_file(ROOT / "model_card" / name / "model.safetensors")
        found = load_file(tmp_path / REPOSITORIES[name] / "model.safetensors")
        assert expected.keys() == found.keys()
        assert all(expected[key].equal(found[key]) for key in expected)


def test_the_space_runs_on_what_it_was_given(release, tmp_path):
    """Downloaded into an empty folder it imports its own package and finds its own weights."""
    code = """
        import sys
        from huggingface_hub import snapshot_download

        snapshot_download("tester/faces", repo_type="space", local_dir=sys.argv[1])
        sys.path.insert(0, sys.argv[1])
        import app, cest.released

        for name in cest.released.RELEASED:
            print(cest.released.released_checkpoint(name))
        print(cest.__file__)
    """
    folder = tmp_path / "space"
    assert all(line.startswith(str(folder)) for line in release.client(code, folder))
    settings = metadata_load(folder / "README.md")
    assert settings["sdk"] == "gradio" and (folder / settings["app_file"]).is_file()


@pytest.mark.parametrize("token", [READ, "hf_revoked", ""])
def test_a_refusal_is_one_sentence(hub, token):
    result = push(hub, "--owner", "somebody", token=token)
    assert result.returncode == 1
    (sentence,) = result.stderr.splitlines()
    assert sentence.startswith("push.py: somebody/cest-small could not be pushed (")
    assert ("model", "somebody/cest-small") not in hub.repositories


def test_an_incomplete_checkpoint_is_not_pushed(tmp_path, monkeypatch):
    (tmp_path / "model_card" / "cest").mkdir(parents=True)
    (tmp_path / "model_card" / "cest" / "config.json").write_text("{}")
    monkeypatch.setattr("push.ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"lacks model\.safetensors, README\.md"):
        checkpoints("tester")


def test_results_go_along_in_their_owners_name(tmp_path, monkeypatch):
    """What release.py writes below a checkpoint's folder; other names stay."""
    folder = tmp_path / "model_card" / "cest"
    (folder / ".eval_results").mkdir(parents=True)
    for file in ("config.json", "model.safetensors", "picture.jpg"):
        (folder / file).write_bytes(b"OWNER/cest-small")
    (folder / "README.md").write_text("OWNER/cest-small, OWNER/cest-validation, OWNER/NAME")
    (folder / ".eval_results" / "clips.yaml").write_text("id: OWNER/cest-validation")
    monkeypatch.setattr("push.ROOT", tmp_path)
    (upload,) = checkpoints("me")
    assert upload.files["README.md"] == b"me/cest-small, me/cest-validation, OWNER/NAME"
    assert upload.files[".eval_results/clips.yaml"] == b"id: me/cest-validation"
    assert upload.files["picture.jpg"] == folder / "picture.jpg"


def test_the_size_counts_files_and_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert Upload("a/b", "model", {"x": b"123", "y": tmp_path / "file"}).size == 8


def test_what_the_spaces_pages_link_to_is_there():
    files = space("tester", "faces").files
    pages = [path for path in files if path == "README.md" or path.startswith("docs/")]
    links = [
        (Path(page).parent / link).as_posix()
        for page in pages
        if page.endswith(".md")
        for link in re.findall(r"]\((?!https?:|#)([^)#]+)", files[page].decode())
    ]
    assert len(links) > 8
    assert {os.path.normpath(link) for link in links} <= files.keys()
