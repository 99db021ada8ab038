"""What the Hub reads: the Space's front matter and the checkpoints' cards."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData, metadata_load

ROOT = Path(__file__).parents[1]


def test_the_space_is_configured_as_the_hub_wants_it() -> None:
    settings = metadata_load(ROOT / "README.md")
    assert settings["sdk"] == "gradio"
    assert (ROOT / settings["app_file"]).is_file()
    assert len(settings["short_description"]) <= 60  # longer ones are refused
    assert settings["license"] == "apache-2.0"
    assert isinstance(settings["python_version"], str)  # 3.10 unquoted would be the number 3.1


def test_card_template_renders_for_both_models() -> None:
    for name, sentence in (("cest", "estimates one factor after the other"), ("iest", "control")):
        card = ModelCard.from_template(
            ModelCardData(license="apache-2.0", library_name="cest"),
            template_path=ROOT / "model_card" / "template.md",
            name=f"{name} small",
            conditioning=name,
            image_size=128,
            width=0.5,
            parameters="2.3 million",
            repo_id=f"owner/{name}",
            face_model_hash="0123456789abcdef",
            frames=506,
            metrics=[
                {"name": "NME-68", "value": "1.5", "other": "2.5"},
                {"name": "photometric", "value": "3.5", "other": "4.5"},
            ],
            other_name="the other",
            training="How long.",
            data="Which photos.",
        )
        text = str(card)
        assert card.data.to_dict()["library_name"] == "cest"
        assert sentence in text
        assert "| | NME-68 | photometric |\n|---|---|---|\n| this checkpoint | 1.5 | 3.5 |" in text
        assert "{{" not in text and "{%" not in text
