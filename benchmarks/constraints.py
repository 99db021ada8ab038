"""What the constraints on the reflectance are for (paper, Fig. 4e): with and without them.

Trains the same tiny CEST twice on the same batches, once with both constraints and once with
none, and prints the held-out figures side by side. Without them the reflectance copies the
texture (its asymmetry and its change under relighting are the texture's) and the light is flat.

    python benchmarks/constraints.py --clips CLIPS --stills STILLS --validation CLIPS
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from cest.data import load_clips
from cest.evaluation import evaluate
from cest.modeling import FaceEstimator

ROOT = Path(__file__).parent.parent
FIGURES = (
    "photometric",
    "directional_light",
    "reflectance_asymmetry",
    "texture_asymmetry",
    "relit_reflectance",
    "relit_texture",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", required=True)
    parser.add_argument("--stills", required=True)
    parser.add_argument("--validation", required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--output", default=None, help="folder for the runs; default temporary")
    arguments = parser.parse_args()
    output = Path(arguments.output or tempfile.mkdtemp())
    results = {name: run(name, arguments, output) for name in ("both", "none")}
    print("| held-out figure | both constraints | none |\n|---|---|---|")
    for figure in FIGURES:
        print(f"| {figure} | {results['both'][figure]:.3f} | {results['none'][figure]:.3f} |")


def run(constraints: str, arguments: argparse.Namespace, output: Path) -> dict[str, float]:
    """Trains one model, or goes on with it, and returns its figures on the held-out clips."""
    folder = output / constraints
    subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1"),
            str(ROOT / "train" / "train.py"),
            *("--config", str(ROOT / "train" / "configs" / "small-cest.yaml")),
            f"output={folder}",
            f"clips={arguments.clips}",
            f"stills={arguments.stills}",
            "validation=",
            f"steps={arguments.steps}",
            *("model.image_size=64", "model.width=0.25", f"objective.constraints={constraints}"),
        ],
        check=True,
    )
    return evaluate(
        FaceEstimator.from_pretrained(folder / "model"), load_clips(arguments.validation)
    )


if __name__ == "__main__":
    main()
