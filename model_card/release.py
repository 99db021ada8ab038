"""Makes the folders of a release: weights, config and card, each as it goes to the Hub.

    python model_card/release.py --cest runs/small-cest/model --iest runs/small-iest/model \
        --validation CLIPS

Evaluates both on the held-out clips and writes model_card/cest and model_card/iest: the
checkpoint, its card and `evaluation.json`.
"""

import argparse
import json
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from cest.data import load_clips
from cest.evaluation import evaluate
from cest.modeling import FaceEstimator
from cest.networks import count_parameters

HERE = Path(__file__).parent
# Name, key of `cest.evaluation.evaluate`, decimals.
METRICS = (
    ("NME-68, %", "nme68", 2),
    ("NME-51, %", "nme51", 2),
    ("photometric, /255", "photometric", 2),
    ("reflectance asymmetry, /255", "reflectance_asymmetry", 2),
    ("reflectance change under relighting, /255", "relit_reflectance", 2),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cest", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--iest", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--validation", required=True, help="held-out clips")
    parser.add_argument("--owner", default="OWNER", help="on the Hub, for the cards' example")
    parser.add_argument("--training", type=Path, default=HERE / "training.md")
    parser.add_argument("--data", type=Path, default=HERE / "data.md")
    arguments = parser.parse_args()
    models = {
        name: FaceEstimator.from_pretrained(getattr(arguments, name)) for name in ("cest", "iest")
    }
    clips = load_clips(arguments.validation)
    figures = {name: evaluate(model, clips) for name, model in models.items()}
    for name, other in (("cest", "iest"), ("iest", "cest")):
        folder = HERE / name
        models[name].save_pretrained(folder)
        (folder / "evaluation.json").write_text(json.dumps(figures[name], indent=2) + "\n")
        card(
            models[name],
            arguments.owner,
            figures[name],
            figures[other],
            arguments.training.read_text().strip(),
            arguments.data.read_text().strip(),
        ).save(folder / "README.md")


def card(
    model: FaceEstimator,
    owner: str,
    figures: dict[str, float],
    other: dict[str, float],
    training: str,
    data: str,
) -> ModelCard:
    """The card of one checkpoint, from model_card/template.md.

    Args:
        model: what the card is of.
        owner: of its repository on the Hub.
        figures, other: evaluations of it and of its counterpart on the same clips.
        training, data: paragraphs on how and on what it was trained.
    """
    config = model.config
    name = config.conditioning
    counterpart = "iest" if name == "cest" else "cest"
    return ModelCard.from_template(
        ModelCardData(
            license="apache-2.0",
            library_name="cest",
            pipeline_tag="image-to-3d",
            tags=["3d-face-reconstruction", "relighting", "self-supervised", name],
        ),
        template_path=str(HERE / "template.md"),
        name=f"{name.upper()}, small",
        conditioning=name,
        image_size=config.image_size,
        width=config.width,
        parameters=f"{count_parameters(model) / 1e6:.1f} M",
        repo_id=f"{owner}/{name}-small",
        face_model_hash=config.face_model_hash,
        frames=figures["frames"],
        metrics=[
            {
                "name": label,
                "value": f"{figures[key]:.{digits}f}",
                "other": f"{other[key]:.{digits}f}",
            }
            for label, key, digits in METRICS
        ],
        other_name=counterpart.upper(),
        training=training,
        data=data,
    )


if __name__ == "__main__":
    main()
