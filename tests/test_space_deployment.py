"""What a Space on the Hub needs: the README's front matter, requirements, files that are there."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]

# https://huggingface.co/docs/hub/spaces-config-reference
KEYS = {
    "title": str,
    "emoji": str,
    "colorFrom": str,
    "colorTo": str,
    "sdk": str,
    "python_version": str,
    "sdk_version": str,
    "suggested_hardware": str,
    "suggested_storage": str,
    "app_file": str,
    "app_port": int,
    "base_path": str,
    "fullWidth": bool,
    "header": str,
    "short_description": str,
    "models": list,
    "datasets": list,
    "tags": list,
    "thumbnail": str,
    "pinned": bool,
    "hf_oauth": bool,
    "hf_oauth_expiration_minutes": int,
    "hf_oauth_scopes": list,
    "disable_embedding": bool,
    "startup_duration_timeout": str,
    "custom_headers": dict,
    "preload_from_hub": list,
    "license": str,
}
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


@pytest.fixture(scope="module")
def front_matter() -> dict:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert found, "README.md must begin with its front matter"
    return yaml.safe_load(found[1])


@pytest.fixture(scope="module")
def requirements() -> list[Requirement]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def test_front_matter_has_documented_keys_only(front_matter: dict) -> None:
    assert set(front_matter) <= set(KEYS)
    for key, value in front_matter.items():
        assert isinstance(value, KEYS[key]), f"{key} is {value!r}"
    assert front_matter["sdk"] == "gradio"
    assert {front_matter["colorFrom"], front_matter["colorTo"]} <= COLOURS
    assert len(front_matter["short_description"]) <= 60
    assert front_matter["license"] == "apache-2.0"
    assert (ROOT / front_matter["app_file"]).is_file()


def test_versions_agree(front_matter: dict, requirements: list[Requirement]) -> None:
    gradio = next(one for one in requirements if one.name == "gradio")
    assert front_matter["sdk_version"] in gradio.specifier
    settings = (ROOT / "pyproject.toml").read_text()
    wanted = SpecifierSet(re.search(r'requires-python = "(.*)"', settings)[1])
    assert f"{front_matter['python_version']}.0" in wanted


def test_requirements_are_installed_as_they_say(requirements: list[Requirement]) -> None:
    for requirement in requirements:
        assert requirement.specifier.contains(version(requirement.name).partition("+")[0]), str(
            requirement
        )
        assert requirement.url is None, f"{requirement} is not from the package index"


def test_the_pages_own_files_go_into_the_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["cest"]
    package = ROOT / "cest"
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    for path in (package / "space").iterdir():
        if path.suffix in (".js", ".css", ".html"):
            assert path in packed, f"{path.name} is not in package-data"
