"""Puts a release on the Hub: the checkpoints with their cards, and the Space that shows them.

    python model_card/push.py --owner NAME --space cest --dry-run    lists what would go where
    python model_card/push.py --owner NAME --space cest              does it

Needs a token that may write there (`hf auth login`, or HF_TOKEN). A repository gets one commit, or
none if it has everything already. The Space brings its own code and weights, so that what runs
there is what was tested here, and it needs no token when the checkpoints are private.
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants

ROOT = Path(__file__).resolve().parent.parent
REPOSITORIES = {"cest": "cest-small", "iest": "iest-small", "segmenter": "face-segmenter"}
"""Folder under model_card/ and its repository's name; one that is not there is left out."""
DATASETS = {"clips": "cest-validation", "synthetic": "cest-synthetic"}
"""Protocol of a release's evaluation and the name that its data set goes by in the results."""
NAMING = (".md", ".yaml")
"""Endings of the files in which OWNER stands for the owner's name."""
CHECKPOINT = (constants.CONFIG_NAME, constants.SAFETENSORS_SINGLE_FILE, constants.REPOCARD_NAME)
SPACE = (
    *("README.md", "LICENSE", "NOTICE", "app.py", "requirements.txt"),
    *("docs/**/*.jpg", "docs/*.md", "cest/**/*"),
)


@dataclass(frozen=True)
class Upload:
    """A repository and what is to be in it.

    Attributes:
        id: "owner/name".
        kind: "model" or "space".
        files: contents, or where they are, by path in the repository.
        folders: paths that begin so belong to this project: what is there and not in ``files``
            is removed.
    """

    id: str
    kind: str
    files: dict[str, bytes | Path]
    folders: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(
            content.stat().st_size if isinstance(content, Path) else len(content)
            for content in self.files.values()
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--owner", required=True, help="user or organisation on the Hub")
    parser.add_argument("--space", metavar="NAME", help="name of the Space; without it none")
    parser.add_argument("--private", action="store_true", help="of repositories that are new")
    parser.add_argument("--dry-run", action="store_true", help="list the files and stop")
    arguments = parser.parse_args()
    try:
        uploads = checkpoints(arguments.owner)
        if arguments.space:
            uploads.append(space(arguments.owner, arguments.space))
    except OSError as error:
        sys.exit(f"push.py: {error}")
    for upload in uploads:
        print(f"{upload.kind} {upload.id}: {len(upload.files)} files, {upload.size / 1e6:.1f} MB")
        if arguments.dry_run:
            print(*(f"  {path}" for path in upload.files), sep="\n")
            continue
        try:
            print(f"  {push(HfApi(library_name='cest'), upload, arguments.private)}")
        except Exception as error:  # the client has its own, httpx2's, the disk's and others
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            sys.exit(
                f"push.py: {upload.id} could not be pushed ({reason}): check the name, your token "
                "(`hf auth login`) and the connection; the same command does what is left."
            )


def checkpoints(owner: str) -> list[Upload]:
    """The released checkpoints, each to a repository of its own.

    Raises:
        FileNotFoundError: one is incomplete.
    """
    uploads = []
    for name, repository in REPOSITORIES.items():
        folder = ROOT / "model_card" / name
        if not folder.is_dir():
            continue
        if missing := [file for file in CHECKPOINT if not (folder / file).is_file()]:
            raise FileNotFoundError(
                f"{folder} lacks {', '.join(missing)}: make it by model_card/release.py."
            )
        uploads.append(
            Upload(f"{owner}/{repository}", "model", _files(folder, folder.rglob("*"), owner))
        )
    return uploads


def space(owner: str, name: str) -> Upload:
    """The Gradio app with the package and the checkpoints."""
    paths = [path for pattern in SPACE for path in ROOT.glob(pattern)]
    paths += [path for folder in REPOSITORIES for path in ROOT.glob(f"model_card/{folder}/**/*")]
    return Upload(f"{owner}/{name}", "space", _files(ROOT, paths, owner), ("cest/", "model_card/"))


def _files(root: Path, paths: Iterable[Path], owner: str) -> dict[str, bytes | Path]:
    """Files by their path below ``root``; cards and results name their real owner."""
    found = sorted(path for path in paths if path.is_file() and "__pycache__" not in path.parts)
    return {
        path.relative_to(root).as_posix(): _owned(path, owner) if path.suffix in NAMING else path
        for path in found
    }


def _owned(path: Path, owner: str) -> bytes:
    text = path.read_text(encoding="utf-8")
    for repository in (*REPOSITORIES.values(), *DATASETS.values()):
        text = text.replace(f"OWNER/{repository}", f"{owner}/{repository}")
    return text.encode()


def push(api: HfApi, upload: Upload, private: bool) -> str:
    """Brings a repository up to date, creating it if need be; says what was done."""
    api.create_repo(
        upload.id,
        repo_type=upload.kind,
        private=private,
        exist_ok=True,
        space_sdk="gradio" if upload.kind == "space" else None,
    )
    before = api.repo_info(upload.id, repo_type=upload.kind).sha
    stale = [
        path
        for path in api.list_repo_files(upload.id, repo_type=upload.kind)
        if path.startswith(upload.folders) and path not in upload.files
    ]
    commit = api.create_commit(
        upload.id,
        [
            *(CommitOperationAdd(path, content) for path, content in upload.files.items()),
            *(CommitOperationDelete(path) for path in stale),
        ],
        repo_type=upload.kind,
        commit_message="Release",
    )
    return "nothing new" if commit.oid == before else commit.commit_url


if __name__ == "__main__":
    main()
