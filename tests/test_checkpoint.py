import pytest
import torch

from cest.checkpoint import write_atomically
from cest.configuration import CheckpointError
from cest.modeling import FaceEstimator
from cest.segmentation import FaceSegmenter, FaceSegmenterConfig


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda temporary: temporary.write_text("old"))

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_one_kind_of_checkpoint_is_not_taken_for_the_other(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "estimator")
    FaceSegmenter(FaceSegmenterConfig(width=2)).save_pretrained(tmp_path / "segmenter")
    with pytest.raises(CheckpointError, match="cest-face-segmenter"):
        FaceSegmenter.from_pretrained(tmp_path / "estimator")
    with pytest.raises(CheckpointError, match="cest-face-estimator"):
        FaceEstimator.from_pretrained(tmp_path / "segmenter")


def test_a_folder_that_lost_its_weights_is_refused(tmp_path):
    FaceSegmenter(FaceSegmenterConfig(width=2)).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        FaceSegmenter.from_pretrained(tmp_path)


def test_saving_again_loads_the_new_weights(tmp_path):
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = FaceSegmenter(FaceSegmenterConfig(width=2))
        model.save_pretrained(tmp_path)
    again = FaceSegmenter.from_pretrained(tmp_path)
    assert torch.equal(again.output.weight, model.output.weight)
