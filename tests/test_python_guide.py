"""What docs/python.md shows can be typed in, one block after the other."""

import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs" / "python.md"


def test_every_block_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Image.open(files("cest") / "assets" / "astronaut.jpg") as photo:
        one = np.asarray(photo.convert("RGB"))
    Image.fromarray(np.concatenate((one, one[:, ::-1]), 1)).save(tmp_path / "photo.jpg")
    (tmp_path / "model_card").symlink_to(ROOT / "model_card")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CEST_DETECTOR", "embedded")
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    said: dict = {}
    for block in blocks:
        exec(block, said)
    assert len(said["faces"]) == 2 and said["closer"].refined == 50
    assert {"out", "turned", "overlay.png", "clay.png", "left.png", "above.png", "face.stl"} <= {
        path.name for path in tmp_path.iterdir()
    }
    # The amounts of actions do give the expression.
    again = said["directions"] @ said["amounts"]
    torch.testing.assert_close(again, said["expression"], atol=1e-4, rtol=1e-4)
    # Every attribute in its table is one.
    face = said["face"]
    rows = re.findall(r"^\| (`.*?) \|", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`(\w+)(?:\(\))?`", row)]
    assert len(names) > 10 and all(hasattr(face, name) for name in names)
