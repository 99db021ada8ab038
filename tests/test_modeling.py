import dataclasses
import json

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from cest.configuration import CheckpointError, FaceEstimatorConfig
from cest.geometry import canonical_crop
from cest.modeling import FaceEstimator


def test_first_rendering_is_the_mean_face_under_ambient_light(tiny_model):
    estimate = tiny_model(torch.rand(2, 3, 64, 64))
    assert estimate.viewpoint.abs().max() < 0.1
    assert estimate.shape_coefficients.abs().max() < 0.3
    ambient = estimate.illumination[:, 0]
    assert (estimate.illumination[:, 1:].abs() < 0.1 * ambient[:, None]).all()
    assert 0.25 < estimate.surface.coverage.mean() < 0.8


def test_conditioning_decides_what_the_networks_see(tiny_model):
    """CEST's networks get I∘v, T and (I, T, A); IEST's get I, all of them."""
    seen = {}
    for name, network in tiny_model.named_children():
        network.register_forward_pre_hook(
            lambda _module, inputs, name=name: seen.__setitem__(name, inputs[0])
        )
    image = torch.rand(1, 3, 64, 64)
    estimate = tiny_model(image)
    centred = 2 * image - 1
    torch.testing.assert_close(seen["viewpoint_network"], centred)
    if tiny_model.config.conditioning == "iest":
        for name in seen:
            torch.testing.assert_close(seen[name], centred)
        return
    crop = canonical_crop(centred, estimate.viewpoint)
    texture = (2 * estimate.illuminated_texture - 1) * estimate.texture_visibility
    reflectance = 2 * estimate.reflectance_map - 1
    torch.testing.assert_close(seen["shape_network"], crop)
    torch.testing.assert_close(seen["reflectance_network"], texture)
    torch.testing.assert_close(
        seen["illumination_network"], torch.cat((centred, texture, reflectance), 1)
    )


def test_every_parameter_gets_a_gradient(tiny_model):
    estimate = tiny_model.train()(torch.rand(4, 3, 64, 64))
    loss = sum(
        getattr(estimate, name).square().sum()
        for name in ("projected", "shape_coefficients", "reflectance_map", "illumination")
    )
    loss.backward()
    for name, parameter in tiny_model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_the_texture_does_not_move_the_face(tiny_model):
    """Reflectance and light depend on the texture, whose place follows from viewpoint and shape."""
    estimate = tiny_model(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    (estimate.reflectance_map.sum() + estimate.illumination.sum()).backward()
    for network in (tiny_model.viewpoint_network, tiny_model.shape_network):
        assert all(parameter.grad is None for parameter in network.parameters())


def test_wrong_image_size_is_refused(tiny_model):
    with pytest.raises(ValueError, match="64, 64"):
        tiny_model(torch.rand(1, 3, 128, 128))


def test_save_and_load_give_the_same_answers(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    again = FaceEstimator.from_pretrained(tmp_path)
    assert again.config == tiny_model.config
    assert not again.training
    image = torch.rand(1, 3, 64, 64)
    for name, value in vars(tiny_model(image)).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(again(image), name)), name


def test_the_card_says_how_to_use_it(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert "from cest import Reconstructor" in card.text
    assert f"A {tiny_model.config.conditioning.upper()} checkpoint" in card.text
    assert card.data.license == "apache-2.0"


@pytest.mark.parametrize(
    "changes",
    [{"image_size": 64.0}, {"image_size": "64"}, {"face_model_hash": 5}, {"face_model_level": 7}],
)
def test_configs_of_wrong_type_are_refused(saved, changes):
    change_config(saved, **changes)
    with pytest.raises(CheckpointError, match=next(iter(changes))):
        FaceEstimator.from_pretrained(saved)


def test_checkpoint_holds_no_face_model(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    assert {name.split(".")[0] for name in names} == {
        "viewpoint_network",
        "shape_network",
        "reflectance_network",
        "illumination_network",
    }


@pytest.fixture
def saved(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    return tmp_path


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_missing_weight_is_named(saved):
    tensors = load_file(saved / "model.safetensors")
    del tensors["shape_network.8.bias"]
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing \(shape_network\.8\.bias\)"):
        FaceEstimator.from_pretrained(saved)


def test_unexpected_and_misshapen_weights_are_named(saved):
    tensors = load_file(saved / "model.safetensors")
    tensors["head.weight"] = torch.zeros(3)
    tensors["shape_network.8.bias"] = torch.zeros(80)
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"head\.weight.*another shape.*shape_network"):
        FaceEstimator.from_pretrained(saved)


@pytest.mark.parametrize("length", [0, 7, 1000, -100])
def test_truncated_weights_are_refused(saved, length):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        FaceEstimator.from_pretrained(saved)


def test_another_face_model_is_refused(saved):
    change_config(saved, face_model_hash="0" * 64)
    with pytest.raises(CheckpointError, match="face model"):
        FaceEstimator.from_pretrained(saved)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"architectures": ["LlamaForCausalLM"]}', "another architecture"),
        ("[]", "another architecture"),
        ("{", "not readable JSON"),
    ],
)
def test_foreign_configs_are_refused(saved, content, message):
    (saved / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        FaceEstimator.from_pretrained(saved)


@pytest.mark.parametrize(
    "changes", [{"conditioning": "best"}, {"image_size": 100}, {"width": 0}, {"depth": 3}]
)
def test_impossible_configs_are_refused(saved, changes):
    change_config(saved, **changes)
    with pytest.raises(CheckpointError, match=next(iter(changes))):
        FaceEstimator.from_pretrained(saved)


def test_absent_checkpoints_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        FaceEstimator.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="neither a folder nor a Hub id"):
        FaceEstimator.from_pretrained(tmp_path / "absent")


def test_unreachable_hub_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"cannot be reached|could not be loaded"):
        FaceEstimator.from_pretrained("nobody/nothing", cache_dir=tmp_path)


def test_config_is_frozen_and_complete(tiny_model):
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_model.config.width = 2
    assert FaceEstimatorConfig.from_dict(tiny_model.config.to_dict(), "x") == tiny_model.config
    assert tiny_model.config.face_model_hash == tiny_model.face_model.content_hash
