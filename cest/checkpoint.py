"""Models as folders and Hub repositories: written whole or not at all, loaded strictly."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

from huggingface_hub import ModelCard, ModelHubMixin, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from cest.configuration import CheckpointError, ModelConfig


class PretrainedModel(nn.Module, ModelHubMixin):
    """A network whose weights and config are a folder: config.json and model.safetensors.

    A subclass names its configuration's class, takes a configuration as its constructor's first
    argument and keeps it as ``config``.
    """

    config_class: ClassVar[type[ModelConfig]]
    config: ModelConfig

    def generate_model_card(self, **details: object) -> ModelCard:
        """The card that save_pretrained writes where there is none."""
        return super().generate_model_card(**self.config.to_dict(), **details)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Writes model.safetensors and config.json, each whole or not at all.

        The mixin removes an old config.json before this, so a checkpoint that was being
        overwritten when the process died is refused as incomplete, not loaded half new.
        """
        tensors = {name: value.contiguous() for name, value in self.state_dict().items()}
        config = json.dumps(self.config.to_dict(), indent=2) + "\n"
        write_atomically(
            save_directory / constants.SAFETENSORS_SINGLE_FILE,
            lambda path: save_file(tensors, path, metadata={"format": "pt"}),
        )
        write_atomically(
            save_directory / constants.CONFIG_NAME, lambda path: path.write_text(config)
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **model_kwargs: Any,
    ) -> Self:
        """Loads a folder or a Hub repository ("owner/name"), in evaluation mode on the CPU.

        Args:
            pretrained_model_name_or_path: folder with config.json and model.safetensors, or
                a Hub id.
            revision, cache_dir, force_download, local_files_only, token: as in huggingface_hub.
            model_kwargs: what else the class's constructor takes.

        Raises:
            CheckpointError: files missing or damaged, another architecture, weights missing,
                unexpected or of another shape. Never loads part of a model.
        """
        source = str(pretrained_model_name_or_path)
        config_path, weights_path = (
            _find(
                source,
                name,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
            for name in (constants.CONFIG_NAME, constants.SAFETENSORS_SINGLE_FILE)
        )
        try:
            values = json.loads(config_path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{config_path} is not readable JSON ({error}): download the checkpoint again."
            ) from error
        model = cls(cls.config_class.from_dict(values, str(config_path)), **model_kwargs)
        model.load_weights(weights_path)
        return model.eval()

    def load_weights(self, path: str | Path) -> None:
        """Loads a safetensors file strictly.

        Raises:
            CheckpointError: naming what is missing, unexpected or of another shape.
        """
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is not a whole safetensors file ({error}): download it again."
            ) from error
        own = self.state_dict()
        problems = {
            "missing": sorted(own.keys() - tensors.keys()),
            "unexpected": sorted(tensors.keys() - own.keys()),
            "of another shape": sorted(
                name
                for name in own.keys() & tensors.keys()
                if own[name].shape != tensors[name].shape
            ),
        }
        found = [
            f"{len(names)} {kind} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for kind, names in problems.items()
            if names
        ]
        if found:
            raise CheckpointError(
                f"{path} does not fit its config.json: {'; '.join(found)}. Nothing was loaded."
            )
        self.load_state_dict(tensors)


def _find(source: str, name: str, **download: object) -> Path:
    """A checkpoint's file, from a folder or the Hub."""
    if os.path.isdir(source):
        path = Path(source) / name
        if not path.is_file():
            raise CheckpointError(
                f"{source} has no {name}: give a folder that save_pretrained wrote."
            )
        return path
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise CheckpointError(
            f"{source} is neither a folder nor a Hub id such as owner/name: check the spelling."
        )
    try:
        return Path(hf_hub_download(source, name, **download))
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{source} is not in the cache and the Hub cannot be reached: connect once, or give a "
            "local folder."
        ) from error
    except EntryNotFoundError as error:
        raise CheckpointError(f"{source} has no {name} on the Hub: is it a CEST model?") from error
    except GatedRepoError as error:
        raise CheckpointError(
            f"{source} is gated: ask for access on its page on the Hub, and log in by "
            "`hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{source} is not on the Hub, or it is private: check the spelling, or log in by "
            "`hf auth login`."
        ) from error
    except Exception as error:  # the client has its own, its HTTP library's, the disk's and others
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{source} could not be loaded from the Hub ({reason}): check the id, your token and "
            "the connection."
        ) from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls ``write(temporary)`` beside ``path`` and renames: a crash leaves the old file."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(temporary)
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
