"""What the Hub reads of the Space: its front matter."""

from pathlib import Path

from huggingface_hub import metadata_load

ROOT = Path(__file__).parents[1]


def test_the_space_is_configured_as_the_hub_wants_it() -> None:
    settings = metadata_load(ROOT / "README.md")
    assert settings["sdk"] == "gradio"
    assert (ROOT / settings["app_file"]).is_file()
    assert len(settings["short_description"]) <= 60  # longer ones are refused
    assert settings["license"] == "apache-2.0"
    assert isinstance(settings["python_version"], str)  # 3.10 unquoted would be the number 3.1
